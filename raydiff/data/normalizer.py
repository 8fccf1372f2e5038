"""Between rows in environment units and what the diffusion model sees (section A.5).

Fitted once on real data, kept inside the model's checkpoint, never refitted on synthetic data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

ActionSpace = Literal["raw", "atanh"]
ATANH_LIMIT = 0.999
_ACTION_SPACES: tuple[ActionSpace, ...] = ("raw", "atanh")


@dataclass(frozen=True)
class TrajectoryNormalizer:
    """Offset ``mean [C]`` and scale ``std [C]`` of the columns of a row, which is laid out as one of ``Layout``:
    observation | action, then reward | terminal, then the next observation, as far as it goes.

    By ``fit`` observations, actions (as they are, or through ``atanh`` of the value clipped to +-0.999) and rewards are
    standardised; the terminal column is passed as it is, since the spread of a rare flag would blow it up.
    ``clipped_share`` is the share of action values that ``atanh`` had to clip; these do not come back exactly.
    ``terminals``: whether any row is terminal; where none is, none is ever decoded, however noisy the column.
    By ``fit_extremes`` every column lies within +-1.
    """

    mean: torch.Tensor
    std: torch.Tensor
    observation_size: int
    action_size: int
    action_space: ActionSpace
    clipped_share: float = 0.0
    terminals: bool = True

    @staticmethod
    def fit(
        rows: np.ndarray, observation_size: int, action_size: int, action_space: ActionSpace
    ) -> TrajectoryNormalizer:
        """Mean and standard deviation of ``rows [M, C]``, those of a trajectory or of transitions; a column without
        spread gets standard deviation 1."""
        terminal = observation_size + action_size + 1
        _check(rows, (terminal + 1, terminal + 1 + observation_size))
        if action_space not in _ACTION_SPACES:
            raise ValueError(f"action_space must be one of {_ACTION_SPACES}, got {action_space!r}")
        values = rows.astype(np.float64)
        action = values[:, observation_size : observation_size + action_size]
        clipped = 0.0
        if action_space == "atanh":
            clipped = float((np.abs(action) > ATANH_LIMIT).mean())
            action[:] = np.arctanh(np.clip(action, -ATANH_LIMIT, ATANH_LIMIT))
        mean, std = values.mean(axis=0), values.std(axis=0)
        # Rounding leaves a constant column with a spread of about 1e-16 of its value.
        std[std <= 1e-9 * np.maximum(1.0, np.abs(mean))] = 1.0
        mean[terminal], std[terminal] = 0.0, 1.0
        return TrajectoryNormalizer(
            _tensor(mean),
            _tensor(std),
            observation_size,
            action_size,
            action_space,
            clipped,
            bool((rows[:, terminal] > 0.5).any()),
        )

    @staticmethod
    def fit_extremes(rows: np.ndarray, observation_size: int, action_size: int) -> TrajectoryNormalizer:
        """Middle and half the range of ``rows [M, S+A]``, so that the data lie within +-1 (DyDiff, section D.2); a
        column without spread gets scale 1."""
        _check(rows, (observation_size + action_size,))
        low, high = rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64)
        half = np.where(high > low, (high - low) / 2, 1.0)
        return TrajectoryNormalizer(_tensor((low + high) / 2), _tensor(half), observation_size, action_size, "raw")

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., C]`` in environment units to the model's units, on the device of the statistics."""
        if self.action_space == "atanh":
            rows = rows.clone()
            action = rows[..., self._actions]
            rows[..., self._actions] = torch.atanh(action.clamp(-ATANH_LIMIT, ATANH_LIMIT))
        return (rows - self.mean) / self.std

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model units ``[..., C]`` back to rows: actions inside +-1, terminals (where there are any) exactly 0 or 1."""
        rows = x * self.std + self.mean
        action = rows[..., self._actions]
        rows[..., self._actions] = torch.tanh(action) if self.action_space == "atanh" else action.clamp(-1.0, 1.0)
        # Empty for rows of observation and action only.
        flag = slice(self._actions.stop + 1, self._actions.stop + 2)
        rows[..., flag] = ((rows[..., flag] > 0.5) & self.terminals).to(rows.dtype)
        return rows

    def to(self, device: torch.device | str) -> TrajectoryNormalizer:
        """The same statistics on another device."""
        return TrajectoryNormalizer(
            self.mean.to(device),
            self.std.to(device),
            self.observation_size,
            self.action_size,
            self.action_space,
            self.clipped_share,
            self.terminals,
        )

    @property
    def _actions(self) -> slice:
        return slice(self.observation_size, self.observation_size + self.action_size)

    @property
    def observation_mean(self) -> torch.Tensor:
        return self.mean[: self.observation_size]

    @property
    def observation_std(self) -> torch.Tensor:
        return self.std[: self.observation_size]

    @property
    def action_mean(self) -> torch.Tensor:
        """Mean ``[A]`` of the action as the model sees it, before standardising: atanh already taken, if any."""
        return self.mean[self._actions]

    @property
    def action_std(self) -> torch.Tensor:
        return self.std[self._actions]

    def state(self) -> dict[str, torch.Tensor]:
        """Everything as plain tensors, for a safetensors checkpoint."""
        return {
            "mean": self.mean.detach().cpu().clone(),
            "std": self.std.detach().cpu().clone(),
            "sizes": torch.tensor([self.observation_size, self.action_size], dtype=torch.int64),
            "action_space": torch.tensor(_ACTION_SPACES.index(self.action_space), dtype=torch.int64),
            "clipped_share": torch.tensor(self.clipped_share, dtype=torch.float64),
            "terminals": torch.tensor(self.terminals),
        }

    @staticmethod
    def from_state(state: dict[str, torch.Tensor]) -> TrajectoryNormalizer:
        """The inverse of ``state``; ``KeyError`` when a tensor is missing."""
        sizes = state["sizes"]
        return TrajectoryNormalizer(
            state["mean"],
            state["std"],
            int(sizes[0]),
            int(sizes[1]),
            _ACTION_SPACES[int(state["action_space"])],
            float(state["clipped_share"]),
            bool(state["terminals"]),
        )


def _check(rows: np.ndarray, columns: tuple[int, ...]) -> None:
    if rows.ndim != 2 or rows.shape[1] not in columns or len(rows) == 0:
        wanted = " or ".join(f"[M, {count}]" for count in columns)
        raise ValueError(f"rows must be {wanted} with M > 0, got {rows.shape}")


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)
