"""Updates as CUDA graphs against plain ones, on a GPU."""

from __future__ import annotations

import pytest
import torch

from raydiff.agents.members import build_members
from raydiff.config_learner import LearnerConfig
from raydiff.errors import UserError
from raydiff.presets import validate
from raydiff.types import Batch

STATES, ACTIONS, ROWS = 5, 2, 64


@pytest.mark.gpu
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_recorded_updates_equal_plain_ones(algorithm: str, seeds: int) -> None:
    """Beyond the warm-up and the recording, with learning rates that change (IQL's actor)."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    learners = []
    for cuda_graph in (False, True):
        settings = {"algorithm": algorithm, "updates": 50, "device": "cuda", "cuda_graph": cuda_graph, "seeds": seeds}
        config = LearnerConfig.model_validate({**settings, "hidden": (32, 32)})
        statistics = torch.zeros(STATES), torch.ones(STATES)
        learners.append(build_members(config, STATES, ACTIONS, *statistics, range(seeds)))
    plain, recorded = learners
    lead = (seeds, ROWS) if seeds > 1 else (ROWS,)
    for _ in range(20):
        observation, following = (torch.randn(*lead, STATES, device="cuda") for _ in range(2))
        action = torch.rand(*lead, ACTIONS, device="cuda") * 2 - 1
        batch = Batch(
            observation, action, torch.randn(lead, device="cuda"), following, torch.zeros(lead, device="cuda")
        )
        expected, found = plain.update(batch), recorded.update(batch)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cuda_graph": True}, "learner.cuda_graph wants a gpu"),
        ({"cuda_graph": True, "algorithm": "cql", "device": "cuda"}, "is there for td3_bc and iql, not for cql"),
        ({"precision": "bfloat16", "algorithm": "swg"}, "is there for td3_bc and iql, not for swg"),
        ({"batch_seeds": "on", "algorithm": "rebrac"}, "is there for td3_bc and iql, not for rebrac"),
    ],
)
def test_switches_that_a_learner_lacks_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        validate({"learner": values}, "the test")
