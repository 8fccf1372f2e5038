"""Pretraining: it learns, resumes bit for bit, is found again by content, and travels (sections A.2, 0.5)."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from raydiff.config import DenoiserConfig, GuidanceConfig, NetworkConfig
from raydiff.data.windows import Windows
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.pretrain import CHECKPOINT, denoiser_key, load_or_pretrain, pretrain
from raydiff.diffusion.samplers import sample_heun
from raydiff.diffusion.trainer import learning_rate
from raydiff.errors import UserError
from raydiff.guidance.policy import PolicyGuidance

OBSERVATIONS, ACTIONS = 2, 1


def toy_windows(rows=4_000, length=3):
    """A damped walk steered by its actions; the reward is the first coordinate."""
    rng = np.random.default_rng(0)
    data = np.zeros((rows, OBSERVATIONS + ACTIONS + 2), dtype=np.float32)
    state = np.zeros(OBSERVATIONS)
    for row in data:
        action = rng.uniform(-1, 1, ACTIONS)
        row[:2], row[2:3], row[3] = state, action, state[0]
        state = 0.9 * state + np.array([0.5, -0.3]) * action + 0.02 * rng.standard_normal(2)
    starts = np.arange(rows - length)
    return Windows(data, length, OBSERVATIONS, ACTIONS, starts[:3_500], starts[3_600:])


def config(**changes):
    settings = dict(network=NetworkConfig(width=64, depth=2), length=3, steps=40, batch_size=32, checkpoint_every=1_000)
    return DenoiserConfig(**(settings | changes))


def same(a, b):
    first, second = a.to_arrays()[0], b.to_arrays()[0]
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    reports = []
    folder = tmp_path_factory.mktemp("denoiser")
    bundle = pretrain(
        toy_windows(),
        config(steps=1_500, batch_size=128, ema=0.99, learning_rate=3e-3),
        dataset_hash="toy",
        folder=folder,
        progress=lambda *report: reports.append(report),
    )
    return bundle, reports, folder


def test_loss_falls(trained):
    _, reports, _ = trained
    assert len(reports) == 100
    assert reports[-1][:2] == (1_500, 1_500)
    held_out = [report[3] for report in reports if report[3] is not None]
    assert len(held_out) == 20
    assert reports[0][2] == pytest.approx(1, abs=0.2)
    assert held_out[-1] < 0.4, "half of what marginals give"
    assert held_out[-1] < held_out[0]


def test_samples_have_the_moments_and_the_dynamics_of_the_data(trained):
    bundle, _, _ = trained
    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(2_000, 3, 5, generator=generator)
    rows = bundle.normalizer.decode(sample_heun(bundle.denoiser, x, karras_sigmas(16, 0.002, 80, 7)))
    data = torch.from_numpy(toy_windows().rows)
    torch.testing.assert_close(rows.mean((0, 1)), data.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(rows.std((0, 1))[:4], data.std(0)[:4], atol=0.1, rtol=0.15)
    predicted = 0.9 * rows[:, 0, :2] + torch.tensor([0.5, -0.3]) * rows[:, 0, 2:3]
    error = (rows[:, 1, :2] - predicted).square().mean() / (rows[:, 1, :2] - rows[:, 0, :2]).square().mean()
    assert float(error) < 0.15, "one-step error against persistence"


class ConstantPolicy:
    deterministic = True

    def distribution(self, observation):
        return torch.full((*observation.shape[:-1], ACTIONS), 0.6), None


@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_b4_with_a_learned_denoiser(trained, mode):
    """The stronger the guidance, the closer the actions are to the policy (section B.8)."""
    bundle, _, _ = trained
    errors = []
    for strength in (0.0, 0.25, 0.5, 1.0, 2.0):
        # Mode paper reaches the same distance over 3 action entries as the published strengths over 96 much sooner.
        scale = 0.03 if mode == "paper" else 1.0
        guidance = GuidanceConfig(mode=mode, strength=strength * scale, delta=0.4)
        x = 80 * torch.randn(1_000, 3, 5, generator=torch.Generator().manual_seed(1))
        guide = PolicyGuidance(ConstantPolicy(), bundle.normalizer, guidance, 32)
        out = bundle.normalizer.decode(sample_heun(bundle.denoiser, x, karras_sigmas(32, 0.002, 80, 7), guide=guide))
        errors.append(float((out[..., 2] - 0.6).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_resumed_run_is_bit_equal(tmp_path):
    def interrupt(step, *_):
        if step == 25:
            raise KeyboardInterrupt

    whole = pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path / "parts", progress=interrupt)
    assert (tmp_path / "parts" / CHECKPOINT).is_file()
    assert not DenoiserBundle.exists(tmp_path / "parts")
    steps = []
    resumed = pretrain(
        toy_windows(), config(), dataset_hash="d", folder=tmp_path / "parts", progress=lambda *r: steps.append(r[0])
    )
    assert steps[0] == 26
    assert same(resumed, whole)
    assert not (tmp_path / "parts" / CHECKPOINT).exists()


def test_periodic_checkpoint_resumes_bit_equal(tmp_path):
    class Crash(Exception):
        pass

    def crash(step, *_):
        if step == 33:
            raise Crash

    settings = config(checkpoint_every=10, network=NetworkConfig(kind="unet", width=8, depth=2))
    whole = pretrain(toy_windows(), settings, dataset_hash="d", folder=tmp_path / "whole")
    with pytest.raises(Crash):
        pretrain(toy_windows(), settings, dataset_hash="d", folder=tmp_path / "parts", progress=crash)
    steps = []
    resumed = pretrain(
        toy_windows(), settings, dataset_hash="d", folder=tmp_path / "parts", progress=lambda *r: steps.append(r[0])
    )
    assert steps[0] == 31
    assert same(resumed, whole)


def test_ctrl_c_ends_the_step_and_leaves_a_checkpoint(tmp_path):
    def press(step, *_):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path, progress=press)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path)
    assert same(resumed, pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path / "whole"))


def test_checkpoint_of_another_training_is_refused(tmp_path):
    def interrupt(step, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(toy_windows(), config(), dataset_hash="d", folder=tmp_path, progress=interrupt)
    with pytest.raises(UserError, match="Delete it"):
        pretrain(toy_windows(), config(seed=3), dataset_hash="d", folder=tmp_path)


def test_cache_is_addressed_by_content(tmp_path):
    key = denoiser_key("data", config())
    for other in (config(cpus=4.0), config(gpus=1.0), config(device="cuda"), config(checkpoint_every=7)):
        assert denoiser_key("data", other) == key
    changed = [config(steps=41), config(seed=1), config(p_mean=-1.0), config(network=NetworkConfig(width=64, depth=3))]
    assert len({key, denoiser_key("other", config()), *(denoiser_key("data", other) for other in changed)}) == 6
    calls = []
    windows, progress = toy_windows(), lambda *report: calls.append(report)
    first = load_or_pretrain(windows, config(), dataset_hash="data", cache=tmp_path, progress=progress)
    assert (tmp_path / "denoisers" / key / "bundle.json").is_file()
    assert first.hash == key
    trained = len(calls)
    assert trained == 40
    second = load_or_pretrain(windows, config(), dataset_hash="data", cache=tmp_path, progress=progress)
    assert len(calls) == trained
    assert same(first, second)


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pretrain(toy_windows(), config(steps=2), dataset_hash="d", folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_bundle_travels_as_arrays_and_on_disk(trained):
    bundle, _, folder = trained
    arrays, spec = bundle.to_arrays()
    rebuilt = DenoiserBundle.from_arrays(arrays, json.loads(json.dumps(spec)))
    loaded = DenoiserBundle.load(folder)
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
    expected = bundle.denoiser(x, torch.ones(1))
    for other in (rebuilt, loaded):
        assert same(other, bundle)
        assert (other.hash, other.length, other.config, other.columns) == (bundle.hash, 3, bundle.config, 5)
        assert torch.equal(other.denoiser(x, torch.ones(1)), expected)
        assert not other.denoiser.training
    assert not any(parameter.requires_grad for parameter in bundle.denoiser.parameters())
    assert bundle.to("cpu") is bundle


def test_damaged_and_missing_bundles_are_explained(trained, tmp_path):
    bundle, _, _ = trained
    with pytest.raises(UserError, match="no denoiser here"):
        DenoiserBundle.load(tmp_path)
    bundle.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        DenoiserBundle.load(tmp_path)
    bundle.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.json", "weights.safetensors"]


def test_learning_rate_schedule():
    settings = config(steps=1_000, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(1_000)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100] == 1.0
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[-1] < 1e-5
    assert learning_rate(0, config(warmup=0.0)) == pytest.approx(1e-3)
