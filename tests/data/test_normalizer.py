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


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[M, 9\]"):
        TrajectoryNormalizer.fit(_rows(), SIZE, ACTION_SIZE - 1, "raw")
    with pytest.raises(ValueError, match="action_space"):
        TrajectoryNormalizer.fit(_rows(), SIZE, ACTION_SIZE, "tanh")  # type: ignore[arg-type]
