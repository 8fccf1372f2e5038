from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.data.conditional_windows import conditional_windows
from raydiff.data.dataset import Dataset
from raydiff.data.transition_rows import transition_windows
from raydiff.data.windows import Windows, make_windows
from raydiff.errors import UserError
from raydiff.types import Trajectories

SIZE, ACTION_SIZE = 3, 2


def _dataset(lengths: list[tuple[int, str]], stored: bool = True) -> Dataset:
    """Episodes of (rows, end); ``end`` is terminal, timeout or open. Observations hold (episode, step, row)."""
    count = sum(rows for rows, _ in lengths)
    observation = np.zeros((count, SIZE), dtype=np.float32)
    terminal, timeout = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    row = 0
    for episode, (rows, end) in enumerate(lengths):
        steps = np.arange(rows)
        observation[row : row + rows] = np.stack([np.full(rows, episode), steps, row + steps], axis=1)
        row += rows
        terminal[row - 1], timeout[row - 1] = end == "terminal", end == "timeout"
    rng = np.random.default_rng(0)
    return Dataset(
        observation=observation,
        action=rng.uniform(-1, 1, size=(count, ACTION_SIZE)).astype(np.float32),
        reward=rng.uniform(1, 2, size=count).astype(np.float32),
        terminal=terminal,
        timeout=timeout,
        next_observation=observation + np.array([0, 1, 1], dtype=np.float32) if stored else None,
        name="toy",
        path="toy.hdf5",
    )


def _all(windows: Windows) -> np.ndarray:
    return windows.gather(np.sort(np.concatenate([windows.train, windows.validation])))


def _starts(windows: Windows) -> list[tuple[int, int]]:
    return [(int(window[0, 0]), int(window[0, 1])) for window in _all(windows)]


def test_absorbing_row_follows_a_terminal() -> None:
    dataset = _dataset([(4, "terminal"), (5, "timeout"), (3, "open")])
    windows = make_windows(dataset, length=3, stride=1, holdout=0.3, seed=0)
    assert windows.rows.shape == (13, SIZE + ACTION_SIZE + 2)
    absorbing = windows.rows[4]
    np.testing.assert_array_equal(absorbing, [0, 4, 4, 0, 0, 0, 1])
    np.testing.assert_array_equal(windows.rows[[0, 1, 2, 3], -1], [0, 0, 0, 1])
    kept = np.delete(windows.rows, 4, axis=0)
    np.testing.assert_array_equal(kept[:, :SIZE], dataset.observation)
    np.testing.assert_array_equal(kept[:, SIZE:-2], dataset.action)
    np.testing.assert_array_equal(kept[:, -2], dataset.reward)
    assert _starts(windows) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_terminal_transition_survives_the_window() -> None:
    dataset = _dataset([(4, "terminal"), (5, "timeout")])
    windows = make_windows(dataset, length=3, stride=1, holdout=0.3, seed=0)
    transitions = Trajectories(_all(windows), SIZE, ACTION_SIZE).transitions()
    ending = transitions.terminal > 0
    assert ending.sum() == 1  # From the window that ends with the absorbing row.
    np.testing.assert_array_equal(transitions.observation[ending][0], [0, 3, 3])
    np.testing.assert_array_equal(transitions.next_observation[ending][0], [0, 4, 4])
    np.testing.assert_array_equal(transitions.next_observation, transitions.observation + np.array([0, 1, 1]))


