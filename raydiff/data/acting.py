"""Acting in an environment and keeping every step: the arrays of a file in D4RL's schema."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from raydiff.envs.registry import make_env

Arrays = dict[str, np.ndarray]
Act = Callable[[np.ndarray], tuple[np.ndarray, float | None]]
"""From an observation ``[S]`` to an action ``[A]`` within ±1 and the log-density that it was drawn with, if known."""
_REPORT_EVERY = 1000


class Recording:
    """Rows of acting in ``env`` in their order, up to ``capacity`` of them, in float32.

    With a simulator of MuJoCo also its state before each step, as ``infos/qpos`` and ``infos/qvel``.
    """

    def __init__(self, env: gymnasium.Env, capacity: int, log_probs: bool = False) -> None:
        self.rows = 0
        self._env = env.unwrapped
        shapes: dict[str, tuple[int, ...]] = {
            "observations": env.observation_space.shape or (),
            "actions": env.action_space.shape or (),
            "next_observations": env.observation_space.shape or (),
            "rewards": (),
        }
        if log_probs:
            shapes["infos/action_log_probs"] = ()
        shapes |= {name: value.shape for name, value in self._state().items()}
        self._arrays = {name: np.empty((capacity, *shape), dtype=np.float32) for name, shape in shapes.items()}
        self._arrays |= {name: np.zeros(capacity, dtype=bool) for name in ("terminals", "timeouts")}

    def before(self, observation: np.ndarray, action: np.ndarray, log_prob: float | None = None) -> None:
        """What is known before a step: ``observation [S]``, ``action [A]`` and the state of the simulator."""
        self._put("observations", observation)
        self._put("actions", action)
        if log_prob is not None:
            self._put("infos/action_log_probs", log_prob)
        for name, value in self._state().items():
            self._put(name, value)

    def after(self, following: np.ndarray, reward: float, terminated: bool, truncated: bool) -> None:
        """What the step gave; it completes the row."""
        self._put("next_observations", following)
        self._put("rewards", reward)
        self._put("terminals", terminated)
        self._put("timeouts", truncated and not terminated)
        self.rows += 1

    def _state(self) -> dict[str, np.ndarray]:
        data = getattr(self._env, "data", None)
        return {f"infos/{name}": getattr(data, name) for name in ("qpos", "qvel") if hasattr(data, name)}

    def _put(self, name: str, value: np.ndarray | float | bool) -> None:
        self._arrays[name][self.rows] = value

    def arrays(self, rows: int | None = None) -> Arrays:
        """Copies of the first ``rows`` rows (default: all); an episode cut there is flagged as timed out, so that
        it joins nothing."""
        rows = self.rows if rows is None else rows
        arrays = {name: array[:rows].copy() for name, array in self._arrays.items()}
        arrays["timeouts"][-1] = not arrays["terminals"][-1]
        return arrays


class Recorder(gymnasium.Wrapper):
    """An environment that keeps the first ``capacity`` steps taken in it, in ``recording``."""

    def __init__(self, env: gymnasium.Env, capacity: int) -> None:
        super().__init__(env)
        self.recording = Recording(env, capacity)
        self._observation = np.empty(0)

    def reset(self, **kwargs: object) -> tuple[np.ndarray, dict]:
        self._observation, info = self.env.reset(**kwargs)  # type: ignore[arg-type]
        return self._observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.recording.before(self._observation, action)
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self.recording.after(self._observation, float(reward), terminated, truncated)
        return self._observation, float(reward), terminated, truncated, info


def uniform_actor(action_size: int, seed: int) -> Act:
    """Actions uniform within ±1: D4RL's ``random``."""
    rng = np.random.default_rng(seed)
    return lambda observation: (rng.uniform(-1.0, 1.0, size=action_size), None)


def sample_rows(
    environment: str,
    act: Act,
    transitions: int,
    seed: int,
    log_probs: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Arrays:
    """Act for ``transitions`` steps, episode after episode: the arrays of a file in D4RL's schema.

    ``log_probs`` when ``act`` gives them. ``progress(done, total)`` is called now and then.
    """
    env = make_env(environment)
    recording = Recording(env, transitions, log_probs)
    observation, _ = env.reset(seed=seed)
    for done in range(1, transitions + 1):
        action, log_prob = act(observation)
        action = np.asarray(action, dtype=np.float32)  # stepped with exactly what the file holds
        recording.before(observation, action, log_prob)
        observation, reward, terminated, truncated, _ = env.step(action)
        recording.after(observation, float(reward), terminated, truncated)
        if terminated or truncated:
            observation, _ = env.reset()
        if progress is not None and (done % _REPORT_EVERY == 0 or done == transitions):
            progress(done, transitions)
    env.close()
    return recording.arrays()


def episode_returns(environment: str, act: Act, episodes: int, seed: int) -> np.ndarray:
    """Undiscounted returns ``[episodes]`` of whole episodes, one after another."""
    env = make_env(environment)
    returns = np.zeros(episodes)
    for i in range(episodes):
        observation, _ = env.reset(seed=seed if i == 0 else None)
        ended = False
        while not ended:
            action, _ = act(observation)
            observation, reward, terminated, truncated, _ = env.step(np.asarray(action, dtype=np.float32))
            returns[i] += float(reward)
            ended = terminated or truncated
    env.close()
    return returns
