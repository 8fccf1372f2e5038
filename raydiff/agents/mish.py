"""Mish units, and critics made of them (the networks of Diffusion-QL, section H.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from raydiff.agents.networks import MLP, Layers, _affine


def mish(x: Tensor) -> Tensor:
    """``x tanh(log(1 + e^x))`` (Misra 2020). On a CPU, where torch's own costs more than the matrix product beside it,
    as ``x (2 / (1 + s^2) - 1)`` with ``s = sigmoid(-x)``, which is the same with one transcendental function."""
    if x.device.type != "cpu":
        return functional.mish(x)
    return _Mish.apply(x) if x.requires_grad else _value(x)


class _Mish(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The slope is ``2 r (1 + 2 x r s^2 (1 - s)) - 1`` with ``r = 1 / (1 + s^2)``."""
        (x,) = ctx.saved_tensors
        s = x.neg().sigmoid_()
        r = s.square().add_(1).reciprocal_()
        slope = torch.addcmul(s, s, s, value=-1).mul_(s).mul_(r).mul_(x).mul_(2).add_(1)
        return slope.mul_(r).mul_(2).sub_(1).mul_(gradient)


def _value(x: Tensor) -> Tensor:
    s = x.neg().sigmoid_()
    return s.mul_(s).add_(1).reciprocal_().mul_(2).sub_(1).mul_(x)


class MishMLP(MLP):
    """``MLP`` with Mish for ReLU."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[B, out]``, or ``[heads, B, out]``, of inputs ``[B, in]``."""
        return _run(inputs, self.views(self.flat))

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` of one stacked network, its weights held constant."""
        return _run(inputs, self._fixed(index))

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
