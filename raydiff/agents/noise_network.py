"""Networks of action diffusion: they predict the noise in an action from the noisy action, the time and the state.

All weights lie in one flat vector, so that optimiser, moving average and published policy each touch one tensor.

``mlp`` is Diffusion-QL's (Wang et al. 2023): the time as sinusoids and a small network, joined to action and state,
then hidden layers. ``residual`` is the network of IDQL and SWG (section E.5): learnt Fourier features of the time, then
residual blocks with layer normalisation and optional dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from raydiff.agents.mish import mish

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": mish,
    "swish": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
}
EXPANSION = 4
LONGEST_PERIOD = 1e4
FOURIER_STD = 0.2


class NetworkSpec(BaseModel):
    """What a noise network is made of.

    ``inputs`` is the size D of the noisy vector, ``condition`` that of the state, ``outputs`` what comes out (D where
    not given; 1 for an energy). ``hidden`` are the widths of the hidden layers; of a residual network, one equal width
    for each block. ``time_size`` is the number of time features and ``time_scale`` multiplies the time before them (1
    for integer times). ``head``: the last output is read from behind this block, counted from 1, and not from the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp", "residual"] = "mlp"
    inputs: int
    condition: int
    outputs: int | None = None
    hidden: tuple[int, ...] = (256, 256, 256)
    activation: Literal["mish", "swish", "relu", "gelu"] = "mish"
    time_features: Literal["sinusoidal", "fourier"] = "sinusoidal"
    time_size: int = 16
    time_scale: float = 1.0
    dropout: float = 0.0
    head: int | None = None


class _Entry(NamedTuple):
    """A tensor of the network: drawn uniformly within ``bound`` or, without, filled with ``value``; ``deviation``:
    drawn from a normal distribution."""

    shape: tuple[int, ...]
    bound: float = 0.0
    value: float = 0.0
    deviation: float = 0.0


