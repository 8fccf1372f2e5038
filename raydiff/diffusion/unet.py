"""Temporal U-Net over the rows of a trajectory (Policy-Guided Diffusion; section A.4 i).

Fully convolutional, so training and sampling lengths may differ; no attention and no residual connections. Groups
are normalised over channels and rows together, as is usual in PyTorch. Rows are convolved as images of height 1,
whose channels may lie together in memory: on CPUs that is up to a third faster than one-dimensional convolutions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8


class Sinusoid(nn.Module):
    """``c_noise [B] -> [B, 2 * half]`` with frequencies falling geometrically from 1 to 1e-4."""

    frequencies: Tensor

    def __init__(self, half: int) -> None:
        super().__init__()
        exponent = torch.arange(half) * (-math.log(1e4) / max(half - 1, 1))
        self.register_buffer("frequencies", exponent.exp(), persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = c_noise[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def as_image(x: Tensor) -> Tensor:
    """``[B, L, C] -> [B, C, 1, L]``: a view with its channels together on CPUs, which the layers then keep; elsewhere,
    where group normalisation would reorder it every time, a copy with its rows together."""
    x = x.transpose(1, 2).unsqueeze(2)
    return x if x.device.type == "cpu" else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """The inverse, ``[B, C, 1, L] -> [B, L, C]``."""
    return x.squeeze(2).transpose(1, 2)


class ConvNorm(nn.Module):
    """Convolution over rows with zero padding, an optional added time term, group normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, time: int = 0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, (1, kernel), padding=(0, (kernel - 1) // 2))
        self.even = kernel % 2 == 0
        self.norm = nn.GroupNorm(GROUPS, outputs)
        self.time = nn.Linear(time, outputs) if time else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        x = self.convolution(functional.pad(x, (0, 1)) if self.even else x)
        if self.time is not None and embedding is not None:
            x = x + self.time(embedding)[:, :, None, None]
        return functional.relu(self.norm(x), inplace=True)


class UpBlock(nn.Module):
    """Nearest-neighbour resize to the skip's length, convolution of two rows, concatenation, two convolutions."""

    def __init__(self, inputs: int, width: int, time: int) -> None:
        super().__init__()
        self.up = ConvNorm(inputs, width, kernel=2, time=time)
        self.first = ConvNorm(2 * width, width)
        self.second = ConvNorm(width, width)

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        x = self.up(functional.interpolate(x, size=skip.shape[2:], mode="nearest"), embedding)
        return self.second(self.first(torch.cat([x, skip], dim=1)))


class UNet(nn.Module):
    """``x [B, L, columns], c_noise [B] or [1] -> [B, L, outputs]`` for any ``L >= 2^(levels - 1)``; level ``i`` is
    ``width * 2^i`` wide (``width`` a multiple of 8). The output layer starts at zero."""

    def __init__(self, columns: int, width: int, levels: int, outputs: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        half = max(width // 8, 1)
        self.minimum_length = 2 ** (levels - 1)
        self.time = nn.Sequential(
            Sinusoid(half), nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.down_first = nn.ModuleList(
            ConvNorm(inputs, outputs, time=width) for inputs, outputs in zip([columns, *widths], widths, strict=False)
        )
        self.down_second = nn.ModuleList(ConvNorm(size, size) for size in widths)
        self.up = nn.ModuleList(UpBlock(widths[level + 1], widths[level], width) for level in range(levels - 2, -1, -1))
        self.output = nn.Conv2d(width, outputs, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if x.shape[1] < self.minimum_length:
            raise ValueError(f"{self.minimum_length} rows or more are needed, got {x.shape[1]}")
        embedding = self.time(c_noise).to(x.dtype)
        x = as_image(x)
        skips: list[Tensor] = []
        for level, (first, second) in enumerate(zip(self.down_first, self.down_second, strict=True)):
            if level:
                x = functional.max_pool2d(x, (1, 2))
            x = second(first(x, embedding))
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(x, skip, embedding)
        return as_rows(self.output(x))
