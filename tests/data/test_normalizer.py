"""Test A6 of section A.7: layout and normalisation round trip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.data.normalizer import TrajectoryNormalizer

SIZE, ACTION_SIZE = 5, 3


def _rows(count: int = 400, most: float = 0.99) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = np.zeros((count, SIZE + ACTION_SIZE + 2), dtype=np.float32)
    rows[:, :SIZE] = rng.normal(size=(count, SIZE)) * [1, 2, 0.1, 0, 0.5] + [0, 1, -1, 0.3, 0]
    rows[:, SIZE : SIZE + ACTION_SIZE] = rng.uniform(-most, most, size=(count, ACTION_SIZE))
    rows[:, SIZE + 1] = 0.25
    rows[:, -2] = rng.normal(size=count) * 0.5 + 1
    rows[-1] = 0.0  # An absorbing row: action and reward 0, terminal 1.
    rows[-1, :SIZE] = rows[-2, :SIZE] + 0.1
    rows[-2:, -1] = 1.0
    return rows


@pytest.mark.parametrize("action_space", ["raw", "atanh"])
def test_round_trip_with_terminals_and_constant_columns(action_space: str) -> None:
    rows = _rows()
    rows[-1, [3, SIZE + 1]] = rows[0, [3, SIZE + 1]]
    normalizer = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, action_space)
    assert float(normalizer.observation_std[3]) == 1.0
    assert float(normalizer.action_std[1]) == 1.0
    assert normalizer.clipped_share == 0.0
    windows = torch.tensor(rows).reshape(40, 10, -1)
    before = windows.clone()
    decoded = normalizer.decode(normalizer.encode(windows))
    torch.testing.assert_close(decoded, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(windows, before, rtol=0, atol=0)
    assert torch.equal(decoded[..., -1], before[..., -1])


@pytest.mark.parametrize("action_space", ["raw", "atanh"])
def test_columns_are_standardised_and_terminals_are_not(action_space: str) -> None:
    rows = _rows()
    x = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, action_space).encode(torch.tensor(rows)).double()
    varied = [i for i in range(rows.shape[1] - 1) if rows[:, i].std() > 1e-3]
    torch.testing.assert_close(x[:, varied].mean(dim=0), torch.zeros(len(varied)).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        x[:, varied].std(dim=0, correction=0), torch.ones(len(varied)).double(), atol=1e-5, rtol=0
    )
    assert torch.equal(x[:, -1], torch.tensor(rows[:, -1]).double())


def test_statistics_are_of_the_action_as_the_model_sees_it() -> None:
    rows = _rows()
    actions = rows[:, SIZE : SIZE + ACTION_SIZE].astype(np.float64)
    raw = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "raw")
    np.testing.assert_allclose(raw.action_mean, actions.mean(axis=0), atol=1e-6)
    squashed = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "atanh")
    np.testing.assert_allclose(squashed.action_mean, np.arctanh(actions).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(squashed.observation_mean, rows[:, :SIZE].mean(axis=0), atol=1e-5)


def test_saturated_actions_are_clipped_and_reported() -> None:
    rows = _rows()
    rows[:100, SIZE] = 1.0
    rows[100:200, SIZE] = -1.0
    normalizer = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "atanh")
    assert normalizer.clipped_share == pytest.approx(200 / (400 * ACTION_SIZE))
    decoded = normalizer.decode(normalizer.encode(torch.tensor(rows)))
    np.testing.assert_allclose(decoded[:200, SIZE].abs(), 0.999, atol=1e-6)
    assert TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "raw").clipped_share == 0.0


@pytest.mark.parametrize("action_space", ["raw", "atanh"])
def test_decoded_samples_are_inside_the_bounds(action_space: str) -> None:
    normalizer = TrajectoryNormalizer.fit(_rows(), SIZE, ACTION_SIZE, action_space)
    decoded = normalizer.decode(100 * torch.randn(64, 4, 10, generator=torch.Generator().manual_seed(0)))
    assert decoded[..., SIZE : SIZE + ACTION_SIZE].abs().max() <= 1.0
    assert set(decoded[..., -1].unique().tolist()) == {0.0, 1.0}
    edge = torch.zeros(3, 10)
    edge[:, -1] = torch.tensor([0.49, 0.5, 0.51])
    assert normalizer.decode(edge)[:, -1].tolist() == [0.0, 0.0, 1.0]


def test_state_round_trip_is_plain_tensors() -> None:
    rows = _rows(most=1.0)
    normalizer = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "atanh")
    state = normalizer.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    back = TrajectoryNormalizer.from_state(state)
    assert (back.observation_size, back.action_size, back.action_space) == (SIZE, ACTION_SIZE, "atanh")
    assert back.clipped_share == normalizer.clipped_share
    assert torch.equal(back.encode(torch.tensor(rows)), normalizer.encode(torch.tensor(rows)))
    moved = normalizer.to("meta")
    assert moved.mean.device.type == moved.std.device.type == "meta"


def test_transitions_round_trip_with_terminals_inside_the_row() -> None:
    """A6 for rows of 2S+A+2 columns: the terminal column is not the last, and not standardised."""
    rows = np.concatenate([_rows(), _rows()[::-1, :SIZE]], axis=1)
    rows[:, -2] = 0.7
    normalizer = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "raw")
    terminal = SIZE + ACTION_SIZE + 1
    x = normalizer.encode(torch.tensor(rows))
    assert torch.equal(x[:, terminal], torch.tensor(rows[:, terminal]))
    assert float(normalizer.std[-2]) == 1.0
    assert float(x[:, -1].double().std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    decoded = normalizer.decode(x)
    np.testing.assert_allclose(decoded, rows, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(decoded[:, terminal], rows[:, terminal])
    noisy = normalizer.decode(torch.randn(200, rows.shape[1], generator=torch.Generator().manual_seed(0)))
    assert set(noisy[:, terminal].tolist()) == {0.0, 1.0}
    assert len(noisy[:, -1].unique()) == 200


def test_extremes_are_plus_and_minus_one() -> None:
    """A6 for rows of S+A columns, scaled by the data's extremes (section D.2)."""
    rows = _rows()[:, : SIZE + ACTION_SIZE]
    rows[:, 3] = 0.3
    normalizer = TrajectoryNormalizer.fit_extremes(rows, SIZE, ACTION_SIZE)
    x = normalizer.encode(torch.tensor(rows))
    varied = [i for i in range(rows.shape[1]) if rows[:, i].min() < rows[:, i].max()]
    assert len(varied) == rows.shape[1] - 1
    np.testing.assert_allclose(x[:, varied].amin(0), -1.0, atol=1e-6)
    np.testing.assert_allclose(x[:, varied].amax(0), 1.0, atol=1e-6)
    assert x[:, 3].abs().max() < 1e-6
    np.testing.assert_allclose(normalizer.decode(x), rows, rtol=0, atol=1e-6)
    back = TrajectoryNormalizer.from_state(normalizer.state())
    assert torch.equal(back.encode(torch.tensor(rows)), x)
    beyond = normalizer.decode(torch.full((2, rows.shape[1]), 50.0))
    assert beyond[:, SIZE:].max() == 1.0
    assert beyond[:, 0].min() > rows[:, 0].max(), "states are free"


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[M, 8\]"):
        TrajectoryNormalizer.fit_extremes(_rows(), SIZE, ACTION_SIZE)
    with pytest.raises(ValueError, match=r"\[M, 9\] or \[M, 14\]"):
        TrajectoryNormalizer.fit(_rows(), SIZE, ACTION_SIZE - 1, "raw")
    with pytest.raises(ValueError, match="action_space"):
        TrajectoryNormalizer.fit(_rows(), SIZE, ACTION_SIZE, "tanh")  # type: ignore[arg-type]


def test_data_without_terminals_never_decode_to_one() -> None:
    rows = np.random.default_rng(0).normal(size=(50, SIZE + ACTION_SIZE + 2)).astype(np.float32)
    rows[:, -1] = 0
    loud = torch.full((4, SIZE + ACTION_SIZE + 2), 3.0)
    without = TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "raw")
    assert not without.decode(loud)[:, -1].any()
    assert not TrajectoryNormalizer.from_state(without.state()).to("cpu").decode(loud)[:, -1].any()
    rows[7, -1] = 1
    assert TrajectoryNormalizer.fit(rows, SIZE, ACTION_SIZE, "raw").decode(loud)[:, -1].all()
