"""What every registered learner must keep: it resumes bit by bit, depends on its seed, and has stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydiff.agents.api import Agent
from raydiff.agents.registry import ALGORITHMS, build_agent
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch

OBSERVATION, ACTION = 4, 2


def agent(algorithm: str, seed: int = 0, hidden: tuple[int, ...] = (16, 16)) -> Agent:
    config = LearnerConfig(algorithm=algorithm, hidden=hidden, updates=40)
    return build_agent(config, OBSERVATION, ACTION, np.ones(OBSERVATION), np.full(OBSERVATION, 2.0), seed)


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, 32, OBSERVATION, generator=generator)
    action = torch.rand(32, ACTION, generator=generator) * 2 - 1
    reward, following = torch.randn(32, generator=generator), action.flip(0)
    return Batch(states[0], action, reward, states[1], torch.zeros(32), following)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_training_is_bit_equal(algorithm: str, tmp_path: Path) -> None:
    whole = agent(algorithm)
    for step in range(21):
        whole.update(batch(step))

    first = agent(algorithm)
    for step in range(11):  # odd: the delayed actor update must not shift
        first.update(batch(step))
    save_file(first.state_dict(), tmp_path / "agent.safetensors")
    second = agent(algorithm, seed=99)
    second.load_state_dict(load_file(tmp_path / "agent.safetensors"))
    for step in range(11, 21):
        second.update(batch(step))

    expected, found = whole.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key
    np.testing.assert_array_equal(whole.policy_blob(0).weights, second.policy_blob(0).weights)
    assert int(found["updates"]) == 21
    steps = [int(count) for key, count in found.items() if key.endswith("_optimizer.0.step")]
    assert sum(steps) >= 21, "every update moves some network"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_state_is_a_copy(algorithm: str) -> None:
    learner = agent(algorithm)
    state = learner.state_dict()
    before = {key: tensor.clone() for key, tensor in state.items()}
    learner.update(batch(0))
    for key, tensor in before.items():
        assert torch.equal(state[key], tensor), key
    after = learner.state_dict()
    assert any(not torch.equal(after[key], tensor) for key, tensor in before.items() if key != "updates")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_foreign_state_is_refused_and_changes_nothing(algorithm: str) -> None:
    learner = agent(algorithm)
    before = learner.policy_blob(0).checksum
    with pytest.raises(ValueError, match=r"another learner.*critic"):
        learner.load_state_dict(agent(algorithm, hidden=(8,)).state_dict())
    incomplete = agent(algorithm, seed=1).state_dict()
    del incomplete["critic_target"]
    with pytest.raises(ValueError, match="critic_target"):
        learner.load_state_dict(incomplete)
    assert learner.policy_blob(0).checksum == before


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_decides_everything(algorithm: str) -> None:
    blobs = []
    for seed in (0, 0, 1):
        learner = agent(algorithm, seed)
        for step in range(4):
            learner.update(batch(step))
        blobs.append(learner.policy_blob(4))
    assert blobs[0].checksum == blobs[1].checksum != blobs[2].checksum
    assert blobs[0].version == 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_stages(algorithm: str) -> None:
    learner = agent(algorithm)
    assert sum(stage.updates for stage in learner.stages()) == 40
    for stage in learner.stages():
        learner.begin_stage(stage.name, None)
    with pytest.raises(ValueError, match="diffusion"):
        learner.begin_stage("diffusion", None)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learner_normalises_its_batches(algorithm: str) -> None:
    """Raw data and its statistics give the update that normalised data give without normalisation."""
    mean, std = np.linspace(-3, 3, OBSERVATION), np.linspace(0.5, 4, OBSERVATION)
    config = LearnerConfig(algorithm=algorithm, hidden=(16,))
    raw = build_agent(config, OBSERVATION, ACTION, mean, std, 0)
    plain_config = config.model_copy(update={"normalize_observations": False})
    plain = build_agent(plain_config, OBSERVATION, ACTION, mean, std, 0)
    for step in range(4):
        data = batch(step)
        scale, shift = torch.tensor(std + 1e-3).float(), torch.tensor(mean).float()
        units = data._replace(
            observation=data.observation * scale + shift, next_observation=data.next_observation * scale + shift
        )
        raw.update(units)
        plain.update(data)
    torch.testing.assert_close(raw.state_dict()["critic"], plain.state_dict()["critic"], atol=1e-5, rtol=0)


def test_statistics_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="4 observations"):
        build_agent(LearnerConfig(), OBSERVATION, ACTION, np.ones(3), np.ones(3), 0)
