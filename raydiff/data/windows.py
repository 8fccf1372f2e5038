"""Episodes cut into windows of ``L`` rows for the diffusion model (section A.5).

All rows lie in one array, episode after episode, and a window is the index of its first row. Behind a terminal
whose successor is stored comes an absorbing row, so that a window may end with it and the terminal transition
itself is learnt and generated; without it no synthetic trajectory could contain a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from raydiff.data.dataset import Dataset
from raydiff.errors import UserError

Layout = Literal["trajectory", "transition", "conditional"]
"""What a row is. ``trajectory``: observation | action | reward | terminal, ``S+A+2`` columns. ``transition``: the same
and the next observation, ``2S+A+2``, one row a window. ``conditional``: observation | action, ``S+A``."""


@dataclass(frozen=True)
class Windows:
    """``rows [R, C]`` float32 of the ``layout`` and the first rows of the windows of ``length`` rows for training,
    ``train [n]``, and for the held-out loss, ``validation [m]``. ``padding [R]`` bool marks rows that no episode has,
    None where there are none."""

    rows: np.ndarray
    length: int
    observation_size: int
    action_size: int
    train: np.ndarray
    validation: np.ndarray
    layout: Layout = "trajectory"
    padding: np.ndarray | None = None

    def gather(self, starts: np.ndarray) -> np.ndarray:
        """The windows that begin at ``starts [B]``: a new contiguous array ``[B, L, C]``, environment units."""
        # Seen as overlapping records, each window is one copy of L * C values.
        columns = self.rows.shape[1]
        records = np.lib.stride_tricks.as_strided(
            self.rows,
            shape=(len(self.rows) - self.length + 1, self.length * columns),
            strides=self.rows.strides,
            writeable=False,
        )
        return records[starts].reshape(len(starts), self.length, columns)


def make_windows(dataset: Dataset, length: int, stride: int, holdout: float, seed: int) -> Windows:
    """All windows of ``length`` rows inside episodes, at every ``stride`` rows and at the first and the last
    possible row of each episode; a share ``holdout`` of the episodes is kept for validation as a whole.

    The last rows of the only episode are held out where there is just one. ``UserError`` when no episode, or
    just a single window, is long enough.
    """
    rows, episodes = absorbing_rows(dataset)
    usable = window_starts(episodes, length, stride)
    if sum(len(start) for start in usable) < 2:
        longest = int((episodes[:, 1] - episodes[:, 0]).max())
        raise UserError(
            f"{dataset.path}: the longest of {len(episodes)} episodes has {longest} rows, too few for windows of "
            f"denoiser.length={length} rows and one more to hold out. Shorten denoiser.length or give data with "
            f"longer episodes."
        )
    train, validation = split(usable, length, holdout, seed)
    return Windows(rows, length, dataset.observation_size, dataset.action_size, train, validation)


def absorbing_rows(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows with an absorbing one behind each terminal (observation = successor, action = reward = 0,
    terminal = 1), and the episodes among them ``[E, 2]``."""
    episodes = dataset.episode_slices("raydiff")
    size = dataset.observation_size
    rows = np.concatenate(
        [dataset.observation, dataset.action, dataset.reward[:, None], dataset.terminal[:, None]],
        axis=1,
        dtype=np.float32,
    )
    if dataset.next_observation is None:
        return rows, episodes
    ends = np.flatnonzero(dataset.terminal)
    absorbing = np.zeros((len(ends), rows.shape[1]), dtype=np.float32)
    absorbing[:, :size] = dataset.next_observation[ends]
    absorbing[:, -1] = 1.0
    inserted = np.cumsum(dataset.terminal)  # Absorbing rows up to and behind each row.
    stops = episodes[:, 1] + inserted[episodes[:, 1] - 1]
    shifted = np.stack([np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1]]), stops], axis=1)
    return np.insert(rows, ends + 1, absorbing, axis=0), shifted


def window_starts(episodes: np.ndarray, length: int, stride: int) -> list[np.ndarray]:
    """First rows of the windows of each of the ``episodes [E, 2]`` that is long enough."""
    starts = [_episode_starts(int(first), int(stop), length, stride) for first, stop in episodes]
    return [start for start in starts if len(start)]


def _episode_starts(first: int, stop: int, length: int, stride: int) -> np.ndarray:
    last = stop - length
    if last < first:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.append(np.arange(first, last + 1, stride, dtype=np.int64), last))


def split(usable: list[np.ndarray], length: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows of each episode as those for training and those held out: whole episodes, or the tail of one."""
    if len(usable) == 1:
        return _split_windows(usable[0], length, holdout)
    return _split_episodes(usable, holdout, seed)


def _split_episodes(usable: list[np.ndarray], holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    count = min(max(1, round(holdout * len(usable))), len(usable) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(usable))[:count].tolist())
    train = np.concatenate([start for i, start in enumerate(usable) if i not in chosen])
    return train, np.concatenate([start for i, start in enumerate(usable) if i in chosen])


def _split_windows(starts: np.ndarray, length: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """The tail of one episode; training windows that share rows with it are left out as far as any remain."""
    count = min(max(1, round(holdout * len(starts))), len(starts) - 1)
    validation = starts[-count:]
    apart = starts[starts + length <= validation[0]]
    return (apart if len(apart) else starts[:-count]), validation
