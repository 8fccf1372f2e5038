"""The settings of the learners: what all share, and a section for each algorithm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the actor's hidden layers, in training only.")
    log_std_min: float = Field(-5.0, description="Smallest log standard deviation of the actor.")
    log_std_max: float = Field(2.0, description="Largest log standard deviation of the actor.")


class SWGConfig(Section):
    weight: Literal["smooth_expectile", "expectile", "exponential", "linex"] = Field(
        "smooth_expectile", description="Weight of an action by its advantage; linex also trains the value so."
    )
    expectile: float = Field(0.7, gt=0, lt=1, description="tau of the value regression and of the expectile weights.")
    sharpness: float = Field(3.0, gt=0, description="Slope of the smooth expectile weight.")
    exponential_temperature: float = Field(3.0, gt=0, description="Inverse temperature of the exponential weight.")
    linex_alpha: float = Field(1.0, gt=0, description="alpha of the linex weight and of its value regression.")
    weight_min: float = Field(1e-3, gt=0, description="Smallest exponential or linex weight.")
    weight_max: float = Field(80.0, gt=0, description="Largest exponential or linex weight.")
    weight_scale: Literal["none", "mean", "deviation"] = Field(
        "none", description="Weights as they are, divided by their mean over the data, or brought to deviation 0.5."
    )
    value_layer_norm: bool = Field(False, description="Normalise each observation over its entries before the value.")
    order: Literal["staged", "joint"] = Field(
        "staged", description="Critics first and the diffusion model after them, or both in every update."
    )
    critic_share: float = Field(0.5, gt=0, lt=1, description="Share of the updates that train critics, when staged.")
    schedule: Literal["discrete", "cosine", "continuous"] = Field("discrete", description="Noise schedule.")
    steps: int = Field(15, ge=1, description="Diffusion steps, in training and in sampling.")
    solver: Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde"] = Field("ddpm", description="Sampler of the actions.")
    width: int = Field(256, ge=1, description="Width of the noise network.")
    blocks: int = Field(3, ge=2, description="Residual blocks of the noise network.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of the noise network in training.")
    weight_head: bool = Field(True, description="A head of its own for the weight, from the second block.")
    ema: float = Field(1e-3, gt=0, le=1, description="Share of the weights in the average that the policy uses.")
    guidance_scale: float = Field(10.0, ge=0, description="rho, factor of the guidance; 1 samples in proportion.")
    clip_denoised: bool = Field(True, description="Hold clean actions within +-1 and clean weights within the data's.")
    temperature: float = Field(0.0, ge=0, description="Noise of evaluation; 0 is the mean path from zero.")
    candidates: int = Field(1, ge=1, description="Samples per action in evaluation; more need a temperature.")
    choose: Literal["value", "weight"] = Field(
        "value", description="Which candidate acts: by the critics or its weight."
    )

    @model_validator(mode="after")
    def _check(self) -> SWGConfig:
        if self.weight_min >= self.weight_max:
            raise ValueError(f"swg.weight_min ({self.weight_min}) must be less than swg.weight_max ({self.weight_max})")
        if self.order == "joint" and self.weight_scale != "none":
            raise ValueError(
                f"swg.weight_scale={self.weight_scale} is measured once critics are trained, and with swg.order=joint "
                "they never are: set it to none, or swg.order to staged"
            )
        if self.candidates > 1 and self.temperature == 0:
            raise ValueError(
                f"swg.candidates={self.candidates} are all the same at swg.temperature=0: raise the temperature"
            )
        return self


class CQLConfig(Section):
    alpha: float = Field(10.0, ge=0, description="Weight of the conservative penalty.")
    samples: int = Field(10, ge=1, description="Actions of each of the penalty's three laws, per state.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the penalty's soft maximum.")
    lagrange: bool = Field(False, description="Multiply the penalty by a learnt factor that holds it at the gap.")
    gap: float = Field(5.0, description="Lagrange: how far the soft maximum may lie above the data's value.")
    max_target_backup: bool = Field(False, description="Targets by the best of `samples` actions, not by one.")
    difference_min: float | None = Field(None, description="Smallest difference of a state that is penalised.")


class ReBRACConfig(Section):
    actor_penalty: float = Field(0.01, ge=0, description="beta1: weight of behaviour cloning in the actor's loss.")
    critic_penalty: float = Field(0.01, ge=0, description="beta2: weight of behaviour cloning in the critic's target.")
    policy_noise: float = Field(0.2, ge=0, description="Standard deviation of target policy smoothing.")
    noise_clip: float = Field(0.5, ge=0, description="Clip of target policy smoothing.")
    policy_delay: int = Field(2, ge=1, description="Critic updates per actor update.")


class DiffusionQLConfig(Section):
    variant: Literal["full", "efficient"] = Field(
        "full", description="The value's gradient through the whole sampler, or by an estimate in one step (EDP)."
    )
    eta: float = Field(1.0, ge=0, description="Weight of the value term against the diffusion loss.")
    steps: int | None = Field(None, ge=1, description="Noise levels T; by default 5, in variant efficient 1000.")
    solver_steps: int = Field(15, ge=1, description="Steps of DPM-Solver++, which samples in variant efficient.")
    max_q_backup: bool = Field(False, description="Targets use the best of several next actions.")
    backup_actions: int = Field(10, ge=1, description="How many, with max_q_backup.")
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of a gradient, of actor and of critics.")
    ema: float = Field(0.005, gt=0, le=1, description="Share of the actor in each step of the target policy.")
    ema_every: int = Field(5, ge=1, description="Updates per step of the target policy.")
    ema_start: int = Field(1000, ge=0, description="Updates before its first step.")
    temperature: float = Field(1.0, ge=0, description="Noise of evaluation; 0 is the mean path from zero.")
    candidates: int = Field(50, ge=1, description="Sampled actions in evaluation, of which one acts.")
    choose: Literal["softmax", "value"] = Field(
        "softmax", description="Which: drawn by the softmax of their values, or the best."
    )

    @property
    def levels(self) -> int:
        """T."""
        return self.steps or (5 if self.variant == "full" else 1000)

    @model_validator(mode="after")
    def _check(self) -> DiffusionQLConfig:
        if self.variant == "efficient" and self.solver_steps > self.levels:
            raise ValueError(f"solver_steps is {self.solver_steps}, more than the {self.levels} noise levels")
        return self


class AEPOConfig(Section):
    critic: Literal["iql", "cql", "isql"] = Field(
        "iql",
        description="Critics: by expectiles, with a conservative penalty, or by softmax over behaviour's actions.",
    )
    expectile: float = Field(0.7, gt=0, lt=1, description="tau of the value regression.")
    penalty: float = Field(10.0, ge=0, description="cql: weight of the conservative penalty.")
    penalty_actions: int = Field(10, ge=1, description="cql: uniform actions, and other states' actions, per state.")
    support_actions: int = Field(16, ge=1, description="isql: behaviour's actions per next observation.")
    support_beta: float = Field(1.0, ge=0, description="isql: inverse temperature of the softmax over their values.")
    beta: float = Field(3.0, ge=0, description="Inverse temperature: the policy is behaviour times exp(beta Q).")
    posterior: Literal["posterior_1", "posterior_2", "calibrated"] = Field(
        "calibrated", description="Law of a clean action given its noisy value: the paper's two, or corrected by data."
    )
    posterior_samples: int = Field(16_384, ge=1, description="Actions behind each entry of the table of variances.")
    energy: Literal["network", "direct"] = Field(
        "network", description="Guide by a network fitted to the closed form, or by the closed form itself."
    )
    damped: bool = Field(False, description="Divide the variance term so that it is exact for quadratic values.")
    offset: float = Field(0.0, ge=0, description="Distance from the posterior mean to the point of expansion (k).")
    guidance_scale: float = Field(1.0, ge=0, description="omega, factor of the guidance; 0 samples the behaviour.")
    rescale: bool = Field(True, description="Keep the length of the unguided noise prediction.")
    behaviour_share: float = Field(0.3, gt=0, lt=1, description="Share of the updates that train the behaviour model.")
    critic_share: float = Field(0.25, gt=0, lt=1, description="Share of the updates that train critics.")
    behaviour_learning_rate: float = Field(1e-4, gt=0, description="Learning rate of the behaviour model.")
    width: int = Field(256, ge=1, description="Width of the noise network.")
    blocks: int = Field(3, ge=1, description="Residual blocks of the noise network.")
    energy_hidden: Hidden = Field((256, 256, 256), min_length=1, description="Hidden widths of the energy network.")
    steps: int = Field(15, ge=1, description="Steps of DPM-Solver++.")
    clip_denoised: bool = Field(False, description="Hold every denoised action within +-1, not the last one alone.")
    temperature: float = Field(1.0, ge=0, description="Noise of evaluation; 0 is the path from zero.")

    @model_validator(mode="after")
    def _check(self) -> AEPOConfig:
        if self.behaviour_share + self.critic_share >= 1:
            raise ValueError("behaviour_share and critic_share leave no updates for the energy: lower one of them")
        return self


class QGPOConfig(Section):
    beta: float = Field(3.0, ge=0, description="Inverse temperature of the policy, exp(beta Q) times the behaviour.")
    critic_beta: float = Field(1.0, ge=0, description="Inverse temperature of the softmax in the critics' targets.")
    support_actions: int = Field(16, ge=2, description="Actions of the behaviour for each state.")
    support_steps: int = Field(15, ge=1, description="Sampler steps of these actions.")
    behaviour_share: float = Field(0.375, gt=0, lt=1, description="Share of the updates that train the behaviour.")
    critic_share: float = Field(
        0.5, gt=0, le=1, description="Share of the second stage in which critics learn; its guidance always does."
    )
    behaviour_learning_rate: float = Field(1e-4, gt=0, description="Learning rate of the behaviour.")
    width: int = Field(256, ge=1, description="Width of the behaviour's noise network.")
    blocks: int = Field(3, ge=1, description="Residual blocks of the behaviour's noise network.")
    energy_hidden: Hidden = Field(
        (256, 256, 256, 256), min_length=1, description="Hidden widths of the energy network."
    )
    guidance_scale: float = Field(1.0, ge=0, description="w, factor of the guidance; 1 samples the policy of beta.")
    steps: int = Field(15, ge=1, description="Sampler steps of the policy.")
    clip_denoised: bool = Field(True, description="Hold clean actions within +-1 in every step, not at the end alone.")
    temperature: float = Field(1.0, ge=0, description="Noise of evaluation; 0 is the path from zero.")
    candidates: int = Field(1, ge=1, description="Sampled actions in evaluation, of which one acts.")
    choose: Literal["softmax", "value"] = Field(
        "value", description="Which: drawn by the softmax of their values, or the best."
    )


BATCHED = ("td3_bc", "iql")
"""Learners whose parameters can have a row for each seed, and whose matrix products a precision."""


class LearnerConfig(Section):
    algorithm: Literal["td3_bc", "iql", "swg", "cql", "rebrac", "diffusion_ql", "aepo", "qgpo"] = Field(
        "td3_bc", description="Offline algorithm."
    )
    updates: int = Field(10_000, ge=1, description="Gradient updates of the whole run.")
    chunk: int = Field(50, ge=1, description="Updates per call; the policy is published after each.")
    in_flight: int = Field(
        2, ge=1, le=4, description="Calls issued ahead, so that the learner never waits for the driver."
    )
    batch_size: int = Field(256, ge=1, description="Transitions per update, real and synthetic together.")
    seeds: int = Field(
        1, ge=1, description="Seeds trained at once, each as a run of its own with seed, seed + 1, and so on."
    )
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
    diffusion_ql: DiffusionQLConfig = Field(DiffusionQLConfig(), description="Options of Diffusion-QL.")
    cql: CQLConfig = Field(CQLConfig(), description="Options of CQL.")
    rebrac: ReBRACConfig = Field(ReBRACConfig(), description="Options of ReBRAC.")
    swg: SWGConfig = Field(SWGConfig(), description="Options of self-weighted guidance.")
    aepo: AEPOConfig = Field(AEPOConfig(), description="Options of AEPO.")
    qgpo: QGPOConfig = Field(QGPOConfig(), description="Options of QGPO.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of matrix products in actor and critics; weights and sums are float32 (TD3+BC, IQL)."
    )
    compile: bool = Field(False, description="Compile the update; takes tens of seconds at the start.")
    cuda_graph: bool = Field(False, description="Record the update as CUDA graphs (TD3+BC, IQL; on a GPU).")
    batch_seeds: Literal["auto", "on", "off"] = Field(
        "auto", description="Several seeds as one batched network (TD3+BC, IQL), or in turn; auto: on GPUs."
    )
    cpus: float = Field(1.0, ge=0, description="CPUs of the learner; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) of the learner.")
    device: str = Field("cpu", description="Torch device of the learner.")

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        for name, value in (("precision", "bfloat16"), ("batch_seeds", "on"), ("cuda_graph", True)):
            if getattr(self, name) == value and self.algorithm not in BATCHED:
                able = " and ".join(BATCHED)
                raise ValueError(f"learner.{name}={value} is there for {able}, not for {self.algorithm}: leave it out")
        if self.cuda_graph and not self.device.startswith("cuda"):
            raise ValueError(f"learner.cuda_graph wants a GPU, and learner.device is {self.device}: set it to cuda")
        return self

    @property
    def needs_next_action(self) -> bool:
        """Whether batches must bring along what the data did in the next observation."""
        return self.algorithm == "rebrac" and self.rebrac.critic_penalty > 0
