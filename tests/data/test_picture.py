from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from raydiff.data.dataset import Dataset
from raydiff.data.picture import dataset_figure
from raydiff.figures import save


def _dataset(rows: int = 500, size: int = 4, **fields: object) -> Dataset:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(rows, 2)) * [3.0, 1.0]
    base = Dataset(
        observation=(plane @ rng.normal(size=(2, size))).astype(np.float32),
        action=rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        reward=(np.arange(rows) % 10 == 0).astype(np.float32),
        terminal=np.arange(rows) % 50 == 49,
        timeout=np.arange(rows) % 120 == 119,
        next_observation=None,
        name="toy",
        path="toy.hdf5",
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def _bars(axes: Axes) -> float:
    return float(sum(patch.get_height() for patch in axes.patches))  # type: ignore[attr-defined]


def test_panels_show_the_dataset(tmp_path: Path) -> None:
    dataset = _dataset(rows=530)
    figure = dataset_figure(dataset)
    returns, lengths, states, rewards = figure.axes[:4]
    episodes = dataset.episode_slices("raydiff")
    assert _bars(returns) == len(dataset.episode_returns()) == len(episodes) - 1
    assert [text.get_text() for text in lengths.get_legend().get_texts()] == [
        "terminal: 10", "timeout: 4", "cut by the end of the file: 1",
    ]  # fmt: skip
    assert returns.get_legend().get_texts()[0].get_text() == f"mean {dataset.episode_returns().mean():,.1f}"
    assert _bars(rewards) == 530
    counts = np.ma.filled(states.collections[0].get_array(), 0.0)
    assert 0.98 * 530 <= np.nansum(counts) <= 530
    assert "principal component 1" in states.get_xlabel()
    assert figure.get_suptitle() == "toy: 530 transitions"
    save(figure, tmp_path / "one.png", dpi=50)
    save(dataset_figure(dataset), tmp_path / "two.png", dpi=50)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_states_of_a_maze_are_positions() -> None:
    rng = np.random.default_rng(1)
    position = rng.uniform([1, 5], [2, 9], size=(500, 2))
    observation = np.concatenate([position, rng.normal(size=(500, 2)) * 50], axis=1).astype(np.float32)
    states = dataset_figure(_dataset(observation=observation, environment="maze2d-large-v1")).axes[2]
    assert (states.get_xlabel(), states.get_ylabel()) == ("x", "y")
    assert states.get_xlim() == pytest.approx((1, 2), abs=0.1)
    assert states.get_ylim() == pytest.approx((5, 9), abs=0.2)


def test_principal_components_span_the_plane_of_the_data() -> None:
    labels = dataset_figure(_dataset(size=6)).axes[2]
    shares = [int(label.split("(")[1].split(" %")[0]) for label in (labels.get_xlabel(), labels.get_ylabel())]
    assert 99 <= sum(shares) <= 101
    assert shares[0] > shares[1] > 0


def test_score_of_a_dataset_of_d4rl() -> None:
    dataset = _dataset(d4rl_id="antmaze-umaze-v2", environment="antmaze-umaze-v2")
    label = dataset_figure(dataset).axes[0].get_legend().get_texts()[0].get_text()
    mean = dataset.episode_returns().mean()
    assert label == f"mean {mean:.1f} (score {100 * mean:.1f})"


@pytest.mark.parametrize(
    "dataset",
    [
        _dataset(rows=1),
        _dataset(rows=30, terminal=np.zeros(30, bool), timeout=np.zeros(30, bool)),
        _dataset(size=1),
        _dataset(observation=np.zeros((500, 4), np.float32), reward=np.zeros(500, np.float32)),
        _dataset(terminal=np.ones(500, bool)),
    ],
    ids=["one row", "no complete episode", "one dimension", "constant", "episodes of one step"],
)
def test_odd_datasets_are_drawn(dataset: Dataset, tmp_path: Path) -> None:
    save(dataset_figure(dataset), tmp_path / "odd.png", dpi=40)
    assert (tmp_path / "odd.png").stat().st_size > 1000
