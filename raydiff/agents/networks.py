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
    """A ReLU network with linear output, or ``heads`` stacked ones that share their input, for one seed or several.

    ``sizes`` are the widths from input to output. ``flat [P]`` holds, layer by layer, the weights ``[out, in]`` and
    biases ``[1, out]`` (stacked: ``[M, out, in]`` and ``[M, 1, out]``). Both are drawn uniformly within
    ``1 / sqrt(in)``, the default of ``torch.nn.Linear``.

    A sequence of generators makes as many networks beside each other, which never meet: inputs are ``[N, B, in]`` then,
    and outputs ``[N, B, out]`` or ``[heads, N, B, out]``. Head ``h`` of seed ``n`` is the network ``h N + n`` of the
    ``M`` stacked ones. With ``precision`` bfloat16, matrix products take bfloat16 factors; weights, output layers and
    all sums stay float32.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        heads: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.sizes, self.heads, self.precision = tuple(sizes), heads, precision
        self.seeds = len(generator) if isinstance(generator, Sequence) else None
        self.stack = tuple(count for count in (heads, self.seeds) if count is not None)
        stack = (math.prod(self.stack),) if self.stack else ()
        pairs = list(itertools.pairwise(sizes))
        self._shapes = [shape for fan_in, out in pairs for shape in ((*stack, out, fan_in), (*stack, 1, out))]
        self._counts = [math.prod(shape) for shape in self._shapes]
        streams = generator if isinstance(generator, Sequence) else [generator]
        drawn = self._together([self._draw(heads or 1, stream) for stream in streams])
        self.flat = drawn.to(device).requires_grad_()
        self.layers = self.views(self.flat.detach())
        self._head_layers = [
            [(self._head(w, index), self._head(b, index)) for w, b in self.layers] for index in range(heads or 0)
        ]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Output ``[B, out]``, or ``[heads, B, out]``, of inputs ``[B, in]``; with ``N`` seeds as the class has it."""
        several = len(self.stack) == 2
        stacked = inputs.expand(self.stack[0], *inputs.shape).flatten(0, 1) if several else inputs
        if torch.compiler.is_compiling():  # which differentiates by itself, and needs one name for each memory
            output = self._traced(stacked, self.views(self.flat))
        elif torch.is_grad_enabled():
            output = _Perceptron.apply(stacked, self.flat, self)
        else:
            output = _forward(stacked, self.layers, _cast(self.layers, self.precision), [])
        return output.unflatten(0, self.stack) if several else output

    def head(self, index: int, inputs: Tensor) -> Tensor:
        """Output ``[B, out]`` (of ``N`` seeds ``[N, B, out]``) of one stacked network, its weights held constant."""
        layers = self._fixed(index)
        if torch.compiler.is_compiling():
            return self._traced(inputs, layers)
        return _FixedPerceptron.apply(inputs, self.flat.detach(), layers, self.precision)

    def views(self, flat: Tensor) -> Layers:
        """Weights and biases of each layer as views into ``flat [P]``."""
        parts = [part.view(shape) for part, shape in zip(flat.split(self._counts), self._shapes, strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def copy(self) -> MLP:
        """A separate network with the same weights: the start of a target network."""
        streams = torch.Generator() if self.seeds is None else [torch.Generator()] * self.seeds
        other = MLP(self.sizes, self.heads, streams, self.flat.device, self.precision)
        other.load(self.flat)
        return other

    def load(self, flat: Tensor) -> None:
        """Overwrite the weights with ``flat [P]``."""
        with torch.no_grad():
            self.flat.copy_(flat)

    def member(self, flat: Tensor, seed: int) -> Tensor:
        """The part ``[P / N]`` of ``flat [P]`` that is the network of one seed, in the order of a network for one."""
        heads = self.heads or 1
        parts = [part.view(heads, self.seeds or 1, -1)[:, seed] for part in flat.detach().split(self._counts)]
        return torch.cat([part.flatten() for part in parts])

    def alone(self, seed: int | None) -> MLP:
        """The network of one seed for itself, as a copy; without several seeds (``None``) this one."""
        if seed is None:
            return self
        other = MLP(self.sizes, self.heads, torch.Generator(), self.flat.device, self.precision)
        other.load(self.member(self.flat, seed))
        return other

    def _draw(self, heads: int, generator: torch.Generator | None) -> list[Tensor]:
        """Weights and biases of the network of one seed, ``[heads, out * in]`` and ``[heads, out]``."""
        pairs = itertools.pairwise(self.sizes)
        sized = [(count, 1 / math.sqrt(fan_in)) for fan_in, out in pairs for count in (out * fan_in, out)]
        return [torch.empty(heads, count).uniform_(-bound, bound, generator=generator) for count, bound in sized]

    @staticmethod
    def _together(members: list[list[Tensor]]) -> Tensor:
        return torch.cat([torch.stack(parts, 1).flatten() for parts in zip(*members, strict=True)])

    def _fixed(self, index: int) -> Layers:
        """The layers of a head without gradients; the compiler needs one name for each memory."""
        if not torch.compiler.is_compiling():
            return self._head_layers[index]
        return [(self._head(w, index), self._head(b, index)) for w, b in self.views(self.flat.detach())]

    def _traced(self, inputs: Tensor, layers: Layers) -> Tensor:
        """What the compiler sees. On a CPU it copies the factors of stacked products, so they are taken apart."""
        stacked = layers[0][0].ndim == 3
        if not stacked or inputs.device.type != "cpu":
            return _forward(inputs, layers, _cast(layers, self.precision), [])
        parts = [list(zip(weight.unbind(), bias.unbind(), strict=True)) for weight, bias in layers]
        members = [list(each) for each in zip(*parts, strict=True)]
        own = inputs if inputs.ndim == 3 else [inputs] * len(members)
        return torch.stack(
            [_forward(x, each, _cast(each, self.precision), []) for x, each in zip(own, members, strict=True)]
        )

    def _head(self, stacked: Tensor, index: int) -> Tensor:
        """A head's entries of ``[M, ...]``: without the first axis, or with an axis of seeds instead."""
        return stacked.unflatten(0, self.stack)[index]


@torch.no_grad()
def soft_update(target: MLP, online: MLP, tau: float) -> None:
    """Move the target's weights by the share ``tau`` towards the online ones."""
    target.flat.lerp_(online.flat, tau)


class Adam:
    """Adam (Kingma and Ba 2015) in one fused call per step, without the bookkeeping of ``torch.optim``, which takes
    as long as the arithmetic on networks of this size. Its state exists from the start, so that it can always be
    saved and restored."""

    def __init__(self, parameters: Sequence[Tensor], learning_rate: float, epsilon: float = 1e-8) -> None:
        self.parameters, self.epsilon = list(parameters), epsilon
        device = self.parameters[0].device
        # A tensor, so that a program which was compiled or recorded once goes on with later rates.
        kind = torch.float64 if device.type == "cpu" else torch.float32  # as the fused kernels read it
        self._rate = torch.tensor(learning_rate, dtype=kind, device=device)
        self._learning_rate = learning_rate
        self.first_moments = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        self.second_moments = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in parameters]
        self._decays = torch.tensor([[0.9, 1.0], [0.999, 1.0]], device=device)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if value != self._learning_rate:
            self._learning_rate = value
            _put(self._rate, value)

    def minimize(self, loss: Tensor, max_norm: float | None = None) -> None:
        """One step on ``loss``, with gradients for these parameters only, scaled down to the norm ``max_norm`` where
        theirs is larger."""
        gradients = list(torch.autograd.grad(loss, self.parameters))
        if max_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_max(1))
        for step in self.steps:
            step += 1
        with torch.no_grad():
            if torch.compiler.is_compiling():  # which fuses by itself, and cannot look into the fused kernel
                self._step_by_step(gradients)
                return
            torch._fused_adam_(
                self.parameters,
                gradients,
                self.first_moments,
                self.second_moments,
                [],
                self.steps,
                lr=self._rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=self.epsilon,
                amsgrad=False,
                maximize=False,
            )

    def _step_by_step(self, gradients: Sequence[Tensor]) -> None:
        for index, gradient in enumerate(gradients):
            first, second = self.first_moments[index], self.second_moments[index]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            # A product over an axis, so that the compiler works both powers out once and not for each parameter.
            powers = (self._decays ** self.steps[index]).prod(1)
            scale = self._rate / (1 - powers[0])
            root = (1 - powers[1]).rsqrt()
            self.parameters[index].sub_(first * scale / (second.sqrt() * root + self.epsilon))

    def tensors(self) -> dict[str, Tensor]:
        """The live state: two moments and a step count for each parameter."""
        groups = {"first_moment": self.first_moments, "second_moment": self.second_moments, "step": self.steps}
        return {f"{index}.{name}": tensor for name, group in groups.items() for index, tensor in enumerate(group)}


