"""Shapes, sizes and initial outputs of the networks (section A.4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydiff.config import NetworkConfig
from raydiff.diffusion.edm import Denoiser, loss
from raydiff.diffusion.mlp import ResidualMLP
from raydiff.diffusion.networks import build_network, count_parameters
from raydiff.diffusion.unet import TemporalUNet
from raydiff.errors import UserError


def randomised(network):
    """The output layer starts at zero; give it weights, so that outputs depend on inputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.output.weight.copy_(torch.randn(network.output.weight.shape, generator=generator) * 0.1)
    return network


@pytest.mark.parametrize("config", [NetworkConfig(width=32, depth=2), NetworkConfig(kind="unet", width=16, depth=2)])
def test_shapes_and_broadcast(config):
    network = randomised(build_network(config, 5, 7))
    x = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.full((4,), 0.3))
    assert out.shape == x.shape
    assert torch.allclose(network(x, torch.full((1,), 0.3)), out, atol=1e-6)
    assert torch.allclose(network(x[:1], torch.full((1,), 0.3)), out[:1], atol=1e-5), "rows of a batch are independent"
    assert not torch.allclose(network(x, torch.full((4,), -0.5)), out), "the noise level matters"
    for level, row in ((-0.5, 2), (0.3, 1)):
        levels = torch.full((4,), 0.9)
        levels[row] = level
        alone = network(x[row : row + 1], torch.full((1,), level))
        assert torch.allclose(network(x, levels)[row : row + 1], alone, atol=1e-5)


def test_mlp_takes_any_leading_batch():
    network = randomised(ResidualMLP(3, 4, 16, 2))
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    level = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    flat = network(x.reshape(10, 3, 4), level.reshape(10))
    torch.testing.assert_close(network(x, level), flat.reshape(x.shape))


@pytest.mark.parametrize("config", [NetworkConfig(width=32, depth=2), NetworkConfig(kind="unet", width=16, depth=2)])
def test_untrained_loss_is_one_and_gradients_flow(config):
    torch.manual_seed(0)
    denoiser = Denoiser(build_network(config, 5, 7))
    generator = torch.Generator().manual_seed(4)
    value = loss(denoiser, torch.randn(3_000, 5, 7, generator=generator), generator, -1.2, 1.2)
    assert float(value.detach()) == pytest.approx(1, abs=0.02)
    randomised(denoiser.network)
    loss(denoiser, torch.randn(8, 5, 7, generator=generator), generator, -1.2, 1.2).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


def convolution_parameters(network):
    layers = [module for module in network.modules() if isinstance(module, nn.Conv1d)]
    return sum(count_parameters(layer) for layer in layers)


@pytest.mark.parametrize(("width", "millions"), [(1024, 165.0), (256, 10.4), (128, 2.6)])
def test_unet_size(width, millions):
    with torch.device("meta"):
        network = TemporalUNet(25, width, 3)
    assert convolution_parameters(network) / 1e6 == pytest.approx(millions, rel=0.01)
    # The projections of the noise level add a sixteenth.
    assert 1.05 < count_parameters(network) / convolution_parameters(network) < 1.10


def test_mlp_size():
    with torch.device("meta"):
        network = ResidualMLP(3, 25, 512, 4)
    expected = (33 * 128 + 128) + (128 * 512 + 512) + (75 * 512 + 512) + 4 * (512 * 512 + 512) + (512 * 75 + 75)
    assert count_parameters(network) == expected


def test_unet_length_may_change_but_not_vanish():
    network = TemporalUNet(7, 16, 3)
    level = torch.zeros(2)
    for length in (4, 5, 16, 33):
        assert network(torch.zeros(2, length, 7), level).shape == (2, length, 7)
    with pytest.raises(ValueError, match="4 rows or more"):
        network(torch.zeros(2, 3, 7), level)


def test_impossible_networks_are_explained():
    with pytest.raises(UserError, match=r"depth to 2 or less, denoiser.length to 8"):
        build_network(NetworkConfig(kind="unet", width=16, depth=4), 3, 7)
    build_network(NetworkConfig(kind="unet", width=16, depth=2), 3, 7)
    with pytest.raises(UserError, match="multiple of 8"):
        build_network(NetworkConfig(kind="unet", width=20, depth=2), 8, 7)
