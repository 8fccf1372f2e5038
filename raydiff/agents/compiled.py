"""A learner's update through torch.compile: the same arithmetic in fewer, fused passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raydiff.types import Batch

Update = Callable[[Batch], dict[str, Tensor]]

VARIANTS = 64
"""Programs of one function before the compiler gives up: updates with and without an actor step, the stages of a
method, each of two critics drawn at random."""


def compiled(update: Callable[..., dict[str, Tensor]], backend: str = "inductor") -> Callable[..., dict[str, Tensor]]:
    """``update``, or the part of it that is arithmetic on tensors, compiled when it is first called, which takes tens of
    seconds on a CPU, and again for each kind of update. Where it draws from its own random streams it is left and
    entered again: draws are those of the plain update, results equal up to the order of sums.

    This changes settings of the compiler for the whole process.
    """
    torch._dynamo.config.trace_autograd_ops = True  # gradients are taken inside the update
    torch._dynamo.config.recompile_limit = VARIANTS
    return torch.compile(update, backend=backend)