@torch.compiler.disable  # a fill that is compiled with the step that reads the tensor would come too late
def _put(tensor: Tensor, value: float) -> None:
    tensor.fill_(value)


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[-2] == 1 and not torch.compiler.is_compiling():  # a matrix library is slow at one column
        return (inputs * weight).sum(-1, keepdim=True).add_(bias)
    if weight.ndim == 2 and torch.compiler.is_compiling():
        # It turns a sum into addmm, which on a CPU first copies the bias into every row; a difference it fuses.
        return inputs @ weight.mT - (-bias)
    if weight.ndim == 2:
        return torch.addmm(bias, inputs, weight.mT)
    return torch.baddbmm(bias, inputs.expand(len(weight), -1, -1), weight.mT)


def _cast(layers: Layers, precision: torch.dtype) -> Layers:
    """The layers in the precision of matrix products."""
    if layers[0][0].dtype == precision:
        return layers
    return [(weight.to(precision), bias.to(precision)) for weight, bias in layers]


def _forward(inputs: Tensor, layers: Layers, products: Layers, hidden: list[Tensor]) -> Tensor:
    """The output; ``hidden`` receives the activations of the hidden layers. ``products`` are the layers in the
    precision of matrix products; the output layer works in that of ``layers``."""
    signal = inputs.to(products[0][0].dtype)
    for weight, bias in products[:-1]:
        signal = _affine(signal, weight, bias).relu_()
        hidden.append(signal)
    return _affine(signal.to(layers[-1][0].dtype), *layers[-1])


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
        products = _cast(network.layers, network.precision)
        output = _forward(inputs, network.layers, products, hidden)
        ctx.save_for_backward(flat, inputs, *hidden)  # flat: so that weights changed meanwhile are noticed
        ctx.network, ctx.products = network, products
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        flat, inputs, *hidden = ctx.saved_tensors
        network: MLP = ctx.network
        wants_inputs, wants_weights, _ = ctx.needs_input_grad
        weights = torch.empty_like(flat, dtype=network.precision) if wants_weights else None
        out = None if weights is None else network.views(weights)
        shared = network.heads is not None and network.seeds is None  # all heads see the same inputs
        first = (inputs.expand(network.heads or 1, -1, -1) if shared else inputs).to(network.precision)
        gradient = gradient.to(network.precision)
        result = _backward(gradient, [first, *hidden], ctx.products, out, wants_inputs)
        if wants_inputs and shared:
            result = result.sum(0)
        return (
            (result.to(inputs.dtype) if wants_inputs else None),
            None if weights is None else weights.to(flat.dtype),
            None,
        )


class _FixedPerceptron(torch.autograd.Function):
    """A whole network as one differentiable step, with a gradient for its input only."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, flat: Tensor, layers: Layers, precision: torch.dtype) -> Tensor:
        hidden: list[Tensor] = []
        products = _cast(layers, precision)
        output = _forward(inputs, layers, products, hidden)
        ctx.save_for_backward(flat, *hidden)
        ctx.products, ctx.input_dtype = products, inputs.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        _, *hidden = ctx.saved_tensors
        products: Layers = ctx.products
        gradient = gradient.to(products[0][0].dtype)
        # a signal before the first layer is not needed without gradients of weights
        result = _backward(gradient, [gradient, *hidden], products, None, True)
        return result.to(ctx.input_dtype), None, None, None
