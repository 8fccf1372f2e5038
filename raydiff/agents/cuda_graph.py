"""A learner's program as CUDA graphs: small networks are bound by the launches of their kernels, which a graph saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Program = Callable[..., dict[str, Tensor]]
WARM_UP = 3
"""Calls of each kind that run as they are, so that libraries have chosen their kernels before one is recorded."""


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    metrics: Tensor
    """All of them, stacked: overwritten by every replay."""


class Graphed:
    """A program of tensors and switches. Each combination of switches is recorded once and replayed from then on.

    The program may draw nothing, decide nothing by a tensor, and keep its state in the same tensors for ever; its
    metrics have one shape. Recording runs nothing, so that every call is one update.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._calls: dict[tuple[tuple[str, bool], ...], int] = {}
        self._recorded: dict[tuple[tuple[str, bool], ...], _Recorded] = {}
        self._side = torch.cuda.Stream()

    def __call__(self, *inputs: Tensor, **switches: bool) -> dict[str, Tensor]:
        key = tuple(sorted(switches.items()))
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] <= WARM_UP:
            return self._aside(inputs, switches)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs, switches)
        known = self._recorded[key]
        for kept, fresh in zip(known.inputs, inputs, strict=True):
            kept.copy_(fresh)
        known.graph.replay()
        return dict(zip(known.names, known.metrics.clone().unbind(), strict=True))

    def _aside(self, inputs: tuple[Tensor, ...], switches: dict[str, bool]) -> dict[str, Tensor]:
        """A plain call on a stream of its own, as recording wants it before."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            metrics = self.program(*inputs, **switches)
        torch.cuda.current_stream().wait_stream(self._side)
        return metrics

    def _record(self, inputs: tuple[Tensor, ...], switches: dict[str, bool]) -> _Recorded:
        kept, graph = tuple(each.clone() for each in inputs), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            metrics = self.program(*kept, **switches)
            stacked = torch.stack(list(metrics.values()))
        return _Recorded(graph, kept, tuple(metrics), stacked)
