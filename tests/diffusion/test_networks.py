"""Shapes, sizes and initial outputs of the networks (section A.4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydiff.config import NetworkConfig
from raydiff.diffusion.edm import Denoiser, loss_at
from raydiff.diffusion.mlp import ResidualMLP
from raydiff.diffusion.networks import build_network, count_flops, count_parameters
from raydiff.diffusion.temporal_unet import TemporalUNet
from raydiff.diffusion.unet import UNet
from raydiff.errors import UserError

L, C = 8, 7
CONFIGS = {
    "mlp": NetworkConfig(width=32, depth=2),
    "unet": NetworkConfig(kind="unet", width=16, depth=3),
    "temporal_unet": NetworkConfig(kind="temporal_unet", width=8, depth=3, multipliers=(1, 2, 4)),
    "transformer": NetworkConfig(kind="transformer", width=32, depth=2, heads=4),
}

every_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def randomised(network):
    """Output layers and gates start at zero; give them weights, so that outputs depend on inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@every_kind
def test_shapes_and_broadcast(config):
    network = randomised(build_network(config, L, C))
    x = normal(1, 4, L, C)
    out = network(x, torch.full((4,), 0.3))
    assert out.shape == x.shape
    assert torch.allclose(network(x, torch.full((1,), 0.3)), out, atol=1e-5), "one level for the batch"
    assert torch.allclose(network(x[:1], torch.full((1,), 0.3)), out[:1], atol=1e-5), "rows of a batch are independent"
    assert not torch.allclose(network(x, torch.full((4,), -0.5)), out), "the noise level matters"
    for level, row in ((-0.5, 2), (0.3, 1)):
        levels = torch.full((4,), 0.9)
        levels[row] = level
        alone = network(x[row : row + 1], torch.full((1,), level))
        assert torch.allclose(network(x, levels)[row : row + 1], alone, atol=1e-5)


@every_kind
def test_every_row_sees_every_other(config):
    """And in order: rows are not exchangeable."""
    network = randomised(build_network(config, L, C)).double()
    level, x = torch.zeros(1, dtype=torch.float64), normal(1, 1, L, C).double()
    out = network(x, level)
    for row in range(L):
        changed = x.clone()
        changed[:, row] += 1.0
        assert ((network(changed, level) - out).abs() > 1e-9).all()
    assert not torch.allclose(network(x.flip(1), level), out.flip(1), atol=1e-4)


