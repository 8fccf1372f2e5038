"""Does generating beside learning cost anything? ``python benchmarks/overlap.py [--quick] [--json FILE]``.

The same work (updates and trajectories) in three ways, in turns within one run, each process with one thread:

* alone: the learner without any generator, and the generator without any learner;
* concurrent: the real conductor on the real Ray, one generator and one learner;
* sequential: the same two actors, one working while the other waits, as published methods do.

``efficiency`` is the ideal, the longer of the two parts alone, over the concurrent time. The samples per insert are
chosen from a first measurement so that generating takes ``LOAD`` of the time that learning takes: the balance at which
overlapping is hardest, for there is no slack. Refreshing, audits and evaluations are off, so that the work is equal.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from common import arguments, machine, report

from raydiff.config import Config
from raydiff.data.source import cache_folder, load_dataset
from raydiff.metrics import MetricsWriter, read_metrics, select
from raydiff.presets import derive, load_config
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models
from raydiff.runtime import messages as m
from raydiff.runtime.cluster import RayBackend
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.ray_crew import RayCrew
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running
from raydiff.timeline import intervals, learner_wait_fraction, overlap, training_span
from raydiff.types import Transitions

LOAD = 0.9
GOAL = 0.85
GENERATOR = "generator/0"
SETTINGS: dict[str, Any] = {
    "data.transitions": 20_000,
    "denoiser.steps": 300,  # timing needs no good denoiser
    "reward.steps": 300,
    "generator.count": 1,
    "generator.batch": 512,
    "generator.nice": 0,
    "generator.refine_when_idle": False,
    "refiner.count": 0,
    "learner.cpus": 0.5,  # two learners exist, of which one works at a time
    "learner.chunk": 25,
    "replay.warmup": 2_048,
    "evaluation.every": 1_000_000,
    "evaluation.final_episodes": 1,
    "audit.count": 0,
}


class Bench:
    """One learner and one generator in actors of their own, driven by hand."""

    def __init__(self, config: Config, real: Transitions, models: Models, backend: RayBackend) -> None:
        self.config, self.real, self.models, self.backend = config, real, models, backend
        self.crew = RayCrew(Materials(config, "bench", real, models))
        self.crew.start()
        self.calls = self.blocks = self.slot = 0
        up: set[str] = set()
        while not {LEARNER, GENERATOR} <= up:
            up |= {outcome.worker for outcome in self._wait() if isinstance(outcome.event, m.WorkerUp)}
        self.generate(4)  # warm-up, and rows to learn from
        self.learn(200)

    def _wait(self) -> list[Any]:
        self.backend.wait([self.crew])
        return self.crew.poll()

    def _number(self) -> int:
        self.calls += 1
        return self.calls

    def _ingest(self, block: int) -> None:
        slots = Conductor(self.config, "bench").limits.slots
        self.crew.submit(m.Ingest(self._number(), LEARNER, block, self.slot % slots, 0))
        self.slot += 1
        self.crew.submit(m.Forget(block))

    def generate(self, blocks: int) -> float:
        """Seconds for so many blocks, ingestion included."""
        start, left, landed = time.perf_counter(), blocks, 0
        while landed < blocks:
            busy = any(isinstance(command, m.Generate) for command, _, _ in self.crew.calls.values())
            if left and not busy:
                self.blocks, left = self.blocks + 1, left - 1
                size = self.config.generator.batch
                self.crew.submit(m.Generate(self._number(), GENERATOR, self.blocks, size, True, self.blocks))
            for outcome in self._wait():
                if isinstance(outcome.event, m.Produced):
                    self._ingest(outcome.report.provenance.block)
                landed += isinstance(outcome.event, m.Ingested)
        return time.perf_counter() - start

    def learn(self, updates: int) -> float:
        """Seconds for so many updates, in chunks, two in flight as in a run."""
        start, issued, done, chunk = time.perf_counter(), 0, 0, self.config.learner.chunk
        while done < updates:
            flying = sum(isinstance(command, m.Train) for command, _, _ in self.crew.calls.values())
            for _ in range(self.config.learner.in_flight - flying):
                if issued < updates:
                    self.crew.submit(m.Train(self._number(), LEARNER, chunk))
                    issued += chunk
            done += sum(chunk for outcome in self._wait() if isinstance(outcome.event, m.Trained))
        return time.perf_counter() - start

    def sequential(self, blocks: int, updates: int) -> float:
        """Seconds when the learner stops for every block."""
        chunk = self.config.learner.chunk
        per_block = max(chunk, round(updates / blocks / chunk) * chunk)
        start = time.perf_counter()
        for _ in range(blocks):
            self.generate(1)
            self.learn(per_block)
        return (time.perf_counter() - start) * updates / (per_block * blocks)


def concurrent(bench: Bench, config: Config) -> tuple[float, int, float, float]:
    """The real run: seconds of learning, blocks generated meanwhile, overlap and learner wait."""
    with tempfile.TemporaryDirectory() as folder, MetricsWriter(folder) as writer:
        crew = RayCrew(Materials(config, "bench", bench.real, bench.models))
        running = Running(Conductor(config, "bench"), crew, Recorder(writer, "bench", lambda text: None))
        crew.start()
        while not running.finished:
            bench.backend.wait([crew])
            running.step()
        crew.close()
        records = read_metrics(folder)
    span = training_span(records, "bench")
    assert span is not None
    blocks = sum(span[0] <= record["time"]["end"] <= span[1] for record in select(records, "block"))
    share = overlap(intervals(select(records, "train")), intervals(select(records, "block")))
    return span[1] - span[0], blocks, share, learner_wait_fraction(records, "bench") or 0.0


def measure(rounds: int, updates: int) -> dict[str, float]:
    config = load_config(None, [f"{key}={value}" for key, value in SETTINGS.items()])
    dataset = load_dataset(config.data)
    real = dataset.transitions("raydiff")
    models = prepare_models(config, dataset, cache_folder(config.data))
    results: list[dict[str, float]] = []
    with RayBackend(config) as backend:
        bench = Bench(config, real, models, backend)
        per_update, per_block = bench.learn(400) / 400, bench.generate(6) / 6
        limits = Conductor(config, "bench").limits
        # generation takes LOAD of the time of learning: blocks per update = LOAD * per_update / per_block
        ratio = limits.synthetic_per_update * per_block / (LOAD * per_update * limits.block_transitions)
        run = derive(config, {"learner.updates": updates, "replay.samples_per_insert": ratio}, "the benchmark")
        for _ in range(rounds):
            seconds, blocks, share, wait = concurrent(bench, run)
            learn, generate = bench.learn(updates), bench.generate(blocks)
            ideal = max(learn, generate)
            results.append(
                {
                    "efficiency": ideal / seconds,
                    "concurrent_s": seconds,
                    "ideal_s": ideal,
                    "learn_alone_s": learn,
                    "generate_alone_s": generate,
                    "sequential_s": bench.sequential(blocks, updates),
                    "overlap": share,
                    "learner_wait_fraction": wait,
                    "blocks": float(blocks),
                }
            )
            results[-1]["speed_up_over_sequential"] = results[-1]["sequential_s"] / seconds
        bench.crew.close()
    figures = {name: statistics.median(result[name] for result in results) for name in results[0]}
    return {**figures, "updates": float(updates), "samples_per_insert": ratio, "rounds": float(rounds)}


def main() -> None:
    chosen = arguments(__doc__ or "")
    figures = measure(*(1, 1_500) if chosen.quick else (3, 2_000))
    report(
        machine(threads_per_process=1, processes="1 learner, 1 generator"), figures, {"efficiency": GOAL}, chosen.json
    )


if __name__ == "__main__":
    main()
