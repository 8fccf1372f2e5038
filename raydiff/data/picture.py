"""One picture of a dataset: its returns, the lengths of its episodes, where its states lie, and its rewards."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raydiff.data.catalogue import entry
from raydiff.data.dataset import Dataset
from raydiff.evaluation.scores import normalized_score
from raydiff.figures import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, new_figure, style

_MOST_POINTS = 200_000
_BINS = 40


def dataset_figure(dataset: Dataset) -> Figure:
    """Four panels: returns of complete episodes, episode lengths by how they ended, the density of states in the
    plane (the positions of a maze, else the first two principal components of standardised observations), rewards.
    """
    figure = new_figure(10.0, 7.4)
    (returns, lengths), (states, rewards) = figure.subplots(2, 2)
    _draw_returns(returns, dataset)
    _draw_lengths(lengths, dataset)
    _draw_states(figure, states, dataset)
    _draw_rewards(rewards, dataset)
    origin = f", {dataset.collected_in}" if dataset.collected_in and dataset.collected_in != dataset.name else ""
    figure.suptitle(f"{dataset.name}: {len(dataset):,} transitions{origin}", fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def _draw_returns(axes: Axes, dataset: Dataset) -> None:
    values = dataset.episode_returns()
    style(axes, "Returns of complete episodes", "undiscounted return", "episodes")
    if not len(values):
        _nothing(axes, "no complete episode")
        return
    _histogram(axes, values, BLUE)
    label = f"mean {values.mean():,.1f}"
    if dataset.d4rl_id:
        score = float(normalized_score(entry(dataset.d4rl_id).reference, values.mean()))
        label += f" (score {score:.1f})"
    axes.axvline(values.mean(), color=VERMILION, linewidth=1.6, label=label)
    _finish(axes, values)


def _draw_lengths(axes: Axes, dataset: Dataset) -> None:
    style(axes, "Episode lengths", "steps", "episodes")
    episodes = dataset.episode_slices("raydiff")
    length, last = episodes[:, 1] - episodes[:, 0], episodes[:, 1] - 1
    terminal, timeout = dataset.terminal[last], dataset.timeout[last] & ~dataset.terminal[last]
    groups = {
        "terminal": (length[terminal], VERMILION),
        "timeout": (length[timeout], BLUE),
        "cut by the end of the file": (length[~terminal & ~timeout], GREY),
    }
    shown = {name: group for name, group in groups.items() if len(group[0])}
    edges = _edges(length)
    axes.hist(
        [values for values, _ in shown.values()],
        bins=edges.tolist(),
        stacked=True,
        color=[colour for _, colour in shown.values()],
        label=[f"{name}: {len(values):,}" for name, (values, _) in shown.items()],
    )
    _finish(axes, length)


def _draw_states(figure: Figure, axes: Axes, dataset: Dataset) -> None:
    points, x, y = _plane(dataset)
    style(axes, "Where the states lie", x, y)
    axes.grid(visible=False)
    low, high = np.percentile(points, [0.05, 99.95], axis=0)
    margin = 0.03 * (high - low) + 1e-6
    bounds = np.stack([low - margin, high + margin]).T
    counts, *edges = np.histogram2d(points[:, 0], points[:, 1], bins=100, range=bounds.tolist())
    image = axes.pcolormesh(*edges, np.where(counts > 0, counts, np.nan).T, cmap="viridis", norm=LogNorm(1))
    if _in_maze(dataset):
        axes.set_aspect("equal")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("states", fontsize=9, color=INK)
    bar.outline.set_visible(False)


def _draw_rewards(axes: Axes, dataset: Dataset) -> None:
    style(axes, "Rewards", "reward", "transitions")
    values = dataset.reward.astype(np.float64)
    _histogram(axes, values, GREEN)
    axes.axvline(values.mean(), color=ORANGE, linewidth=1.6, label=f"mean {values.mean():,.3g}")
    _finish(axes, values)
    axes.set_yscale("log")  # Sparse rewards are few beside the zeros.
    axes.set_ylim(bottom=0.7)


def _plane(dataset: Dataset) -> tuple[np.ndarray, str, str]:
    """Evenly chosen observations as points ``[M, 2]``, and what the two axes are."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _MOST_POINTS)).astype(np.int64))
    observation = dataset.observation[rows].astype(np.float64)
    if _in_maze(dataset):
        return observation[:, :2], "x", "y"
    spread = observation.std(axis=0)
    observation = (observation - observation.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    values, vectors = np.linalg.eigh(observation.T @ observation / len(observation))
    axes = np.zeros((observation.shape[1], 2))
    count = min(2, observation.shape[1])
    axes[:, :count] = vectors[:, ::-1][:, :count]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), range(2)] < 0, -1.0, 1.0)  # The sign is free: always the same.
    share = 100 * values[::-1][:count] / max(values.sum(), 1e-12)
    names = [f"principal component {i + 1} ({share[i]:.0f} % of the variance)" for i in range(count)]
    return observation @ axes, names[0], names[1] if count == 2 else ""


def _in_maze(dataset: Dataset) -> bool:
    """Observations that begin with a position in a maze."""
    return (dataset.d4rl_id or dataset.environment).startswith(("maze2d", "bullet-maze2d", "antmaze"))


def _histogram(axes: Axes, values: np.ndarray, colour: str) -> None:
    axes.hist(values, bins=_edges(values).tolist(), color=colour)


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins over the whole range: one for each whole number where the values are few of them."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low + 0.05 * max(1.0, abs(low)) * np.array([-1.0, 1.0])
    if high - low <= _BINS and np.array_equal(values, np.round(values)):
        return np.arange(low - 0.5, high + 1.0)
    return np.linspace(low, high, _BINS + 1)


def _finish(axes: Axes, values: np.ndarray) -> None:
    """Room for the legend above the bars and around a single one, and plain numbers on the axes."""
    axes.margins(y=0.2)
    if values.min() == values.max():
        axes.set_xlim(*(float(values[0]) + 0.5 * max(1.0, abs(float(values[0]))) * np.array([-1.0, 1.0])))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none", borderaxespad=0.2)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)
