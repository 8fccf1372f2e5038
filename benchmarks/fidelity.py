"""How true and how on-policy are synthetic trajectories? ``python benchmarks/fidelity.py [--quick] [--data NAME]...``.

For each dataset (``maze2d-umaze`` is collected; or an HDF5 file in D4RL's schema) one model per method is trained (or
taken from the cache), an IQL policy is trained away from the behaviour, and every generator makes trajectories for it:

* dynamics error after 1, 5, 16 (and for rollouts 100) steps: squared, over the data's variance, without the largest 5 %;
* log-likelihood of the actions under the policy, per action dimension, beside what the policy's own would have;
* coverage of the real transitions, trajectories per second on one thread, network calls per trajectory.

Refresh (stored unguided trajectories brought to the policy) stands beside generating anew under the same guidance.

Real windows and their replay are the floor. The automatic strength aims at the policy's own likelihood, which is that
of rollouts with it: there the two are compared at equal likelihood.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, machine, report
from rich.console import Console
from rich.table import Table

from raydiff.agents.policy import Policy
from raydiff.compute import configure_compute
from raydiff.config import Config, GuidanceConfig
from raydiff.data.dataset import Dataset
from raydiff.data.source import cache_folder, load_dataset, resolve
from raydiff.data.windows import make_windows
from raydiff.evaluation.audit import Auditor
from raydiff.evaluation.coverage import nearest_neighbour_coverage
from raydiff.generators.api import Generator, action_agreement
from raydiff.generators.build import build_generator, build_refiner
from raydiff.guidance.strength import find_strength
from raydiff.presets import load_config
from raydiff.roles.learner import Learner
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import check_models, prepare_models
from raydiff.types import Trajectories

ROWS = 17
STEPS = (1, 5, 16, 100)
STRENGTHS = {"paper": (0.25, 1.0), "paper_code": (0.25, 1.0), "score": (0.5, 2.0), "score_exact": (0.5, 1.0, 2.0, 4.0)}
ITERATIONS = range(5)
SIGMAS = (0.3, 1.0, 3.0)
HORIZONS = (1, 5, 16, 100)
SETTINGS: dict[str, Any] = {
    "denoiser.length": ROWS,
    "denoiser.network": {"kind": "mlp", "width": 512, "depth": 4},
    "denoiser.steps": 12_000,
    "denoiser.batch_size": 128,
    "denoiser.learning_rate": 1e-3,
    "dynamics.transitions": 100_000,
    "dynamics.epochs": 12,
    "guidance.kind": "policy",
    "learner.algorithm": "iql",
    "learner.iql.beta": 30.0,
    "learner.iql.expectile": 0.9,
    "learner.learning_rate": 1e-3,
    "generator.batch": 512,
}
QUICK = {"denoiser.steps": 300, "denoiser.network": {"kind": "mlp", "width": 64, "depth": 2}, "dynamics.epochs": 2,
         "dynamics.hidden": [32, 32], "dynamics.transitions": 4000, "reward.steps": 300, "sampler.steps": 8}  # fmt: skip


@dataclass
class Row:
    """One line of the table; ``errors`` by number of steps."""

    name: str
    errors: dict[int, float] = field(default_factory=dict)
    likelihood: float = float("nan")
    own: float = float("nan")
    coverage: float = float("nan")
    rate: float = float("nan")
    calls: int = 0


class Bench:
    """One dataset, its models and the policy."""

    def __init__(self, data: str, quick: bool) -> None:
        self.data, self.count, self.updates = data, 256 if quick else 2048, 300 if quick else 6_000
        self.quick, self.models_of = quick, dict[str, Models]()
        self.config = self.configured("pgd")
        self.dataset: Dataset = load_dataset(self.config.data)
        self.auditor = Auditor(self.config.data.environment or "")
        self.variance = np.maximum(self.dataset.observation.var(0), 1e-6)
        self.policy = self._train_policy()

    def configured(self, method: str, **overrides: Any) -> Config:
        """The configuration of a method: its settings here, and what a row changes."""
        known = "." not in self.data
        values: dict[str, Any] = (
            {"data.environment": f"{self.data}-v1", "data.level": "waypoint"} if known else {"data.dataset": self.data}
        )
        values |= {"data.transitions": 4_000 if self.quick else 200_000} if known else {}
        # Raw targets, as published, suit the maze; on locomotion data of this size they are learnt much worse.
        values |= {"dynamics.normalize_targets": not known}
        values |= SETTINGS | (QUICK if self.quick else {}) | {"generator.method": method}
        if method == "synther":
            values |= {"reward.kind": "denoiser"}
        if method == "dydiff":
            values |= {"rollout.sample": False, "generator.filter": "none"}
        if method == "pets":
            values |= {"reward.kind": "denoiser"}
        values |= overrides
        return resolve(load_config(None, [f"{key}={json.dumps(value)}" for key, value in values.items()]))

    def _train_policy(self) -> Policy:
        """IQL on the real data, with a temperature that takes it away from the behaviour."""
        config = self.config.model_copy(
            update={"generator": self.config.generator.model_copy(update={"count": 0}),
                    "learner": self.config.learner.model_copy(update={"updates": self.updates})}
        )  # fmt: skip
        learner = Learner(config, self.dataset.transitions(config.data.semantics), "fidelity")
        for _ in range(self.updates // 100):
            learner.train(100)
        return Policy.from_blob(learner.policies()[0])

    def models(self, config: Config) -> Models:
        """Of the configured method, trained once."""
        method = config.generator.method
        if method not in self.models_of:
            check_models(config, self.dataset)
            start = time.perf_counter()
            self.models_of[method] = prepare_models(config, self.dataset, cache_folder(config.data))
            print(f"  models of {method}: {time.perf_counter() - start:.0f} s")
        return self.models_of[method]

    def real(self, length: int) -> Trajectories:
        """Held-out windows."""
        section = self.config.denoiser
        windows = make_windows(self.dataset, length, section.stride, section.holdout, section.seed)
        chosen = np.random.default_rng(0).permutation(windows.validation)[: self.count]
        return Trajectories(windows.gather(chosen), self.dataset.observation_size, self.dataset.action_size)

    def row(self, name: str, generator: Generator, guided: bool = True) -> Row:
        """Generate, replay and time."""
        made = generator.generate(self.policy if guided else None, self.count, (1,))
        keys, batch, seconds = itertools.count(2), 256, list[float]()
        for _ in range(3):
            start = time.perf_counter()
            generator.generate(self.policy if guided else None, batch, (next(keys),))
            seconds.append(time.perf_counter() - start)
        row = self.judged(name, made.trajectories)
        row.rate, row.calls = batch / sorted(seconds)[1], made.nfe
        return row

    def judged(self, name: str, data: Trajectories) -> Row:
        """All that does not depend on how the trajectories were made."""
        row, result = Row(name), self.auditor.replay_error(data, self.variance)
        for steps in STEPS:
            if steps <= len(result.normalized.trimmed_mean):
                row.errors[steps] = float(result.normalized.trimmed_mean[steps - 1])
        fit = action_agreement(data, self.policy, "cpu", 0.2)
        if fit is not None:
            row.likelihood, row.own = (value / data.action_size for value in (fit.log_likelihood, fit.own))
        real, made = self.real(2).transitions(), data.transitions()
        n = min(len(real.reward), len(made.reward), self.count)
        scale = np.concatenate([self.dataset.observation.std(0), self.dataset.action.std(0)]) + 1e-6
        clouds = []
        for steps in (real, made):
            pick = np.random.default_rng(3).permutation(len(steps.reward))[:n]
            clouds.append(np.concatenate([steps.observation[pick], steps.action[pick]], axis=1) / scale)
        found = nearest_neighbour_coverage(clouds[0], clouds[1])
        row.coverage = found.coverage if found is not None else float("nan")
        return row


def rows(bench: Bench) -> Iterator[Row]:
    """Every line, from the floor on."""
    yield bench.judged("real data (floor)", bench.real(ROWS))
    config = bench.configured("synther")
    yield bench.row("SynthER", build_generator(config, bench.models(config), "cpu"), guided=False)
    config = bench.configured("pgd", **{"guidance.kind": "none"})
    models = bench.models(config)
    unguided = build_generator(config, models, "cpu")
    yield bench.row("unguided", unguided, guided=False)
    for mode, strengths in STRENGTHS.items():
        for strength in strengths:
            config = bench.configured("pgd", **{"guidance.mode": mode, "guidance.strength": strength})
            yield bench.row(f"PGD {mode}, lambda {strength:g}", build_generator(config, models, "cpu"))
    for mode in ("paper", "score_exact"):
        yield _automatic(bench, mode)
    for sigma in SIGMAS:
        refreshing = _Refreshing(bench, unguided, sigma)
        yield bench.row(f"refresh of unguided, sigma {sigma:g}", refreshing)
    for iterations in ITERATIONS:
        config = bench.configured("dydiff", **{"dydiff.iterations": iterations})
        yield bench.row(f"DyDiff, M = {iterations}", build_generator(config, bench.models(config), "cpu"))
    for horizon in HORIZONS:
        config = bench.configured("pets", **{"rollout.horizon": horizon})
        yield bench.row(f"PETS, {horizon} steps", build_generator(config, bench.models(config), "cpu"))


def _automatic(bench: Bench, mode: str) -> Row:
    config = bench.configured("pgd", **{"guidance.mode": mode})
    guidance: GuidanceConfig = config.guidance
    found = find_strength(build_generator(config, bench.models(config), "cpu"), bench.policy, guidance, (7,))
    config = bench.configured("pgd", **{"guidance.mode": mode, "guidance.strength": found.strength})
    note = "" if found.reached else ", target not reached"
    return bench.row(
        f"PGD {mode}, automatic ({found.strength:.3g}{note})", build_generator(config, bench.models(config), "cpu")
    )


class _Refreshing:
    """Refresh of trajectories that were generated unguided before, as a generator."""

    def __init__(self, bench: Bench, unguided: Generator, sigma: float) -> None:
        config = bench.configured("pgd", **{"refiner.sigma": sigma})
        refiner = build_refiner(config, bench.models(config), "cpu")
        assert refiner is not None
        self.refiner = refiner
        self.stored = unguided.generate(None, bench.count, (11,)).trajectories

    def generate(self, policy: Any, n: int, key: tuple[int, ...], strength: float | None = None) -> Any:
        few = Trajectories(self.stored.rows[:n], self.stored.observation_size, self.stored.action_size)
        return self.refiner.refine(few, policy, key, strength)


def verdict(table: list[Row]) -> list[str]:
    """What the table says of PGD against PETS at equal likelihood, whichever way it falls."""
    pets = next(row for row in table if row.name == "PETS, 16 steps")
    text = [f"The policy's own actions would have a log-likelihood of {pets.own:.2f} nats per action dimension."]
    for row in table:
        if "automatic" not in row.name or 16 not in row.errors:
            continue
        gap = row.likelihood - pets.likelihood
        for steps in (1, 16):
            ratio = row.errors[steps] / pets.errors[steps]
            text.append(
                f"{row.name}: error after {steps} steps is {ratio:.2f} times that of PETS, at a likelihood {gap:+.2f} nats "
                f"per action dimension from it."
            )
    anew = next(row for row in table if row.name == "PGD score_exact, lambda 2")
    for row in table:
        if row.name.startswith("refresh"):
            text.append(
                f"{row.name}: {row.calls} calls for {anew.calls} of generating anew, likelihood {row.likelihood:.2f} for "
                f"{anew.likelihood:.2f}, error after one step {row.errors[1] / anew.errors[1]:.2f} times its."
            )
    return text


def shown(title: str, table: list[Row]) -> Table:
    """The table for the terminal."""
    made = Table(title=title)
    heads = [f"error, {steps} steps" if steps > 1 else "error, 1 step" for steps in STEPS]
    for head in ("", *heads, "log-likelihood", "coverage", "trajectories/s", "calls"):
        made.add_column(head, justify="left" if not head else "right")
    for row in table:
        errors = [f"{row.errors[steps]:.2g}" if steps in row.errors else "" for steps in STEPS]
        rate = "" if np.isnan(row.rate) else f"{row.rate:,.0f}"
        made.add_row(
            row.name, *errors, f"{row.likelihood:.2f}", f"{row.coverage:.2f}", rate, f"{row.calls}" if row.calls else ""
        )
    return made


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--data", action="append", help="maze2d-umaze, or an HDF5 file; may be given several times."
        )
        parser.add_argument("--markdown", type=Path, metavar="FILE", help="Write the tables as Markdown.")

    options = arguments(__doc__, more)
    compute = configure_compute(1, "auto")
    figures: dict[str, float] = {}
    console = Console(width=170)
    parts: list[str] = []
    for data in options.data or ["maze2d-umaze"]:
        bench, table = Bench(data, options.quick), list[Row]()
        print(f"{data}: {bench.count} trajectories a row")
        for row in rows(bench):
            table.append(row)
            print(f"  {row.name}", flush=True)
        name = Path(data).stem
        findings = verdict(table)
        console.print(shown(name, table))
        console.print("\n".join(findings))
        parts += markdown(name, table, findings)
        for row in table:
            values: dict[str, Callable[[], float] | float] = {
                f"error {steps}": error for steps, error in row.errors.items()
            }
            values |= {"log-likelihood": row.likelihood, "own": row.own, "coverage": row.coverage, "rate": row.rate,
                       "calls": float(row.calls)}  # fmt: skip
            figures |= {f"{name}: {row.name}: {key}": float(value) for key, value in values.items()}  # type: ignore[arg-type]
    if options.markdown is not None:
        options.markdown.write_text("\n".join(parts) + "\n")
    report(machine(compute=str(compute)), figures, {}, options.json, shown=lambda name: False)


def markdown(name: str, table: list[Row], findings: list[str]) -> list[str]:
    heads = [f"{steps}" for steps in STEPS]
    lines = [
        f"**{name}**",
        "",
        f"| | error after {' | '.join(heads)} | log-likelihood | coverage | trajectories/s | calls |",
    ]
    lines.append("|---|" + "---:|" * (len(STEPS) + 4))
    for row in table:
        errors = " | ".join(f"{row.errors[steps]:.2g}" if steps in row.errors else "" for steps in STEPS)
        rate = "" if np.isnan(row.rate) else f"{row.rate:,.0f}"
        lines.append(
            f"| {row.name} | {errors} | {row.likelihood:.2f} | {row.coverage:.2f} | {rate} | {row.calls or ''} |"
        )
    return [*lines, "", *findings, ""]


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
