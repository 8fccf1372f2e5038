"""Every registered learner, driven through all its stages as the learner's role drives it: it stays finite, resumes bit
by bit after any update, and publishes policies that can be rebuilt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from raydiff.agents.api import Agent
from raydiff.agents.policy import Policy
from raydiff.agents.registry import ALGORITHMS, build_agent
from raydiff.config_learner import LearnerConfig
from raydiff.replay.table import Table
from raydiff.types import Batch, Transitions

OBSERVATION, ACTION, UPDATES = 3, 2, 12

SMALL = {
    "width": 16,
    "blocks": 2,
    "energy_hidden": (16,),
    "support_actions": 3,
    "support_steps": 3,
    "penalty_actions": 2,
    "samples": 2,
    "candidates": 3,
    "temperature": 1.0,
    "ema_start": 2,
    "ema_every": 2,
}
"""Options that make a learner small, or its rare events frequent, for every algorithm that has them."""

VARIANTS = [
    ("td3_bc", {"order": "pgd"}),
    ("swg", {"order": "joint", "weight": "linex"}),
    ("diffusion_ql", {"variant": "efficient", "solver_steps": 3, "max_q_backup": True}),
    ("cql", {"lagrange": True}),
    ("aepo", {"critic": "cql"}),
    ("aepo", {"critic": "isql"}),
    ("aepo", {"energy": "direct"}),
]
"""Options with which an algorithm has other stages, parts or random draws."""


def table(seed: int, rows: int) -> Table:
    """Random transitions in units that are not standard, with terminals and the actions that follow."""
    random = np.random.default_rng(seed)
    return Table.from_transitions(
        Transitions(
            observation=random.normal(2.0, 3.0, (rows, OBSERVATION)),
            action=random.uniform(-1, 1, (rows, ACTION)),
            reward=random.normal(size=rows),
            next_observation=random.normal(2.0, 3.0, (rows, OBSERVATION)),
            terminal=(random.random(rows) < 0.2).astype(float),
            next_action=random.uniform(-1, 1, (rows, ACTION)),
        ),
        next_action=True,
    )


REAL, SYNTHETIC = table(0, 48), table(1, 16)


def agent(algorithm: str, seed: int = 0, publish_critic: bool = False, settings: dict[str, Any] | None = None) -> Agent:
    options = getattr(LearnerConfig(), algorithm)
    small = {name: value for name, value in SMALL.items() if name in type(options).model_fields}
    config = LearnerConfig.model_validate(
        {"algorithm": algorithm, "hidden": (16, 16), "updates": UPDATES, algorithm: small | (settings or {})}
    )
    observation = REAL.split(REAL.records).observation
    return build_agent(config, OBSERVATION, ACTION, observation.mean(0), observation.std(0), seed, publish_critic)


def batch(update: int) -> Batch:
    """Rows of the real table and others."""
    generator = torch.Generator().manual_seed(update)
    return REAL.split(torch.cat([REAL.gather(24, generator)[0], SYNTHETIC.gather(8, generator)[0]]))


def train(learner: Agent, start: int = 0, stop: int = UPDATES) -> list[dict[str, torch.Tensor]]:
    """The updates from ``start`` up to ``stop``; the stage of the first is begun, whether it is its first or not."""
    stages = [stage.name for stage in learner.stages() for _ in range(stage.updates)]
    metrics, entered = [], None
    for update in range(start, stop):
        if stages[update] != entered:
            entered = stages[update]
            learner.begin_stage(entered, REAL)
        metrics.append(learner.update(batch(update)))
    return metrics


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_metrics_are_finite_scalars_without_a_graph(algorithm: str) -> None:
    for metrics in train(agent(algorithm)):
        for name, value in metrics.items():
            assert value.shape == (), name
            assert not value.requires_grad, name
            assert torch.isfinite(value), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_stage_has_its_updates_and_changes_the_state(algorithm: str) -> None:
    learner, done = agent(algorithm), 0
    assert sum(stage.updates for stage in learner.stages()) == UPDATES
    for stage in learner.stages():
        assert stage.updates > 0
        before = learner.state_dict()
        train(learner, done, done + stage.updates)
        done += stage.updates
        changed = [key for key, tensor in learner.state_dict().items() if not torch.equal(tensor, before[key])]
        assert set(changed) > {"updates"}
    with pytest.raises(ValueError, match="no_such_stage"):
        learner.begin_stage("no_such_stage", REAL)


@pytest.mark.parametrize(("algorithm", "settings"), [(algorithm, {}) for algorithm in ALGORITHMS] + VARIANTS)
def test_training_resumes_bit_by_bit_after_any_update(algorithm: str, settings: dict[str, Any]) -> None:
    """Through the bytes of a file, into a learner of another seed."""
    states, whole = [], agent(algorithm, settings=settings)
    stages = [stage.name for stage in whole.stages() for _ in range(stage.updates)]
    for update in range(UPDATES):
        if update == 0 or stages[update] != stages[update - 1]:
            whole.begin_stage(stages[update], REAL)
        states.append((save(whole.state_dict()), whole.policy_blob(update).checksum))
        whole.update(batch(update))
    for update, (state, checksum) in enumerate(states):
        resumed = agent(algorithm, seed=99, settings=settings)
        resumed.load_state_dict(load(state))
        assert resumed.policy_blob(update).checksum == checksum
        train(resumed, update)
        found = resumed.state_dict()
        assert whole.state_dict().keys() == found.keys()
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, found[key]), f"{key} after resuming at update {update}"
        assert resumed.policy_blob(UPDATES).checksum == whole.policy_blob(UPDATES).checksum


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seeds_differ_and_repeat(algorithm: str) -> None:
    checksums = []
    for seed in (0, 0, 1):
        learner = agent(algorithm, seed)
        train(learner)
        checksums.append(learner.policy_blob(UPDATES).checksum)
    assert checksums[0] == checksums[1] != checksums[2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("publish_critic", [False, True])
def test_policies_of_all_stages_can_be_rebuilt_and_act(algorithm: str, publish_critic: bool) -> None:
    learner, done = agent(algorithm, publish_critic=publish_critic), 0
    states = torch.randn(7, OBSERVATION, generator=torch.Generator().manual_seed(1)) * 3 + 2
    for stage in learner.stages():
        train(learner, done, done + stage.updates)
        done += stage.updates
        blob = learner.policy_blob(done)
        assert blob.version == done
        policy = Policy.from_blob(blob)
        copy = Policy.from_blob(policy.to_blob(done))
        assert policy.to_blob(done).checksum == blob.checksum
        assert policy.has_critic >= publish_critic
        for deterministic in (True, False):
            one, other = (each.act(states, deterministic, torch.Generator().manual_seed(2)) for each in (policy, copy))
            assert one.shape == (7, ACTION)
            assert np.isfinite(one).all()
            assert np.abs(one).max() <= 1
            np.testing.assert_array_equal(one, other)
        if publish_critic:
            assert torch.isfinite(policy.value(states, torch.from_numpy(one))).all()