class NoiseNetwork(nn.Module):
    """``forward(x [B, D], t [B], condition [B, S]) -> [B, outputs]``; its one parameter is ``flat [P]``. With several
    noisy vectors in each state, ``x [B, K, D], t [B, 1], condition [B, 1, S]``, the time is worked on once for each.

    Weights are drawn from ``generator``, uniformly within ``1 / sqrt(in)``, the default of ``torch.nn.Linear``.
    Raises ``ValueError`` for a spec that makes no network.
    """

    frequencies: Tensor

    def __init__(
        self,
        spec: NetworkSpec,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        _check(spec)
        self.spec = spec
        self.outputs = spec.inputs if spec.outputs is None else spec.outputs
        self._activate = ACTIVATIONS[spec.activation]
        entries = list(self._layout())
        self._shapes = [entry.shape for entry in entries]
        self._counts = [math.prod(shape) for shape in self._shapes]
        drawn = [_draw(entry, generator) for entry in entries]
        self.flat = nn.Parameter(torch.cat(drawn).to(device))
        powers = torch.arange(spec.time_size // 2, device=device) / max(spec.time_size // 2 - 1, 1)
        self.register_buffer("frequencies", LONGEST_PERIOD**-powers, persistent=False)

    def copy(self) -> NoiseNetwork:
        """A separate network with the same weights: the start of a moving average."""
        other = NoiseNetwork(self.spec, torch.Generator(), self.flat.device)
        other.load(self.flat)
        return other.requires_grad_(False)

    @torch.no_grad()
    def load(self, flat: Tensor) -> None:
        """Overwrite the weights with ``flat [P]``."""
        self.flat.copy_(flat)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        dropout: torch.Generator | None = None,
        head_alone: bool = False,
    ) -> Tensor:
        """Dropout acts only where its generator is given: in training, never in sampling. With ``head_alone`` the output
        of the head, where there is one, is the only one that gradients pass: they end at its block."""
        parts = self.flat.split(self._counts)
        weights = iter([part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)])
        time = self._time(t, weights).expand(*x.shape[:-1], -1)
        condition = condition.expand(*x.shape[:-1], -1)
        if self.spec.kind == "mlp":
            return self._mlp(torch.cat([x, time, condition], -1), weights, dropout)
        return self._residual(torch.cat([x, condition, time], -1), weights, dropout, head_alone)

    def _layout(self) -> Iterator[_Entry]:
        """The tensors in the order in which ``forward`` takes them."""
        spec, features = self.spec, self.spec.time_size
        if spec.time_features == "fourier":
            yield _Entry((features // 2,), deviation=FOURIER_STD)
        wide, time = (2 * features, features) if spec.kind == "mlp" else (spec.hidden[0], spec.hidden[0])
        yield from _linear_entries(features, wide)
        yield from _linear_entries(wide, time)
        size = spec.inputs + spec.condition + time
        if spec.kind == "mlp":
            for width in spec.hidden:
                yield from _linear_entries(size, width)
                size = width
            yield from _linear_entries(size, self.outputs)
            return
        width = spec.hidden[0]
        yield from _linear_entries(size, width)
        for block in range(1, len(spec.hidden) + 1):
            yield from (_Entry((width,), value=1.0), _Entry((width,)))
            yield from _linear_entries(width, EXPANSION * width)
            yield from _linear_entries(EXPANSION * width, width)
            if block == spec.head:
                yield from _linear_entries(width, width)
                yield from _linear_entries(width, 1)
        yield from _linear_entries(width, self.outputs - (spec.head is not None))

    def _time(self, t: Tensor, weights: Iterator[Tensor]) -> Tensor:
        scaled = t.to(self.flat.dtype)[..., None] * self.spec.time_scale
        learnt = self.spec.time_features == "fourier"
        angle = scaled * (2 * math.pi * next(weights) if learnt else self.frequencies)
        hidden = self._activate(_linear(torch.cat([angle.sin(), angle.cos()], -1), weights))
        return _linear(hidden, weights)

    def _mlp(self, signal: Tensor, weights: Iterator[Tensor], dropout: torch.Generator | None) -> Tensor:
        for _ in self.spec.hidden:
            signal = self._drop(self._activate(_linear(signal, weights)), dropout)
        return _linear(signal, weights)

    def _residual(
        self, signal: Tensor, weights: Iterator[Tensor], dropout: torch.Generator | None, head_alone: bool
    ) -> Tensor:
        signal, last = _linear(signal, weights), None
        for block in range(1, len(self.spec.hidden) + 1):
            inner = self._drop(signal, dropout)
            inner = functional.layer_norm(inner, inner.shape[-1:], next(weights), next(weights))
            signal = signal + _linear(self._activate(_linear(inner, weights)), weights)
            if block == self.spec.head:
                last = _linear(self._activate(_linear(signal, weights)), weights)
                signal = signal.detach() if head_alone else signal
        output = _linear(self._activate(signal), weights)
        return output if last is None else torch.cat([output, last], -1)

    def _drop(self, signal: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or self.spec.dropout == 0:
            return signal
        kept = torch.empty_like(signal).bernoulli_(1 - self.spec.dropout, generator=generator)
        return signal * kept / (1 - self.spec.dropout)


def _check(spec: NetworkSpec) -> None:
    if not spec.hidden:
        raise ValueError("a noise network needs at least one hidden layer")
    if spec.time_size % 2:
        raise ValueError(f"time features come in pairs of sine and cosine: {spec.time_size} is odd")
    if spec.kind == "residual" and len(set(spec.hidden)) > 1:
        raise ValueError(f"the blocks of a residual network have one width, got {spec.hidden}")
    if spec.head is not None and not (spec.kind == "residual" and 1 <= spec.head <= len(spec.hidden)):
        raise ValueError(f"a head behind block {spec.head} needs a residual network with that block")


def _linear_entries(inputs: int, outputs: int) -> tuple[_Entry, _Entry]:
    bound = 1 / math.sqrt(inputs)
    return _Entry((outputs, inputs), bound), _Entry((outputs,), bound)


def _draw(entry: _Entry, generator: torch.Generator | None) -> Tensor:
    tensor = torch.full((math.prod(entry.shape),), entry.value)
    if entry.bound:
        tensor.uniform_(-entry.bound, entry.bound, generator=generator)
    elif entry.deviation:
        tensor.normal_(0, entry.deviation, generator=generator)
    return tensor


def _linear(signal: Tensor, weights: Iterator[Tensor]) -> Tensor:
    return functional.linear(signal, next(weights), next(weights))
