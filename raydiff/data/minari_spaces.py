"""The spaces of a Minari dataset: which of them raydiff takes, and actions in their units and within ±1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from raydiff.envs.registry import FlatGoal, make_simulator
from raydiff.errors import UserError

_KEYS = ("observation_space", "action_space")


def read_spaces(folder: Path, about: Mapping[str, Any], environment: str) -> tuple[Any, Box]:
    """The spaces of the data out of the metadata ``about``: observations flat or a goal environment's, actions flat
    and bounded; else ``UserError``.

    A space that the metadata do not have is that of ``environment`` (an id, or "").
    """
    spaces: list[Any] = [_space(folder, about[key]) if about.get(key) else None for key in _KEYS]
    if None in spaces and environment:
        env = make_simulator(environment).unwrapped
        native = (env.observation_space, env.action_space)
        env.close()
        spaces = [own or other for own, other in zip(spaces, native, strict=True)]
    observation, action = spaces
    goal = isinstance(observation, Dict)
    parts = [observation.spaces.get(key) for key in FlatGoal.KEYS] if goal else [observation]
    if not all(isinstance(part, Box) for part in parts) or not (goal or len(observation.shape) == 1):
        raise UserError(
            f"{folder}: the observations are {observation}. raydiff needs flat continuous ones, or a goal "
            f"environment's {' and '.join(FlatGoal.KEYS)}."
        )
    if not isinstance(action, Box) or len(action.shape) != 1:
        raise UserError(f"{folder}: the actions are {action}. raydiff needs flat continuous ones.")
    if not np.isfinite(action.low).all() or not np.isfinite(action.high).all() or not (action.low < action.high).all():
        raise UserError(f"{folder}: the actions have no bounds that could be brought to ±1 ({action}).")
    return observation, action


def _space(folder: Path, text: str) -> gymnasium.Space | str:
    """A space out of Minari's JSON: boxes and dictionaries of them; of any other kind only its name."""
    try:
        return _decode(json.loads(text))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"{folder}: the metadata describe a space that is none ({error!r}).") from error


def _decode(given: dict[str, Any]) -> gymnasium.Space | str:
    if given["type"] == "Box":
        low, high = (np.array(given[bound], dtype=given["dtype"]) for bound in ("low", "high"))
        return Box(low, high, tuple(given["shape"]), low.dtype.type)
    if given["type"] == "Dict":
        parts = {key: _decode(part) for key, part in given["subspaces"].items()}
        boxes: dict[str, gymnasium.Space] = {key: part for key, part in parts.items() if isinstance(part, Box)}
        return Dict(boxes) if set(FlatGoal.KEYS) <= set(boxes) else f"a dictionary of {', '.join(parts)}"
    return str(given["type"])


def to_unit(action: np.ndarray, space: Box) -> np.ndarray:
    """Actions ``[N,A]`` in the units of ``space`` as ones within ±1, float32."""
    if _is_unit(space):
        return action
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return ((action - low) * (2.0 / (high - low)) - 1.0).astype(np.float32)


def from_unit(action: np.ndarray, space: Box) -> np.ndarray:
    """Actions ``[N,A]`` within ±1 in the units of ``space``, in its type."""
    if _is_unit(space):
        return action.astype(space.dtype)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return ((action.astype(np.float64) + 1.0) * ((high - low) / 2.0) + low).astype(space.dtype)


def _is_unit(space: Box) -> bool:
    return bool(np.all(space.low == -1) and np.all(space.high == 1))


def encode(space: Box) -> str:
    """A box as Minari's JSON; infinite bounds are ``Infinity``, as there."""
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return json.dumps({"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds})
