"""Temporal U-Net with residual blocks (Decision Diffuser, Ajay et al. 2023; DyDiff's network; section A.4 ii)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydiff.diffusion.unet import GROUPS, Sinusoid, as_image, as_rows

KERNEL, PADDING = (1, 5), (0, 2)


class ResidualBlock(nn.Module):
    """Twice convolution over 5 rows, group normalisation, Mish; the time term is added between the two, and the input
    (through a 1x1 convolution where the width changes) at the end. ``[B, inputs, 1, L] -> [B, outputs, 1, L]``."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, KERNEL, padding=PADDING)
        self.first_norm = nn.GroupNorm(GROUPS, outputs)
        self.time = nn.Sequential(nn.Mish(), nn.Linear(time, outputs))
        self.second = nn.Conv2d(outputs, outputs, KERNEL, padding=PADDING)
        self.second_norm = nn.GroupNorm(GROUPS, outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = functional.mish(self.first_norm(self.first(x))) + self.time(embedding)[:, :, None, None]
        return functional.mish(self.second_norm(self.second(hidden))) + self.skip(x)


class Level(nn.Module):
    """Two residual blocks, and the convolution that changes the number of rows behind them."""

    def __init__(self, inputs: int, outputs: int, time: int, resize: nn.Module) -> None:
        super().__init__()
        self.first = ResidualBlock(inputs, outputs, time)
        self.second = ResidualBlock(outputs, outputs, time)
        self.resize = resize

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The level's output at its own number of rows, and at the next level's."""
        x = self.second(self.first(x, embedding), embedding)
        return x, self.resize(x)


class TemporalUNet(nn.Module):
    """``x [B, L, columns], c_noise [B] or [1] -> [B, L, outputs]`` for ``L`` a multiple of 2^(levels - 1).

    Level ``i`` is ``widths[i]`` wide (multiples of 8) and has half the rows of the one before, by a convolution of
    stride 2; a transposed one doubles them on the way up. The output layer starts at zero.
    """

    def __init__(self, columns: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        width = widths[0]
        self.multiple = 2 ** (len(widths) - 1)
        self.time = nn.Sequential(
            Sinusoid(width // 2), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        halve = [nn.Conv2d(size, size, (1, 3), stride=(1, 2), padding=(0, 1)) for size in widths[:-1]]
        self.down = nn.ModuleList(
            Level(inputs, size, width, resize)
            for (inputs, size), resize in zip(pairwise((columns, *widths)), [*halve, nn.Identity()], strict=True)
        )
        self.middle = Level(widths[-1], widths[-1], width, nn.Identity())
        self.up = nn.ModuleList(
            Level(2 * wide, narrow, width, nn.ConvTranspose2d(narrow, narrow, (1, 4), stride=(1, 2), padding=(0, 1)))
            for narrow, wide in reversed(list(pairwise(widths)))
        )
        self.last = nn.Conv2d(width, width, KERNEL, padding=PADDING)
        self.last_norm = nn.GroupNorm(GROUPS, width)
        self.output = nn.Conv2d(width, outputs, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if x.shape[1] % self.multiple:
            raise ValueError(f"the number of rows must be a multiple of {self.multiple}, got {x.shape[1]}")
        embedding = self.time(c_noise).to(x.dtype)
        x = as_image(x)
        skips: list[Tensor] = []
        for level in self.down:
            skip, x = level(x, embedding)
            skips.append(skip)
        x, _ = self.middle(x, embedding)
        for level in self.up:
            _, x = level(torch.cat([x, skips.pop()], dim=1), embedding)
        x = functional.mish(self.last_norm(self.last(x)))
        return as_rows(self.output(x))
