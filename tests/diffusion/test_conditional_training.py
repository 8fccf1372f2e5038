"""Training with clean conditions (section D.3): the input, the loss's mask, and a model that learns its system."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from raydiff.config import Config, DenoiserConfig, NetworkConfig
from raydiff.data.dataset import Dataset
from raydiff.data.windows import Windows
from raydiff.diffusion.conditional import ConditionalDenoiser, given_entries
from raydiff.diffusion.edm import Denoiser, karras_sigmas, loss_at
from raydiff.diffusion.pretrain import pretrain
from raydiff.diffusion.samplers import hold, sample_heun
from raydiff.diffusion.trainer import DenoiserTrainer
from raydiff.diffusion.training_set import build_denoiser, training_windows

S, A, L = 2, 1, 5


class Recorder(nn.Module):
    """Remembers its input and returns zeros, or a scaled copy of the first columns."""

    def __init__(self, columns=S + A, scale=0.0):
        super().__init__()
        self.columns, self.scale = columns, scale

    def forward(self, x, c_noise):
        self.x = x
        return self.scale * x[..., : self.columns]


def given():
    return given_entries(L, S, A)


def clean_data(n=64, seed=0, dtype=torch.float64):
    return 0.5 * torch.randn(n, L, S + A, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_given_are_the_first_state_and_all_actions():
    expected = [[True, True, True]] + [[False, False, True]] * (L - 1)
    assert given().tolist() == expected


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_conditions_are_clean_in_the_input_and_the_rest_is_as_without(sigma):
    y, level = clean_data(), torch.full((64,), sigma, dtype=torch.float64)
    plain = Recorder()
    loss_at(Denoiser(plain, 0.5), y, level, torch.Generator().manual_seed(1))
    for clean in (True, False):
        network = Recorder()
        loss_at(ConditionalDenoiser(network, given(), 0.5, clean), y, level, torch.Generator().manual_seed(1))
        scaled = network.x[..., : S + A]
        c_in = 1 / math.sqrt(sigma**2 + 0.25)
        torch.testing.assert_close(scaled[:, given()], y[:, given()] * c_in, rtol=1e-12, atol=0)
        assert torch.equal(scaled[:, ~given()], plain.x[:, ~given()])
        if clean:
            assert torch.equal(network.x[..., S + A : 2 * (S + A)], torch.where(given(), y, 0.0))
            assert torch.equal(network.x[..., 2 * (S + A) :], given().double().expand_as(y))
        else:
            assert network.x.shape == y.shape


def test_loss_of_zero_network_is_one_on_generated_entries():
    y = clean_data(20_000)
    counted = ~given().expand(y.shape)
    for sigma in (0.01, 0.5, 20.0):
        denoiser = ConditionalDenoiser(Recorder(), given(), 0.5, True)
        level = torch.full((len(y),), sigma, dtype=torch.float64)
        value = loss_at(denoiser, y, level, torch.Generator().manual_seed(2), counted)
        assert float(value) == pytest.approx(1, abs=4 * math.sqrt(2 / int(counted.sum())))


def test_masked_loss_is_the_mean_over_the_counted_entries_exactly():
    y = clean_data(8)
    counted = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    level = torch.rand(8, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
    denoiser = ConditionalDenoiser(Recorder(scale=0.4), given(), 0.5, True)
    value = loss_at(denoiser, y, level, torch.Generator().manual_seed(5), counted)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    sigma = level[:, None, None]
    x = torch.where(given(), y, y + sigma * noise)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    squared = weight * (denoiser(x, level) - y) ** 2
    assert float(value) == pytest.approx(float(squared[counted].mean()), rel=1e-12)
    whole = loss_at(denoiser, y, level, torch.Generator().manual_seed(5))
    assert float(whole) == pytest.approx(float(squared.mean()), rel=1e-12)


def windows(padded):
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (400, S + A)).astype(np.float32)
    padding = np.zeros(400, dtype=bool)
    padding[3:5] = padding[8:10] = True  # the windows at rows 0 and 5
    starts = np.arange(0, 395, 5)
    return Windows(rows, L, S, A, starts[:70], starts[70:], "conditional", padding if padded else None)


def settings(**changes):
    options = dict(network=NetworkConfig(width=16, depth=1), length=L, steps=20, batch_size=32)
    return DenoiserConfig(**(options | changes))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_trainer_counts_generated_entries_of_real_rows(masked, padded):
    trainer = DenoiserTrainer(windows(padded), settings(mask_conditions=masked))
    counted = trainer._counted(torch.tensor([0, 10]))
    if not masked and not padded:
        assert counted is None
        return
    expected = torch.ones(2, L, S + A, dtype=torch.bool)
    if masked:
        expected &= ~given()
    if padded:
        expected[0, 3:] = False
    assert torch.equal(counted, expected)


def test_the_loss_knows_no_padding_and_no_conditions():
    """While the network's output is zero, an entry of the loss depends on its own target alone: others, as far as they
    are not counted, may be anything."""
    losses = {}
    for masked in (True, False):
        for change in ("none", "padding", "condition", "state"):
            data = windows(True)
            # The rows of the first window; its last two are padding, and the extremes of the data lie elsewhere.
            row, column = {"none": (0, 0), "padding": (4, 1), "condition": (1, S), "state": (1, 1)}[change]
            data.rows[row, column] += 0.0 if change == "none" else 0.3
            held = Windows(data.rows, L, S, A, data.train[1:], data.train[:1], "conditional", data.padding)
            losses[masked, change] = DenoiserTrainer(held, settings(mask_conditions=masked)).holdout_loss()
    for masked in (True, False):
        same = [
            change for change in ("padding", "condition", "state") if losses[masked, change] == losses[masked, "none"]
        ]
        assert same == (["padding", "condition"] if masked else ["padding"])


NETWORKS = {
    "mlp": NetworkConfig(width=16, depth=1),
    "unet": NetworkConfig(kind="unet", width=8, depth=2),
    "temporal_unet": NetworkConfig(kind="temporal_unet", width=8, depth=2),
    "transformer": NetworkConfig(kind="transformer", width=16, depth=1, heads=2),
}


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("kind", NETWORKS)
def test_untrained_networks_have_loss_one(kind, clean):
    length = 8
    denoiser = build_denoiser(
        settings(network=NETWORKS[kind], clean_conditions=clean, length=length), "conditional", length, S, A
    )
    y = 0.5 * torch.randn(3_000, length, S + A, generator=torch.Generator().manual_seed(0))
    counted = ~given_entries(length, S, A).expand(y.shape)
    with torch.no_grad():
        value = loss_at(denoiser, y, torch.ones(len(y)), torch.Generator().manual_seed(6), counted)
        assert denoiser(y, torch.ones(1)).shape == y.shape
    assert float(value) == pytest.approx(1, abs=4 * math.sqrt(2 / int(counted.sum())))


def linear_system(episodes=400, rows=8):
    """``s' = F s + G a + 0.1 w`` with uniform actions: the conditional model's task in closed form."""
    rng = np.random.default_rng(0)
    transition, control = np.array([[0.9, 0.2], [0.0, 0.7]]), np.array([0.1, 0.5])
    state, path = rng.normal(0, 0.5, (episodes, S)), []
    action = rng.uniform(-1, 1, (episodes, rows, A))
    for row in range(rows + 1):
        path.append(state)
        if row < rows:
            state = state @ transition.T + action[:, row] * control + 0.1 * rng.normal(size=state.shape)
    path = np.stack(path, 1).astype(np.float32)
    ends = np.zeros((episodes, rows), dtype=bool)
    ends[:, -1] = True
    flat = dict(
        observation=path[:, :-1].reshape(-1, S),
        next_observation=path[:, 1:].reshape(-1, S),
        action=action.reshape(-1, A).astype(np.float32),
        reward=np.zeros(episodes * rows, dtype=np.float32),
        terminal=np.zeros(episodes * rows, dtype=bool),
        timeout=ends.ravel(),
    )
    return Dataset(**flat, name="linear", path="linear.hdf5"), transition, control


@pytest.mark.parametrize("masked", [True, False])
def test_a_trained_model_gives_the_states_of_the_actions(masked, tmp_path):
    data, transition, control = linear_system()
    section = settings(
        mask_conditions=masked,
        network=NetworkConfig(width=96, depth=2),
        steps=1_200,
        batch_size=128,
        learning_rate=3e-3,
        ema=0.99,
    )
    config = Config(generator={"method": "dydiff"}, denoiser=section)
    bundle = pretrain(training_windows(config, data), section, dataset_hash="d", folder=tmp_path)
    generator = torch.Generator().manual_seed(0)
    n = 1_000
    rows = torch.zeros(n, L, S + A)
    rows[:, 0, :S] = 0.5 * torch.randn(n, S, generator=generator)
    rows[..., S:] = 2 * torch.rand(n, L, A, generator=generator) - 1
    known = bundle.normalizer.encode(rows)
    noise = 80 * torch.randn(n, L, S + A, generator=generator)
    replace = hold(given(), known)
    x = sample_heun(bundle.denoiser, replace(noise, 80.0), karras_sigmas(16, 0.002, 80.0), replace=replace)
    made = bundle.normalizer.decode(x).double()
    torch.testing.assert_close(made[..., S:].float(), rows[..., S:], atol=1e-6, rtol=0)
    expected = made[:, :-1, :S] @ torch.from_numpy(transition).T + made[:, :-1, S:] * torch.from_numpy(control)
    error = made[:, 1:, :S] - expected
    assert float(error.mean((0, 1)).abs().max()) < 0.02
    assert float(error.std((0, 1)).max()) < 0.2, "the noise of the system is 0.1, the effect of an action up to 0.5"
    assert float(error.std((0, 1)).min()) > 0.05
