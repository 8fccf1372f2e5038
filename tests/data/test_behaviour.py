from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback

from raydiff.data.acting import Recorder, Recording
from raydiff.data.behaviour import Snapshot, plan_training, train_behaviour
from raydiff.data.levels import collect_levels
from raydiff.data.tanh_gaussian import TanhGaussian
from raydiff.envs.registry import make_env
from raydiff.errors import UserError


@pytest.mark.parametrize(
    ("environment", "target"),
    [
        ("hopper", 3234.3),
        ("HalfCheetah-v4", 12135.0),
        ("HalfCheetah-v5", 4800.0),
        ("maze2d-umaze", 161.86),
        ("MountainCarContinuous-v0", 90.0),
        ("Pendulum-v1", -200.0),
        ("InvertedPendulum-v4", 950.0),
        ("HumanoidStandup-v4", None),
    ],
)
def test_targets_are_d4rls_then_gymnasiums(environment: str, target: float | None) -> None:
    assert plan_training(environment).expert_return == target
    assert plan_training(environment, expert_return=7.0).expert_return == 7.0


def test_a_small_budget_still_starts_learning_and_is_evaluated() -> None:
    plan = plan_training("hopper", steps=1000)
    assert (plan.steps, plan.evaluate_every, plan.learning_starts) == (1000, 50, 100)
    assert plan_training("hopper").evaluate_every == 2500


def test_the_policy_is_that_of_stable_baselines3() -> None:
    plan = plan_training("Hopper-v4", steps=100)
    seen: list[TanhGaussian] = []

    def keep(snapshot: Snapshot, recording: Recording) -> bool:
        seen.append(snapshot.policy)
        assert recording.rows == snapshot.steps
        return False

    recording = train_behaviour("Hopper-v4", plan, 0, keep, lambda steps, seconds: None)
    assert recording.rows == 15  # the first evaluation behind the ten steps before the learning
    model = SAC("MlpPolicy", make_env("Hopper-v4"), device="cpu", buffer_size=10)
    (policy,) = seen
    actor = model.policy.actor
    layers = [actor.latent_pi[0], actor.latent_pi[2], actor.mu, actor.log_std]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, [*policy.layers, policy.mean, policy.log_std], strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    rng = np.random.default_rng(0)
    for observation in rng.normal(size=(20, 11)).astype(np.float32):
        action, log_prob = policy.sample(observation, rng)
        with torch.no_grad():
            mean, log_std, _ = actor.get_action_dist_params(torch.from_numpy(observation[None]))
            distribution = actor.action_dist.proba_distribution(mean, log_std)
            expected = float(distribution.log_prob(torch.from_numpy(action[None])))
        ours = policy.distribution(observation)
        np.testing.assert_allclose(ours[0], mean[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(ours[1], log_std[0].numpy(), atol=1e-5)
        assert log_prob == pytest.approx(expected, abs=1e-3)


def test_samples_have_the_density_that_they_say() -> None:
    one = np.ones((1, 1), dtype=np.float32)
    zero, wide = np.zeros(1, dtype=np.float32), np.array([0.3], dtype=np.float32)
    policy = TanhGaussian(((one, zero),), (0 * one, wide), (0 * one, zero))
    rng = np.random.default_rng(1)
    drawn = [policy.sample(np.ones(1), rng) for _ in range(20_000)]
    actions, log_probs = np.array([action[0] for action, _ in drawn]), np.array([value for _, value in drawn])
    for low, high in ((-0.9, -0.5), (-0.2, 0.2), (0.5, 0.9)):
        inside = (actions > low) & (actions < high)
        # E[1 / p] over samples in an interval is its width
        assert np.sum(np.exp(-log_probs[inside])) / len(drawn) == pytest.approx(high - low, rel=0.05)


def test_the_recording_is_the_replay_buffer() -> None:
    env = Recorder(make_env("Hopper-v4"), 300)
    model = SAC("MlpPolicy", env, device="cpu", buffer_size=300, learning_starts=300, seed=3)

    class Nothing(BaseCallback):
        def _on_step(self) -> bool:
            return True

    model.learn(300, Nothing())
    rows, buffer = env.recording.arrays(), model.replay_buffer
    np.testing.assert_array_equal(rows["observations"], buffer.observations[:, 0].astype(np.float32))
    np.testing.assert_array_equal(rows["next_observations"], buffer.next_observations[:, 0].astype(np.float32))
    np.testing.assert_array_equal(rows["actions"], buffer.actions[:, 0])
    np.testing.assert_array_equal(rows["rewards"], buffer.rewards[:, 0])
    np.testing.assert_array_equal(rows["terminals"], buffer.dones[:, 0].astype(bool))
    np.testing.assert_array_equal(rows["infos/qpos"][:, 1:], rows["observations"][:, :5])
    assert rows["terminals"].sum() > 5


def test_a_missing_trainer_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"pip install 'raydiff\[collect\]'"):
        collect_levels("Pendulum-v1", ["random", "medium"], 100, 0, tmp_path)
    assert list(tmp_path.iterdir()) == []
    collect_levels("Pendulum-v1", ["random"], 100, 0, tmp_path)
