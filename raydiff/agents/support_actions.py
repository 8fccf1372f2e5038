"""Actions that stand for the behaviour in each state of a table: drawn when first asked for, then looked up (section G).

A batch does not say which rows of the table it holds, and it may hold synthetic rows besides. So an observation is
looked up by its own bits: those of the table are found, all others are not.

Drawing them is most of the work at the start of a stage, so it is spread over the updates that need them. What comes out
must not depend on the order in which updates ask. So the noise of a state follows from a seed and its own bits, and the
network always sees blocks of one size, in which a row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64
"""States for which actions are drawn in one call: with 16 actions each, what stays in a CPU's cache."""

GOLDEN = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as the step of SplitMix64."""

Draw = Callable[[Tensor, Tensor], Tensor]
"""``draw(observation [n, S], noise [n, K, A]) -> [n, K, A]``."""


class SupportActions:
    """``K`` actions for every distinct observation of a table. Rows with equal observations share them: the next
    observation of one row is most often the observation of another."""

    def __init__(self, observation: Tensor, actions: tuple[int, int], seed: int, draw: Draw) -> None:
        """``observation [N, S]`` may repeat itself; ``actions`` are K and A. ``draw`` makes the actions of a state from
        standard normal noise, which is a function of the observation and ``seed``."""
        keys, order = _keys(observation).sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._observation = keys[first], observation[order[first]]
        self._action = observation.new_empty(len(self), *actions)
        self._drawn = torch.zeros(len(self), dtype=torch.bool, device=observation.device)
        self._seed, self._draw = seed, draw
        self.left = len(self)
        """States whose actions are still to be drawn."""

    def __len__(self) -> int:
        return len(self._keys)

    @torch.no_grad()
    def __call__(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the actions ``[B, K, A]`` for observations ``[B, S]``, and which of these were found ``[B]``; the
        actions of the others mean nothing."""
        place = torch.searchsorted(self._keys, _keys(observation)).clamp_max_(len(self) - 1)
        found = (self._observation.index_select(0, place) == observation).all(-1)  # two may share a key
        if self.left:
            self._complete(place[found])
        return self._action.index_select(0, place), found

    def _complete(self, place: Tensor) -> None:
        """Draw what is not there yet of these places ``[n]``; the last block is filled up with others to come."""
        wanted = place[~self._drawn[place]].unique()
        if not len(wanted):
            return
        self._drawn[wanted] = True
        others = (~self._drawn).nonzero()[: -len(wanted) % BLOCK, 0]
        self._drawn[others] = True
        wanted = torch.cat([wanted, others])
        self.left -= len(wanted)
        for block in wanted.split(BLOCK):
            rows = block[torch.arange(BLOCK, device=block.device) % len(block)]
            noise = _normal(self._keys[rows], self._seed, self._action.shape[1:].numel())
            drawn = self._draw(self._observation[rows], noise.view(BLOCK, *self._action.shape[1:]).to(self._action))
            self._action[block] = drawn[: len(block)]


def _mix(numbers: Tensor) -> Tensor:
    """64-bit integers, well mixed (the steps are those of SplitMix64, Steele et al. 2014)."""
    numbers = (numbers ^ _shifted(numbers, 30)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ _shifted(numbers, 27)) * -0x6B2FB644ECCEEE15
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """As if they had no sign, which torch's own shift would copy."""
    return (numbers >> by) & (2 ** (64 - by) - 1)


def _keys(observation: Tensor) -> Tensor:
    """A 64-bit number for each observation ``[N, S]`` float32: the sum over its entries of their bits, well mixed, each
    with its position."""
    bits = observation.contiguous().view(torch.int32).to(torch.int64)
    return _mix(bits + torch.arange(1, observation.shape[-1] + 1, device=bits.device) * GOLDEN).sum(-1)


def _normal(keys: Tensor, seed: int, count: int) -> Tensor:
    """``count`` standard normal numbers for each key ``[n]``, float64: those of one key and seed are always the same."""
    steps = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    bits = _mix(_mix(keys ^ seed)[:, None] + steps)
    uniform = _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return torch.special.ndtri(uniform)
