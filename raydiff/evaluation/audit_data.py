"""What an audit looks at: transitions for single steps, trajectories for several, and which of both are whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raydiff.types import Trajectories, Transitions


@dataclass(frozen=True)
class AuditData:
    """``trajectories`` of ``L`` rows, of which the transitions ``valid [n, H]`` exist, and single ``transitions``,
    whose successor is ``known [N]`` or was lost in a file (that of a terminal step, in D4RL's)."""

    trajectories: Trajectories
    valid: np.ndarray
    transitions: Transitions
    known: np.ndarray

    @staticmethod
    def of_trajectories(trajectories: Trajectories) -> AuditData:
        """Generated trajectories."""
        transitions = trajectories.transitions()
        return AuditData(trajectories, trajectories.valid(), transitions, np.ones(len(transitions), dtype=bool))

    @staticmethod
    def of_transitions(transitions: Transitions, horizon: int, most: int, seed: int) -> AuditData:
        """Transitions in the order of collection. Up to ``most`` stretches of ``horizon`` consecutive ones, drawn by
        ``seed``, are the trajectories; those before the end of an episode are shorter."""
        known, position = _stretches(transitions)
        first = known & (position % horizon == 0)
        pieces = int(first.sum())
        piece = np.cumsum(first) - 1  # of each known transition; the others belong to none
        chosen = np.sort(np.random.default_rng(seed).permutation(pieces)[:most])
        place = np.full(pieces + 1, -1)
        place[chosen] = np.arange(len(chosen))
        of = np.flatnonzero(known & (place[piece] >= 0))
        where, slot = place[piece[of]], position[of] % horizon
        size, action_size = transitions.observation.shape[1], transitions.action.shape[1]
        rows = np.zeros((len(chosen), horizon + 1, size + action_size + 2), dtype=np.float32)
        rows[where, slot + 1, :size] = transitions.next_observation[of]  # of the last one it stays
        rows[where, slot] = take(transitions, of).rows()[:, : rows.shape[2]]
        valid = np.zeros((len(chosen), horizon), dtype=bool)
        valid[where, slot] = True
        return AuditData(Trajectories(rows, size, action_size), valid, transitions, known)


def longest_stretch(transitions: Transitions) -> int:
    """Transitions of the longest unbroken stretch."""
    known, position = _stretches(transitions)
    return int(position[known].max(initial=-1)) + 1


def take(transitions: Transitions, chosen: np.ndarray) -> Transitions:
    """The transitions of these indices (or of a mask)."""
    return Transitions(**{name: array[chosen] for name, array in vars(transitions).items() if array is not None})


def _stretches(transitions: Transitions) -> tuple[np.ndarray, np.ndarray]:
    """Which successors are known ``[N]``, and the place ``[N]`` of each known transition in its stretch: a next one
    begins where a successor is not the state that follows.

    Loaders that lack the successor of a terminal step put its own state there, or the state that follows in the file.
    """
    count = len(transitions)
    follows = np.zeros(count, dtype=bool)
    follows[:-1] = (transitions.next_observation[:-1] == transitions.observation[1:]).all(axis=1)
    terminal = transitions.terminal > 0.5
    known = ~(terminal & (follows | (transitions.next_observation == transitions.observation).all(axis=1)))
    begins = np.ones(count, dtype=bool)
    begins[1:] = ~(follows & known & ~terminal)[:-1]
    index = np.arange(count)
    return known, index - np.maximum.accumulate(np.where(begins, index, 0))
