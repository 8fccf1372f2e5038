"""The simulators that data is collected in and policies are scored in, by one id each.

An id is Gymnasium's (``HalfCheetah-v4``, ``Pendulum-v1``) or that of an environment in D4RL's own frame
(``maze2d-umaze-v1``, ``antmaze-umaze-v2``, ``pen-v1``, ``kitchen-mixed-v0``). Whatever its own bounds, actions here
are within ±1 and observations are flat.
"""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import RescaleAction, TimeLimit

from raydiff.config import DataConfig
from raydiff.envs.quiet import load_gymnasium_robotics, quiet_mujoco
from raydiff.errors import UserError

_MAZES = ("umaze", "medium", "large")
_ANTMAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
# Family -> (module, its ids): each module offers ``make(id)``, ``step_limit(id)`` and ``DIFFERENCES``.
_FRAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "maze2d": ("maze2d", tuple(f"maze2d-{maze}{dense}-v1" for maze in _MAZES for dense in ("", "-dense"))),
    "antmaze": ("antmaze", tuple(f"antmaze-{maze}-v2" for maze in _ANTMAZES)),
    "adroit": ("adroit", ("pen-v1", "door-v1", "hammer-v1", "relocate-v1")),
    "ant": ("ant", ("ant-v2",)),
    "kitchen": ("kitchen", tuple(f"kitchen-{tasks}-v0" for tasks in ("complete", "partial", "mixed"))),
}
_LOCOMOTION = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
ALIASES = _LOCOMOTION | {re.sub(r"-v\d+$", "", name): name for _, names in _FRAMED.values() for name in names}
"""Short names: D4RL's, with the versions that carry its dynamics."""

