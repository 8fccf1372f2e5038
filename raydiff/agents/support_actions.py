"""Actions that stand for the behaviour in each state of a table: drawn once, then looked up (section G).

A batch does not say which rows of the table it holds, and it may hold synthetic rows besides. So an observation is
looked up by its own bits: those of the table are found, all others are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1024
"""Observations for which actions are drawn in one call."""


class SupportActions:
    """``K`` actions for every distinct observation of a table. Rows with equal observations share them: the next
    observation of one row is most often the observation of another."""

    def __init__(self, observation: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
        """``observation [N, S]`` may repeat itself; ``draw`` makes actions ``[n, K, A]`` for observations ``[n, S]`` and
        is called on the distinct ones in an order that depends on their values alone."""
        keys, order = _keys(observation).sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._observation = keys[first], observation[order[first]]
        self._action = torch.cat([draw(chunk) for chunk in self._observation.split(CHUNK)])

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the actions ``[B, K, A]`` for observations ``[B, S]``, and which of these were found ``[B]``; the
        actions of the others mean nothing."""
        place = torch.searchsorted(self._keys, _keys(observation)).clamp_max_(len(self) - 1)
        found = (self._observation.index_select(0, place) == observation).all(-1)  # two may share a key
        return self._action.index_select(0, place), found


def _keys(observation: Tensor) -> Tensor:
    """A 64-bit number for each observation ``[N, S]`` float32: the sum over its entries of their bits, well mixed, each
    with its position (the mixing steps are those of SplitMix64, Steele et al. 2014)."""
    mixed = observation.contiguous().view(torch.int32).to(torch.int64)
    mixed = mixed + torch.arange(1, observation.shape[-1] + 1, device=mixed.device) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return (mixed ^ (mixed >> 31)).sum(-1)