@every_kind
def test_float64_agrees_with_float32(config):
    network = randomised(build_network(config, L, C))
    x, level = normal(1, 4, L, C), normal(2, 4) * 0.5
    single = network(x, level)
    double = network.double()(x.double(), level.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


@every_kind
def test_more_inputs_than_outputs(config):
    network = randomised(build_network(config, L, 3 * C, C))
    assert network(normal(1, 4, L, 3 * C), torch.zeros(1)).shape == (4, L, C)


def test_mlp_takes_any_leading_batch():
    network = randomised(ResidualMLP(3, 4, 16, 2, 5))
    x, level = normal(2, 2, 5, 3, 4), normal(3, 2, 5)
    flat = network(x.reshape(10, 3, 4), level.reshape(10))
    torch.testing.assert_close(network(x, level), flat.reshape(2, 5, 3, 5))


SIGNS = torch.where(normal(5, 256, L, C) > 0, 1.0, -1.0)
"""Clean data of which every entry is +1 or -1: their variance is exactly one."""


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
@every_kind
def test_a1_untrained_loss_is_one(config, sigma):
    """With an output of exactly zero ``D = c_skip x``, whose weighted error averages one at every level."""
    denoiser = Denoiser(build_network(config, L, C))
    x = normal(1, 16, L, C) * 3
    level = torch.full((16,), sigma)
    assert torch.equal(denoiser.network(x, level), torch.zeros_like(x))
    torch.testing.assert_close(denoiser(x, level), x / (1 + sigma**2))
    generator = torch.Generator().manual_seed(4)
    value = loss_at(denoiser, SIGNS, torch.full((256,), sigma), generator)
    # The weighted error is (noise - sigma y)^2 / (1 + sigma^2): its variance is at most 2.
    assert float(value.detach()) == pytest.approx(1, abs=4 * (2 / SIGNS.numel()) ** 0.5)


@every_kind
def test_every_parameter_learns(config):
    denoiser = Denoiser(randomised(build_network(config, L, C)))
    loss_at(denoiser, SIGNS[:8], torch.full((8,), 0.7), torch.Generator().manual_seed(4)).backward()
    idle = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@every_kind
def test_training_lowers_the_loss_of_every_kind(config):
    """The initial zeros do not stop learning: constant rows, which a network can name after a few steps."""
    torch.manual_seed(0)
    denoiser = Denoiser(build_network(config, L, C))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    generator, rows = torch.Generator().manual_seed(1), normal(6, 1, L, C).expand(64, L, C)
    losses = []
    for _ in range(40):
        value = loss_at(denoiser, rows, torch.full((64,), 1.0), generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[0] == pytest.approx(1, abs=0.15)
    assert losses[-1] < 0.5


def convolution_parameters(network):
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    return sum(count_parameters(layer) for layer in layers)


@pytest.mark.parametrize(("width", "millions"), [(1024, 165.0), (256, 10.4), (128, 2.6)])
def test_unet_size(width, millions):
    with torch.device("meta"):
        network = UNet(25, width, 3, 25)
    assert convolution_parameters(network) / 1e6 == pytest.approx(millions, rel=0.01)
    # The projections of the noise level add a sixteenth.
    assert 1.05 < count_parameters(network) / convolution_parameters(network) < 1.10


def test_unet_cost_at_the_published_size():
    """2.3 GFLOP per call and trajectory (section A.4)."""
    with torch.device("meta"):
        network = UNet(25, 1024, 3, 25)
    assert count_flops(network, 16, 25) / 1e9 == pytest.approx(2.32, abs=0.005)


@pytest.mark.parametrize(("columns", "outputs"), [(14, 14), (42, 14), (69, 23)])
def test_temporal_unet_size(columns, outputs):
    """DyDiff's network: about 58 million at the widths 128, 512 and 1024, whatever the columns."""
    with torch.device("meta"):
        network = build_network(NetworkConfig(kind="temporal_unet", width=128, depth=3), 100, columns, outputs)
    assert count_parameters(network) / 1e6 == pytest.approx(58.75, abs=0.05)


def test_mlp_size():
    with torch.device("meta"):
        network = ResidualMLP(3, 25, 512, 4, 20)
    expected = (33 * 128 + 128) + (128 * 512 + 512) + (75 * 512 + 512) + 4 * (512 * 512 + 512) + (512 * 60 + 60)
    assert count_parameters(network) == expected
    assert count_flops(network, 3, 25) == 2 * (75 * 512 + 4 * 512 * 512 + 512 * 60)


def test_transformer_size():
    config = NetworkConfig(kind="transformer", width=64, depth=3, heads=2)
    network = build_network(config, 10, 7, 5)
    width = 64
    block = (6 + 3 + 1 + 8) * width**2 + (6 + 3 + 1 + 5) * width
    around = 7 * width + width + 10 * width + 2 * width**2 + 2 * width + 5 * width + 5
    time = 33 * 128 + 128 + 128 * width + width
    assert count_parameters(network) == 3 * block + around + time
    attention = 2 * 2 * 10 * 10 * width  # scores and their weighted sum, over all heads
    products = 10 * 2 * (12 * width**2)
    assert count_flops(network, 10, 7) == 3 * (attention + products) + 10 * 2 * (7 + 5) * width


def test_flops_of_a_convolutional_network():
    """By hand, from the sizes of its layers and the rows that each of them writes (or reads, where transposed)."""
    network = build_network(CONFIGS["temporal_unet"], L, C, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    counted = count_flops(network, L, C)
    rows = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(
                lambda layer, given, made: rows.append(
                    2 * layer.weight.numel() * (given[0] if isinstance(layer, nn.ConvTranspose2d) else made).shape[-1]
                )
            )
    network(torch.zeros(1, L, C), torch.zeros(1))
    assert counted == sum(rows)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_unet_length_may_change_but_not_vanish():
    network = UNet(7, 16, 3, 7)
    level = torch.zeros(2)
    for length in (4, 5, 16, 33):
        assert network(torch.zeros(2, length, 7), level).shape == (2, length, 7)
    with pytest.raises(ValueError, match="4 rows or more"):
        network(torch.zeros(2, 3, 7), level)


def test_temporal_unet_length_may_change_in_multiples():
    network = TemporalUNet(7, 5, (8, 16, 32))
    for length in (4, 8, 100):
        assert network(torch.zeros(2, length, 7), torch.zeros(1)).shape == (2, length, 5)
    with pytest.raises(ValueError, match="a multiple of 4, got 6"):
        network(torch.zeros(2, 6, 7), torch.zeros(1))


def test_transformer_length_may_not_change():
    network = build_network(CONFIGS["transformer"], L, C)
    with pytest.raises(ValueError, match="made for 8 rows, got 1"):
        network(torch.zeros(2, 1, C), torch.zeros(1))


@pytest.mark.parametrize(
    ("config", "length", "message"),
    [
        (NetworkConfig(kind="unet", width=16, depth=4), 3, r"depth to 2 or less, denoiser.length to 8"),
        (NetworkConfig(kind="unet", width=20, depth=2), 8, "multiple of 8"),
        (NetworkConfig(kind="temporal_unet", width=20, depth=2), 8, "multiple of 8"),
        (NetworkConfig(kind="temporal_unet", width=16, depth=3), 18, "length to 16 or 20"),
        (NetworkConfig(kind="temporal_unet", width=16, depth=3), 3, "length to 4, or"),
        (NetworkConfig(kind="temporal_unet", width=16), 16, r"4 levels, but .* of 3\. Set the depth to 3 or less"),
        (NetworkConfig(kind="transformer", width=30, heads=4), 8, "4 attention heads"),
    ],
)
def test_impossible_networks_are_explained(config, length, message):
    with pytest.raises(UserError, match=message):
        build_network(config, length, 7)


def test_just_possible_networks():
    build_network(NetworkConfig(kind="unet", width=16, depth=2), 3, 7)
    build_network(NetworkConfig(kind="temporal_unet", width=8, depth=1), 3, 7)
