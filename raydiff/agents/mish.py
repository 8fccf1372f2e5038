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
    with one transcendental function: ``x h`` with ``h = 2 / (1 + s^2) - 1`` and ``s = sigmoid(-x)`` is the same."""
    if x.device.type != "cpu":
        return functional.mish(x)
    if x.requires_grad:
        return _Mish.apply(x)[0]
    s = x.neg().sigmoid_()
    return s.mul_(s).add_(1).reciprocal_().mul_(2).sub_(1).mul_(x)


class _Mish(torch.autograd.Function):
    """The value ``x h``, and its slope ``h + x (1 - h^2) (1 - s)`` from what both have in common."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        s = x.neg().sigmoid_()
        gate = s.square().add_(1).reciprocal_().mul_(2).sub_(1)
        slope = torch.addcmul(x.new_ones(()), gate, gate, value=-1)
        slope = torch.addcmul(slope, slope, s, value=-1)
        return x * gate, torch.addcmul(gate, slope, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return gradient * slope


class MishMLP(MLP):
    """``MLP`` with Mish for ReLU."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[B, out]``, or ``[heads, B, out]``, of inputs ``[B, in]``."""
        return _run(inputs, self.views(self.flat))

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` of one stacked network, its weights held constant."""
        return _run(inputs, self._fixed(index))

    def drawn(self, index: Tensor, inputs: Tensor) -> Tensor:
        """As ``head``, for an ``index [1]`` on the device, which no one waits for."""
        layers = [(w.index_select(0, index), b.index_select(0, index)) for w, b in self.views(self.flat.detach())]
        return _run(inputs, layers).squeeze(0)

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
