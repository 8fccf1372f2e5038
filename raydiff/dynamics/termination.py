"""When an environment ends an episode, as a function of ``(s, a, s')`` in raw units (section D.6).

A dynamics model predicts states, not terminals: its rollouts end by the rule of the simulator. A rule that is missing
must not silently become "never", since the learner would then bootstrap through every fall.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raydiff.errors import UserError

Termination = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``terminal(observation [N, S], action [N, A], next_observation [N, S]) -> [N]`` (bool)."""


def termination_of(environment: str) -> Termination:
    """The rule of an environment, given by its id or short name; it is the same in all versions of it.

    Observations are those of Gymnasium's defaults (without the position on the ground), and of D4RL. Raises
    ``UserError`` where no rule is known, or where it needs more than the observation.
    """
    family = _family(environment)
    if family in _RULES:
        return _RULES[family]
    why = _UNOBSERVED.get(family, "raydiff knows no such rule for it")
    raise UserError(
        f"{environment}: rollouts of a dynamics model (generator.method=pets and dydiff) end by the environment's own "
        f"rule of termination, but {why}. Use generator.method=pgd or synther, which learn the terminals of the data, "
        f"or one of the environments with a rule: {', '.join(sorted(_RULES))}."
    )


def _family(environment: str) -> str:
    """``Hopper-v4`` -> ``hopper``, ``PointMaze_UMaze-v3`` -> ``pointmaze_``; D4RL's ``antmaze`` is not ``AntMaze_``."""
    head, underscore, _ = environment.partition("-")[0].lower().partition("_")
    return head + underscore


def _never(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    return torch.zeros(len(successor), dtype=torch.bool, device=successor.device)


def _hopper(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    # Both bounds of 100. MOPO's and DyDiff's code write abs(x < 100), which is the upper one alone.
    bounded = (successor[:, 1:].abs() < 100).all(dim=1)
    return ~(bounded & (successor[:, 0] > 0.7) & successor[:, 0].isfinite() & (successor[:, 1].abs() < 0.2))


def _walker2d(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    height, angle = successor[:, 0], successor[:, 1]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


def _ant(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    height = successor[:, 0]
    return ~(successor.isfinite().all(dim=1) & (height >= 0.2) & (height <= 1.0))


def _humanoid(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    height = successor[:, 0]
    return ~((height > 1.0) & (height < 2.0))


def _inverted_pendulum(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    return ~(successor.isfinite().all(dim=1) & (successor[:, 1].abs() <= 0.2))


def _inverted_double_pendulum(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    # The tip's height: two poles of 0.6, of which the observation has sines and cosines of the relative angles.
    sine, cosine = successor[:, 1:3], successor[:, 3:5]
    return 0.6 * (cosine[:, 0] + cosine.prod(dim=1) - sine.prod(dim=1)) <= 1.0


def _mountain_car(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    return (successor[:, 0] >= 0.45) & (successor[:, 1] >= 0.0)


def _pen(observation: Tensor, action: Tensor, successor: Tensor) -> Tensor:
    return successor[:, 26] < 0.075  # The pen was dropped: D4RL's pen_v0.py.


_ENDLESS = (
    "halfcheetah", "maze2d", "pointmaze_", "antmaze_", "pendulum", "swimmer", "reacher", "pusher", "humanoidstandup",
    "door", "hammer", "relocate", "adroithanddoor", "adroithandhammer", "adroithandpen", "adroithandrelocate",
)  # fmt: skip
_RULES: dict[str, Termination] = {
    **dict.fromkeys(_ENDLESS, _never),
    "hopper": _hopper,
    "walker2d": _walker2d,
    "ant": _ant,
    "humanoid": _humanoid,
    "invertedpendulum": _inverted_pendulum,
    "inverteddoublependulum": _inverted_double_pendulum,
    "mountaincarcontinuous": _mountain_car,
    "pen": _pen,
}
_UNOBSERVED = {
    "antmaze": "an episode of antmaze ends at a goal that is drawn anew each time and not observed",
    "kitchen": "an episode of kitchen ends with the last subtask, and which are done already is not observed",
    "frankakitchen": "an episode of FrankaKitchen ends with the last task, and which are done already is not observed",
}
