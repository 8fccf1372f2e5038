"""A dataset made in the real simulator, in D4RL's schema, so that nothing has to be downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import gymnasium
import h5py
import numpy as np

from raydiff.errors import UserError
from raydiff.evaluation.envs import MAX_EPISODE_STEPS, environment_spec, make_env

Progress = Callable[[int, int], None]
LEVELS = ("random",)
_REPORT_EVERY = 1000


def collect(
    environment: str,
    version: str,
    level: str,
    transitions: int,
    seed: int,
    path: str | Path,
    progress: Progress | None = None,
) -> Path:
    """Act at ``level`` for ``transitions`` steps and write the file ``path``, whole or not at all.

    ``random``: actions uniform in the action space. The same arguments and the same MuJoCo give the same arrays.
    An episode that the end of the collection cuts is flagged as timed out, so that it joins nothing.
    ``progress(done, total)`` is called now and then. ``UserError`` when the file cannot be written.
    """
    if level not in LEVELS:
        raise UserError(f"no behaviour {level!r} to collect with; known: {', '.join(LEVELS)}.")
    if transitions < 1:
        raise UserError(f"cannot collect {transitions} transitions; ask for at least one.")
    path = Path(os.path.expanduser(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    spec = environment_spec(environment, version)
    attributes: dict[str, str | int] = {
        "environment": environment,
        "version": version,
        "level": level,
        "seed": seed,
        "mujoco_version": spec.mujoco_version,
        "gymnasium_version": gymnasium.__version__,
        "raydiff_version": _raydiff_version(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # A folder that cannot be written to is found now, not after the collection.
        try:
            arrays = _simulate_random(environment, version, transitions, seed, progress)
            _write(partial, arrays, attributes)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: the collected dataset cannot be written ({error}). Give a file in a folder with write "
            f"permission and free space, by --out, data.cache or the variable RAYDIFF_CACHE."
        ) from error
    return path


def _raydiff_version() -> str:
    try:
        return metadata.version("raydiff")
    except metadata.PackageNotFoundError:
        return "not installed"  # Run from a source tree.


def _simulate_random(
    environment: str, version: str, transitions: int, seed: int, progress: Progress | None
) -> dict[str, np.ndarray]:
    spec = environment_spec(environment, version)
    rng = np.random.default_rng(seed)
    shape = (transitions, spec.action_size)
    actions = rng.uniform(spec.action_low, spec.action_high, size=shape).astype(np.float32)
    observations = np.empty((transitions, spec.observation_size), dtype=np.float32)
    following = np.empty_like(observations)
    rewards = np.empty(transitions, dtype=np.float32)
    terminals = np.zeros(transitions, dtype=bool)
    timeouts = np.zeros(transitions, dtype=bool)
    env = make_env(environment, version).unwrapped  # Stepped directly: the wrappers cost a third of the speed.
    observation, _ = env.reset(seed=seed)
    length = 0
    for t in range(transitions):
        observations[t] = observation
        observation, reward, terminated, _, _ = env.step(actions[t])
        following[t] = observation
        rewards[t] = reward
        length += 1
        terminals[t] = terminated
        timeouts[t] = not terminated and (length == MAX_EPISODE_STEPS or t == transitions - 1)
        if terminated or timeouts[t]:
            observation, _ = env.reset()
            length = 0
        if progress is not None and ((t + 1) % _REPORT_EVERY == 0 or t + 1 == transitions):
            progress(t + 1, transitions)
    env.close()
    return {
        "observations": observations,
        "actions": actions,
        "next_observations": following,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
    }


def _write(path: Path, arrays: dict[str, np.ndarray], attributes: dict[str, str | int]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        file.attrs.update(attributes)
