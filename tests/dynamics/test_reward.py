from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydiff.config import RewardConfig
from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.dynamics.reward import RewardModel, train_reward_model
from raydiff.types import Transitions


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on several threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _quadratic(count: int = 4000) -> Transitions:
    """Reward of a known form: forward progress less a quadratic action cost, in scaled and shifted units."""
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(count, 3)).astype(np.float32) * 5 + 2
    action = rng.uniform(-1, 1, size=(count, 2)).astype(np.float32)
    following = observation + rng.normal(size=(count, 3)).astype(np.float32)
    reward = 10 + following[:, 0] - observation[:, 0] - (action**2).sum(axis=1)
    return Transitions(observation, action, reward.astype(np.float32), following, np.zeros(count, dtype=np.float32))


CONFIG = RewardConfig(hidden=(64, 64), steps=1000, batch_size=128, learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained() -> tuple[RewardModel, dict[str, float]]:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    result = train_reward_model(_quadratic(), CONFIG, seed=0)
    assert torch.equal(torch.get_rng_state(), before)  # Nothing is drawn from the global generator.
    return result


def test_known_reward_is_learnt(trained: tuple[RewardModel, dict[str, float]]) -> None:
    model, metrics = trained
    data = _quadratic()
    assert metrics["holdout_r2"] > 0.99
    assert metrics["holdout_transitions"] == 200
    residual = model.predict(data.observation, data.action, data.next_observation) - data.reward
    assert 1 - residual.var() / data.reward.var() > 0.99
    assert metrics["holdout_mse"] == pytest.approx((residual**2).mean(), rel=0.5)


def test_halfcheetah_reward_is_learnt_from_little_data(tmp_path: Path) -> None:
    dataset = read_d4rl(collect("HalfCheetah-v4", "random", 4000, 0, tmp_path / "a.hdf5"))
    config = RewardConfig(hidden=(128, 128), steps=600, batch_size=128)
    _, metrics = train_reward_model(dataset.transitions("dynamics"), config, seed=0)
    assert metrics["holdout_r2"] > 0.9


def test_arrays_and_tensors_in_any_leading_shape(trained: tuple[RewardModel, dict[str, float]]) -> None:
    model, _ = trained
    data = _quadratic(24)
    flat = model.predict(data.observation, data.action, data.next_observation)
    assert isinstance(flat, np.ndarray)
    assert flat.shape == (24,)
    tensors = [torch.tensor(x).reshape(4, 6, -1) for x in (data.observation, data.action, data.next_observation)]
    shaped = model.predict(*tensors)
    assert isinstance(shaped, torch.Tensor)
    assert not shaped.requires_grad
    np.testing.assert_allclose(shaped.reshape(-1), flat, atol=1e-5)
    assert model.predict(data.observation[:0], data.action[:0], data.next_observation[:0]).shape == (0,)


def test_large_inputs_go_in_slices(trained: tuple[RewardModel, dict[str, float]]) -> None:
    model, _ = trained
    data = _quadratic(70_000)
    rewards = model.predict(data.observation, data.action, data.next_observation)
    tail = model.predict(data.observation[-9:], data.action[-9:], data.next_observation[-9:])
    assert rewards.shape == (70_000,)
    np.testing.assert_allclose(rewards[-9:], tail, atol=1e-5)


def test_same_seed_same_weights() -> None:
    config = RewardConfig(hidden=(16,), steps=20)
    first, again, other = (train_reward_model(_quadratic(200), config, seed)[0].state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_state_survives_safetensors(trained: tuple[RewardModel, dict[str, float]], tmp_path: Path) -> None:
    model, _ = trained
    data = _quadratic(50)
    save_file(model.state(), tmp_path / "reward.safetensors")
    back = RewardModel.from_state(load_file(tmp_path / "reward.safetensors"))
    inputs = (data.observation, data.action, data.next_observation)
    np.testing.assert_array_equal(back.predict(*inputs), model.predict(*inputs))


def test_constant_columns_and_constant_reward() -> None:
    data = _quadratic(200)
    data.observation[:, 1] = data.next_observation[:, 1] = 3.0
    data.reward[:] = 1.0
    model, metrics = train_reward_model(data, RewardConfig(hidden=(16,), steps=300), seed=0)
    rewards = model.predict(data.observation, data.action, data.next_observation)
    assert np.isfinite(list(metrics.values())).all()
    np.testing.assert_allclose(rewards, 1.0, atol=0.1)


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        train_reward_model(_quadratic(19), CONFIG, seed=0)