def test_without_stored_successor_windows_end_with_the_terminal_row() -> None:
    dataset = _dataset([(4, "terminal"), (5, "timeout")], stored=False)
    windows = make_windows(dataset, length=3, stride=1, holdout=0.3, seed=0)
    assert len(windows.rows) == 9
    assert _starts(windows) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_stride_with_first_and_last_of_each_episode() -> None:
    windows = make_windows(_dataset([(12, "timeout"), (8, "terminal")]), length=4, stride=3, holdout=0.3, seed=0)
    assert _starts(windows) == [(0, 0), (0, 3), (0, 6), (0, 8), (1, 0), (1, 3), (1, 5)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["terminal", "timeout"])), min_size=1, max_size=12),
    st.integers(2, 6),
    st.integers(1, 5),
    st.booleans(),
)
def test_windows_never_cross_an_episode_end(
    lengths: list[tuple[int, str]], length: int, stride: int, stored: bool
) -> None:
    dataset = _dataset(lengths, stored)
    rows = [count + (stored and end == "terminal") for count, end in lengths]
    possible = sum(max(0, count - length + 1) for count in rows)
    if possible < 2 or (
        possible > 1 and sum(len({*range(0, c - length + 1, stride), c - length}) for c in rows if c >= length) < 2
    ):
        with pytest.raises(UserError):
            make_windows(dataset, length, stride, 0.2, seed=1)
        return
    windows = make_windows(dataset, length, stride, 0.2, seed=1)
    content = _all(windows)
    assert (content[:, :, 0] == content[:, :1, 0]).all()
    assert (np.diff(content[:, :, 1], axis=1) == 1).all()
    assert not np.intersect1d(windows.train, windows.validation).size
    assert len(windows.train) > 0
    assert len(windows.validation) > 0


def test_whole_episodes_are_held_out_by_seed() -> None:
    dataset = _dataset([(10, "timeout")] * 40)
    windows = make_windows(dataset, length=4, stride=1, holdout=0.1, seed=5)
    held = set(windows.gather(windows.validation)[:, 0, 0].tolist())
    trained = set(windows.gather(windows.train)[:, 0, 0].tolist())
    assert len(held) == 4
    assert not held & trained
    assert held | trained == set(range(40))
    again = make_windows(dataset, length=4, stride=1, holdout=0.1, seed=5)
    np.testing.assert_array_equal(windows.validation, again.validation)
    other = make_windows(dataset, length=4, stride=1, holdout=0.1, seed=6)
    assert set(other.gather(other.validation)[:, 0, 0].tolist()) != held


def test_one_episode_holds_out_its_tail_without_shared_rows() -> None:
    windows = make_windows(_dataset([(100, "timeout")]), length=5, stride=1, holdout=0.1, seed=0)
    assert windows.validation.tolist() == list(range(86, 96))
    assert windows.train.tolist() == list(range(0, 82))
    short = make_windows(_dataset([(6, "timeout")]), length=5, stride=1, holdout=0.1, seed=0)
    assert (short.train.tolist(), short.validation.tolist()) == ([0], [1])


def test_gather_is_slices_in_any_order() -> None:
    windows = make_windows(_dataset([(30, "timeout"), (20, "terminal")]), length=6, stride=1, holdout=0.3, seed=0)
    starts = np.random.default_rng(0).permutation(windows.train)[:12]
    batch = windows.gather(starts)
    assert batch.shape == (len(starts), 6, 7)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert batch.flags.writeable
    for start, window in zip(starts, batch, strict=True):
        np.testing.assert_array_equal(window, windows.rows[start : start + 6])
    last = len(windows.rows) - 6
    np.testing.assert_array_equal(windows.gather(np.array([last]))[0], windows.rows[last:])
    with pytest.raises(IndexError):
        windows.gather(np.array([last + 1]))


def test_too_short_episodes_are_named() -> None:
    with pytest.raises(UserError, match=r"longest of 3 episodes has 6 rows.*denoiser\.length=9"):
        make_windows(_dataset([(4, "timeout"), (5, "terminal"), (3, "open")]), 9, 1, 0.1, 0)


KINDS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(["terminal", "timeout"])), min_size=1, max_size=12
).flatmap(lambda lengths: st.sampled_from([lengths, [*lengths[:-1], (lengths[-1][0], "open")]]))


