"""A conductor in schedules small enough to follow by hand, and the answers that it is given."""

from __future__ import annotations

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.types import Agreement, Provenance

BATCH, ROWS = 4, 8


def make(**sections: dict[str, object]) -> Conductor:
    """One generator, one evaluator, blocks of 8 transitions, a table of 4 of them, 2 of 4 samples synthetic."""
    values: dict[str, dict[str, object]] = {
        "denoiser": {"length": 3},
        "generator": {"count": 1, "batch": BATCH, "refine_when_idle": False},
        "refiner": {"count": 0, "min_lag": 2},
        "learner": {"updates": 100, "chunk": 2, "in_flight": 1, "batch_size": 4},
        "replay": {"generation": BATCH, "lifetime": 4, "warmup": 4, "samples_per_insert": 1.0, "ahead": 1, "behind": 1},
        "evaluation": {"every": 4},
        "audit": {"count": 0},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Conductor(Config.model_validate(values), "learner")


def start(conductor: Conductor) -> list[m.Command]:
    """Everybody up, learner first; what they are given to do."""
    names = [name for names in conductor.workers.values() for name in names]
    return [command for name in names for command in conductor.on(m.WorkerUp(name))]


def made(
    command: m.Command,
    version: int = 0,
    trajectories: int = BATCH,
    log_likelihood: float | None = None,
    **dropped: int,
) -> m.Produced:
    assert isinstance(command, m.Generate | m.Refine)
    fit = Agreement(0.1, log_likelihood, 0.0) if log_likelihood is not None else None
    parent = command.parent if isinstance(command, m.Refine) else None
    origin = Provenance(command.block, "learner", command.worker, command.shard, 0, version, "", "", 0.0, 1, parent)
    return m.Produced(command.call, BlockReport(origin, trajectories, 2 * trajectories, fit, dropped=dropped))


def only(kind: type, commands: list[m.Command]) -> m.Command:
    chosen = [command for command in commands if isinstance(command, kind)]
    assert len(chosen) == 1, commands
    return chosen[0]


def kinds(commands: list[m.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def warmed_up(conductor: Conductor) -> list[m.Command]:
    """Start and land a warm-up of one block; what follows."""
    generate = only(m.Generate, start(conductor))
    ingest = only(m.Ingest, conductor.on(made(generate)))
    return conductor.on(m.Ingested(ingest.call))
