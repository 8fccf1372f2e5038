"""The dynamics ensemble: its anchors I1 to I4, reproducible bytes, and what it refuses (section I.1)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from raydiff.config import DynamicsConfig
from raydiff.dynamics import ensemble as module
from raydiff.dynamics.ensemble import GaussianEnsemble, gaussian_loss, layer_decay, soft_clamp, train_ensemble
from raydiff.errors import RunFailed
from raydiff.types import Transitions

S, A = 2, 1
NOISE = np.array([0.6, 0.3, 0.45])  # standard deviations of s' - s and r
GAIN = np.array([[-0.2, 0.1, 0.5], [0.3, -0.4, -0.2], [0.5, 0.2, 0.3]])  # of (s, a) on (s' - s, r)


def linear_system(count: int, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    observation = (rng.normal(size=(count, S)) * [1.0, 4.0] + [0.0, 2.0]).astype(np.float32)
    action = rng.uniform(-1, 1, size=(count, A)).astype(np.float32)
    outcome = np.concatenate([observation, action], axis=1) @ GAIN + NOISE * rng.normal(size=(count, S + 1))
    following, reward = observation + outcome[:, :S], outcome[:, S]
    zeros = np.zeros(count, dtype=np.float32)
    return Transitions(observation, action, reward.astype(np.float32), following.astype(np.float32), zeros)


CONFIG = DynamicsConfig(members=3, elites=2, hidden=(32, 32), epochs=10, batch_size=64)
SMALL = DynamicsConfig(members=3, elites=2, hidden=(8,), epochs=2, batch_size=64)


def inputs(data: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.observation), torch.from_numpy(data.action)


@pytest.fixture(scope="module", params=[False, True], ids=["raw", "normalised"])
def trained(request: pytest.FixtureRequest) -> tuple[GaussianEnsemble, dict[str, float], list[tuple]]:
    """The members as they are after the last pass: the published choice of the best looks at means alone, and may stop
    while the variances are still too wide."""
    calls: list[tuple] = []
    torch.manual_seed(123)
    before = torch.get_rng_state()
    config = CONFIG.model_copy(update={"normalize_targets": request.param})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST_IMPROVEMENT", -math.inf)
        model, metrics = train_ensemble(linear_system(13_000), config, lambda *call: calls.append(call))
    assert torch.equal(torch.get_rng_state(), before)  # Nothing is drawn from the global generator.
    return model, metrics, calls


def test_i1_a_linear_system_with_noise_is_learnt(trained: tuple) -> None:
    model, metrics, _ = trained
    data = linear_system(4_000, seed=1)
    mean, log_var = model.predict(*inputs(data))
    true = np.concatenate([data.observation, data.action], axis=1) @ GAIN
    error = np.abs(mean.numpy() - true).mean(axis=(0, 1))
    assert (error < 0.05 * true.std(axis=0)).all()
    np.testing.assert_allclose(log_var.exp().mean(dim=(0, 1)), NOISE**2, rtol=0.1)
    assert metrics["calibration"] == pytest.approx(1.0, abs=0.1)
    assert metrics["holdout_mse"] == pytest.approx((NOISE**2).mean(), rel=0.1)
    assert metrics["holdout_transitions"] == 1_000
    assert metrics["train_transitions"] == 12_000
    still = (true[:, :S] ** 2 + NOISE[:S] ** 2) / data.observation.var(axis=0)
    expected = (NOISE[:S] ** 2 / data.observation.var(axis=0)).mean() / still.mean()
    assert metrics["persistence_ratio"] == pytest.approx(expected, rel=0.25)


def test_progress_ends_with_the_last_step(trained: tuple) -> None:
    _, metrics, calls = trained
    steps = [call[0] for call in calls]
    assert steps == sorted(steps)
    assert calls[-1][0] == calls[-1][1] == CONFIG.epochs * math.ceil(12_000 / 64)
    assert sum(call[3] is not None for call in calls) == metrics["epochs"]
    assert all(math.isfinite(call[2]) for call in calls)


def test_i2_the_soft_clamp_has_its_limits() -> None:
    low, high = torch.tensor(-10.0), torch.tensor(0.5)
    values = soft_clamp(torch.tensor([-1e4, -1e2, 1e2, 1e4]), low, high)
    # Far beyond a bound it is reached but for softplus(low - high) = 2.7e-5.
    torch.testing.assert_close(values, torch.tensor([-10.0, -10.0, 0.5, 0.5]), rtol=0, atol=1e-4)
    assert soft_clamp(torch.tensor(-5.0), low, high) == pytest.approx(-5.0, abs=0.02)
    sweep = soft_clamp(torch.linspace(-15, 5, 200), low, high)
    assert (sweep.diff() > 0).all()
    assert soft_clamp(torch.tensor(0.5), low, high) == pytest.approx(0.5 - math.log(2), abs=1e-3)


def test_i3_members_learn_from_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    advance = module._Descent._advance
    monkeypatch.setattr(module._Descent, "_advance", lambda self, rows: seen.append(rows) or advance(self, rows))
    train_ensemble(linear_system(1_000), SMALL)
    first, second = (torch.cat(seen[i : i + 13], dim=1).sort(dim=1).values for i in (0, 13))
    assert len(seen) == 26
    assert first.shape == (3, 800)
    torch.testing.assert_close(first, second)  # the same draws in every pass ...
    assert not torch.equal(seen[0], seen[13])  # ... in another order
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(first[a], first[b])
    # A draw of N out of N with replacement has 1 - 1/e of them.
    assert [len(row.unique()) / 800 for row in first] == pytest.approx([1 - 1 / math.e] * 3, abs=0.04)


def test_i4_elites_have_the_smallest_error_and_members_are_their_best(monkeypatch: pytest.MonkeyPatch) -> None:
    history: list[torch.Tensor] = []
    keep = module._Descent._keep_better

    def spy(self: module._Descent) -> bool:
        with torch.no_grad():
            mean, _ = self.ensemble(self.held_inputs.expand(CONFIG.members, -1, -1))
        history.append((mean - self.held_targets).square().mean(dim=(1, 2)))
        return keep(self)

    monkeypatch.setattr(module._Descent, "_keep_better", spy)
    data = linear_system(600)
    config = CONFIG.model_copy(update={"learning_rate": 0.02, "epochs": 40, "patience": 3})
    model, metrics = train_ensemble(data, config)
    # The rule by hand: the last pass that was more than 1 % better than the best one before it.
    best, stale, passes = torch.full((3,), math.inf), 0, 0
    for error in history:
        better = error < 0.99 * best
        best, passes = torch.where(better, error, best), passes + 1
        stale = 0 if better.any() else stale + 1
        if stale == config.patience:
            break
    assert passes == len(history) == metrics["epochs"] < 40
    assert not torch.equal(best, history[-1])
    order = torch.randperm(600, generator=torch.Generator().manual_seed(config.seed))[:120].numpy()
    mean, _ = model.predict(torch.from_numpy(data.observation[order]), torch.from_numpy(data.action[order]))
    target = np.column_stack([data.next_observation - data.observation, data.reward])[order]
    error = (mean - torch.from_numpy(target)).square().mean(dim=(1, 2))
    torch.testing.assert_close(error, best, rtol=1e-4, atol=0)
    assert model.elites.tolist() == error.argsort()[:2].tolist()


def test_loss_is_the_gaussian_density() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_var, target = (torch.randn(3, 10, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    density = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(target).mean(dim=(1, 2))
    torch.testing.assert_close(gaussian_loss(mean, log_var, target), -2 * density - math.log(2 * math.pi))


def test_weight_decay_is_the_published_one() -> None:
    assert [layer_decay(i, 5) for i in range(5)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4])
    assert [layer_decay(i, 2) for i in range(2)] == pytest.approx([2.5e-5, 1e-4])


def test_initial_weights_and_bounds() -> None:
    model = GaussianEnsemble(17, 6, 7, (200, 200), torch.Generator().manual_seed(0))
    assert [tuple(w.shape) for w in model.weights] == [(7, 23, 200), (7, 200, 200), (7, 200, 36)]
    for weight in model.weights:
        std = 1 / (2 * math.sqrt(weight.shape[1]))
        weight = weight.detach()
        assert weight.abs().max() <= 2 * std
        # A normal cut at two standard deviations has 0.88 of its spread.
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=0.02)
    assert not any(bias.any() for bias in model.biases)
    assert (model.min_log_var == -10).all()
    assert (model.max_log_var == 0.5).all()


@pytest.fixture(scope="module")
def small() -> GaussianEnsemble:
    return train_ensemble(linear_system(500), SMALL)[0]


def test_uncertainty_is_the_largest_norm_of_all_members(small: GaussianEnsemble) -> None:
    observation, action = inputs(linear_system(50))
    doubt = small.step(observation, action, torch.Generator().manual_seed(0), True, uncertainty=True)[2]
    std = (small.predict(observation, action)[1] / 2).exp().numpy()
    np.testing.assert_allclose(doubt, np.sqrt((std**2).sum(axis=2)).max(axis=0), rtol=1e-5)
    assert len(small.elites) < small.members


@pytest.mark.parametrize("sample", [True, False])
def test_step_is_the_same_with_and_without_uncertainty(small: GaussianEnsemble, sample: bool) -> None:
    observation, action = inputs(linear_system(50))
    with_doubt, without = (
        small.step(observation, action, torch.Generator().manual_seed(3), sample, uncertainty=flag)
        for flag in (True, False)
    )
    assert without[2] is None
    torch.testing.assert_close(with_doubt[:2], without[:2], rtol=1e-4, atol=1e-5)


def test_every_row_draws_an_elite_and_a_successor_of_its_own(small: GaussianEnsemble) -> None:
    observation, action = (part[:1].expand(20_000, -1) for part in inputs(linear_system(1)))
    mean, log_var = small.predict(observation[:1], action[:1])
    mean, variance = mean[small.elites, 0], log_var[small.elites, 0].exp()
    generator = torch.Generator().manual_seed(0)
    following, reward, _ = small.step(observation, action, generator, False)
    outcome = torch.cat([following - observation, reward[:, None]], dim=1)
    near = (outcome[:, None] - mean).abs().amax(dim=2) < 1e-4
    assert near.any(dim=1).all()
    np.testing.assert_allclose(near.double().mean(dim=0), 1 / len(mean), atol=0.015)
    following, reward, _ = small.step(observation, action, generator, True)
    outcome = torch.cat([following - observation, reward[:, None]], dim=1)
    torch.testing.assert_close(outcome.mean(dim=0), mean.mean(dim=0), rtol=0, atol=0.03)
    total = variance.mean(dim=0) + mean.var(dim=0, correction=0)
    torch.testing.assert_close(outcome.var(dim=0), total, rtol=0.05, atol=0)


def test_large_inputs_go_in_slices(small: GaussianEnsemble) -> None:
    observation, action = inputs(linear_system(9_000))
    mean, log_var = small.predict(observation, action)
    assert mean.shape == log_var.shape == (3, 9_000, S + 1)
    tail = small.predict(observation[-7:], action[-7:])
    torch.testing.assert_close((mean[:, -7:], log_var[:, -7:]), tail, rtol=1e-4, atol=1e-5)


def test_same_seed_same_weights_and_state_survives_safetensors(small: GaussianEnsemble, tmp_path: Path) -> None:
    again = train_ensemble(linear_system(500), SMALL)[0].state()
    other = train_ensemble(linear_system(500), SMALL.model_copy(update={"seed": 1}))[0].state()
    first = small.state()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["weights.0"], other["weights.0"])
    save_file(first, tmp_path / "ensemble.safetensors")
    back = GaussianEnsemble.from_state(load_file(tmp_path / "ensemble.safetensors"))
    observation, action = inputs(linear_system(20))
    results = [model.step(observation, action, torch.Generator().manual_seed(0), True) for model in (small, back)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(small.elites, back.elites)


def test_a_limit_on_transitions_takes_a_random_part() -> None:
    data = linear_system(1_000)
    config = SMALL.model_copy(update={"transitions": 400, "holdout": 50})
    metrics = train_ensemble(data, config)[1]
    assert (metrics["train_transitions"], metrics["holdout_transitions"]) == (350, 50)


def test_constant_columns() -> None:
    data = linear_system(300)
    data.observation[:, 1] = data.next_observation[:, 1] = 3.0
    data.reward[:] = 1.0
    for flag in (False, True):
        model, metrics = train_ensemble(data, SMALL.model_copy(update={"normalize_targets": flag}))
        assert model.input_std[1] == 1.0
        assert np.isfinite(list(metrics.values())).all()
        assert torch.isfinite(model.predict(*inputs(data))[0]).all()


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        train_ensemble(linear_system(19), SMALL)
    data = linear_system(100)
    data.reward[:] = np.nan
    with pytest.raises(RunFailed, match="never finite"):
        train_ensemble(data, SMALL)
    with pytest.raises(ValidationError, match="more than the 3 members"):
        DynamicsConfig(members=3)
