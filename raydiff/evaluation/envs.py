"""The simulators that data is collected in and policies are scored in, and their sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gymnasium
import mujoco
import numpy as np

MAX_EPISODE_STEPS = 1000
_GYMNASIUM_NAMES = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}
_VERSIONS = ("v4", "v5")


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a dataset or a policy must agree with: sizes, action bounds ``[A]`` and the time limit in steps."""

    environment: str
    version: str
    id: str
    observation_size: int
    action_size: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int
    mujoco_version: str


def environment_id(environment: str, version: str) -> str:
    """Gymnasium's id, such as ``HalfCheetah-v4``; ``ValueError`` for a name or version that is not known."""
    if environment not in _GYMNASIUM_NAMES:
        raise ValueError(f"unknown environment {environment!r}; known: {', '.join(sorted(_GYMNASIUM_NAMES))}")
    if version not in _VERSIONS:
        raise ValueError(f"unknown environment version {version!r}; known: {', '.join(_VERSIONS)}")
    return f"{_GYMNASIUM_NAMES[environment]}-{version}"


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo's own warnings off stderr and out of the ``MUJOCO_LOG.TXT`` that it would write beside the user.

    For places where they are expected: the models of Gymnasium use a deprecated attribute, and replayed synthetic
    states may be impossible ones (the counters of ``MjData.warning`` still tell).
    """
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def make_env(environment: str, version: str) -> gymnasium.Env:
    """One simulator with Gymnasium's time limit of 1000 steps."""
    name = environment_id(environment, version)
    with warnings.catch_warnings(), quiet_mujoco():
        # v4 is chosen on purpose (D4RL's dynamics); Gymnasium would advise v5 at every construction.
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        return gymnasium.make(name, max_episode_steps=MAX_EPISODE_STEPS, disable_env_checker=True)


def environment_spec(environment: str, version: str) -> EnvironmentSpec:
    """The sizes and bounds of an environment, read from the simulator itself."""
    env = make_env(environment, version)
    observation_space, action_space = env.observation_space, env.action_space
    env.close()
    if not isinstance(observation_space, gymnasium.spaces.Box) or not isinstance(action_space, gymnasium.spaces.Box):
        raise TypeError(f"{environment_id(environment, version)} has no flat continuous spaces")
    return EnvironmentSpec(
        environment=environment,
        version=version,
        id=environment_id(environment, version),
        observation_size=int(observation_space.shape[0]),
        action_size=int(action_space.shape[0]),
        action_low=action_space.low.astype(np.float32),
        action_high=action_space.high.astype(np.float32),
        max_episode_steps=MAX_EPISODE_STEPS,
        mujoco_version=str(mujoco.__version__),
    )
