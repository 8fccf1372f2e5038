"""What a dataset holds, in a few lines for people."""

from __future__ import annotations

import numpy as np

from raydiff.data.dataset import Dataset


def describe_dataset(dataset: Dataset) -> list[tuple[str, str]]:
    """Label and text of each line: sizes, episodes, returns, ends, ranges."""
    slices = dataset.episode_slices("raydiff")
    lengths = slices[:, 1] - slices[:, 0]
    returns = dataset.episode_returns()
    low, high = float(dataset.action.min()), float(dataset.action.max())
    lines = [
        ("dataset", f"{dataset.name} (sha256 of its contents {dataset.sha256[:16]})"),
        ("collected in", _origin(dataset)),
        ("transitions", f"{len(dataset):,}"),
        ("observation, action", f"{dataset.observation_size}, {dataset.action_size}"),
        ("episodes", f"{len(slices):,}, of {lengths.min():,} to {lengths.max():,} steps"),
        ("ends", f"{int(dataset.terminal.sum()):,} terminals, {int(dataset.timeout.sum()):,} timeouts"),
        ("successors", "stored" if dataset.next_observation is not None else "taken from the next row"),
        ("actions", f"{low:.3f} to {high:.3f}"),
    ]
    if len(returns):
        quartiles = " / ".join(f"{value:.1f}" for value in np.percentile(returns, [25, 50, 75]))
        lines.append(("returns", f"mean {returns.mean():.1f}, quartiles {quartiles}, best {returns.max():.1f}"))
    return lines


def _origin(dataset: Dataset) -> str:
    if not dataset.environment:
        return "not said in the file"
    return f"{dataset.environment}-{dataset.version}, MuJoCo {dataset.mujoco_version or 'unknown'}"