@settings(max_examples=60, deadline=None)
@given(KINDS, st.booleans())
def test_transitions_have_true_successors_only(lengths: list[tuple[int, str]], stored: bool) -> None:
    dataset = _dataset(lengths, stored)
    expected = [(e, t) for e, (rows, _) in enumerate(lengths) for t in range(rows if stored else rows - 1)]
    if len(expected) < 2:
        with pytest.raises(UserError, match="known successor"):
            transition_windows(dataset, 0.2, seed=1)
        return
    windows = transition_windows(dataset, 0.2, seed=1)
    assert (windows.layout, windows.length, windows.rows.shape[1]) == ("transition", 1, 2 * SIZE + ACTION_SIZE + 2)
    rows = _all(windows)[:, 0]
    assert [(int(row[0]), int(row[1])) for row in rows] == expected
    np.testing.assert_array_equal(rows[:, -SIZE:], rows[:, :SIZE] + np.array([0, 1, 1]))
    row = rows[:, 2].astype(int)
    np.testing.assert_array_equal(rows[:, SIZE : SIZE + ACTION_SIZE], dataset.action[row])
    np.testing.assert_array_equal(rows[:, SIZE + ACTION_SIZE], dataset.reward[row])
    np.testing.assert_array_equal(rows[:, SIZE + ACTION_SIZE + 1], dataset.terminal[row])
    assert rows[:, SIZE + ACTION_SIZE + 1].sum() == (sum(end == "terminal" for _, end in lengths) if stored else 0)
    episodes = [set(windows.gather(part)[:, 0, 0].tolist()) for part in (windows.train, windows.validation)]
    assert all(episodes)
    if len({e for e, _ in expected}) > 1:
        assert not episodes[0] & episodes[1]


@settings(max_examples=60, deadline=None)
@given(KINDS, st.integers(2, 6), st.booleans())
def test_conditional_windows_are_at_every_offset_and_padded_only_behind_short_episodes(
    lengths: list[tuple[int, str]], length: int, stored: bool
) -> None:
    dataset = _dataset(lengths, stored)
    have = [rows + (stored and end == "terminal") for rows, end in lengths]
    expected = [(e, t) for e, n in enumerate(have) if n > 1 for t in range(max(1, n - length + 1))]
    if len(expected) < 2:
        with pytest.raises(UserError, match=r"denoiser\.length"):
            conditional_windows(dataset, length, 1, 0.2, seed=1)
        return
    windows = conditional_windows(dataset, length, 1, 0.2, seed=1)
    assert (windows.layout, windows.rows.shape[1]) == ("conditional", SIZE + ACTION_SIZE)
    content = _all(windows)
    if len({e for e, _ in expected}) == 1:  # Windows that share rows with those held out are left out.
        assert set(_starts(windows)) <= set(expected)
        expected = _starts(windows)
    assert _starts(windows) == expected
    starts = np.sort(np.concatenate([windows.train, windows.validation]))
    padding = np.zeros(len(windows.rows), dtype=bool) if windows.padding is None else windows.padding
    assert (windows.padding is None) == all(n >= length or n == 1 for n in have)
    actions = {tuple(action) for action in dataset.action}
    for (episode, first), window, start in zip(expected, content, starts, strict=True):
        real = min(length, have[episode] - first)
        assert padding[start : start + length].tolist() == [False] * real + [True] * (length - real)
        assert (window[:, 0] == episode).all()
        assert window[:real, 1].tolist() == list(range(first, first + real))
        assert (window[real:, :SIZE] == window[real - 1, :SIZE]).all()
        taken = min(real, lengths[episode][0] - first)
        row = int(window[0, 2])
        np.testing.assert_array_equal(window[:taken, SIZE:], dataset.action[row : row + taken])
        assert {tuple(action) for action in window[:, SIZE:]} <= actions


def test_conditional_padding_is_reproducible_and_unlike_any_marker() -> None:
    """Actions behind an end are the data's own, each with its own draw: no value tells the network of the end."""
    dataset = _dataset([(4, "terminal"), (3, "timeout"), (5, "terminal")])
    first, again, other = (conditional_windows(dataset, 30, 1, 0.3, seed).rows for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[:, SIZE:] != other[:, SIZE:]).any()
    np.testing.assert_array_equal(first[:, :SIZE], other[:, :SIZE])
    assert len(np.unique(first[5:30, SIZE:], axis=0)) > 5


def test_conditional_stride_and_episode_holdout() -> None:
    dataset = _dataset([(12, "timeout"), (8, "terminal"), (3, "timeout")])
    windows = conditional_windows(dataset, 4, 3, 0.3, seed=0)
    assert _starts(windows) == [(0, 0), (0, 3), (0, 6), (0, 8), (1, 0), (1, 3), (1, 5), (2, 0)]
    held = set(windows.gather(windows.validation)[:, 0, 0].tolist())
    assert not held & set(windows.gather(windows.train)[:, 0, 0].tolist())
