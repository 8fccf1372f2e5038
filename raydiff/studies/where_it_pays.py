"""Where generated data pay: against the best-tuned learner on real data alone, and against unguided data.

All runs have the same budget of updates. The learner on real data alone is tuned on the very evaluation returns that
the table reports, which is generous to it; generated data are run with the untuned learner, and at its other end.
"""

from __future__ import annotations

from collections.abc import Sequence

from raydiff.config import Config
from raydiff.studies.api import Condition, Scale, Study
from raydiff.studies.findings import pays
from raydiff.studies.results import Results

REAL = "real data alone"
UNGUIDED = "unguided"
MAIN = "guided"

ALPHAS = (2.5, 10.0, 40.0)
RATES = (1e-3, 3e-4)
BEYOND = ((1.0, 1e-3), (160.0, 1e-3), (10.0, 3e-3), (40.0, 3e-3))  # in case that the best lies at the grid's edge
REAL_ONLY = {"generator.count": 0}
WITHOUT = {"guidance.kind": "none"}


def conditions(config: Config) -> Sequence[Condition]:
    """The grid of real-only learners, and what is generated; the essential ones have rank 0."""
    return [*_real(), *_main(config), *_guidance(), *_share(), *_model(config), *_refresh(), *_data(config)]


def _real() -> list[Condition]:
    """The grid, and learners beyond its edges at a lower rank."""
    grid = [(alpha, rate, 0) for rate in RATES for alpha in ALPHAS]
    return [
        Condition(
            f"real-alpha-{alpha:g}-lr-{rate:g}",
            f"alpha {alpha:g}, learning rate {rate:g}",
            REAL,
            {**REAL_ONLY, "learner.td3_bc.alpha": alpha, "learner.learning_rate": rate},
            rank=rank,
        )
        for alpha, rate, rank in [*grid, *((alpha, rate, 1) for alpha, rate in BEYOND)]
    ]


def _main(config: Config) -> list[Condition]:
    paper = {"guidance.mode": "paper", "guidance.strength": 0.25}
    weak = {"learner.td3_bc.alpha": 10.0}
    exact = f"score_exact, strength {config.guidance.strength:g}"
    return [
        Condition("unguided", "unguided", UNGUIDED, WITHOUT),
        Condition("guided", exact, MAIN),
        Condition("paper", "paper, strength 0.25", MAIN, paper),
        Condition("unguided-alpha-10", "unguided, alpha 10", UNGUIDED, {**WITHOUT, **weak}),
        Condition("guided-alpha-10", f"{exact}, alpha 10", MAIN, weak),
        Condition("paper-alpha-10", "paper, strength 0.25, alpha 10", MAIN, {**paper, **weak}, rank=1),
    ]


def _guidance() -> list[Condition]:
    exact = [
        Condition(f"strength-{s:g}", f"score_exact, strength {s:g}", "strength", {"guidance.strength": s}, rank=1)
        for s in (0.5, 8.0)
    ]
    paper = [
        Condition(
            f"paper-strength-{s:g}",
            f"paper, strength {s:g}",
            "strength",
            {"guidance.mode": "paper", "guidance.strength": s},
            rank=1,
        )
        for s in (0.06, 1.0)
    ]
    return exact + paper


def _share() -> list[Condition]:
    return [
        Condition(
            f"real-share-{share:g}", f"guided, {share:.0%} real", "real share", {"replay.real_fraction": share}, rank=1
        )
        for share in (0.1, 0.8)
    ]


def _model(config: Config) -> list[Condition]:
    """Longer windows with as many network parameters and steps, and a denoiser with an eighth of the training."""
    lengths = [
        Condition(
            f"length-{rows}{name}",
            f"{label}, {rows} rows",
            "window length",
            {"denoiser.length": rows, **_as_many_transitions(config, rows), **overrides},
            rank=1,
        )
        for rows in (5, 9)
        for name, label, overrides in (("", "guided", {}), ("-unguided", "unguided", WITHOUT))
    ]
    few = max(1, config.denoiser.steps // 8)
    fidelity = [
        Condition(
            f"few-steps{name}",
            f"{label}, {few:,} pretraining steps",
            "denoiser fidelity",
            {"denoiser.steps": few, **overrides},
            rank=1,
        )
        for name, label, overrides in (("", "guided", {}), ("-unguided", "unguided", WITHOUT))
    ]
    return lengths + fidelity


def _as_many_transitions(config: Config, rows: int) -> dict[str, int]:
    """Fewer trajectories where they are longer: the store holds, and each generation brings, as many transitions."""

    def fewer(trajectories: int) -> int:
        return max(1, trajectories * (config.denoiser.length - 1) // (rows - 1))

    return {
        "generator.batch": fewer(config.generator.batch),
        "replay.generation": fewer(config.replay.generation),
        "replay.warmup": fewer(config.replay.warmup),
    }


def _refresh() -> list[Condition]:
    """Stored trajectories brought up to date by a refiner, as often as time allows."""
    return [Condition("refresh", "guided, refreshed", "refresh", {"refiner.count": 1}, rank=1)]


def _data(config: Config) -> list[Condition]:
    """A fifth of the data, where they are collected here and not given in a file."""
    if config.data.dataset is not None:
        return []
    few = max(100, config.data.transitions // 5)
    group, size = f"{few:,} transitions", {"data.transitions": few}
    real = [
        Condition(
            f"small-real-alpha-{alpha:g}",
            f"real data alone, alpha {alpha:g}",
            group,
            {**size, **REAL_ONLY, "learner.td3_bc.alpha": alpha},
            rank=2,
        )
        for alpha in ALPHAS
    ]
    return [
        *real,
        Condition("small-unguided", "unguided", group, {**size, **WITHOUT}, rank=2),
        Condition("small-guided", f"score_exact, strength {config.guidance.strength:g}", group, size, rank=2),
    ]


def findings(results: Results) -> list[str]:
    return pays(results, REAL)


# One process does everything in turn, so one generator is enough; refreshing is a condition of its own.
LEAN = {
    "generator.count": 1,
    "generator.batch": 1024,
    "generator.refine_when_idle": False,
    "refiner.count": 0,
    "evaluation.every": 2500,
}
PAPER = {
    "data.transitions": 1_000_000,
    "denoiser.steps": 200_000,
    "learner.updates": 1_000_000,
    "learner.learning_rate": 3e-4,
    "learner.tau": 0.005,
    "evaluation.every": 50_000,
    "evaluation.final_episodes": 100,
}

WHERE_IT_PAYS = Study(
    name="where-it-pays",
    title="Guided data against the best-tuned learner on real data alone, and against unguided data.",
    conditions=conditions,
    findings=findings,
    scales={
        "tiny": Scale("demo.yaml", {**LEAN, "scale": "tiny", "generator.batch": 384}),
        "small": Scale("demo.yaml", LEAN),
        "paper": Scale("demo.yaml", {**LEAN, **PAPER}),
    },
    columns=("score", "error", "deviation", "calls"),
)
