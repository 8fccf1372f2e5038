"""Every setting of a run: frozen, validated models, one line of description per field.

Presets and overrides are applied by ``raydiff.presets``; nothing below the command line reads anything else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from raydiff.config_learner import LearnerConfig
from raydiff.section import Hidden, Section

ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class DataConfig(Section):
    dataset: str | None = Field(
        None, description="D4RL id, minari:ID, or HDF5 file in D4RL's schema; empty: collect in the simulator."
    )
    environment: str | None = Field(
        None, description="Where policies are scored: Gymnasium id, or D4RL name; empty: the dataset's own."
    )
    level: Literal["random", "waypoint", "waypoint-noisy"] = Field(
        "random", description="Behaviour that is collected when no dataset is given; waypoint is maze2d's."
    )
    transitions: int = Field(100_000, ge=100, description="Transitions to collect when no dataset is given.")
    seed: int = Field(0, ge=0, description="Seed of the collection.")
    semantics: Literal["raydiff", "d4rl_qlearning", "d4rl_qlearning_terminate_on_end"] = Field(
        "raydiff", description="Which rows are transitions: ours, or exactly those of D4RL's qlearning_dataset."
    )
    reward_normalization: Literal["none", "return_range", "standard"] = Field(
        "none", description="The learner's rewards: as they are, over the range of the data's returns, standardised."
    )
    reward_scale: float = Field(1.0, gt=0, description="Factor on the learner's rewards, after that.")
    reward_shift: float = Field(0.0, description="Added to the learner's rewards, last.")
    cache: str | None = Field(
        None, description="Folder for datasets and models; default RAYDIFF_CACHE or ~/.cache/raydiff."
    )


class NetworkConfig(Section):
    kind: Literal["mlp", "unet", "temporal_unet", "transformer"] = Field(
        "mlp", description="Residual MLP over the flattened window; PGD's or Decision Diffuser's U-Net; transformer."
    )
    width: int = Field(512, ge=8, description="Width of the MLP or transformer, or of the U-Net's first level.")
    depth: int = Field(4, ge=1, description="Blocks of the MLP or transformer, or levels of the U-Net.")
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4, 8), description="Widths of temporal_unet's levels, as multiples of width; the first depth of them."
    )
    heads: int = Field(4, ge=1, description="Attention heads of the transformer.")


class DenoiserConfig(Section):
    network: NetworkConfig = Field(NetworkConfig(), description="The network inside the preconditioning.")
    length: int = Field(3, ge=2, description="Rows L of a window; H = L - 1 transitions. synther: always one.")
    stride: int = Field(1, ge=1, description="Rows between the starts of training windows.")
    action_space: Literal["raw", "atanh"] = Field(
        "raw", description="Actions standardised as they are, or through atanh; dydiff: scaled to +-1 as they are."
    )
    mask_conditions: bool = Field(
        True, description="dydiff: only generated entries enter the loss (paper), not the conditions too (code)."
    )
    clean_conditions: bool = Field(
        True, description="dydiff: the network is also given the conditions unscaled, and a mask, as extra columns."
    )
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; empty: no limit.")
    steps: int = Field(16_000, ge=1, description="Optimiser steps of pretraining.")
    batch_size: int = Field(128, ge=1, description="Windows per pretraining step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of Adam; cosine decay to zero.")
    warmup: float = Field(0.02, ge=0, lt=1, description="Share of the steps with a linear learning-rate ramp.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay per step of the averaged weights that are sampled from.")
    holdout: float = Field(0.05, gt=0, lt=0.5, description="Share of episodes kept for the held-out loss.")
    p_mean: float = Field(-1.2, description="Mean of log sigma in training.")
    p_std: float = Field(1.2, gt=0, description="Standard deviation of log sigma in training.")
    seed: int = Field(0, ge=0, description="Seed of pretraining.")
    checkpoint_every: int = Field(2_000, ge=1, description="Steps between resumable checkpoints.")
    cpus: float = Field(1.0, gt=0, description="CPUs of the pretrainer; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) of the pretrainer.")
    device: str = Field("cpu", description="Torch device of the pretrainer.")


class RewardConfig(Section):
    kind: Literal["model", "denoiser"] = Field(
        "model", description="Synthetic rewards by a reward model, or as generated."
    )
    hidden: Hidden = Field((256, 256), description="Hidden widths of the reward model.")
    steps: int = Field(4_000, ge=1, description="Optimiser steps of the reward model.")
    batch_size: int = Field(256, ge=1, description="Transitions per step of the reward model.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of Adam; cosine decay to zero.")


class DynamicsConfig(Section):
    members: int = Field(7, ge=1, description="Networks of the ensemble.")
    elites: int = Field(5, ge=1, description="Those with the smallest held-out error, which rollouts use.")
    hidden: Hidden = Field((200, 200, 200, 200), description="Hidden widths of each network.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of Adam.")
    batch_size: int = Field(256, ge=1, description="Transitions per step and network.")
    epochs: int = Field(100, ge=1, description="Most passes over the data.")
    patience: int = Field(5, ge=1, description="Passes without improvement after which training ends.")
    holdout: int = Field(1_000, ge=1, description="Most transitions held out; a fifth of small data.")
    transitions: int | None = Field(None, ge=100, description="Train on this many transitions; empty: on all.")
    normalize_targets: bool = Field(False, description="Standardise targets too; better for short locomotion runs.")
    seed: int = Field(0, ge=0, description="Seed of the training.")

    @field_validator("elites")
    @classmethod
    def _at_most_all(cls, elites: int, info: ValidationInfo) -> int:
        members = info.data.get("members", elites)
        if elites > members:
            raise ValueError(f"more than the {members} members of the ensemble (dynamics.members)")
        return elites


class RolloutConfig(Section):
    horizon: int = Field(5, ge=1, description="pets: steps of a rollout; the episode's length for whole episodes.")
    start: Literal["any", "initial"] = Field("any", description="pets: start in any real state, or in initial ones.")
    sample: bool = Field(True, description="Draw the successor (MOPO), or take the network's mean (DyDiff's code).")
    penalty: float = Field(0.0, ge=0, description="pets: reward lost per unit of the ensemble's uncertainty (MOPO).")


class DyDiffConfig(Section):
    iterations: int = Field(1, ge=0, description="M: rounds of diffusion and relabelling after the first rollout.")
    update: Literal["replace", "average"] = Field(
        "replace", description="New states replace the old ones (paper), or are averaged with them (code)."
    )
    sample_actions: bool = Field(True, description="Draw actions from the policy (paper), or take its mean (code).")
    replace_after_churn: bool = Field(True, description="Conditions are clean in every network call; false: as coded.")
    fresh_noise: bool = Field(
        True, description="Every iteration samples from new noise (published); false: all from the same."
    )


class SamplerConfig(Section):
    solver: Literal["heun", "heun_ode", "dpmpp_2m", "dpmpp_2m_sde"] = Field(
        "heun", description="EDM's stochastic Heun (2N - 1 calls), without its noise, or DPM-Solver++ (N calls)."
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Arithmetic inside the network.")
    steps: int = Field(48, ge=2, description="Steps N.")
    sigma_min: float = Field(0.05, gt=0, description="Smallest noise level, in standard deviations; published: 0.002.")
    sigma_max: float = Field(10.0, gt=0, description="Largest noise level; published: 80.")
    rho: float = Field(7.0, gt=0, description="Curvature of the noise schedule.")
    churn: float = Field(20.0, ge=0, description="S_churn: amount of fresh noise over the whole sampling; heun only.")
    churn_min: float = Field(0.05, ge=0, description="S_tmin: noise level below which no noise is added.")
    churn_max: float = Field(50.0, ge=0, description="S_tmax: noise level above which no noise is added.")
    churn_noise: float = Field(1.003, gt=0, description="S_noise: inflation of the fresh noise.")


class GuidanceConfig(Section):
    kind: Literal["none", "policy", "value", "analytic_energy"] = Field(
        "policy", description="Unguided; towards the policy being learnt; up its critic; by AEPO's closed form."
    )
    mode: Literal["paper", "paper_code", "score", "score_exact"] = Field(
        "score_exact", description="PGD as in its text, as in its code, as a score, or Gaussian-exact."
    )
    strength: float = Field(
        2.0, ge=0, description="lambda; times 256 / steps in modes paper and paper_code, and in value."
    )
    delta: float = Field(0.2, gt=0, description="Standard deviation given to a deterministic policy's actions.")
    diffusion_policy: Literal["surrogate", "own_score"] = Field(
        "surrogate", description="Diffusion policies: delta round their deterministic path; or their network's score."
    )
    cosine: float = Field(0.3, ge=0, description="beta of the published strength schedule (paper, paper_code, value).")
    euler_from_unchurned: bool = Field(True, description="paper_code: Euler steps start before the churn, as coded.")
    chain_rule: bool = Field(True, description="score: with the derivative of the denoised by the noisy action.")
    automatic: bool = Field(False, description="Adapt the strength to the target likelihood (section B.7).")
    target: float | None = Field(
        None, description="automatic: log-likelihood, or squared deviation (deterministic); empty: the policy's own."
    )
    rate: float = Field(1.0, gt=0, le=1, description="automatic: step of log lambda per nat and action.")
    max_strength: float = Field(16.0, gt=0, description="automatic: largest lambda.")
    max_error: float = Field(1.5, gt=1, description="automatic: largest audited error, over that without guidance.")
    normalize: bool = Field(True, description="value: unit gradient per trajectory, on the published schedule.")
    beta: float = Field(1.0, ge=0, description="analytic_energy: inverse temperature.")
    damped: bool = Field(True, description="analytic_energy: variance term damped by the critic's curvature.")


class GeneratorConfig(Section):
    method: Literal["pgd", "synther", "dydiff", "pets"] = Field(
        "pgd", description="Whole trajectories; single transitions; states for given actions; model rollouts."
    )
    filter: Literal["none", "hardmax", "softmax"] = Field(
        "none", description="Keep the trajectories of highest predicted return: the best, or drawn by it."
    )
    keep: float = Field(0.8, gt=0, le=1, description="eta: share of trajectories that the filter keeps.")
    temperature: float = Field(0.05, gt=0, description="Of the softmax filter, on standardised returns.")
    count: int = Field(2, ge=0, description="Generator actors; 0 trains on real data alone.")
    batch: int = Field(512, ge=1, description="Trajectories per block, generated in one call.")
    in_flight: int = Field(1, ge=1, description="Calls issued ahead per generator.")
    cpus: float = Field(0.25, ge=0, description="CPUs per generator; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) per generator.")
    device: str = Field("cpu", description="Torch device of the generators.")
    nice: int = Field(
        5, ge=0, le=19, description="How far the operating system puts these processes behind the learner."
    )
    refine_when_idle: bool = Field(True, description="A generator that may not insert refreshes old blocks meanwhile.")
    emulate_s: float | None = Field(
        None, gt=0, description="For benchmarks: every call takes so many seconds and returns a copy of a block."
    )
    sigma_limit: float = Field(
        20.0, gt=0, description="Trajectories beyond this many standard deviations of the data are dropped."
    )


class RefinerConfig(Section):
    count: int = Field(1, ge=0, description="Refiner actors.")
    sigma: float = Field(
        1.0, gt=0, description="Noise level to which a stored trajectory is brought before it is denoised anew."
    )
    steps: int = Field(6, ge=1, description="Steps of the solver from there.")
    min_lag: int = Field(500, ge=1, description="Updates a block's policy must be behind before it is refreshed.")
    max_lag: int | None = Field(
        None, ge=1, description="Blocks this far behind are refreshed before any new one is generated; empty: never."
    )
    fraction: float | None = Field(
        None, ge=0, description="Most trajectories refreshed per trajectory generated; empty: all that time allows."
    )
    cpus: float = Field(0.25, ge=0, description="CPUs per refiner; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) per refiner.")
    device: str = Field("cpu", description="Torch device of the refiners.")
    nice: int = Field(
        10, ge=0, le=19, description="How far the operating system puts these processes behind the learner."
    )


class ReplayConfig(Section):
    real_fraction: float = Field(0.5, ge=0, le=1, description="Share of real transitions in each batch.")
    samples_per_insert: float = Field(
        32.0, gt=0, description="Synthetic transitions sampled per synthetic transition inserted."
    )
    ahead: float = Field(1.0, gt=0, description="Blocks by which generation may run ahead of that ratio.")
    behind: float = Field(1.0, ge=0, description="Blocks by which sampling may run ahead of that ratio.")
    generation: int = Field(1_024, ge=1, description="Trajectories of one generation.")
    lifetime: int = Field(10, ge=1, description="Generations that a trajectory stays; the oldest leaves first.")
    warmup: int = Field(4_096, ge=1, description="Trajectories generated before the first update.")
    warmup_guidance: bool = Field(False, description="Guide the warm-up too (towards an untrained policy).")
    shortage: Literal["wait", "real"] = Field(
        "wait", description="While synthetic data are missing or too old: wait, or train on real data alone."
    )
    max_lag: int | None = Field(
        None, ge=1, description="Most updates a sampled trajectory's policy may be behind; empty: no limit."
    )


class ScheduleConfig(Section):
    kind: Literal["continuous", "periodic", "once"] = Field(
        "continuous",
        description="Generation all along; or a fresh dataset of replay.generation trajectories each epoch; or one.",
    )
    epochs: int = Field(4, ge=1, description="Datasets that a periodic run generates, the first included.")
    overlap: float = Field(
        0.0, ge=0, le=1, description="Share of an epoch, at its end, during which the next dataset is generated."
    )


class EvaluationConfig(Section):
    count: int = Field(1, ge=1, description="Evaluator actors.")
    every: int = Field(1_000, ge=1, description="Updates between evaluations during training.")
    episodes: int = Field(5, ge=1, description="Episodes per evaluation during training.")
    final_episodes: int = Field(20, ge=1, description="Episodes of the final evaluation of the last policy.")
    seed: int = Field(10_000, ge=0, description="First seed of the evaluation episodes, the same for every policy.")
    cpus: float = Field(0.0, ge=0, description="CPUs per evaluator; its threads are the whole part, at least one.")
    gpus: float = Field(0.0, ge=0, description="GPUs (or a fraction) per evaluator.")
    device: str = Field("cpu", description="Torch device of the evaluators' policies.")
    nice: int = Field(
        5, ge=0, le=19, description="How far the operating system puts these processes behind the learner."
    )


class AuditConfig(Section):
    count: int = Field(1, ge=0, description="Auditor actors; 0: no audits.")
    transitions: int = Field(128, ge=1, description="Transitions per audited block replayed for one step.")
    trajectories: int = Field(32, ge=0, description="Trajectories per audited block replayed as a whole.")
    horizon: int = Field(100, ge=1, description="Most steps of a trajectory that are replayed.")
    coverage: int = Field(512, ge=0, description="Transitions per audited block held against as many real ones.")
    cpus: float = Field(0.0, ge=0, description="CPUs per auditor; its threads are the whole part, at least one.")
    nice: int = Field(
        10, ge=0, le=19, description="How far the operating system puts these processes behind the learner."
    )


class ClusterConfig(Section):
    address: str | None = Field(
        None, description="Ray cluster to join from one of its nodes: auto or HOST:PORT; empty: start Ray here."
    )
    wait: Literal["refuse", "autoscale"] = Field(
        "refuse", description="When the cluster is too small: refuse at once, or wait for it to grow."
    )
    timeout_s: float = Field(60.0, ge=0, description="Longest wait for resources that other jobs hold.")
    cpus: int | None = Field(
        None, ge=1, description="Logical CPUs that Ray may use here; default: those of the machine."
    )
    gpus: int | None = Field(None, ge=0, description="GPUs that Ray may use here; default: those of the machine.")
    object_store_mb: int = Field(512, ge=80, description="Size of Ray's object store on this machine.")
    call_timeout_s: float = Field(
        300.0, gt=0, description="Longest an actor call may take per seed trained before its actor is replaced."
    )
    max_restarts: int = Field(
        3, ge=0, description="Deaths of one worker within five minutes before the run gives it up."
    )
    worker_threads: int | None = Field(
        None, ge=1, description="Torch threads per actor; default: the whole part of its CPUs."
    )
    matmul: Literal["auto", "default", "onednn"] = Field(
        "auto", description="float32 matrix products on CPU: oneDNN where it is exact and the CPU is AMD's."
    )


class Config(Section):
    """The whole configuration of ``raydiff train``."""

    name: str = Field("run", description="Name of the run; also its folder under output.")
    output: str = Field("runs", description="Folder that run folders are made in.")
    seed: int = Field(0, ge=0, description="Seed of everything that this run draws.")
    data: DataConfig = Field(DataConfig(), description="The fixed dataset.")
    denoiser: DenoiserConfig = Field(DenoiserConfig(), description="The diffusion model and its pretraining.")
    reward: RewardConfig = Field(RewardConfig(), description="Rewards of synthetic transitions.")
    dynamics: DynamicsConfig = Field(DynamicsConfig(), description="The ensemble of dynamics models (pets, dydiff).")
    rollout: RolloutConfig = Field(RolloutConfig(), description="Rollouts of that ensemble.")
    dydiff: DyDiffConfig = Field(DyDiffConfig(), description="Options of dydiff.")
    sampler: SamplerConfig = Field(SamplerConfig(), description="The sampler of the generators.")
    guidance: GuidanceConfig = Field(GuidanceConfig(), description="How generation follows the policy.")
    generator: GeneratorConfig = Field(GeneratorConfig(), description="Generator actors.")
    refiner: RefinerConfig = Field(RefinerConfig(), description="Refiner actors.")
    learner: LearnerConfig = Field(LearnerConfig(), description="The learner.")
    replay: ReplayConfig = Field(ReplayConfig(), description="The replay store and its flow control.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="When synthetic data are generated.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Evaluators.")
    audit: AuditConfig = Field(AuditConfig(), description="Auditors: synthetic data against the simulator.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="The machine or cluster.")
    arms_together: bool = Field(
        False, description="The run and its arms with generators learn at the same time, on one plan of the cluster."
    )
    arms: dict[ArmName, dict[str, Any]] = Field(
        default_factory=dict, description="Other runs for comparison: name -> dotted overrides of this configuration."
    )

    @property
    def seeds(self) -> range:
        """The seeds that are trained at once; usually ``seed`` alone."""
        return range(self.seed, self.seed + self.learner.seeds)

    @property
    def rows(self) -> int:
        """Rows ``L`` of a generated trajectory, of which the last closes the last transition."""
        match self.generator.method:
            case "synther":
                return 2
            case "pets":
                return self.rollout.horizon + 1
        return self.denoiser.length
