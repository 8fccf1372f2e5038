"""A loss that is not finite stops a run, and the update where it began can be done again, bit by bit."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.members import Single
from raydiff.cli import main
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.errors import UserError
from raydiff.roles.bad_states import BadUpdate, Rewind
from raydiff.roles.learner import Learner
from raydiff.roles.repeat_update import repeat
from raydiff.roles.stages import stage_at
from raydiff.types import Batch, PolicyBlob

Build = Callable[..., Config]
DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def poisoned(config: Config, dataset: Dataset, row: int = 17) -> Learner:
    """A learner on real data of which one reward is infinite."""
    real = dataset.transitions(config.data.semantics, config.learner.needs_next_action)
    reward = real.reward.copy()
    reward[row] = np.inf
    return Learner(config, replace(real, reward=reward), "alone")


def fail(learner: Learner, chunk: int) -> BadUpdate:
    try:
        while learner.update < 1000:
            learner.train(chunk)
    except BadUpdate as bad:
        return bad
    raise AssertionError("nothing went wrong")


@pytest.mark.parametrize("chunk", [7, 60])
def test_the_first_bad_update_is_found_with_the_state_before_it(
    role_config: Build, role_dataset: Dataset, chunk: int
) -> None:
    config = role_config(**{"generator.count": 0, "learner.batch_size": 4, "learner.chunk": chunk})
    bad = fail(poisoned(config, role_dataset), chunk)
    twin = poisoned(config, role_dataset)
    before = done = 0
    while True:  # the same batches, drawn chunk by chunk, and every update looked at
        batches, _ = twin.mixtures[0].chunk(chunk, done, twin.generators[0])
        for batch in batches:
            if done == 0:
                twin.agent.begin_stage("train", twin.real)
            state = twin.agent.state_dict()
            losses = twin.agent.update(batch)
            done += 1
            if not all(math.isfinite(float(value)) for value in losses.values()):
                before = done
                break
        if before:
            break
    assert bad.header["update"] == before > 1
    assert "critic_loss" in bad.header["non_finite"]
    assert "1 of reward that are not finite" in str(bad)
    for name, value in state.items():
        assert torch.equal(bad.tensors[f"state.{name}"], value), name
    for name, value in batch._asdict().items():
        assert value is None or torch.equal(bad.tensors[f"batch.{name}"], value), name


SETTINGS: dict[str, dict[str, Any]] = {
    "td3_bc": {},
    "iql": {},
    "rebrac": {},  # whose batches hold the next actions
    "swg": {"width": 16, "blocks": 2, "critic_share": 0.9},
    # What these critics learn from is drawn once for each observation of the data, when a batch first holds it.
    "aepo": {"critic": "isql", "width": 16, "blocks": 1, "energy_hidden": [16], "steps": 2, "behaviour_share": 0.05,
             "critic_share": 0.9},
    "qgpo": {"width": 16, "blocks": 1, "energy_hidden": [16], "steps": 2, "support_steps": 2, "support_actions": 3,
             "behaviour_share": 0.05},
}  # fmt: skip


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_a_saved_update_comes_out_again_bit_by_bit(
    role_config: Build, role_dataset: Dataset, tmp_path: Path, algorithm: str
) -> None:
    small = {f"learner.{algorithm}.{key}": value for key, value in SETTINGS[algorithm].items()}
    config = role_config(**{"generator.count": 0, "learner.batch_size": 16, "learner.algorithm": algorithm, **small})
    bad = fail(poisoned(config, role_dataset), 25)
    path = bad.save(tmp_path, "alone")
    assert path == tmp_path / "bad_states" / f"alone-update-{bad.header['update']}.safetensors"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    found = repeat(path)
    assert found.exact
    assert not all(math.isfinite(value) for value in found.metrics.values())
    assert all(torch.equal(found.before[name], bad.tensors[f"state.{name}"]) for name in found.before)
    assert any(not value.isfinite().all() for value in found.after.values() if value.is_floating_point())
    assert repeat(path).metrics.keys() == found.metrics.keys()


class Growing:
    """An agent whose one weight grows 5.9-fold with every update: it overflows in the fiftieth, and only the loss of the
    next one shows it."""

    publish_critic = False

    def __init__(self) -> None:
        self.weight = torch.ones(())

    def stages(self) -> list[Stage]:
        return [Stage("first", 20), Stage("second", 80)]

    def begin_stage(self, name: str, table: Any) -> None:
        self.stage = name

    def update(self, batch: Batch) -> dict[str, Tensor]:
        loss = self.weight - self.weight
        self.weight = self.weight * 5.9
        return {"loss": loss}

    def policy_blob(self, version: int) -> PolicyBlob:
        return PolicyBlob.pack(version, {}, self.weight[None].numpy())

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight.clone(), "unset": torch.tensor(torch.inf)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.weight = state["weight"].clone()


def test_a_weight_that_overflowed_in_the_span_before_is_found(role_config: Build) -> None:
    agent, rewind = Single(Growing()), Rewind()
    batch = Batch(*(torch.zeros(2, 1),) * 2, torch.zeros(2), torch.zeros(2, 1), torch.zeros(2))
    done, stage = 0, -1
    for _ in range(6):
        rewind.keep(agent, done, stage, [batch] * 10)  # type: ignore[arg-type]
        for _ in range(10):
            stage = stage_at(agent.stages(), done)
            loss = agent.update(batch)["loss"]
            done += 1
        if not loss.isfinite():
            break
    assert done == 60

    class Recipe:
        config, observation_mean, observation_std = role_config(), np.zeros(1), np.ones(1)
        build = staticmethod(lambda: Single(Growing()))

    bad = rewind.find(Recipe, agent.stages(), None, "x")  # type: ignore[arg-type]
    assert bad is not None
    assert (bad.header["update"], bad.header["non_finite"], bad.header["stage"]) == (50, ["weight"], "second")
    assert float(bad.tensors["state.weight"]) == pytest.approx(5.9**49, rel=1e-4)
    assert "update 50 (second)" in str(bad)


def test_what_does_not_go_wrong_again_is_said(role_config: Build, role_dataset: Dataset) -> None:
    role = Learner(role_config(**{"generator.count": 0}), role_dataset.transitions("raydiff"), "alone")
    role.train(5)
    with torch.no_grad():
        role.agent.agent.critic.flat.fill_(float("nan"))  # type: ignore[attr-defined]  # as nothing in a run would
    with pytest.raises(
        FloatingPointError, match=r"alone: .*critic_loss.*, but did not when the last updates were repea"
    ):
        role.train(5)


def test_stages_by_update() -> None:
    stages = [Stage("a", 3), Stage("b", 0), Stage("c", 2)]
    assert [stage_at(stages, update) for update in range(7)] == [0, 0, 0, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def raydiff(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, str, str]]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        patch.setattr(sys, "argv", ["raydiff", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield run


DIVERGING = [
    "scale=tiny", "arms={}", "data.environment=Pendulum-v1", "data.transitions=600", "generator.count=0",
    "refiner.count=0", "audit.count=0", "learner.updates=100", "learner.chunk=25", "learner.hidden=[16,16]",
    "learner.batch_size=16", "learner.learning_rate=1e18",
]  # fmt: skip


def test_a_run_names_the_file_and_the_command_repeats_it(
    raydiff: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = raydiff("train", DEMO, "--runtime", "local", *DIVERGING, f"output={tmp_path}", "name=x")
    (path,) = (tmp_path / "x" / "bad_states").iterdir()
    assert code == 1
    assert f"--replay-batch {path} repeats that update" in err
    assert "real_only: critic_loss" in err
    assert len([line for line in err.splitlines() if "run failed" in line]) == 1
    code, out, err = raydiff("train", "--replay-batch", path)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "real_only, td3_bc, stage train, update" in text
    assert "bit by bit" in text
    assert "critic_optimizer.0.first_moment" in text
    assert "next_observation 16 x 3" in text


def test_other_files_are_refused(raydiff: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    cases = [
        (["train", "--replay-batch", tmp_path / "none"], "There is no file"),
        (["train", "--replay-batch", tmp_path / "text"], "is not an update that a run of raydiff saved"),
        (["train", DEMO, "--replay-batch", tmp_path / "text"], "goes without a configuration"),
        (["train", "seed=3", "--replay-batch", tmp_path / "text"], "goes without a configuration"),
    ]
    for arguments, said in cases:
        code, out, err = raydiff(*arguments)
        assert (code, out) == (2, "")
        assert said in err


def test_a_state_of_another_version_is_refused(role_config: Build, role_dataset: Dataset, tmp_path: Path) -> None:
    config = role_config(**{"generator.count": 0})
    bad = fail(poisoned(config, role_dataset), 25)
    del bad.tensors["state.critic"]
    with pytest.raises(UserError, match=r"cannot be repeated here .*critic"):
        repeat(bad.save(tmp_path, "alone"))
