"""Seeds that are trained together: each member is the learner of its seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.agents.api import Agent
from raydiff.agents.members import Members, Single, build_members, part_of
from raydiff.agents.registry import ALGORITHMS, build_agent
from raydiff.config_learner import LearnerConfig
from raydiff.replay.table import Table
from raydiff.types import Batch, Transitions

OBSERVATION, ACTION, ROWS, UPDATES = 3, 2, 40, 8
SEEDS = (11, 12, 13)
SMALL = {
    "width": 16, "blocks": 2, "energy_hidden": (16,), "support_actions": 3, "support_steps": 3, "penalty_actions": 2,
    "samples": 2, "candidates": 3, "temperature": 1.0, "steps": 3,
}  # fmt: skip


def table() -> Table:
    random = np.random.default_rng(0)
    rows = {"observation": (ROWS, OBSERVATION), "next_observation": (ROWS, OBSERVATION), "action": (ROWS, ACTION)}
    parts = {name: random.uniform(-1, 1, shape) for name, shape in rows.items()}
    parts["reward"], parts["next_action"] = random.normal(size=ROWS), random.uniform(-1, 1, (ROWS, ACTION))
    return Table.from_transitions(
        Transitions(terminal=(random.random(ROWS) < 0.2).astype(float), **parts), next_action=True
    )


REAL = table()


def config(algorithm: str) -> LearnerConfig:
    options = type(getattr(LearnerConfig(), algorithm)).model_fields
    small = {name: value for name, value in SMALL.items() if name in options}
    values = {"algorithm": algorithm, "hidden": (16, 16), "updates": UPDATES, "seeds": 3, algorithm: small}
    return LearnerConfig.model_validate(values)


def statistics() -> tuple[torch.Tensor, torch.Tensor]:
    observation = REAL.split(REAL.records).observation
    return observation.mean(0), observation.std(0)


def together(algorithm: str, seeds: tuple[int, ...] = SEEDS) -> Members:
    return build_members(config(algorithm), OBSERVATION, ACTION, *statistics(), seeds, algorithm == "td3_bc")


def alone(algorithm: str, seed: int) -> Agent:
    return build_agent(config(algorithm), OBSERVATION, ACTION, *statistics(), seed, algorithm == "td3_bc")


def batch(update: int) -> Batch:
    """Other rows for each member, ``[N, B, ...]``."""
    generator = torch.Generator().manual_seed(update)
    return REAL.split(torch.stack([REAL.gather(16, generator)[0] for _ in SEEDS]))


def train(learner: Members | Agent, start: int, stop: int, member: int | None = None) -> list[dict[str, torch.Tensor]]:
    stages = [stage.name for stage in learner.stages() for _ in range(stage.updates)]
    metrics, entered = [], None
    for update in range(start, stop):
        if stages[update] != entered:
            entered = stages[update]
            learner.begin_stage(entered, REAL)
        metrics.append(learner.update(batch(update) if member is None else part_of(batch(update), member)))
    return metrics


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_member_is_the_learner_of_its_seed(algorithm: str) -> None:
    members = together(algorithm)
    joint = train(members, 0, UPDATES)
    blobs = members.policy_blobs(UPDATES)
    assert len({blob.checksum for blob in blobs}) == len(SEEDS)
    for member, seed in enumerate(SEEDS):
        learner = alone(algorithm, seed)
        own = train(learner, 0, UPDATES, member)
        assert all(same({k: v[member] for k, v in a.items()}, b) for a, b in zip(joint, own, strict=True))
        assert same(members.member_state(member), learner.state_dict())
        blob = learner.policy_blob(UPDATES)
        assert (blobs[member].checksum, blobs[member].spec) == (blob.checksum, blob.spec)


@pytest.mark.parametrize("algorithm", ["td3_bc", "aepo"])
def test_members_go_on_bit_by_bit(algorithm: str) -> None:
    through, first, second = together(algorithm), together(algorithm), together(algorithm, (1, 2, 3))
    expected = train(through, 0, UPDATES)[5:]
    train(first, 0, 5)
    state = first.state_dict()
    stages = [stage.name for stage in second.stages() for _ in range(stage.updates)]
    second.begin_stage(stages[4], REAL)
    second.load_state_dict(state)
    for known, found in zip(expected, train(second, 5, UPDATES), strict=True):  # without what earlier updates left
        assert same({name: known[name] for name in found}, found)
    assert same(through.state_dict(), second.state_dict())


def test_states_are_copies_and_those_of_others_are_refused() -> None:
    members = together("td3_bc")
    state = members.state_dict()
    held = {name: value.clone() for name, value in state.items()}
    train(members, 0, 2)
    assert same(state, held)
    for other in (
        together("iql").state_dict(),
        together("td3_bc", (1, 2)).state_dict(),
        alone("td3_bc", 1).state_dict(),
    ):
        with pytest.raises(ValueError, match="belongs to another learner"):
            members.load_state_dict(other)
    with pytest.raises(ValueError, match="belongs to another learner"):
        together("td3_bc", (1, 2)).load_state_dict(state)


def test_a_single_seed_is_the_agent_itself() -> None:
    single, learner = together("iql", (5,)), alone("iql", 5)
    assert isinstance(single, Single)
    assert single.update.__self__ is single.agent  # type: ignore[attr-defined]  # nothing stands between
    assert all(same(a, b) for a, b in zip(train(single, 0, 4, 0), train(learner, 0, 4, 0), strict=True))
    assert same(single.member_state(0), learner.state_dict())
    assert [blob.checksum for blob in single.policy_blobs(4)] == [learner.policy_blob(4).checksum]


def test_stages_are_begun_by_all() -> None:
    with pytest.raises(ValueError, match="has one stage"):
        together("td3_bc").begin_stage("other", REAL)
