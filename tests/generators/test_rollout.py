"""Rollouts of a dynamics model: anchor I5, the policy's own likelihood (I.2), terminals, penalties, reproducible bytes."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from raydiff.config import Config, RolloutConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.dynamics.reward import RewardModel
from raydiff.errors import UserError
from raydiff.generators.rollout import RolloutGenerator
from raydiff.generators.validate import validate

S, A, H = 11, 6, 6  # Hopper's observations; HalfCheetah's actions, as the likelihood of section I.2 has them


def linear_system(members=3, std=0.02):
    """An ensemble without hidden layers: each member is exactly ``(s' - s, r) = (s, a) W``, plus noise of ``std``.

    The first two states, by which Hopper terminates, decay by themselves.
    """
    generator = torch.Generator().manual_seed(0)
    ensemble = GaussianEnsemble(S, A, members, (), generator)
    gain = torch.zeros(members, S + A, S + 1)
    turn = 0.9 * torch.linalg.qr(torch.randn(S - 2, S - 2, generator=generator))[0] - torch.eye(S - 2)
    gain[:, 0, 0], gain[:, 1, 1], gain[:, 2:S, 2:S] = -0.15, -0.5, turn
    gain[:, S:, 2:] = 0.2 * torch.randn(A, S - 1, generator=generator)
    gain[:, 2, S] = 1.0
    log_var = torch.full((members, 1, S + 1), 2 * math.log(std))
    with torch.no_grad():
        ensemble.weights[0].copy_(torch.cat([gain, torch.zeros_like(gain)], dim=2))
        ensemble.biases[0].copy_(torch.cat([torch.zeros_like(log_var), log_var], dim=2))
        ensemble.min_log_var.fill_(-40.0)
        ensemble.max_log_var.fill_(40.0)
    return ensemble.eval(), gain[0]


class LinearPolicy:
    def __init__(self, std=None):
        self.std, self.deterministic = std, std is None
        self.gain = 0.1 * torch.randn(S, A, generator=torch.Generator().manual_seed(5))

    def distribution(self, observation):
        mean = observation @ self.gain
        return mean, None if self.std is None else torch.full_like(mean, 1.0) * torch.tensor(self.std) ** 2


STARTS = np.random.default_rng(0).normal(0, 0.3, (20, S)).astype(np.float32)


def make(environment="HalfCheetah-v4", ensemble=None, reward=None, starts=STARTS, **rollout):
    config = Config(rollout=RolloutConfig(**({"horizon": H, "sample": False} | rollout)))
    return RolloutGenerator(ensemble or linear_system()[0], reward, starts, environment, config)


def test_i5_rollouts_of_a_linear_model_are_matrix_powers():
    generator, policy = make(), LinearPolicy()
    made = generator.generate(policy, 64, (1,))
    trajectories, gain = made.trajectories, linear_system()[1].double()
    closed = torch.eye(S, dtype=torch.float64) + (gain[:S] + policy.gain.double() @ gain[S:])[:, :S]
    first = torch.from_numpy(trajectories.observation[:, 0].copy()).double()
    for t in range(H + 1):
        expected = first @ torch.linalg.matrix_power(closed, t)
        np.testing.assert_allclose(trajectories.observation[:, t], expected, rtol=0, atol=1e-5)
    state, action = trajectories.observation[:, :H], trajectories.action[:, :H]
    np.testing.assert_allclose(action, state @ policy.gain.numpy(), atol=1e-6)
    reward = state[..., 2] + action @ gain[S:, S].float().numpy()
    np.testing.assert_allclose(trajectories.reward[:, :H], reward, atol=1e-5)
    assert trajectories.rows.shape == (64, H + 1, S + A + 2)
    assert trajectories.rows.dtype == np.float32
    assert not trajectories.rows[:, -1, S:].any()
    assert trajectories.valid().all()
    assert (made.nfe, made.guidance, made.strength) == (H, "none", 0.0)
    assert made.agreement.deviation < 1e-10


def test_sampled_successors_have_the_predicted_spread():
    generator = make(sample=True, horizon=1, ensemble=linear_system(std=0.3)[0])
    trajectories = generator.generate(LinearPolicy(), 8_000, (1,)).trajectories
    state, action = (torch.from_numpy(part[:, 0].copy()) for part in (trajectories.observation, trajectories.action))
    mean = generator.ensemble.predict(state, action)[0][0].numpy()
    residual = np.concatenate(
        [trajectories.observation[:, 1] - trajectories.observation[:, 0], trajectories.reward[:, :1]], axis=1
    ) - mean  # fmt: skip
    np.testing.assert_allclose(residual.std(axis=0), 0.3, rtol=0.03)
    np.testing.assert_allclose(residual.mean(axis=0), 0.0, atol=0.015)


def test_starts_are_real_states_drawn_uniformly():
    rows = make(horizon=1).generate(None, 4_000, (1,)).trajectories.observation[:, 0]
    hits = (rows[:, None] == STARTS[None]).all(axis=2)
    assert (hits.sum(axis=1) == 1).all()
    # 200 each, standard error 13.8
    assert np.abs(hits.sum(axis=0) - 200).max() < 55


def test_i2_the_policys_own_actions_have_its_entropy():
    """The PETS line: mean of ``sum_j log pi(a_j | s)`` is ``-A/2 (1 + log 2 pi) - sum_j log std_j``."""
    std = [0.05, 0.1, 0.15, 0.05, 0.2, 0.1]
    made = make(sample=True).generate(LinearPolicy(std), 2_048, (1,))
    expected = -A / 2 * (1 + math.log(2 * math.pi)) - np.log(std).sum()
    # Each draw varies by A/2, so that the mean of 2048 * 6 has standard error 0.016.
    assert made.agreement.log_likelihood == pytest.approx(expected, abs=0.06)
    assert made.agreement.own == pytest.approx(expected, abs=1e-4)
    assert np.abs(made.trajectories.action).max() < 1.0  # clipping would bias it


def test_actions_are_within_bounds():
    action = make().generate(LinearPolicy([2.0] * A), 200, (1,)).trajectories.action
    assert np.abs(action).max() == 1.0
    assert 0.2 < (np.abs(action[:, :-1]) < 1.0).mean() < 0.6


def test_without_a_policy_actions_are_uniform():
    made = make().generate(None, 1_000, (1,))
    action = made.trajectories.action[:, :-1]
    assert made.agreement is None
    assert np.abs(action).max() <= 1.0
    assert action.mean() == pytest.approx(0.0, abs=0.02)
    assert action.var() == pytest.approx(1 / 3, rel=0.03)


def falling(count=50):
    """Starts from which Hopper falls (height 0.7) after one to many steps: the height decays by 15 % a step."""
    starts = np.zeros((count, S), dtype=np.float32)
    starts[:, 0] = np.linspace(0.75, 3.0, count)
    return starts


def test_terminals_end_trajectories():
    trajectories = make("Hopper-v4", starts=falling()).generate(LinearPolicy(), 400, (1,)).trajectories
    steps, valid = trajectories.transitions(), trajectories.valid()
    fallen = (steps.next_observation[:, 0] <= 0.7) | (np.abs(steps.next_observation[:, 1]) >= 0.2)
    np.testing.assert_array_equal(steps.terminal, fallen.astype(np.float32))
    lengths = valid.sum(axis=1)
    assert {1, 2, 3, H} <= set(lengths)
    for row, length in zip(trajectories.rows, lengths, strict=True):
        if length == H:
            continue
        assert row[length - 1, -1] == 1.0
        assert (row[length:, :S] == row[length, :S]).all()  # the absorbing state ...
        assert not row[length:, S:-1].any()  # ... without actions and rewards ...
        assert (row[length:-1, -1] == 1.0).all()  # ... that is terminal,
    assert not trajectories.rows[:, -1, S:].any()  # but for the last row, which has a state only.


def test_terminals_change_nothing_before_them():
    cut = make("Hopper-v4", starts=falling()).generate(LinearPolicy(), 200, (1,)).trajectories
    whole = make("HalfCheetah-v4", starts=falling()).generate(LinearPolicy(), 200, (1,)).trajectories
    valid = cut.valid()
    assert not whole.terminal.any()
    assert not valid.all()
    np.testing.assert_allclose(cut.rows[:, :-1, :-1][valid], whole.rows[:, :-1, :-1][valid], atol=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_states_out_of_all_bounds_are_frozen_and_dropped(penalty):
    ensemble, _ = linear_system()
    with torch.no_grad():
        ensemble.weights[0][:, 0, 0] = 1e15  # not finite after three steps
    starts = STARTS.copy()
    starts[:10, 0] = 0.0
    made = make(ensemble=ensemble, starts=starts, penalty=penalty).generate(LinearPolicy(), 100, (1,))
    trajectories = made.trajectories
    lost = ~np.isfinite(trajectories.rows).all(axis=(1, 2))
    np.testing.assert_array_equal(lost, trajectories.observation[:, 0, 0] != 0.0)
    assert set(trajectories.valid()[lost].sum(axis=1)) <= {2, 3}
    assert trajectories.valid()[~lost].all()
    assert made.agreement.deviation < 1e-10  # of those that stay
    normalizer = TrajectoryNormalizer(torch.zeros(S + A + 2), torch.ones(S + A + 2), S, A, "raw")
    kept, dropped = validate(trajectories, normalizer, 1e30)
    assert dropped == {"not_finite": lost.sum()}
    np.testing.assert_array_equal(kept.rows, trajectories.rows[~lost])


def test_all_trajectories_may_end_early():
    starts = np.zeros((5, S), dtype=np.float32)
    trajectories = make("Hopper-v4", starts=starts).generate(LinearPolicy(), 10, (1,)).trajectories
    assert (trajectories.valid().sum(axis=1) == 1).all()


def test_a_penalty_lowers_the_reward_by_the_uncertainty():
    ensemble, _ = linear_system()
    with torch.no_grad():  # one member is less sure than the others; it is no elite
        ensemble.biases[0][2, :, S + 1 :] = 2 * math.log(0.5)
    ensemble.elites = torch.tensor([0, 1])
    plain = make(ensemble=ensemble).generate(LinearPolicy(), 50, (1,)).trajectories
    penalised = make(ensemble=ensemble, penalty=2.0).generate(LinearPolicy(), 50, (1,)).trajectories
    lost = plain.reward[:, :-1] - penalised.reward[:, :-1]
    np.testing.assert_allclose(lost, 2.0 * 0.5 * math.sqrt(S + 1), rtol=1e-4)
    np.testing.assert_allclose(plain.observation, penalised.observation, atol=1e-5)


def test_rewards_of_a_reward_model():
    reward = RewardModel(2 * S + A, (16,), torch.Generator().manual_seed(1)).eval()
    trajectories = make(reward=reward, sample=True).generate(LinearPolicy(0.2), 50, (1,)).trajectories
    steps = trajectories.transitions()
    expected = reward.predict(*map(np.ascontiguousarray, (steps.observation, steps.action, steps.next_observation)))
    np.testing.assert_allclose(steps.reward, expected, atol=1e-5)


def test_environments_without_a_known_termination_are_refused():
    with pytest.raises(UserError, match="BipedalWalker-v3"):
        make("BipedalWalker-v3")


def digest(key=(1, 2, 3), penalty=0.0):
    generator = make("Hopper-v4", starts=falling(), sample=True, penalty=penalty)
    rows = generator.generate(LinearPolicy(0.3), 64, key).trajectories.rows
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def test_same_key_same_bytes_and_no_other_source_of_randomness():
    first = digest()
    torch.manual_seed(99)
    np.random.seed(99)
    assert digest() == first
    assert len({first, digest((1, 2, 4)), digest((12, 3)), digest(penalty=1.0)}) == 4


CHILD = """
import importlib.util, sys, torch
torch.set_num_threads(int(sys.argv[2]))
spec = importlib.util.spec_from_file_location("rollout_tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.digest())
"""


def test_same_key_same_bytes_in_a_fresh_process():
    threads = str(torch.get_num_threads())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, threads], capture_output=True, text=True, check=True, timeout=120
    )
    assert child.stdout.strip() == digest()
