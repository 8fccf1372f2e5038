"""Sampling with the network in reduced precision (section A.4)."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from raydiff.diffusion.edm import Denoiser
from raydiff.diffusion.samplers import Denoise

Precision = Literal["float32", "bfloat16"]


class ReducedNetwork(nn.Module):
    """A copy of ``network`` with weights and activations in ``dtype``, and float32 on the outside.

    The embedding of the noise level, ``network.time``, stays in float32: bfloat16 holds three digits of ``c_noise``,
    too few to tell the levels of a schedule apart. It is computed once per call for a whole batch.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype)
        self.network.time = copy.deepcopy(network.time)
        self.dtype = dtype

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.network(x.to(self.dtype), c_noise).float()


def in_precision(denoiser: Denoise, precision: Precision) -> Denoise:
    """The denoiser with its network computing in ``precision``, for sampling; itself for ``float32``.

    In ``bfloat16`` it is a copy, a ``Denoiser`` too, whose weights are rounded once. The preconditioning, and so the
    sample from step to step, stays in float32: an error of the network enters ``D`` only with the factor ``c_out``,
    which is no larger than ``sigma`` and than ``sigma_data``. Raises ``ValueError`` for a denoiser without a network.
    """
    if precision == "float32":
        return denoiser
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{type(denoiser).__name__} has no network to compute in {precision}")
    reduced = copy.copy(denoiser)
    # A module's shallow copy shares its table of submodules with the original.
    reduced._modules = dict(reduced._modules)
    reduced.network = ReducedNetwork(denoiser.network, torch.bfloat16).requires_grad_(False)
    return reduced
