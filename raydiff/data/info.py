"""What a dataset holds, in a few lines for people."""

from __future__ import annotations

import numpy as np

from raydiff.data.catalogue import entry
from raydiff.data.dataset import Dataset
from raydiff.evaluation.scores import normalized_score

_METADATA = ("algorithm", "iteration", "level", "seed")


def describe_dataset(dataset: Dataset) -> list[tuple[str, str]]:
    """Label and text of each line: origin, sizes, episodes, returns, ends, ranges."""
    slices = dataset.episode_slices("raydiff")
    lengths = slices[:, 1] - slices[:, 0]
    low, high = float(dataset.action.min()), float(dataset.action.max())
    about = [f"{key} {dataset.metadata[key]}" for key in _METADATA if key in dataset.metadata]
    timeouts = f"{int(dataset.timeout.sum()):,} timeouts"
    if not dataset.stored_timeouts:
        timeouts += f" (not in the file: from the limit of {dataset.max_episode_steps:,} steps)"
    return [
        ("dataset", f"{dataset.name} (sha256 of its contents {dataset.sha256[:16]})"),
        ("collected in", _origin(dataset)),
        *([("collected by", ", ".join(about))] if about else []),
        ("transitions", f"{len(dataset):,}"),
        ("observation, action", f"{dataset.observation_size}, {dataset.action_size}"),
        ("episodes", f"{len(slices):,}, of {lengths.min():,} to {lengths.max():,} steps"),
        ("ends", f"{int(dataset.terminal.sum()):,} terminals, {timeouts}"),
        ("successors", "stored" if dataset.next_observation is not None else "taken from the next row"),
        ("actions", f"{low:.3f} to {high:.3f}"),
        *_returns(dataset),
    ]


def _origin(dataset: Dataset) -> str:
    if dataset.d4rl_id:
        stand_in = f"scored in {dataset.environment}" if dataset.environment else "which raydiff has no simulator for"
        return f"{dataset.collected_in}, {stand_in}"
    if not dataset.environment:
        return "not said in the file"
    return f"{dataset.environment}, MuJoCo {dataset.mujoco_version or 'unknown'}"


def _returns(dataset: Dataset) -> list[tuple[str, str]]:
    """Of complete episodes; on D4RL's scale too where it is D4RL's data."""
    returns = dataset.episode_returns()
    if not len(returns):
        return []
    lines = [("returns", _spread(returns))]
    if dataset.d4rl_id:
        lines.append(("normalised returns", _spread(normalized_score(entry(dataset.d4rl_id).reference, returns))))
    return lines


def _spread(values: np.ndarray) -> str:
    quartiles = " / ".join(f"{value:.1f}" for value in np.percentile(values, [25, 50, 75]))
    return f"mean {values.mean():.1f}, quartiles {quartiles}, best {values.max():.1f}"