DEFAULT = "HalfCheetah-v4"
_DEFAULT_STEPS = 1000  # where Gymnasium itself sets no limit


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a dataset or a policy must agree with: sizes, action bounds ``[A]`` and the time limit in steps.

    ``reference`` names D4RL's reference scores where they apply; ``differences`` says how the environment differs
    from D4RL's own.
    """

    id: str
    observation_size: int
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int
    mujoco_version: str
    reference: str | None = None
    differences: tuple[str, ...] = ()


def canonical(name: str) -> str:
    """The id that a name or alias stands for. Raises ``UserError`` naming the nearest where there is none."""
    name = ALIASES.get(name, name)
    if _framed(name) is not None or name in gymnasium.registry:
        return name
    load_gymnasium_robotics()
    if name in gymnasium.registry:
        return name
    known = [*ALIASES, *(i for _, ids in _FRAMED.values() for i in ids), *gymnasium.registry]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UserError(
        f"There is no environment {name!r}.{' Near are ' + ', '.join(near) + '.' if near else ''} Use one of "
        f"{', '.join(sorted(_LOCOMOTION))}, maze2d-*, antmaze-*, {', '.join(ALIASES[n] for n in ('pen', 'door'))} and "
        "the like, or any Gymnasium id with continuous actions, such as Pendulum-v1."
    )


def environment_of(data: DataConfig) -> str:
    """The id of the environment that a configuration asks for; ``DEFAULT`` where it asks for none."""
    return canonical(data.environment or DEFAULT)


def make_simulator(name: str) -> gymnasium.Env:
    """One environment that counts no steps and checks no calls: what loops that count for themselves step.

    Raises ``UserError`` for an unknown name, for spaces that are not flat and continuous, and for an environment of
    Gymnasium's that cannot be made with what is installed.
    """
    name = canonical(name)
    framed = _framed(name)
    with warnings.catch_warnings(), quiet_mujoco():
        # v4 is chosen on purpose (D4RL's dynamics); Gymnasium would advise v5 at every construction.
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        env: gymnasium.Env = framed.make(name).unwrapped if framed is not None else _gymnasium_make(name)
    if isinstance(env.observation_space, Dict):
        env = FlatGoal(env)
    return _unit_actions(name, env)


def _gymnasium_make(name: str) -> gymnasium.Env:
    """Gymnasium's own; what its construction raises (a package is missing, a model does not suit this MuJoCo) is any
    exception."""
    try:
        return gymnasium.make(name, disable_env_checker=True).unwrapped
    except Exception as error:
        why = " ".join(str(error.args[0] if error.args else "").split()).rstrip(".") or type(error).__name__
        stem, version = re.fullmatch(r"(.*?)(?:-v(\d+))?", name).groups()  # type: ignore[union-attr]
        newer = [id for id in gymnasium.registry if re.fullmatch(re.escape(stem) + r"-v\d+", id)
                 and int(id.rpartition("-v")[2]) > int(version or 0)]  # fmt: skip
        raise UserError(
            f"{name} is known to Gymnasium, but cannot be made here, with MuJoCo {mujoco.__version__} ({why}). "
            + (
                f"Newer versions are {', '.join(sorted(newer))}."
                if newer
                else "Install what it needs, or use another one."
            )
        ) from error


def make_env(name: str) -> gymnasium.Env:
    """The environment with its time limit."""
    return TimeLimit(make_simulator(name), step_limit(name))


def step_limit(name: str) -> int:
    """Steps after which an episode is cut."""
    name = canonical(name)
    framed = _framed(name)
    if framed is not None:
        return int(framed.step_limit(name))
    return int(gymnasium.spec(name).max_episode_steps or _DEFAULT_STEPS)


def environment_spec(name: str) -> EnvironmentSpec:
    """The sizes and bounds of an environment, read from the simulator itself."""
    name = canonical(name)
    framed = _framed(name)
    env = make_simulator(name)
    observation, action = env.observation_space, env.action_space
    env.close()
    assert isinstance(observation, Box)
    assert isinstance(action, Box)
    return EnvironmentSpec(
        id=name,
        observation_size=int(observation.shape[0]),
        action_size=int(action.shape[0]),
        action_low=action.low.astype(np.float32),
        action_high=action.high.astype(np.float32),
        max_episode_steps=step_limit(name),
        mujoco_version=str(mujoco.__version__),
        reference=score_reference(name),
        differences=tuple(getattr(framed, "DIFFERENCES", ())) if framed is not None else _DIFFERENCES.get(name, ()),
    )


def score_reference(name: str) -> str | None:
    """The family of D4RL's reference scores that an environment is scored by, or ``None``.

    Gymnasium's v5 changed rewards and physics of Hopper and Walker2d, and Minari's data come from it: returns there
    stay returns, so that they stand in no table beside D4RL's scores.
    """
    name = canonical(name)
    family = next((family for family, (_, ids) in _FRAMED.items() if name in ids), None)
    if family in ("antmaze", "kitchen"):
        return family
    if family is not None:
        return re.sub(r"-v\d+$", "", name)
    return next((short for short, id in _LOCOMOTION.items() if id == name), None)


_DIFFERENCES = {
    name: ("Gymnasium's v4 on current MuJoCo, where D4RL used gym's v2 on mujoco-py: the same sizes and rewards, "
           "slightly different physics.",)
    for name in _LOCOMOTION.values()
}  # fmt: skip


class FlatGoal(gymnasium.ObservationWrapper):
    """Goal environments with a dictionary of observations: ``observation``, then ``desired_goal``, as one vector."""

    KEYS = ("observation", "desired_goal")

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, Dict) or not all(isinstance(space.spaces.get(key), Box) for key in self.KEYS):
            raise UserError(f"{env.spec.id if env.spec else env}: observations must be flat, or a goal environment's.")
        size = sum(int(np.prod(space[key].shape or ())) for key in self.KEYS)
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(observation[key]) for key in self.KEYS])


def _unit_actions(name: str, env: gymnasium.Env) -> gymnasium.Env:
    """Bring other bounds to ±1, which policies and generators assume."""
    space, observation = env.action_space, env.observation_space
    if not isinstance(space, Box) or len(space.shape) != 1 or not isinstance(observation, Box):
        raise UserError(f"{name} has no flat continuous observations and actions, which raydiff needs: {space}.")
    if len(observation.shape) != 1:
        raise UserError(f"{name} has observations of shape {observation.shape}; raydiff needs flat ones.")
    if np.all(space.low == -1) and np.all(space.high == 1):
        return env
    if not np.isfinite(space.low).all() or not np.isfinite(space.high).all():
        raise UserError(f"{name} has unbounded actions ({space}); give it bounds to use it here.")
    return RescaleAction(env, np.float32(-1), np.float32(1))


def _framed(name: str) -> Any | None:
    """The module behind an id in D4RL's frame, imported when it is asked for."""
    module = next((module for module, ids in _FRAMED.values() if name in ids), None)
    return import_module(f"raydiff.envs.{module}") if module is not None else None
