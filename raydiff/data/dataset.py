"""A fixed dataset in memory, and what it means: which rows are transitions, where episodes end.

Time-outs and terminals are kept apart throughout: only a terminal stops the bootstrap, and a row whose successor
is not known is never given a made-up one that a model could learn from (section 0.4).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from raydiff.data.episodes import chunk_returns, limit_ends, slices_of
from raydiff.errors import UserError
from raydiff.types import Transitions

if TYPE_CHECKING:
    from raydiff.envs.registry import EnvironmentSpec

TransitionSemantics = Literal["raydiff", "dynamics", "d4rl_qlearning", "d4rl_qlearning_terminate_on_end"]
EpisodeSemantics = Literal["raydiff", "d4rl_sequence"]
ACTION_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Dataset:
    """``N`` rows in the order of collection: ``observation [N,S]``, ``action [N,A]``, ``reward [N]`` in float32,
    ``terminal [N]`` and ``timeout [N]`` bool, ``next_observation [N,S]`` float32 where the file has it.

    ``timeout`` is derived from ``max_episode_steps`` when ``stored_timeouts`` is false. ``environment`` is the id of
    the environment that the rows belong to; for a dataset of D4RL (``d4rl_id``) it is the one that stands in for
    D4RL's own. It and ``mujoco_version`` are empty where nothing is known. ``metadata`` is what else the file says
    of itself, such as the algorithm that collected it.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray
    next_observation: np.ndarray | None
    name: str
    path: str
    max_episode_steps: int = 1000
    stored_timeouts: bool = True
    environment: str = ""
    mujoco_version: str = ""
    d4rl_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def observation_size(self) -> int:
        return self.observation.shape[1]

    @property
    def action_size(self) -> int:
        return self.action.shape[1]

    @property
    def collected_in(self) -> str:
        """Where the rows come from, for people; empty when the file does not say it."""
        return f"D4RL's environment of {self.d4rl_id}" if self.d4rl_id else self.environment

    @cached_property
    def sha256(self) -> str:
        """Hash of the arrays' names, shapes and contents: the same for any compression of the file."""
        digest = hashlib.sha256()
        for name in ("observation", "action", "reward", "terminal", "timeout", "next_observation"):
            array = getattr(self, name)
            if array is not None:
                digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def check_environment(self, spec: EnvironmentSpec) -> None:
        """Raise ``UserError`` unless these rows can have come from the environment of ``spec``."""
        _check_origin(self, spec)
        for what, have, want in (
            ("observations", self.observation_size, spec.observation_size),
            ("actions", self.action_size, spec.action_size),
        ):
            if have != want:
                raise UserError(
                    f"{self.path}: {what} have {have} dimensions, but {spec.id} has {want}. Set data.environment to "
                    f"the environment that the file was collected in, or give another data.dataset."
                )
        beyond = np.maximum(spec.action_low - self.action, self.action - spec.action_high)
        outside = (beyond > ACTION_TOLERANCE).any(axis=1)
        if outside.any():
            raise UserError(
                f"{self.path}: {outside.mean():.2%} of the rows have an action outside the action space of {spec.id} "
                f"[{spec.action_low.min():g}, {spec.action_high.max():g}]; the largest magnitude is "
                f"{np.abs(self.action).max():g}. Rescale or clip the actions of the file, or give the right "
                f"data.environment."
            )

    def transitions(self, semantics: TransitionSemantics, next_action: bool = False) -> Transitions:
        """Single steps out of the rows (section 0.4).

        ``raydiff``: every row with a stored successor; without stored successors the next row of the same episode,
        so that time-out rows and the last row of an unfinished episode drop out, while terminal rows stay with
        their own observation as successor, which the terminal flag masks. ``dynamics``: the same without those
        masked rows, for models that learn from the successor. ``d4rl_qlearning`` and
        ``d4rl_qlearning_terminate_on_end``: the rows that the ``d4rl`` package gives, in which the last row is
        lost and a terminal row's successor is the next episode's first observation.

        With ``next_action`` they bring along what the data did next in the same episode. A terminal row masks it; other
        rows that end an episode, and the last row of the file, have none and drop out.
        """
        if semantics in ("d4rl_qlearning", "d4rl_qlearning_terminate_on_end"):
            rows, successor = self._qlearning_rows(semantics == "d4rl_qlearning_terminate_on_end")
        elif self.next_observation is not None:
            rows, successor = np.arange(len(self)), self.next_observation
        else:
            known = ~(self.terminal | self.timeout)
            known[-1:] = False
            rows = np.flatnonzero(known if semantics == "dynamics" else known | self.terminal)
            successor = self.observation[np.where(known[rows], rows + 1, rows)]
        following = None
        if next_action:
            followed = ~self.timeout | self.terminal
            followed[-1:] &= self.terminal[-1:]
            kept = followed[rows]
            rows, successor = rows[kept], successor[kept]
            following = self.action[np.minimum(rows + 1, len(self) - 1)]
            following[self.terminal[rows]] = 0
        if semantics == "raydiff" and not len(rows):
            raise UserError(
                f"{self.path}: none of the {len(self)} rows is a transition, because no successor is known. Store "
                f"'next_observations', or give episodes of more than one row."
            )
        return Transitions(
            observation=self.observation[rows],
            action=self.action[rows],
            reward=self.reward[rows],
            next_observation=successor,
            terminal=self.terminal[rows].astype(np.float32),
            next_action=following,
        )

    def _qlearning_rows(self, terminate_on_end: bool) -> tuple[np.ndarray, np.ndarray]:
        keep = np.ones(len(self), dtype=bool)
        if not terminate_on_end and self.stored_timeouts:
            keep = ~self.timeout
        elif not terminate_on_end:
            keep = ~limit_ends(self.terminal, self.max_episode_steps, after_terminal=1, after_limit=0)
        rows = np.flatnonzero(keep[:-1])
        return rows, self.observation[rows + 1]

    def episode_slices(self, semantics: EpisodeSemantics) -> np.ndarray:
        """Episodes ``[E, 2]`` as first row and one past the last row.

        ``raydiff`` keeps an unfinished episode at the end of the file; ``d4rl_sequence`` loses it, as D4RL does.
        """
        if semantics == "raydiff":
            return slices_of(self.terminal | self.timeout, keep_unfinished=True)
        timeout = self.timeout
        if not self.stored_timeouts:
            timeout = limit_ends(self.terminal, self.max_episode_steps, after_terminal=1, after_limit=1)
        return slices_of(self.terminal | timeout, keep_unfinished=False)

    def episode_returns(self) -> np.ndarray:
        """Undiscounted returns ``[E]`` (float64) of the complete episodes.

        A last episode that neither terminated nor reached the time limit was cut by the end of the collection and
        does not count, flagged or not. Data of maze2d is one unbroken trajectory, whose flags say where a target was
        reached: its returns are those of consecutive stretches of the time limit.
        """
        if self.environment.startswith("maze2d-"):
            return chunk_returns(self.reward, self.max_episode_steps)
        episodes = self.episode_slices("raydiff")
        if len(episodes):
            start, stop = episodes[-1]
            if not self.terminal[stop - 1] and (not self.timeout[stop - 1] or stop - start < self.max_episode_steps):
                episodes = episodes[:-1]
        total = np.concatenate([np.zeros(1), np.cumsum(self.reward, dtype=np.float64)])
        return total[episodes[:, 1]] - total[episodes[:, 0]]


def _check_origin(dataset: Dataset, spec: EnvironmentSpec) -> None:
    """HalfCheetah and Walker2d have the same sizes, so what the file says of itself is checked too.

    Another version of the same environment passes: the run then says so, and its summary too.
    """
    have, want = _without_version(dataset.environment), _without_version(spec.id)
    if have and have != want:
        raise UserError(
            f"{dataset.path}: the data belong to {dataset.environment}, but the configuration asks for {spec.id}. Set "
            f"data.environment={dataset.environment} or leave it empty, or give another data.dataset."
        )


def _without_version(environment: str) -> str:
    return re.sub(r"-v\d+$", "", environment)
