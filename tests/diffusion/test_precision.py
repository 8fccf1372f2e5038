"""Sampling with the network in bfloat16."""

from __future__ import annotations

import pytest
import torch

from raydiff.config import NetworkConfig
from raydiff.diffusion.conditional import ConditionalDenoiser, given_entries
from raydiff.diffusion.edm import Denoiser, karras_sigmas
from raydiff.diffusion.exact import GaussianDenoiser
from raydiff.diffusion.networks import build_network
from raydiff.diffusion.precision import in_precision
from raydiff.diffusion.samplers import solver_of

L, C = 8, 7
CONFIGS = {
    "mlp": NetworkConfig(width=64, depth=2),
    "unet": NetworkConfig(kind="unet", width=16, depth=3),
    "temporal_unet": NetworkConfig(kind="temporal_unet", width=32, depth=3, multipliers=(1, 2, 4)),
    "transformer": NetworkConfig(kind="transformer", width=32, depth=2, heads=4),
}

every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make(config, columns=C):
    torch.manual_seed(0)
    network = build_network(config, L, columns, C)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@every_kind
def test_errors_are_those_of_bfloat16_and_shrink_with_the_noise(config):
    """Rounding to 8 bits costs about 0.4 % of the network's output; ``c_out`` scales that down at low noise."""
    denoiser = Denoiser(make(config))
    reduced = in_precision(denoiser, "bfloat16")
    x = torch.randn(64, L, C, generator=torch.Generator().manual_seed(1))
    for sigma in (0.01, 1.0, 80.0):
        level, noisy = torch.tensor([sigma]), x * (1 + sigma**2) ** 0.5
        exact, got = denoiser(noisy, level), reduced(noisy, level)
        scale = sigma / (1 + sigma**2) ** 0.5
        output = (exact - noisy / (1 + sigma**2)).square().mean().sqrt()
        error = (got - exact).square().mean().sqrt()
        assert got.dtype == torch.float32
        assert error > 0
        assert error < 0.02 * output
        assert error < 0.02 * scale


@every_kind
def test_noise_levels_are_told_apart(config):
    """``c_noise`` of two neighbouring levels of a schedule is the same number in bfloat16; the embedding is not."""
    reduced = in_precision(Denoiser(make(config)), "bfloat16").network
    close = torch.tensor([1.0, 1.002])
    assert close.bfloat16()[0] == close.bfloat16()[1]
    embedding = reduced.network.time(close)
    assert embedding.dtype == torch.float32
    assert not torch.equal(embedding[0], embedding[1])


def test_the_original_stays_as_it_is():
    denoiser = Denoiser(make(CONFIGS["mlp"]))
    network, before = denoiser.network, {name: value.clone() for name, value in denoiser.state_dict().items()}
    reduced = in_precision(denoiser, "bfloat16")
    assert denoiser.network is network
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert reduced.network.network.output.weight.dtype == torch.bfloat16
    assert in_precision(denoiser, "float32") is denoiser
    network.output.weight.zero_()
    assert reduced.network.network.output.weight.any(), "a copy of the weights, not a view"


def test_conditional_denoisers_keep_their_conditions():
    given = given_entries(L, 5, 2)
    denoiser = ConditionalDenoiser(make(CONFIGS["mlp"], 3 * C), given, 0.5, clean=True)
    reduced = in_precision(denoiser, "bfloat16")
    assert reduced.sigma_data == 0.5
    x = torch.randn(16, L, C, generator=torch.Generator().manual_seed(1))
    for sigma in (0.1, 10.0):
        exact, got = denoiser(x, torch.tensor([sigma])), reduced(x, torch.tensor([sigma]))
        assert 0 < (got - exact).abs().max() < 0.05


def test_samples_agree_with_those_in_float32():
    denoiser = Denoiser(make(CONFIGS["mlp"]))
    x = 80 * torch.randn(256, L, C, generator=torch.Generator().manual_seed(1))
    levels = karras_sigmas(16, 0.002, 80, 7)
    exact, got, again = (
        solver_of("dpmpp_2m")(in_precision(denoiser, precision), x, levels)
        for precision in ("float32", "bfloat16", "bfloat16")
    )
    assert got.dtype == torch.float32
    assert torch.equal(got, again)
    assert 0 < (got - exact).square().mean().sqrt() < 0.01 * exact.std()


def test_exact_denoisers_have_no_network():
    exact = GaussianDenoiser(0.0, 1.0)
    assert in_precision(exact, "float32") is exact
    with pytest.raises(ValueError, match="GaussianDenoiser has no network"):
        in_precision(exact, "bfloat16")
