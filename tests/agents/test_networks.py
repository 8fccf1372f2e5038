"""Stacked networks with a written-out backward pass against plain linear layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from raydiff.agents.networks import MLP, Adam, soft_update

SIZES = (23, 64, 48, 1)


def linear_copy(network: MLP, head: int | None = None) -> nn.Sequential:
    """The same network of ``torch.nn.Linear`` layers."""
    modules: list[nn.Module] = []
    for weight, bias in network.layers:
        linear = nn.Linear(weight.shape[-1], weight.shape[-2])
        linear.weight.data.copy_(weight if head is None else weight[head])
        linear.bias.data.copy_((bias if head is None else bias[head]).squeeze(0))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def inputs(batch: int = 32, size: int = 23) -> torch.Tensor:
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(5))


def test_stacked_critics_equal_two_separate_ones() -> None:
    twin = MLP(SIZES, heads=2, generator=torch.Generator().manual_seed(0))
    x = inputs().requires_grad_()
    output = twin(x)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    flat_gradient, input_gradient = torch.autograd.grad((output * weight).sum(), [twin.flat, x])

    expected_input = torch.zeros_like(input_gradient)
    for head in range(2):
        plain, y = linear_copy(twin, head), inputs().requires_grad_()
        result = plain(y)
        (result * weight[head]).sum().backward()
        torch.testing.assert_close(output[head], result, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(twin.head(head, x.detach()), result.detach(), atol=1e-6, rtol=1e-6)
        expected_input += y.grad
        linears = [module for module in plain if isinstance(module, nn.Linear)]
        for (weights, biases), linear in zip(twin.views(flat_gradient), linears, strict=True):
            torch.testing.assert_close(weights[head], linear.weight.grad, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(biases[head, 0], linear.bias.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(input_gradient, expected_input, atol=1e-6, rtol=1e-5)


def test_head_gives_only_the_gradient_of_its_input() -> None:
    twin = MLP(SIZES, heads=2, generator=torch.Generator().manual_seed(0))
    x, y = inputs().requires_grad_(), inputs().requires_grad_()
    twin.head(1, x).square().sum().backward()
    twin(y)[1].square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-6, rtol=1e-5)
    assert twin.flat.grad is not None
    other = MLP(SIZES, heads=2, generator=torch.Generator().manual_seed(0))
    other.head(1, inputs().requires_grad_()).sum().backward()
    assert other.flat.grad is None


@pytest.mark.parametrize("sizes", [(17, 32, 6), (5, 1), (4, 3, 1), (6, 16, 16, 16, 2)])
def test_single_network_equals_linear_layers(sizes: tuple[int, ...]) -> None:
    network = MLP(sizes, generator=torch.Generator().manual_seed(2))
    plain, x = linear_copy(network), inputs(size=sizes[0])
    torch.testing.assert_close(network(x), plain(x), atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), [network.flat])
    expected = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    flat = torch.cat([value.flatten() for value in expected])
    torch.testing.assert_close(gradient, flat, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), atol=1e-6, rtol=1e-6)


def test_initial_weights_follow_the_default_of_linear() -> None:
    network = MLP((100, 400, 3), heads=2, generator=torch.Generator().manual_seed(0))
    for (weight, bias), (fan_in, _) in zip(network.layers, itertools.pairwise((100, 400, 3)), strict=True):
        bound = fan_in**-0.5
        for tensor in (weight, bias):
            assert tensor.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not torch.equal(network.layers[0][0][0], network.layers[0][0][1])


def test_weights_changed_before_backward_are_noticed() -> None:
    network = MLP((3, 4, 1), generator=torch.Generator().manual_seed(0))
    loss = network(inputs(size=3)).sum()
    network.load(torch.zeros_like(network.flat))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_soft_update_and_copy() -> None:
    online = MLP((3, 4, 1), generator=torch.Generator().manual_seed(0))
    target = online.copy()
    before = target.flat.detach().clone()
    with torch.no_grad():
        online.flat.add_(1.0)
    torch.testing.assert_close(target.flat, before.requires_grad_())
    soft_update(target, online, 0.005)
    torch.testing.assert_close(target.flat.detach(), before.detach() + 0.005)


def test_minimize_equals_plain_adam() -> None:
    network = MLP((3, 8, 2), generator=torch.Generator().manual_seed(0))
    plain = linear_copy(network)
    optimizer, expected = Adam([network.flat], 1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.minimize(network(inputs(size=3)).square().mean())
        expected.zero_grad()
        plain(inputs(size=3)).square().mean().backward()
        expected.step()
    flat = torch.cat([value.detach().flatten() for value in plain.parameters()])
    torch.testing.assert_close(network.flat.detach(), flat, atol=1e-6, rtol=1e-5)
