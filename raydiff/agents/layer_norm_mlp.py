"""Stacked perceptrons with layer normalisation, in the same flat-weights style as ``networks.MLP``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from raydiff.agents.networks import MLP, Layers, _affine

EPSILON = 1e-6
"""Added to the variance, as in the published critics of ReBRAC (section H.5)."""


class LayerNormMLP(MLP):
    """``heads`` stacked networks of layers ``Linear, ReLU, LayerNorm`` with a linear output, which share their input.

    ``flat`` holds the linear layers as in ``MLP``, and behind them the gains (1 at first) and shifts (0) of each hidden
    layer's normalisation, ``[heads, 1, width]`` each.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        heads: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(sizes, heads, generator, device)
        self._stacked = heads
        gain = torch.ones(heads * sum(self.sizes[1:-1]), device=device)
        self.flat = torch.cat([self.flat.detach(), gain, torch.zeros_like(gain)]).requires_grad_()
        self.layers = self.views(self.flat.detach())
        norms = self.norms(self.flat.detach())
        self._head_layers = [[(w[j], b[j]) for w, b in self.layers] for j in range(heads)]
        self._head_norms = [[(gain[j], shift[j]) for gain, shift in norms] for j in range(heads)]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[heads, B, out]`` of inputs ``[B, in]``."""
        return _forward(inputs, self.views(self.flat), self.norms(self.flat))

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` of one network, its weights held constant."""
        norms = self._head_norms[index]
        if torch.compiler.is_compiling():
            norms = [(gain[index], shift[index]) for gain, shift in self.norms(self.flat.detach())]
        return _forward(inputs, self._fixed(index), norms)

    def views(self, flat: Tensor) -> Layers:
        """Weights and biases of each linear layer as views into ``flat [P]``."""
        return super().views(flat[: sum(self._counts)])

    def norms(self, flat: Tensor) -> Layers:
        """Gains and shifts ``[heads, 1, width]`` of each hidden layer as views into ``flat [P]``."""
        counts = [self._stacked * width for width in self.sizes[1:-1]]
        halves = flat[sum(self._counts) :].chunk(2)
        gains, shifts = ([part.view(self._stacked, 1, -1) for part in half.split(counts)] for half in halves)
        return list(zip(gains, shifts, strict=True))

    def copy(self) -> LayerNormMLP:
        """A separate network with the same weights: the start of a target network."""
        other = LayerNormMLP(self.sizes, self._stacked, torch.Generator(), self.flat.device)
        other.load(self.flat)
        return other


def _forward(inputs: Tensor, layers: Layers, norms: Layers) -> Tensor:
    signal = inputs
    for (weight, bias), (gain, shift) in zip(layers[:-1], norms, strict=True):
        signal = _affine(signal, weight, bias).relu()
        signal = torch.addcmul(shift, layer_norm(signal, signal.shape[-1:], eps=EPSILON), gain)
    return _affine(signal, *layers[-1])
