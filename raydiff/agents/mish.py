"""Mish units, and critics made of them (the networks of Diffusion-QL, section H.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from raydiff.agents.networks import MLP, Layers, _affine

LARGEST_EXPONENT = 20.0
"""Beyond it ``mish(x)`` is ``x`` to the last bit of a float."""


def mish(x: Tensor) -> Tensor:
    """``x tanh(log(1 + e^x))`` (Misra 2020). On a CPU, where torch's own takes longer than the matrix product beside
    it, in the form ``x n / (n + 1)`` with ``n = e^x + e^2x / 2``: one exponential."""
    if x.device.type != "cpu":
        return functional.mish(x)
    return _Mish.apply(x) if x.requires_grad else _forward(x)


class _Mish(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """``n / (n + 1) + x n' / (n + 1)^2`` times the gradient, with ``n' = e^x + e^2x``."""
        (x,) = ctx.saved_tensors
        power = x.clamp_max(LARGEST_EXPONENT).exp_()
        rest = torch.addcmul(power, power, power, value=0.5).add_(1).reciprocal_()
        slope = torch.addcmul(power, power, power).mul_(rest).mul_(rest).mul_(x)
        return slope.sub_(rest).add_(1).mul_(gradient)


def _forward(x: Tensor) -> Tensor:
    power = x.clamp_max(LARGEST_EXPONENT).exp_()
    n = torch.addcmul(power, power, power, value=0.5)
    return (n / (n + 1)).mul_(x)


class MishMLP(MLP):
    """``MLP`` with Mish for ReLU."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[B, out]``, or ``[heads, B, out]``, of inputs ``[B, in]``."""
        return _run(inputs, self.views(self.flat))

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` of one stacked network, its weights held constant."""
        return _run(inputs, self._head_layers[index])

    def copy(self) -> MishMLP:
        """A separate network with the same weights: the start of a target network."""
        other = MishMLP(self.sizes, self.heads, torch.Generator(), self.flat.device)
        other.load(self.flat)
        return other


def _run(inputs: Tensor, layers: Layers) -> Tensor:
    signal = inputs
    for weight, bias in layers[:-1]:
        signal = mish(_affine(signal, weight, bias))
    return _affine(signal, *layers[-1])
