"""Residual MLP over the flattened window: the network to use for short windows on CPUs (section A.4 iv).

Each residual block is one matrix product, so the cost per call is close to ``2 * depth * width^2`` operations per
trajectory and nothing else weighs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 16
TIME_WIDTH = 128


class TimeFeatures(nn.Module):
    """Sines and cosines of ``c_noise``, and ``c_noise`` itself: ``[...] -> [..., 2 * FREQUENCIES + 1]``.

    Periods run geometrically from 8 down to 1/4, which resolves the range of ``ln(sigma) / 4`` (about -1.6 to 1.1).
    """

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        periods = torch.logspace(math.log2(8.0), math.log2(0.25), FREQUENCIES, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[..., None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos(), c_noise[..., None]], dim=-1)


class ResidualMLP(nn.Module):
    """``x [..., L, columns], c_noise [...] or [1] -> [..., L, outputs]``; ``depth`` blocks ``h + Linear(relu(h))`` of
    ``width``.

    The output layer starts at zero, so an untrained denoiser has a loss of exactly 1.
    """

    def __init__(self, length: int, columns: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.shape = (length, outputs)
        self.time = nn.Sequential(
            TimeFeatures(), nn.Linear(2 * FREQUENCIES + 1, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, width)
        )
        self.input = nn.Linear(length * columns, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, length * outputs)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        hidden = self.input(x.flatten(-2)) + self.time(c_noise).to(x.dtype)
        for block in self.blocks:
            hidden = hidden + block(functional.relu(hidden))
        return self.output(functional.relu(hidden)).unflatten(-1, self.shape)
