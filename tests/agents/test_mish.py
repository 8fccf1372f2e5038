"""Mish units against torch's own, and critics made of them against plain layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydiff.agents.mish import MishMLP, mish


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_values_and_slopes_are_torchs() -> None:
    for dtype, error in ((torch.float32, 3e-6), (torch.float64, 1e-14)):
        x = torch.cat([torch.linspace(-120, 120, 4001), torch.randn(1000, generator=random())]).to(dtype)
        x.requires_grad_()
        found, expected = mish(x), nn.functional.mish(x)
        torch.testing.assert_close(found, expected, rtol=0.1 * error, atol=error)
        weight = torch.randn(len(x), generator=random(1), dtype=dtype)
        slopes = [torch.autograd.grad((value * weight).sum(), x)[0] for value in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=error, atol=error)
        with torch.no_grad():
            torch.testing.assert_close(mish(x), found.detach(), rtol=0, atol=0)


def test_slopes_in_batched_networks() -> None:
    x = torch.randn(4, 9, generator=random())
    found = torch.func.vmap(torch.func.grad(lambda row: mish(row).sum()))(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.mish(x).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_mish_critics_equal_plain_layers() -> None:
    twin, x = MishMLP((7, 12, 9, 1), heads=2, generator=random()), torch.randn(32, 7, generator=random(1))
    output = twin(x)
    assert output.shape == (2, 32, 1)
    for head in range(2):
        signal = x
        for index, (weight, bias) in enumerate(twin.layers):
            signal = signal @ weight[head].T + bias[head]
            signal = nn.functional.mish(signal) if index < 2 else signal
        torch.testing.assert_close(output[head], signal, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(twin.head(head, x), signal, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(twin.drawn(torch.tensor([head]), x), signal, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), output.detach(), rtol=0, atol=0)


def test_mish_critics_have_both_gradients_and_fixed_heads() -> None:
    twin = MishMLP((7, 12, 1), heads=2, generator=random())
    x = torch.randn(8, 7, generator=random(1)).requires_grad_()
    by_weights, by_input = torch.autograd.grad(twin(x).square().sum(), [twin.flat, x])
    step = torch.zeros_like(twin.flat.detach())
    step[20] = 1e-2
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            moved = twin.copy()
            moved.load(twin.flat + sign * step)
            values.append(moved(x).square().sum())
    assert by_weights[20].item() == pytest.approx(((values[0] - values[1]) / 2e-2).item(), rel=1e-2)
    twin.head(1, x).sum().backward()
    assert x.grad is not None
    assert twin.flat.grad is None
    assert by_input.abs().sum() > 0
    assert isinstance(twin.copy(), MishMLP)
