"""Blocks that go with their node: made again into the slot that they would have had, counted, and never in the way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.replay.catalogue import Catalogue, Entry
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.types import Provenance

LOST = "blocks: lost with their node"


def config(schedule: str, **replay: int) -> Config:
    return Config.model_validate(
        {
            "schedule": {"kind": schedule, "epochs": 3, "overlap": 0.5},
            "generator": {"count": 2, "batch": 4},
            "refiner": {"count": 1, "min_lag": 3},
            "learner": {"updates": 60, "chunk": 2, "batch_size": 4},
            "replay": {"generation": 12, "lifetime": 2, "warmup": 12, "samples_per_insert": 2, **replay},
            "evaluation": {"every": 20},
        }
    )


class Simulation:
    """Executes what the conductor asks for in any order that Ray allows; blocks vanish before they are read."""

    def __init__(self, given: Config, seed: int, losses: int) -> None:
        self.conductor, self.random, self.losses = Conductor(given, "learner"), random.Random(seed), losses
        self.queue: list[m.Call] = []
        self.table: dict[int, int] = {}  # slot -> shard of the rows in it
        self.shard_of: dict[int, int] = {}
        self.gone: set[int] = set()
        self.update = 0

    def run(self) -> None:
        for name in [name for names in self.conductor.workers.values() for name in names]:
            self.take(self.conductor.on(m.WorkerUp(name)))
        for _ in range(5000):
            if self.conductor.finished:
                return
            assert self.queue, self.conductor.why_learner_waits()
            heads: dict[object, m.Call] = {}
            for call in self.queue:
                heads.setdefault((call.worker, type(call)), call)
            call = self.random.choice(list(heads.values()))
            self.queue.remove(call)
            self.take(self.conductor.on(self.execute(call)))
        pytest.fail(f"no end: {self.conductor.why_learner_waits()}")

    def take(self, commands: list[m.Command]) -> None:
        self.queue += [command for command in commands if not isinstance(command, m.Forget)]

    def execute(self, call: m.Call) -> m.Event:
        match call:
            case m.Generate(number, worker, shard, trajectories, _, block):
                return self.produced(number, worker, shard, block, None, trajectories)
            case m.Refine(number, worker, shard, parent, block):
                return (
                    m.BlockLost(number) if self.lose(parent) else self.produced(number, worker, shard, block, parent, 4)
                )
            case m.Ingest(number, _, block, slot, _):
                if self.lose(block):
                    return m.BlockLost(number)
                self.table[slot] = self.shard_of[block]
                return m.Ingested(number)
            case m.Audit(number, _, block):
                return m.BlockLost(number) if self.lose(block) else m.Audited(number)
            case m.Train(number, _, updates, front):
                if front is not None:  # a whole dataset: each of its shards once
                    shards = [self.table[slot] for slot in range(*front)]
                    assert len(set(shards)) == len(shards)
                self.update += updates
                return m.Trained(number, self.update)
            case m.Evaluate(number):
                return m.Evaluated(number)

    def produced(self, call: int, worker: str, shard: int, block: int, parent: int | None, count: int) -> m.Event:
        self.shard_of[block] = shard
        origin = Provenance(block, "learner", worker, shard, 0, self.update, "", "", 0.0, 1, parent)
        return m.Produced(call, BlockReport(origin, count, 2 * count, dropped={}))

    def lose(self, block: int) -> bool:
        """Whether the block is gone by now; what is gone once stays gone."""
        if block not in self.gone and self.losses and self.random.random() < 0.2:
            self.losses -= 1
            self.gone.add(block)
        return block in self.gone


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(["continuous", "periodic", "once"]),
    seed=st.integers(0, 10_000),
    losses=st.integers(0, 12),
    max_lag=st.sampled_from([None, 12]),
)
def test_a_run_ends_whatever_blocks_are_lost(schedule: str, seed: int, losses: int, max_lag: int | None) -> None:
    limits = {"max_lag": max_lag} if max_lag is not None and schedule == "continuous" else {}
    simulation = Simulation(config(schedule, **limits), seed, losses)
    simulation.run()
    conductor = simulation.conductor
    assert conductor.update == 60
    assert conductor.discards[LOST] >= len(simulation.gone)
    if schedule != "continuous":  # every dataset was whole, so every shard that was lost has been made again
        sizes = 3 * 12 if schedule == "periodic" else 12
        landed = {shard for shard in simulation.table.values()}
        assert conductor.limiter.inserted == 2 * sizes
        assert len(landed) == len(simulation.table)


def produced(call: m.Generate) -> m.Produced:
    origin = Provenance(call.block, "learner", call.worker, call.shard, 0, 0, "", "", 0.0, 1, None)
    return m.Produced(call.call, BlockReport(origin, 4, 8, dropped={}))


def test_a_lost_block_is_made_again_under_its_own_number() -> None:
    conductor = Conductor(config("once"), "learner")
    commands = [c for n in ("learner/0", "generator/0", "generator/1") for c in conductor.on(m.WorkerUp(n))]
    first = next(command for command in commands if isinstance(command, m.Generate))
    commands = conductor.on(produced(first))
    ingest = next(command for command in commands if isinstance(command, m.Ingest))
    other = next(command for command in commands if isinstance(command, m.Generate))
    assert m.Forget(first.block) in conductor.on(m.BlockLost(ingest.call))
    assert conductor.discards == {LOST: 1}
    assert conductor.catalogue.vacant == [ingest.slot]
    commands = conductor.on(produced(other))
    assert [command.shard for command in commands if isinstance(command, m.Generate)] == [first.shard]
    assert [command.slot for command in commands if isinstance(command, m.Ingest)] == [ingest.slot]


def entry(block: int, parent: int | None = None) -> Provenance:
    return Provenance(block, "learner", "generator/0", block, 0, 0, "", "", 0.0, 1, parent)


def test_a_withdrawn_block_leaves_its_slot_to_the_next_one() -> None:
    catalogue = Catalogue(2)
    (_, none), (_, _), (third, replaced) = (catalogue.place(entry(block), 8, 4) for block in (0, 1, 2))
    assert none is None
    assert isinstance(replaced, Entry)
    assert third.slot == replaced.slot == 0
    catalogue.withdraw(2, replaced)
    assert set(catalogue.entries) == {0, 1}
    assert not catalogue.entries[0].readable  # its rows are in the learner's table, and nowhere else
    again, out = catalogue.place(entry(3), 8, 4)
    assert (again.slot, out) == (0, replaced)
    assert catalogue.place(entry(4), 8, 4)[0].slot == 1


def test_a_withdrawn_refreshed_block_gives_the_slot_back_to_its_parent() -> None:
    catalogue = Catalogue(2)
    catalogue.place(entry(0), 8, 4)
    _, parent = catalogue.place(entry(1, parent=0), 8, 4)
    catalogue.withdraw(1, parent)
    assert set(catalogue.entries) == {0}
    assert not catalogue.vacant
    assert catalogue.place(entry(2), 8, 4)[0].slot == 1


def test_what_has_been_replaced_meanwhile_is_left_alone() -> None:
    catalogue = Catalogue(1)
    catalogue.place(entry(0), 8, 4)
    catalogue.place(entry(1), 8, 4)
    catalogue.withdraw(0, None)
    assert set(catalogue.entries) == {1}
    assert not catalogue.vacant
