"""Multi-layer perceptrons for small batches, where the cost of calls and of wasted gradients shows.

Every network keeps its weights in one flat vector: the optimiser, the target update and the published policy each
touch one tensor. Several networks of one shape (the twin critics) are stacked and run as one batched product. The
backward pass is written out as one step of automatic differentiation, which computes only what is asked for: the
actor's step needs the critic's gradient for its input, and not the one for its weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Layers = list[tuple[Tensor, Tensor]]


class MLP:
    """A ReLU network with linear output, or ``heads`` stacked ones that share their input.

    ``sizes`` are the widths from input to output. ``flat [P]`` holds, layer by layer, the weights ``[out, in]`` and
    biases ``[1, out]`` (stacked: ``[heads, out, in]`` and ``[heads, 1, out]``). Both are drawn uniformly within
    ``1 / sqrt(in)``, the default of ``torch.nn.Linear``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        heads: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes, self.heads = tuple(sizes), heads
        stack = () if heads is None else (heads,)
        pairs = list(itertools.pairwise(sizes))
        self._shapes = [shape for fan_in, out in pairs for shape in ((*stack, out, fan_in), (*stack, 1, out))]
        self._counts = [math.prod(shape) for shape in self._shapes]
        bounds = [1 / math.sqrt(fan_in) for fan_in, _ in pairs for _ in ("weight", "bias")]
        drawn = [
            torch.empty(count).uniform_(-bound, bound, generator=generator)
            for count, bound in zip(self._counts, bounds, strict=True)
        ]
        self.flat = torch.cat(drawn).to(device).requires_grad_()
        self.layers = self.views(self.flat.detach())
        self._head_layers = [[(w[j], b[j]) for w, b in self.layers] for j in range(heads or 0)]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[B, out]``, or ``[heads, B, out]``, of inputs ``[B, in]``."""
        if torch.is_grad_enabled():
            return _Perceptron.apply(inputs, self.flat, self)
        return _forward(inputs, self.layers, [])

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` of one stacked network, its weights held constant."""
        return _FixedPerceptron.apply(inputs, self.flat.detach(), self._head_layers[index])

    def views(self, flat: Tensor) -> Layers:
        """Weights and biases of each layer as views into ``flat [P]``."""
        parts = [part.view(shape) for part, shape in zip(flat.split(self._counts), self._shapes, strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def copy(self) -> MLP:
        """A separate network with the same weights: the start of a target network."""
        other = MLP(self.sizes, self.heads, torch.Generator(), self.flat.device)
        other.load(self.flat)
        return other

    def load(self, flat: Tensor) -> None:
        """Overwrite the weights with ``flat [P]``."""
        with torch.no_grad():
            self.flat.copy_(flat)


@torch.no_grad()
def soft_update(target: MLP, online: MLP, tau: float) -> None:
    """Move the target's weights by the share ``tau`` towards the online ones."""
    target.flat.lerp_(online.flat, tau)


class Adam:
    """Adam (Kingma and Ba 2015) in one fused call per step, without the bookkeeping of ``torch.optim``, which takes
    as long as the arithmetic on networks of this size. Its state exists from the start, so that it can always be
    saved and restored."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float, epsilon: float = 1e-8) -> None:
        self.parameters, self.learning_rate, self.epsilon = list(parameters), learning_rate, epsilon
        self.first_moments = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        self.second_moments = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]

    def minimize(self, loss: Tensor) -> None:
        """One step on ``loss``, with gradients for these parameters only."""
        gradients = list(torch.autograd.grad(loss, self.parameters))
        for step in self.steps:
            step += 1
        with torch.no_grad():
            torch._fused_adam_(
                self.parameters,
                gradients,
                self.first_moments,
                self.second_moments,
                [],
                self.steps,
                lr=self.learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
            )

    def tensors(self) -> dict[str, Tensor]:
        """The live state: two moments and a step count for each parameter."""
        groups = {"first_moment": self.first_moments, "second_moment": self.second_moments, "step": self.steps}
        return {f"{index}.{name}": tensor for name, group in groups.items() for index, tensor in enumerate(group)}


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[-2] == 1:  # a matrix library is slow at one column
        return (inputs * weight).sum(-1, keepdim=True).add_(bias)
    if weight.ndim == 2:
        return torch.addmm(bias, inputs, weight.mT)
    return torch.baddbmm(bias, inputs.expand(len(weight), -1, -1), weight.mT)


def _forward(inputs: Tensor, layers: Layers, hidden: list[Tensor]) -> Tensor:
    """The output; ``hidden`` receives the activations of the hidden layers."""
    signal = inputs
    for weight, bias in layers[:-1]:
        signal = _affine(signal, weight, bias).relu_()
        hidden.append(signal)
    return _affine(signal, *layers[-1])


def _backward(gradient: Tensor, signals: Sequence[Tensor], layers: Layers, out: Layers | None, inputs: bool) -> Tensor:
    """Chain rule from the output to the input. ``signals`` are the inputs of each layer, ``out`` receives the
    gradients of weights and biases when given, and the result is the input's gradient where ``inputs`` asks."""
    for index in range(len(layers) - 1, -1, -1):
        weight = layers[index][0]
        if out is not None:
            torch.matmul(gradient.mT, signals[index], out=out[index][0])
            torch.sum(gradient, -2, keepdim=True, out=out[index][1])
        if index > 0 or inputs:
            gradient = gradient * weight if weight.shape[-2] == 1 else gradient @ weight
        if index > 0:  # through the ReLU, in place: its gradient is zero where its output is
            torch.ops.aten.threshold_backward.grad_input(gradient, signals[index], 0, grad_input=gradient)
    return gradient


class _Perceptron(torch.autograd.Function):
    """A whole network as one differentiable step, with gradients for input and weights."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, flat: Tensor, network: MLP) -> Tensor:
        hidden: list[Tensor] = []
        output = _forward(inputs, network.layers, hidden)
        ctx.save_for_backward(flat, inputs, *hidden)  # flat: so that weights changed meanwhile are noticed
        ctx.network = network
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        flat, inputs, *hidden = ctx.saved_tensors
        network: MLP = ctx.network
        wants_inputs, wants_weights, _ = ctx.needs_input_grad
        weights = torch.empty_like(flat) if wants_weights else None
        out = None if weights is None else network.views(weights)
        first = inputs if network.heads is None else inputs.expand(network.heads, -1, -1)
        result = _backward(gradient, [first, *hidden], network.layers, out, wants_inputs)
        if wants_inputs and network.heads is not None:
            result = result.sum(0)
        return (result if wants_inputs else None), weights, None


class _FixedPerceptron(torch.autograd.Function):
    """A whole network as one differentiable step, with a gradient for its input only."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, flat: Tensor, layers: Layers) -> Tensor:
        hidden: list[Tensor] = []
        output = _forward(inputs, layers, hidden)
        ctx.save_for_backward(flat, inputs, *hidden)
        ctx.layers = layers
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _, inputs, *hidden = ctx.saved_tensors
        return _backward(gradient, [inputs, *hidden], ctx.layers, None, True), None, None
