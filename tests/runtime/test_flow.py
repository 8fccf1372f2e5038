"""Schedules that make whole datasets: exact counts, in order and in any order of completions, with losses."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.replay.block import BlockReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.types import Provenance


def make(**sections: dict[str, object]) -> Conductor:
    values: dict[str, dict[str, object]] = {
        "denoiser": {"length": 3},
        "generator": {"count": 2, "batch": 4, "refine_when_idle": False},
        "refiner": {"count": 0},
        "learner": {"updates": 40, "chunk": 3, "batch_size": 4},
        "replay": {"generation": 10},
        "schedule": {"kind": "periodic", "epochs": 4},
        "evaluation": {"every": 1000},
        "audit": {"count": 0},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Conductor(Config.model_validate(values), "learner")


@dataclass
class Habits:
    """The seed of a world's choices (None: in the order of issue), and how often what goes wrong."""

    seed: int | None = None
    losses: int = 0
    gone: int = 0
    partial: float = 0.0
    empty: float = 0.0
    blocks_lost: float = 0.0


@dataclass(frozen=True)
class Held:
    """A block: the dataset that it belongs to, the trajectories asked for and got, its policy version."""

    dataset: int
    asked: int
    kept: int
    version: int


class Table:
    """Executes commands in any order that a cluster allows, and keeps account of what the learner would see."""

    def __init__(self, conductor: Conductor, habits: Habits | None = None) -> None:
        self.conductor, self.habits = conductor, habits or Habits()
        self.random, self.losses, self.gone = random.Random(self.habits.seed), self.habits.losses, self.habits.gone
        schedule, self.updates = conductor.config.schedule, conductor.config.learner.updates
        self.size, self.overlap = conductor.config.replay.generation, schedule.overlap
        self.epochs = schedule.epochs if schedule.kind == "periodic" else 1
        self.queue: list[m.Call] = []
        self.update = 0
        self.slots: dict[int, Held] = {}
        self.blocks: dict[int, Held] = {}  # all that ever were
        self.stored: set[int] = set()
        self.issued_at: dict[int, tuple[int, int]] = {}  # call -> policy version, dataset in the making
        self.landed = 0  # trajectories asked for, of all datasets so far
        self.generated: Counter[int] = Counter()  # version -> trajectories
        self.trained: Counter[int] = Counter()  # version of the newest data -> updates
        self.trained_on: Counter[int] = Counter()  # dataset -> updates
        self.real_only = self.refreshed = 0

    def begins(self, dataset: int) -> int:
        return round(dataset * self.updates / self.epochs)

    def opens(self, dataset: int) -> int:
        begins = self.begins(dataset)
        return begins - round(self.overlap * (begins - self.begins(dataset - 1))) if dataset else 0

    def run(self) -> None:
        for names in self.conductor.workers.values():  # the learner first
            for name in names:
                self.hear(m.WorkerUp(name))
        for _ in range(20_000):
            if self.conductor.finished:
                return self.check_end()
            assert self.queue, self.conductor.why_learner_waits()
            self.step()
        raise AssertionError("no end")

    def check_end(self) -> None:
        assert self.update == self.updates
        assert sum(self.trained_on.values()) + self.real_only == self.updates
        if self.conductor.config.replay.shortage == "wait":  # each dataset serves its own updates, and all of them
            assert self.trained_on == {
                e: self.begins(e + 1) - self.begins(e) for e in range(self.epochs) if self.begins(e + 1)
            }
            assert self.landed == self.epochs * self.size

    def hear(self, event: m.Event) -> None:
        for command in self.conductor.on(event):
            if isinstance(command, m.Forget):
                self.stored.discard(command.block)
                continue
            assert command.worker in self.conductor.up
            self.issued_at[command.call] = self.update, self.landed // self.size
            if isinstance(command, m.Generate):
                dataset = self.issued_at[command.call][1]
                assert dataset < self.epochs, "a dataset too many"
                assert self.update >= self.opens(dataset), "before its time"
            if isinstance(command, m.Refine):
                assert command.parent in self.stored
            self.queue.append(command)
        assert not self.conductor.stalled(), self.conductor.why_learner_waits()
        named = set(self.conductor.catalogue.entries)
        assert self.stored == named or (self.habits.blocks_lost and self.stored < named)

    def step(self) -> None:
        if self.losses and self.random.random() < 0.1:
            return self.lose()
        # One actor runs its train calls in order, its ingest calls in order beside them; others come as they like.
        heads: dict[object, m.Call] = {}
        for call in self.queue:
            heads.setdefault(type(call) if call.worker == LEARNER else call.worker, call)
        call = self.queue[0] if self.habits.seed is None else self.random.choice(list(heads.values()))
        self.queue.remove(call)
        lost = isinstance(call, m.Ingest | m.Refine | m.Audit) and self.random.random() < self.habits.blocks_lost
        self.hear(m.BlockLost(call.call) if lost else self.execute(call))
        return None

    def lose(self) -> None:
        self.losses -= 1
        workers = self.conductor.workers
        worker = self.random.choice(workers["generator"] + workers["refiner"])
        self.queue = [call for call in self.queue if call.worker != worker]
        if self.gone and (worker.startswith("refiner") or len(workers["generator"]) > 1):
            self.gone -= 1
            self.hear(m.WorkerGone(worker))
        else:
            self.hear(m.WorkerLost(worker))
            self.hear(m.WorkerUp(worker))

    def execute(self, call: m.Call) -> m.Event:
        match call:
            case m.Generate(number, _, _, trajectories):
                version, dataset = self.issued_at[number]
                return self.made(call, Held(dataset, trajectories, self.keep(trajectories), version), None)
            case m.Refine(number, _, _, parent):
                old = self.blocks[parent]
                self.refreshed += 1
                held = Held(old.dataset, old.asked, self.keep(old.kept), self.issued_at[number][0])
                return self.made(call, held, parent)
            case m.Ingest(number, _, block, slot, _):
                self.ingest(slot, self.blocks[block])
                return m.Ingested(number)
            case m.Train(number, _, updates, front, real_only):
                if real_only:
                    self.real_only += updates
                else:
                    self.train(updates, front)
                self.update += updates
                return m.Trained(number, self.update)
            case m.Evaluate(number):
                return m.Evaluated(number)
            case m.Audit(number):
                return m.Audited(number)
        raise AssertionError(call)

    def keep(self, count: int) -> int:
        """How many of so many trajectories are valid."""
        kept = self.random.randrange(1, count + 1) if self.random.random() < self.habits.partial else count
        return 0 if self.random.random() < self.habits.empty else kept

    def made(self, call: m.Generate | m.Refine, held: Held, parent: int | None) -> m.Produced:
        if parent is None and held.kept:
            self.generated[held.version] += held.asked
        self.blocks[call.block] = held
        self.stored.add(call.block)
        origin = Provenance(call.block, "learner", call.worker, call.shard, 0, held.version, "", "", 0.0, 1, parent)
        return m.Produced(call.call, BlockReport(origin, held.kept, 2 * held.kept, dropped={"not finite": 1}))

    def ingest(self, slot: int, new: Held) -> None:
        old = self.slots.get(slot)
        if old is None or old.dataset != new.dataset:  # not a refreshed block: one of the dataset in the making
            assert old is None or old.dataset < new.dataset, "an old block went over a new one"
            for call in self.queue:
                if isinstance(call, m.Train) and call.front is not None:
                    assert not call.front[0] <= slot < call.front[1], "a block went into what is being sampled"
            self.landed += new.asked
        self.slots[slot] = new

    def train(self, updates: int, front: tuple[int, int] | None) -> None:
        assert front is not None
        held = [self.slots[slot] for slot in range(*front)]
        (dataset,) = {block.dataset for block in held}
        assert self.begins(dataset) <= self.update < self.update + updates <= self.begins(dataset + 1)
        assert sum(block.asked for block in held) == self.size
        assert all(block.kept for block in held)
        self.trained[max(block.version for block in held)] += updates
        self.trained_on[dataset] += updates


