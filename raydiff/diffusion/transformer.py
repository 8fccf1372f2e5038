"""Transformer over the rows of a trajectory (section A.4 iii): one token per row, every row sees every other.

The noise level enters by adaptive layer normalisation whose gates start at zero (Peebles and Xie 2023), so each block
starts as the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydiff.diffusion.mlp import FREQUENCIES, TIME_WIDTH, TimeFeatures

EXPANSION = 4


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer-normalised ``x [B, L, W]``, scaled and shifted (``[B, 1, W]`` each)."""
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), 1 + scale)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with all its parameters at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """Self-attention, then a two-layer perceptron of four times the width, each normalised, added and gated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.projections = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate, second_shift, second_scale, second_gate = self.modulation(embedding)[:, None].chunk(6, -1)
        x = torch.addcmul(x, gate, self._attention(modulated(x, shift, scale)))
        hidden = functional.gelu(self.expand(modulated(x, second_shift, second_scale)), approximate="tanh")
        return torch.addcmul(x, second_gate, self.contract(hidden))

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.projections(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.attended(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """``x [B, L, columns], c_noise [B] or [1] -> [B, L, outputs]`` with ``depth`` blocks of ``width`` (a multiple of
    ``heads``), for the ``length`` that it was made for. The output layer starts at zero."""

    def __init__(self, length: int, columns: int, outputs: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            TimeFeatures(),
            nn.Linear(2 * FREQUENCIES + 1, TIME_WIDTH),
            nn.SiLU(),
            nn.Linear(TIME_WIDTH, width),
            nn.SiLU(),
        )
        self.input = nn.Linear(columns, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.output = zero(nn.Linear(width, outputs))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        if x.shape[1] != len(self.positions):
            raise ValueError(f"this network was made for {len(self.positions)} rows, got {x.shape[1]}")
        embedding = self.time(c_noise).to(x.dtype)
        hidden = self.input(x) + self.positions
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.output(modulated(hidden, *self.modulation(embedding)[:, None].chunk(2, -1)))
