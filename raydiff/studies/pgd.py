"""The studies of policy-guided diffusion: its figures 4 to 6, and the columns of its table 2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from raydiff.config import Config
from raydiff.evaluation.statistics import iqm_over_runs
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import sweep, tally, text
from raydiff.studies.measures import MEASURES
from raydiff.studies.results import Results

REAL = {"generator.count": 0}
UNGUIDED = {"guidance.kind": "none"}
LEAN = {"generator.count": 1, "generator.refine_when_idle": False, "refiner.count": 0, "evaluation.every": 2500}
TINY = {**LEAN, "scale": "tiny", "evaluation.every": 100}
SCALES = {
    "tiny": Scale("paper.yaml", TINY),
    "small": Scale("paper.yaml", {**LEAN, "generator.batch": 1024}),
    "paper": Scale("pgd/periodic.yaml"),
}
EPOCHS, KEPT, GENERATIONS = 4, 10, 100  # of the paper's two settings (section B.6)
STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
TASKS = ("halfcheetah", "hopper", "walker2d")
SEED = 0  # of the bootstrap


# ------------------------------------------------------------------------------- figure 4: periodic against continuous
def schedules(config: Config) -> Sequence[Condition]:
    """As many trajectories in all: four datasets, or generations all along of which the last ten stay."""
    epoch = config.replay.generation if config.schedule.kind == "periodic" else 4 * config.replay.generation
    total = EPOCHS * epoch
    generation = max(total // GENERATIONS, min(config.generator.batch, 1024))
    synthetic = round(config.learner.batch_size * (1 - config.replay.real_fraction))
    inserted = max(1, total // generation) * generation * (config.rows - 1)
    ratio = config.learner.updates * synthetic / inserted
    chunk = config.learner.chunk * synthetic / (ratio * generation * (config.rows - 1))  # blocks that one chunk draws
    continuous = {
        "schedule.kind": "continuous",
        "generator.batch": generation,
        "replay.generation": generation,
        "replay.warmup": generation,
        "replay.lifetime": KEPT,
        "replay.samples_per_insert": ratio,
        "replay.ahead": max(config.replay.ahead, chunk),
    }
    periodic = {"schedule.kind": "periodic", "schedule.epochs": EPOCHS, "replay.generation": epoch}
    return [
        Condition("real", "real data alone", "real data alone", REAL),
        Condition("periodic", f"{EPOCHS} datasets of {epoch:,} trajectories", "periodic", periodic),
        Condition("continuous", f"generations of {generation:,}, the last {KEPT}", "continuous", continuous),
    ]


def schedule_findings(results: Results) -> list[str]:
    periodic, rest = results.row("periodic"), results.group("continuous", "real data alone")
    return [tally(rest, periodic)] if periodic is not None else []


# ------------------------------------------------------------------------------------ figure 5: likelihood by strength
def strengths(config: Config) -> Sequence[Condition]:
    """The action likelihood of what each mode generates for the policy being learnt, a Gaussian one (IQL)."""
    return [
        Condition(
            f"{mode}-{strength:g}",
            f"strength {strength:g}",
            mode,
            {"learner.algorithm": "iql", "guidance.mode": mode, "guidance.strength": strength},
            x=strength,
        )
        for mode in ("paper", "score_exact")
        for strength in STRENGTHS
    ]


def strength_findings(results: Results) -> list[str]:
    lines = []
    for mode in ("paper", "score_exact"):
        rows = results.group(mode)
        lines += [sweep(rows, measure) for measure in ("log_likelihood", "error")]
    own = [row for row in results.rows if row.values("own_log_likelihood")]
    if own:
        mean = own[0].estimate("own_log_likelihood")
        assert mean is not None
        lines.append(f"The policy's own actions, which rollouts of a model have: {text(mean, 2)}.")
    return [line for line in lines if line]


# ------------------------------------------------------------------------ figure 6: dynamics error by step, with PETS
def targets(config: Config) -> Sequence[Condition]:
    """Trajectories for policies ever further from the behaviour: TD3+BC with ever weaker behaviour cloning."""
    pets = {
        "generator.method": "pets",
        "rollout.horizon": config.denoiser.length - 1,
        "dynamics.epochs": 12 if config.learner.updates <= 10_000 else 100,
        **UNGUIDED,
    }
    methods: dict[str, dict[str, Any]] = {"unguided": UNGUIDED, "guided": {}, "PETS": pets}
    return [
        Condition(
            f"{method.lower()}-alpha-{alpha:g}",
            f"alpha {alpha:g}",
            method,
            {**methods[method], "learner.algorithm": "td3_bc", "learner.td3_bc.alpha": alpha},
        )
        for alpha, method in product((0.0, 2.5, 40.0), methods)
    ]


def target_findings(results: Results) -> list[str]:
    """Guided trajectories against the rollouts of the model for the same target policy, in error."""
    lines = []
    for rollout in results.group("PETS"):
        twins = [row for row in results.group("guided", "unguided") if row.label == rollout.label]
        lines.append(tally(twins, rollout, "error"))
    return [line for line in lines if line]


# --------------------------------------------------------------------------------------------------------- table 2
def columns_of_table_2(config: Config) -> Sequence[Condition]:
    """Real, unguided and guided data, with both learners, on each task; on the given data alone where there are some."""
    tasks = TASKS if config.data.dataset is None else ("",)
    data: dict[str, dict[str, Any]] = {"real": REAL, "unguided": UNGUIDED, "guided": {}}
    return [
        Condition(
            "-".join(part for part in (task, algorithm, name) if part),
            f"{algorithm}, {name}",
            task or "given data",
            {**data[name], "learner.algorithm": algorithm, **({"data.environment": task} if task else {})},
        )
        for task in tasks
        for algorithm in ("td3_bc", "iql")
        for name in data
    ]


def table_2_findings(results: Results) -> list[str]:
    """Each learner on unguided and guided data against real data, task by task, and over all tasks."""
    lines, groups = [], list(dict.fromkeys(row.group for row in results.rows))
    for algorithm in ("td3_bc", "iql"):
        for group in groups:
            rows = {row.label: row for row in results.group(group)}
            real = rows.pop(f"{algorithm}, real", None)
            if real is not None:
                lines.append(tally([row for label, row in rows.items() if label.startswith(algorithm)], real))
        for name in ("real", "unguided", "guided"):
            found = [row for row in results.rows if row.label == f"{algorithm}, {name}" and row.values("score")]
            if len(found) > 1 and len(found) == len(groups):
                overall = iqm_over_runs([row.values("score") for row in found], SEED)
                digits = MEASURES["score"].digits
                lines.append(
                    f"{algorithm} on {name} data, interquartile mean over {len(found)} tasks (stratified bootstrap): "
                    f"{text(overall, digits)}."
                )
    return [line for line in lines if line]


FIGURE_4 = Study(
    "pgd-figure4",
    "Policy-guided diffusion: four whole datasets in turn (periodic) against generation all along (continuous).",
    schedules,
    schedule_findings,
    SCALES,
    ("score", "error", "deviation", "trajectories"),
)
FIGURE_5 = Study(
    "pgd-figure5",
    "Policy-guided diffusion: how likely the policy finds generated actions, by guidance strength.",
    strengths,
    strength_findings,
    SCALES,
    ("log_likelihood", "deviation", "error", "score"),
    x="guidance strength",
)
FIGURE_6 = Study(
    "pgd-figure6",
    "Policy-guided diffusion against rollouts of a learnt model (PETS): dynamics error by step, for target policies "
    "further and further from the behaviour.",
    targets,
    target_findings,
    SCALES,
    ("error", "error_by_step", "log_likelihood", "deviation"),
)
TABLE_2 = Study(
    "pgd-table2",
    "Policy-guided diffusion: real, unguided and guided data, for TD3+BC and IQL.",
    columns_of_table_2,
    table_2_findings,
    SCALES,
    ("score", "error", "deviation"),
)
STUDIES = (FIGURE_4, FIGURE_5, FIGURE_6, TABLE_2)