def test_a_periodic_run_has_exactly_its_counts() -> None:
    table = Table(make())
    table.run()
    assert table.generated == {0: 10, 10: 10, 20: 10, 30: 10}  # four datasets, each of the policy of its epoch
    assert table.trained == {0: 10, 10: 10, 20: 10, 30: 10}
    assert table.conductor.generated == 40
    assert table.conductor.catalogue.slots == 6  # two halves of three blocks: 4, 4 and 2 trajectories


def test_policy_guided_diffusions_published_counts() -> None:
    """Four datasets of 2^14 trajectories, 250,000 updates each (B.6); the same totals in the continuous setting."""
    conductor = make(
        generator={"batch": 512},
        learner={"updates": 1_000_000, "chunk": 10_000},
        replay={"generation": 2**14},
        evaluation={"every": 250_000},
    )
    table = Table(conductor)
    table.run()
    assert table.generated == {0: 2**14, 250_000: 2**14, 500_000: 2**14, 750_000: 2**14}
    assert table.trained == dict.fromkeys((0, 250_000, 500_000, 750_000), 250_000)


def test_once_makes_one_dataset_before_the_first_update() -> None:
    conductor = make(schedule={"kind": "once"}, replay={"generation": 50})
    table = Table(conductor)
    table.run()
    assert table.generated == {0: 50}
    assert table.trained == {0: 40}
    assert conductor.catalogue.slots == 13  # one table, no back


