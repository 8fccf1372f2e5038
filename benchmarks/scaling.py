"""What do more generators give? ``python benchmarks/scaling.py --generators 1,2,4 [--emulate SECONDS] [--json FILE]``.

Each row is the real system on the real Ray with so many generator actors and one learner, both as fast as they can go
(samples per insert do not pace them), watched for a while after everybody is up. The rows come in turns, ``--rounds``
times, and figures are medians. ``--emulate SECONDS`` replaces the sampler by a wait of fixed length that returns a
real block: then any number of generators fits a small machine, and what is measured is everything around them.

* efficiency: trajectories per second over those of the first row times the ratio of generators;
* against synchronous: seconds that one process takes for the same trajectories and updates, one after the other as
  published methods do, over the seconds that they took here;
* bottleneck, at the ratio of ``--samples-per-insert``: generators, where the learner would use up more than they
  make, else the learner.

Rows with more busy processes than cores are marked with ``*``: their generators share cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, report

from raydiff.compute import configure_compute
from raydiff.config import Config
from raydiff.data.source import cache_folder, load_dataset
from raydiff.metrics import MetricsWriter, read_metrics, select
from raydiff.presets import load_config
from raydiff.roles.emulated import make_generator
from raydiff.roles.learner import Learner
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models
from raydiff.runtime.cluster import RayBackend
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.ray_crew import RayCrew
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running
from raydiff.timeline import interval, training_span
from raydiff.types import Transitions

GOAL = 0.95  # efficiency of emulated generators, up to the last row
START_LIMIT_S = 240.0
SETTINGS: dict[str, Any] = {
    "data.transitions": 20_000,
    "denoiser.steps": 300,  # timing needs no good denoiser
    "reward.steps": 300,
    "generator.batch": 512,
    "generator.in_flight": 2,  # the next call waits where the last one ends
    "generator.cpus": 0.01,
    "generator.nice": 0,
    "generator.refine_when_idle": False,
    "refiner.count": 0,
    "learner.updates": 10_000_000,  # the watch ends first
    "learner.cpus": 1,
    "learner.chunk": 25,
    # Neither side waits for the other.
    "replay.samples_per_insert": 1.0e-6,
    "replay.behind": 1.0e12,
    "replay.warmup": 2_048,
    "evaluation.every": 10_000_000,
    "audit.count": 0,
}


@dataclass(frozen=True)
class Row:
    """Rates of one watch. ``lag`` is the mean over the sampled batches, in updates."""

    trajectories_per_s: float
    updates_per_s: float
    transitions_per_s: float
    lag: float
    utilisation: float


def settings(generators: int, emulate: float | None) -> Config:
    values = {**SETTINGS, "generator.count": generators, "cluster.cpus": max(2, os.cpu_count() or 1)}
    if emulate is not None:
        values["generator.emulate_s"] = emulate
    return load_config(None, [f"{key}={value}" for key, value in values.items()])


def watch(config: Config, real: Transitions, models: Models, backend: RayBackend, seconds: float) -> Row:
    """Start a crew, wait until all of it works, and count for ``seconds``."""
    with tempfile.TemporaryDirectory() as folder, MetricsWriter(folder) as writer:
        crew = RayCrew(Materials(config, "scaling", real, models))
        running = Running(Conductor(config, "scaling"), crew, Recorder(writer, "scaling", lambda text: None))
        crew.start()
        try:
            begin = _settled(running, backend)
            while time.time() < begin + seconds:
                backend.wait([crew])
                running.step()
        finally:
            crew.close()
        records = [record for record in read_metrics(folder) if record["time"]["at"] >= begin]
    return _row(config, records, begin, begin + seconds)


def _settled(running: Running, backend: RayBackend) -> float:
    """Wait until every generator has delivered twice and the learner learns; the time then."""
    start, delivered = time.monotonic(), dict[str, int]()
    while True:
        backend.wait([running.crew])
        before = {call.call: call.worker for call in running.conductor.in_flight.values()}
        running.step()
        for number in before.keys() - running.conductor.in_flight.keys():
            delivered[before[number]] = delivered.get(before[number], 0) + 1
        if (
            all(delivered.get(name, 0) >= 2 for name in running.conductor.workers["generator"])
            and running.conductor.update
        ):
            return time.time()
        if time.monotonic() - start > START_LIMIT_S:
            raise SystemExit(f"after {START_LIMIT_S:g} s not every generator works: {delivered}")


def _row(config: Config, records: list[dict[str, Any]], begin: float, end: float) -> Row:
    """Rates between the first and the last completion inside the watch, so that no call counts by halves."""
    blocks, chunks = select(records, "block"), select(records, "train")
    train = training_span(records, "scaling")
    ends = sorted((record["time"]["end"], record["trajectories"], record["transitions"]) for record in blocks)
    seconds = ends[-1][0] - ends[0][0]
    busy = sum(min(pair[1], end) - max(pair[0], begin) for record in blocks if (pair := interval(record)))
    lags = [record["lag"]["mean"] for record in chunks if record["lag"]]
    assert train is not None
    return Row(
        trajectories_per_s=sum(n for _, n, _ in ends[1:]) / seconds,
        updates_per_s=sum(record["updates"] for record in chunks) / (train[1] - train[0]),
        transitions_per_s=sum(n for _, _, n in ends[1:]) / seconds,
        lag=statistics.mean(lags),
        utilisation=busy / (end - begin) / config.generator.count,
    )


def synchronous(config: Config, real: Transitions, models: Models, seconds: float) -> tuple[float, float]:
    """Seconds per trajectory and per update in one process that does one after the other."""
    configure_compute(1, config.cluster.matmul)
    learner = Learner(config, real, "synchronous")
    generator = make_generator(config, models.bundle, models.reward, "generator/0", "synchronous")
    size = config.generator.batch
    for slot in range(4):
        rows, _ = generator.generate(learner.policies()[0], size, slot, slot, True)
        learner.ingest(rows, slot, 0)
    learner.train(100)
    made = updates = 0
    spent = [0.0, 0.0]
    while sum(spent) < seconds:
        start = time.perf_counter()
        rows, _ = generator.generate(learner.policies()[0], size, made, made, True)
        learner.ingest(rows, made % 4, learner.update)
        middle = time.perf_counter()
        learner.train(50)
        spent[0], spent[1] = spent[0] + middle - start, spent[1] + time.perf_counter() - middle
        made, updates = made + 1, updates + 50
    return spent[0] / (made * size), spent[1] / updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generators", default="1,2", help="Counts to compare, such as 1,2,4.")
    parser.add_argument("--emulate", type=float, metavar="SECONDS", help="Fixed service time of a generator call.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Length of each watch.")
    parser.add_argument("--rounds", type=int, default=3, help="Watches of each count.")
    parser.add_argument(
        "--samples-per-insert", type=float, default=32.0, help="Ratio that the bottleneck is named for."
    )
    parser.add_argument("--quick", action="store_true", help="One short round.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write machine, figures and goals to this file.")
    chosen = parser.parse_args()
    rounds, seconds = (1, min(chosen.seconds, 8.0)) if chosen.quick else (chosen.rounds, chosen.seconds)
    counts = [int(text) for text in chosen.generators.split(",")]
    config = settings(counts[0], chosen.emulate)
    dataset = load_dataset(config.data)
    real = dataset.transitions("raydiff")
    models = prepare_models(config, dataset, cache_folder(config.data))
    per_trajectory, per_update = synchronous(config, real, models, 2 * seconds)
    rows: dict[int, list[Row]] = {count: [] for count in counts}
    with RayBackend(config) as backend:
        for _ in range(rounds):
            for count in counts:
                rows[count].append(watch(settings(count, chosen.emulate), real, models, backend, seconds))
    _print(chosen, config, rows, per_trajectory, per_update)


def _print(
    chosen: argparse.Namespace, config: Config, rows: dict[int, list[Row]], per_trajectory: float, per_update: float
) -> None:
    cores, figures, base = os.cpu_count() or 1, dict[str, float](), next(iter(rows))
    synthetic = Conductor(config, "scaling").limits.synthetic_per_update
    median = {
        count: Row(*(statistics.median(getattr(row, name) for row in found) for name in Row.__dataclass_fields__))
        for count, found in rows.items()
    }
    print(f"{'generators':>10s} {'traj/s':>9s} {'efficiency':>10s} {'busy':>6s} {'updates/s':>9s} {'lag':>7s} "
          f"{'vs synchronous':>14s}  bottleneck")  # fmt: skip
    for count, row in median.items():
        busy = 1 + (0 if chosen.emulate is not None else count)
        efficiency = row.trajectories_per_s / (median[base].trajectories_per_s * count / base)
        speed_up = row.trajectories_per_s * per_trajectory + row.updates_per_s * per_update
        wanted = row.updates_per_s * synthetic / chosen.samples_per_insert
        bottleneck = "generators" if wanted > row.transitions_per_s else "learner"
        mark = "*" if busy > cores else " "
        print(f"{count:>9d}{mark} {row.trajectories_per_s:9.0f} {efficiency:10.3f} {row.utilisation:6.2f} "
              f"{row.updates_per_s:9.0f} {row.lag:7.0f} {speed_up:14.2f}  {bottleneck}")  # fmt: skip
        figures |= {
            f"trajectories_per_s_{count}": row.trajectories_per_s,
            f"efficiency_{count}": efficiency,
            f"utilisation_{count}": row.utilisation,
            f"updates_per_s_{count}": row.updates_per_s,
            f"lag_{count}": row.lag,
            f"speed_up_over_synchronous_{count}": speed_up,
        }
    print(f"* more busy processes than the {cores} cores\n")
    figures |= {"synchronous_trajectories_per_s": 1 / per_trajectory, "synchronous_updates_per_s": 1 / per_update}
    goals = {f"efficiency_{max(rows)}": GOAL} if chosen.emulate is not None else {}
    about = machine(emulated_s=chosen.emulate, watches=json.dumps({n: len(found) for n, found in rows.items()}))
    report(about, figures, goals, chosen.json)


if __name__ == "__main__":
    main()
