"""The settings of the learners: what all share, and a section for each algorithm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydiff.section import Hidden, Section


class TD3BCConfig(Section):
    alpha: float = Field(2.5, ge=0, description="Weight of the value term against behaviour cloning.")
    policy_noise: float = Field(0.2, ge=0, description="Standard deviation of target policy smoothing.")
    noise_clip: float = Field(0.5, ge=0, description="Clip of target policy smoothing.")
    policy_delay: int = Field(2, ge=1, description="Critic updates per actor update.")
    order: Literal["published", "pgd"] = Field(
        "published", description="One critic step an update, or policy-guided diffusion's: one actor, then critics."
    )
    critic_steps: int = Field(2, ge=1, description="Critic steps per update on the same batch, in order pgd.")


class IQLConfig(Section):
    expectile: float = Field(0.7, gt=0, lt=1, description="tau of the value regression.")
    beta: float = Field(3.0, ge=0, description="Inverse temperature of the advantage weights.")
    advantage_clip: float = Field(100.0, gt=0, description="Largest advantage weight.")
    log_std_min: float = Field(-5.0, description="Smallest log standard deviation of the actor.")
    log_std_max: float = Field(2.0, description="Largest log standard deviation of the actor.")


class LearnerConfig(Section):
    algorithm: Literal["td3_bc", "iql"] = Field("td3_bc", description="Offline algorithm.")
    updates: int = Field(10_000, ge=1, description="Gradient updates of the whole run.")
    chunk: int = Field(50, ge=1, description="Updates per call; the policy is published after each.")
    in_flight: int = Field(
        2, ge=1, le=4, description="Calls issued ahead, so that the learner never waits for the driver."
    )
    batch_size: int = Field(256, ge=1, description="Transitions per update, real and synthetic together.")
    hidden: Hidden = Field((256, 256), description="Hidden widths of actor and critics.")
    learning_rate: float = Field(3e-4, gt=0, description="Learning rate of Adam.")
    actor_learning_rate: float | None = Field(None, gt=0, description="Learning rate of the actor, where it differs.")
    learning_rate_schedule: Literal["published", "constant", "cosine"] = Field(
        "published", description="As published (IQL's actor: a cosine), all constant, or all a cosine to zero."
    )
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of Adam.")
    discount: float = Field(0.99, ge=0, le=1, description="gamma.")
    tau: float = Field(0.005, gt=0, le=1, description="Share of the online weights in each target update.")
    normalize_observations: bool = Field(True, description="Standardise observations by the real data, frozen.")
    td3_bc: TD3BCConfig = Field(TD3BCConfig(), description="Options of TD3+BC.")
    iql: IQLConfig = Field(IQLConfig(), description="Options of IQL.")
    cpus: float = Field(1.0, ge=0, description="CPUs of the learner; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) of the learner.")
    device: str = Field("cpu", description="Torch device of the learner.")