@pytest.mark.parametrize("warm", [False, True])
def test_only_the_first_dataset_may_be_unguided(warm: bool) -> None:
    conductor = make(replay={"warmup_guidance": warm})
    guided: dict[int, set[bool]] = {}
    table = Table(conductor)
    execute = table.execute

    def watch(call: m.Call) -> m.Event:
        if isinstance(call, m.Generate):
            guided.setdefault(table.issued_at[call.call][0], set()).add(call.guided)
        return execute(call)

    table.execute = watch  # type: ignore[method-assign]
    table.run()
    assert guided == {0: {warm}, 10: {True}, 20: {True}, 30: {True}}


def test_each_dataset_serves_its_own_updates_however_early_it_is_whole() -> None:
    """With a full overlap a dataset is whole long before it is due; the one before it keeps its updates."""
    table = Table(make(schedule={"overlap": 1.0}))
    table.run()
    assert table.trained_on == {0: 10, 1: 10, 2: 10, 3: 10}
    assert min(table.generated) == 0
    assert max(table.generated) < 30  # the last one opens with the epoch before its own


def test_what_has_had_its_updates_is_not_refreshed() -> None:
    conductor = make(generator={"count": 1, "refine_when_idle": True}, refiner={"count": 1, "min_lag": 1})
    table = Table(conductor)
    execute, seen = table.execute, set[tuple[int, int]]()

    def watch(call: m.Call) -> m.Event:
        if isinstance(call, m.Refine):
            seen.add((table.blocks[call.parent].dataset, table.issued_at[call.call][0]))
        return execute(call)

    table.execute = watch  # type: ignore[method-assign]
    table.run()
    assert seen
    assert all(version < table.begins(dataset + 1) for dataset, version in seen)


@settings(max_examples=150, deadline=None)
@given(
    habits=st.builds(
        Habits,
        seed=st.integers(0, 2**32),
        losses=st.sampled_from([0, 0, 3]),
        gone=st.integers(0, 2),
        partial=st.sampled_from([0.0, 0.5]),
        empty=st.sampled_from([0.0, 0.0, 0.3]),
        blocks_lost=st.sampled_from([0.0, 0.0, 0.2]),
    ),
    kind=st.sampled_from(["periodic", "periodic", "once"]),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    epochs=st.integers(1, 5),
    generation=st.integers(1, 13),
    in_flight=st.integers(1, 3),
    refiners=st.integers(0, 2),
    idle=st.booleans(),
    shortage=st.sampled_from(["wait", "wait", "real"]),
)
def test_any_order_of_completions_keeps_the_schedule(
    habits: Habits,
    kind: str,
    overlap: float,
    epochs: int,
    generation: int,
    in_flight: int,
    refiners: int,
    idle: bool,
    shortage: str,
) -> None:
    conductor = make(
        schedule={"kind": kind, "epochs": epochs, "overlap": overlap},
        replay={"generation": generation, "shortage": shortage},
        learner={"updates": 23, "chunk": 4, "in_flight": in_flight},
        generator={"in_flight": in_flight, "refine_when_idle": idle},
        refiner={"count": refiners, "min_lag": 2},
        evaluation={"every": 10},
        audit={"count": 1},
    )
    table = Table(conductor, habits)
    table.run()
    if not habits.blocks_lost and not habits.losses and shortage == "wait":
        assert sum(table.generated.values()) == generation * table.epochs
    if shortage == "wait" and overlap == 0 and not (refiners or idle):
        assert table.trained == {table.begins(e): count for e, count in table.trained_on.items()}


def test_the_learner_never_waits_where_real_data_may_stand_in() -> None:
    conductor = make(replay={"shortage": "real"}, learner={"in_flight": 1})
    first = conductor.on(m.WorkerUp(LEARNER))
    assert first == [m.Train(first[0].call, LEARNER, 3, None, real_only=True)]
    assert conductor.why_learner_waits() is None


def test_what_the_learner_waits_for_is_said() -> None:
    conductor = make()
    conductor.on(m.WorkerUp(LEARNER))
    assert conductor.why_learner_waits() == ("warm-up", "the first dataset has 0 of 10 trajectories")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"replay": {"max_lag": 100}}, "replay.max_lag=100"),
        ({"learner": {"updates": 3}}, "schedule.epochs=4"),
        (
            {
                "schedule": {"kind": "continuous"},
                "learner": {"in_flight": 2},
                "replay": {
                    "shortage": "real",
                    "max_lag": 8,
                    "warmup": 4,
                },  # two calls of three updates in flight, and the next
            },
            "replay.max_lag=8 with replay.shortage=real.*at least 9 updates old",
        ),
    ],
)
def test_schedules_that_make_no_sense_are_refused(sections: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**sections)
