"""Between trajectories in environment units and what the diffusion model sees (section A.5).

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
    """Statistics ``mean [C]`` and ``std [C]`` of the columns observation | action | reward | terminal.

    Observations, actions (as they are, or through ``atanh`` of the value clipped to +-0.999) and rewards are
    standardised; the terminal column is passed as it is, since the spread of a rare flag would blow it up.
    ``clipped_share`` is the share of action values that ``atanh`` had to clip; these do not come back exactly.
    """

    mean: torch.Tensor
    std: torch.Tensor
    observation_size: int
    action_size: int
    action_space: ActionSpace
    clipped_share: float = 0.0

    @staticmethod
    def fit(
        rows: np.ndarray, observation_size: int, action_size: int, action_space: ActionSpace
    ) -> TrajectoryNormalizer:
        """Statistics of ``rows [M, C]``; a column without spread gets standard deviation 1."""
        columns = observation_size + action_size + 2
        if rows.ndim != 2 or rows.shape[1] != columns or len(rows) == 0:
            raise ValueError(f"rows must be [M, {columns}] with M > 0, got {rows.shape}")
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
        mean[-1], std[-1] = 0.0, 1.0
        to_tensor = lambda array: torch.tensor(array, dtype=torch.float32)  # noqa: E731
        return TrajectoryNormalizer(
            to_tensor(mean), to_tensor(std), observation_size, action_size, action_space, clipped
        )

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., C]`` in environment units to the model's units, on the device of the statistics."""
        if self.action_space == "atanh":
            rows = rows.clone()
            action = rows[..., self._actions]
            rows[..., self._actions] = torch.atanh(action.clamp(-ATANH_LIMIT, ATANH_LIMIT))
        return (rows - self.mean) / self.std

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model units ``[..., C]`` back to rows: actions inside +-1, terminals exactly 0 or 1."""
        rows = x * self.std + self.mean
        action = rows[..., self._actions]
        rows[..., self._actions] = torch.tanh(action) if self.action_space == "atanh" else action.clamp(-1.0, 1.0)
        rows[..., -1] = (rows[..., -1] > 0.5).to(rows.dtype)
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
        )
