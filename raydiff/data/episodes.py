"""Where episodes end, from flags or from a limit on their length, without a loop over rows."""

from __future__ import annotations

import numpy as np


def limit_ends(terminal: np.ndarray, limit: int, after_terminal: int = 0, after_limit: int = 0) -> np.ndarray:
    """Rows ``[N]`` bool at which an episode reaches ``limit`` steps, for data without time-out flags.

    The step counter starts at 0 in the first row, at ``after_terminal`` behind a terminal row and at
    ``after_limit`` behind a row found here. Zero is right; D4RL's loaders count on with 1 after an end, so all
    but their first episodes are one step short, and agreeing with them row by row needs the same count.
    """
    count = len(terminal)
    ends = np.zeros(count, dtype=bool)
    terminal_rows = np.flatnonzero(terminal)
    position, step = 0, 0
    while position < count:
        k = int(np.searchsorted(terminal_rows, position))
        stop = int(terminal_rows[k]) if k < len(terminal_rows) else count
        reach = position + limit - 1 - step if step < limit else count
        if min(stop, reach) >= count:
            break
        if reach <= stop:
            ends[reach] = True
            position, step = reach + 1, after_limit
        else:
            position, step = stop + 1, after_terminal
    return ends


def slices_of(ends: np.ndarray, keep_unfinished: bool) -> np.ndarray:
    """Episodes as ``[E, 2]`` (first row, one past the last row), from flags ``ends [N]`` of last rows."""
    stops = np.flatnonzero(ends) + 1
    if keep_unfinished and len(ends) > 0 and (len(stops) == 0 or stops[-1] < len(ends)):
        stops = np.append(stops, len(ends))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), stops[:-1]]) if len(stops) else stops
    return np.stack([starts, stops], axis=1).astype(np.int64)


def chunk_returns(reward: np.ndarray, limit: int) -> np.ndarray:
    """Returns ``[N // limit]`` (float64) of consecutive stretches of ``limit`` rows; rows left over do not count.

    It stands for episode returns in data that is one unbroken trajectory, as maze2d's is: its flags say where a
    target was reached, and nothing is ever set back.
    """
    count = len(reward) // limit
    return reward[: count * limit].reshape(count, limit).sum(axis=1, dtype=np.float64)
