from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raydiff.data.episodes import chunk_returns, limit_ends, slices_of


def _by_row(terminal: list[bool], limit: int, after_terminal: int, after_limit: int) -> list[bool]:
    step, ends = 0, []
    for done in terminal:
        end = step == limit - 1
        ends.append(end)
        step = after_limit if end else after_terminal if done else step + 1
    return ends


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9), st.integers(0, 1), st.integers(0, 1))
def test_limit_is_found_as_by_a_loop_over_rows(
    terminal: list[bool], limit: int, after_terminal: int, after_limit: int
) -> None:
    have = limit_ends(np.array(terminal, dtype=bool), limit, after_terminal, after_limit)
    assert have.tolist() == _by_row(terminal, limit, after_terminal, after_limit)


@given(st.lists(st.booleans(), max_size=40), st.booleans())
def test_slices_cover_the_rows_once(ends: list[bool], keep: bool) -> None:
    episodes = slices_of(np.array(ends, dtype=bool), keep_unfinished=keep)
    covered = [i for start, stop in episodes for i in range(start, stop)]
    complete = len(ends) if keep else max((i + 1 for i, end in enumerate(ends) if end), default=0)
    assert covered == list(range(complete))
    assert all(ends[stop - 1] or (keep and stop == len(ends)) for _, stop in episodes)
    assert not any(ends[i] for start, stop in episodes for i in range(start, stop - 1))


def test_chunks_are_consecutive_and_whole() -> None:
    reward = np.arange(11, dtype=np.float32)
    assert chunk_returns(reward, 4).tolist() == [6.0, 22.0]
    assert chunk_returns(reward, 11).tolist() == [55.0]
    assert chunk_returns(reward, 12).tolist() == []
    assert chunk_returns(np.full(10, 0.1, dtype=np.float32), 10).dtype == np.float64
