"""Behaviour policies trained online by Stable-Baselines3's SAC, with all their experience kept.

This is the only place that Stable-Baselines3 is imported in, and only when a policy is trained.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from raydiff.data.acting import Recorder, Recording, episode_returns
from raydiff.data.catalogue import REFERENCE_SCORES
from raydiff.data.tanh_gaussian import TanhGaussian
from raydiff.envs.registry import canonical, make_env, score_reference
from raydiff.errors import UserError
from raydiff.seeds import key_seed

if TYPE_CHECKING:
    from stable_baselines3 import SAC

EVALUATION_EPISODES = 10
_MAX_THREADS = 2  # More threads do not speed up networks of this size.
_REPORT_EVERY = 100


@dataclass(frozen=True)
class TrainingPlan:
    """How one environment's policies are trained: ``steps`` at most, an evaluation every ``evaluate_every`` steps.

    ``expert_return`` is the mean return at which the training is done, ``None`` where nothing is known: then the
    policy at the end is the expert. ``width`` is that of the two hidden layers, ``threads`` are torch's.
    """

    steps: int = 1_000_000
    evaluate_every: int = 2500
    expert_return: float | None = None
    width: int = 256
    batch_size: int = 256
    learning_rate: float = 3e-4
    learning_starts: int = 5000
    gamma: float = 0.99
    tau: float = 0.005
    threads: int = 1


# Where D4RL and Gymnasium name no return to reach, or where smaller networks do.
_PLANS = {
    "Pendulum-v1": TrainingPlan(
        steps=20_000, evaluate_every=250, expert_return=-200.0, width=64, batch_size=128, learning_rate=1e-3,
        learning_starts=500,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """A policy of the training: after how many ``steps``, and its mean return over ``EVALUATION_EPISODES``."""

    steps: int
    mean_return: float
    policy: TanhGaussian = field(repr=False)


def plan_training(environment: str, steps: int | None = None, expert_return: float | None = None) -> TrainingPlan:
    """The plan for an environment, with the caller's budget and target in place of its own.

    The target is by default the expert's of D4RL's reference scores, else Gymnasium's reward threshold.
    ``UserError`` for fewer than 100 steps.
    """
    import torch

    environment = canonical(environment)
    plan = _PLANS.get(environment, TrainingPlan(expert_return=_known_return(environment)))
    steps = plan.steps if steps is None else steps
    if steps < 100:
        raise UserError(f"A behaviour policy cannot be trained in {steps} steps; give at least 100 by --steps.")
    values = vars(plan) | {
        "steps": steps,
        "evaluate_every": min(plan.evaluate_every, steps // 20),
        "learning_starts": min(plan.learning_starts, steps // 10),
        "threads": min(torch.get_num_threads(), _MAX_THREADS),
    }
    if expert_return is not None:
        values["expert_return"] = expert_return
    return TrainingPlan(**values)


def _known_return(environment: str) -> float | None:
    reference = REFERENCE_SCORES.get(score_reference(environment) or "")
    if reference is not None:
        return reference[1]
    spec = gymnasium.registry.get(environment)
    return spec.reward_threshold if spec is not None else None


def require_trainer() -> None:
    """Raise ``UserError`` unless Stable-Baselines3 can be imported."""
    try:
        with redirect_stderr(io.StringIO()):  # Where the old gym is installed it is imported too, and advertises.
            import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Levels other than random are collected with policies trained by Stable-Baselines3, which cannot be "
            f"imported ({error}). Install it with: pip install 'raydiff[collect]'"
        ) from error


def train_behaviour(
    environment: str,
    plan: TrainingPlan,
    seed: int,
    on_snapshot: Callable[[Snapshot, Recording], bool],
    on_step: Callable[[int, float], None],
) -> Recording:
    """Train SAC (Haarnoja et al. 2018) and give all its steps, in the order of its replay buffer.

    ``on_snapshot`` gets the policy of each evaluation (stochastic, as it would collect) with the steps so far, and
    ends the training by returning false. ``on_step(steps, seconds_left)`` is called now and then; the seconds are
    those to the end of the budget. The same arguments give the same arrays with one torch thread on one machine.
    Raises ``UserError`` without Stable-Baselines3.
    """
    require_trainer()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    env = Recorder(make_env(environment), plan.steps)
    started = time.monotonic()
    evaluation_seed = key_seed(seed, "evaluation")

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        model, steps = local["self"], env.recording.rows
        if steps % _REPORT_EVERY == 0:
            on_step(steps, (time.monotonic() - started) / steps * (plan.steps - steps))
        if steps < plan.steps and (steps % plan.evaluate_every or steps <= plan.learning_starts):
            return True
        policy = _policy_of(model)
        returns = episode_returns(environment, policy.actor(evaluation_seed), EVALUATION_EPISODES, evaluation_seed)
        return on_snapshot(Snapshot(steps, float(returns.mean()), policy), env.recording)

    try:
        _sac(env, plan, seed).learn(plan.steps, callback=watch, log_interval=None)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
        env.close()
    return env.recording


def _sac(env: gymnasium.Env, plan: TrainingPlan, seed: int) -> SAC:
    from stable_baselines3 import SAC

    return SAC(
        "MlpPolicy",
        env,
        learning_rate=plan.learning_rate,
        buffer_size=plan.steps,
        learning_starts=plan.learning_starts,
        batch_size=plan.batch_size,
        tau=plan.tau,
        gamma=plan.gamma,
        policy_kwargs={"net_arch": [plan.width, plan.width], "optimizer_kwargs": {"fused": True}},
        seed=key_seed(seed, "sac") % 2**32,  # what NumPy's global generator takes
        device="cpu",
    )


def _policy_of(model: SAC) -> TanhGaussian:
    """A copy of the actor's weights."""
    from torch.nn import Linear

    def weights(layer: object) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(layer, Linear)
        return layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()

    actor = model.policy.actor
    hidden = tuple(weights(layer) for layer in actor.latent_pi if isinstance(layer, Linear))
    return TanhGaussian(hidden, weights(actor.mu), weights(actor.log_std))
