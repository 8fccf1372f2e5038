"""Compiled updates against plain ones: the same draws, the same results up to the order of sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydiff.agents.batchable import Batchable
from raydiff.agents.compiled import compiled
from raydiff.agents.registry import build_agent
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch

STATES, ACTIONS, ROWS = 3, 2, 16
SMALL = {"width": 8, "blocks": 2, "energy_hidden": (8,), "samples": 2, "steps": 2}


@pytest.fixture(autouse=True)
def settings_of_the_compiler() -> Any:
    """Those that ``compiled`` changes for the whole process."""
    before = torch._dynamo.config.trace_autograd_ops, torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops, torch._dynamo.config.recompile_limit = before


def learner(algorithm: str) -> Any:
    options = type(getattr(LearnerConfig(), algorithm)).model_fields
    small = {name: value for name, value in SMALL.items() if name in options}
    values = {"algorithm": algorithm, "hidden": (8, 8), "updates": 100, algorithm: small}
    config = LearnerConfig.model_validate(values)
    made = build_agent(config, STATES, ACTIONS, torch.zeros(STATES), torch.ones(STATES), 3)
    made.begin_stage(made.stages()[0].name, None)
    return made


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        Batch(normal(ROWS, STATES), normal(ROWS, ACTIONS).tanh(), normal(ROWS), normal(ROWS, STATES),
              (torch.rand(ROWS, generator=generator) < 0.2).float(), normal(ROWS, ACTIONS).tanh())
        for _ in range(count)
    ]  # fmt: skip


def check(algorithm: str, backend: str, updates: int, start: int = 0) -> None:
    """``start``: updates that count as done, for the rates and stages of later ones."""
    plain, fast = learner(algorithm), learner(algorithm)
    for made in (plain, fast):
        made.updates = start
    update = fast.update
    if isinstance(fast, Batchable):
        fast.program = compiled(fast.program, backend)
    else:
        update = compiled(fast.update, backend)
    for batch in batches(updates):
        expected, found = plain.update(batch), update(batch)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    state = fast.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(
            state[name], value, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
@pytest.mark.timeout(240)
def test_compiled_updates_equal_plain_ones(algorithm: str) -> None:
    check(algorithm, "inductor", 4)


@pytest.mark.parametrize("algorithm", ["cql", "rebrac", "swg"])
@pytest.mark.timeout(120)
def test_other_learners_pass_the_compilers_front(algorithm: str) -> None:
    """Captured and differentiated as for a compilation; the graphs run as they are."""
    check(algorithm, "aot_eager", 2)


@pytest.mark.timeout(120)
def test_learning_rates_that_change_reach_a_compiled_step() -> None:
    """SWG's behaviour stage sets its rate in the update itself, along a cosine."""
    check("swg", "aot_eager", 3, start=70)
