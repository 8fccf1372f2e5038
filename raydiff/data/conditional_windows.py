"""Windows of states and actions for the conditional trajectory model of DyDiff (section D.2)."""

from __future__ import annotations

import numpy as np

from raydiff.data.dataset import Dataset
from raydiff.data.windows import Windows, absorbing_rows, split, window_starts
from raydiff.errors import UserError


def conditional_windows(dataset: Dataset, length: int, stride: int, holdout: float, seed: int) -> Windows:
    """Windows as those of ``make_windows``, of rows ``observation | action``, with shorter episodes padded.

    Where a terminal's successor is stored, its row is one of the episode's. Episodes of fewer than ``length`` rows
    become one window in which the last state repeats; those rows are marked as ``padding`` and no model may learn
    from them. A successor and padding have no action of their own and get one drawn from the data: the model is given
    the actions, and one that only stands behind an end (DyDiff's padding) would tell it of the end beforehand.
    ``UserError`` for fewer than two windows.
    """
    rows, episodes = absorbing_rows(dataset)
    original = dataset.episode_slices("raydiff")
    grown = (episodes[:, 1] - episodes[:, 0]) > (original[:, 1] - original[:, 0])
    invented = np.zeros(len(rows), dtype=bool)
    invented[episodes[grown, 1] - 1] = True

    counts = episodes[:, 1] - episodes[:, 0]
    repeats = np.ones(len(rows), dtype=np.int64)
    # An episode of one row says nothing about states that follow.
    repeats[episodes[:, 1] - 1] += np.where(counts > 1, np.maximum(length - counts, 0), 0)
    source = np.repeat(np.arange(len(rows)), repeats)
    padding = np.zeros(len(source), dtype=bool)
    padding[1:] = source[1:] == source[:-1]
    invented = invented[source] | padding

    size, action_size = dataset.observation_size, dataset.action_size
    rows = rows[source, : size + action_size]
    drawn = np.random.default_rng(seed).integers(len(dataset), size=int(invented.sum()))
    rows[invented, size:] = dataset.action[drawn]

    stops = np.cumsum(repeats)[episodes[:, 1] - 1]
    usable = window_starts(np.stack([np.append(0, stops[:-1]), stops], axis=1), length, stride)
    if sum(len(start) for start in usable) < 2:
        raise UserError(
            f"{dataset.path}: {len(episodes)} episodes of at most {counts.max()} rows give fewer than two windows of "
            f"denoiser.length={length} rows, of which one is held out. Shorten denoiser.length or give more data."
        )
    train, validation = split(usable, length, holdout, seed)
    return Windows(
        rows, length, size, action_size, train, validation, "conditional", padding if padding.any() else None
    )
