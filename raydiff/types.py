"""The arrays that flow through the system, with their shapes, stated once.

Notation: ``N`` transitions, ``n`` trajectories, ``L = H + 1`` rows per trajectory (``H`` transitions),
``S`` observation size, ``A`` action size, ``C = S + A + 2`` columns, ``B`` batch. Everything is float32 in
environment units; models normalise for themselves.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Transitions:
    """Single steps: ``observation [N,S]``, ``action [N,A]``, ``reward [N]``, ``next_observation [N,S]``,
    ``terminal [N]`` (1.0 where the bootstrap stops; a timeout is not a terminal).

    ``next_action [N,A]``, for learners that ask for it (section H.5), is what was done in ``next_observation``. It is 0
    at a terminal, which masks it. Steps whose next action nobody knows are then left out.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminal: np.ndarray
    next_action: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, next_action: bool = False) -> np.ndarray:
        """One contiguous record per transition ``[N, 2S+A+2]``: observation, action, reward, terminal, next
        observation; with ``next_action`` that too, ``[N, 2S+2A+2]``. Raises ``ValueError`` where it is not known."""
        parts = [self.observation, self.action, self.reward[:, None], self.terminal[:, None], self.next_observation]
        if next_action:
            if self.next_action is None:
                raise ValueError("these transitions do not know their next actions: ask for them where they are made")
            parts.append(self.next_action)
        return np.concatenate(parts, axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Trajectories:
    """``n`` sub-trajectories as one contiguous array ``rows [n, L, C]``, columns
    ``observation (S) | action (A) | reward | terminal``. The last row closes the last transition: its
    observation is the successor, and its action, reward and terminal are not used (section A.5)."""

    rows: np.ndarray
    observation_size: int
    action_size: int

    def __post_init__(self) -> None:
        columns = self.observation_size + self.action_size + 2
        if self.rows.ndim != 3 or self.rows.shape[2] != columns:
            raise ValueError(f"rows must be [n, L, {columns}], got {self.rows.shape}")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> int:
        return self.rows.shape[1]

    @property
    def observation(self) -> np.ndarray:
        return self.rows[:, :, : self.observation_size]

    @property
    def action(self) -> np.ndarray:
        return self.rows[:, :, self.observation_size : self.observation_size + self.action_size]

    @property
    def reward(self) -> np.ndarray:
        return self.rows[:, :, -2]

    @property
    def terminal(self) -> np.ndarray:
        return self.rows[:, :, -1]

    def valid(self) -> np.ndarray:
        """Which transitions exist, ``[n, H]`` bool: those with no terminal in an earlier row (A.5)."""
        done = self.terminal[:, :-1] > 0.5
        earlier = np.zeros_like(done)
        earlier[:, 1:] = np.logical_or.accumulate(done, axis=1)[:, :-1]
        return ~earlier

    def transitions(self, next_action: bool = False) -> Transitions:
        """The valid transitions, trajectory by trajectory: row ``t`` with successor row ``t + 1``.

        With ``next_action`` they bring the action of row ``t + 1`` along. The closing row has none, so the last
        transition of each trajectory is left out unless it is terminal.
        """
        keep = self.valid()
        if next_action:
            keep[:, -1] &= self.terminal[:, -2] > 0.5
        terminal = self.terminal[:, :-1][keep]
        return Transitions(
            observation=self.observation[:, :-1][keep],
            action=self.action[:, :-1][keep],
            reward=self.reward[:, :-1][keep],
            next_observation=self.observation[:, 1:][keep],
            terminal=terminal,
            next_action=np.where(terminal[:, None] > 0.5, 0, self.action[:, 1:][keep]) if next_action else None,
        )


class Batch(NamedTuple):
    """What a learner trains on: tensors ``observation [B,S]``, ``action [B,A]``, ``reward [B]``,
    ``next_observation [B,S]``, ``terminal [B]``, and for learners that ask for it ``next_action [B,A]``, the data's
    action in the next observation (0 at a terminal)."""

    observation: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    next_observation: torch.Tensor
    terminal: torch.Tensor
    next_action: torch.Tensor | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a block of trajectories came from. ``policy_version`` is the learner's update count when the
    policy was published; ``parent_block`` is set on refreshed blocks."""

    block: int
    learner_id: str
    generator: str
    shard: int
    seed: int
    policy_version: int
    denoiser: str
    guidance: str
    strength: float
    nfe: int
    parent_block: int | None = None
    time: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """How well the valid actions of trajectories fit a policy, in environment units.

    ``deviation``: mean over transitions and action entries of ``(a - policy mean)^2``. ``log_likelihood``: mean over
    transitions of ``sum_j log pi(a_j | s)`` in nats (section I.2; a deterministic policy stands for a Gaussian of
    standard deviation ``guidance.delta``), and ``own``, what the policy's own actions would have in these states.
    """

    deviation: float
    log_likelihood: float
    own: float


@dataclass(frozen=True)
class PolicyBlob:
    """A policy on its way to generators and evaluators: one flat float32 array and the spec to rebuild it."""

    version: int
    spec: dict[str, Any]
    weights: np.ndarray
    checksum: int

    @staticmethod
    def pack(version: int, spec: dict[str, Any], weights: np.ndarray) -> PolicyBlob:
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        return PolicyBlob(version, spec, weights, zlib.crc32(weights.tobytes()))

    def verify(self) -> None:
        """Raise ``ValueError`` when the weights are not the ones that were packed."""
        if zlib.crc32(np.ascontiguousarray(self.weights).tobytes()) != self.checksum:
            raise ValueError(f"policy version {self.version} arrived damaged: its checksum does not match")
