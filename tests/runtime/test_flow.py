"""Schedules that make whole datasets: exact counts, in order and in any order of completions, with losses."""

from __future__ import annotations

import random
from collections import Counter

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
        "evaluation": {"every": 1000, "audit": 0},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Conductor(Config.model_validate(values), "learner")


class Table:
    """Executes commands in any order that a cluster allows, and keeps account of what the learner would see."""

    def __init__(self, conductor: Conductor, seed: int | None, losses: int = 0) -> None:
        self.conductor, self.random, self.losses = conductor, random.Random(seed), losses
        self.ordered = seed is None
        self.queue: list[m.Call] = []
        self.update = self.newest = 0
        self.slots: dict[int, tuple[int, int]] = {}  # slot -> shard's policy version, trajectories
        self.sent: dict[int, tuple[int, int]] = {}  # block -> the same
        self.policy: dict[int, int] = {}  # call -> version that it was issued with
        self.generated: Counter[int] = Counter()  # version -> trajectories
        self.trained: Counter[int] = Counter()  # version of the data -> updates
        self.real_only = 0

    def run(self) -> None:
        self.take([command for names in self.conductor.workers.values() for name in names
                   for command in self.conductor.on(m.WorkerUp(name))])  # fmt: skip
        for _ in range(20_000):
            if self.conductor.finished:
                return
            assert self.queue, self.conductor.why_learner_waits()
            self.step()
        raise AssertionError("no end")

    def take(self, commands: list[m.Command]) -> None:
        for command in commands:
            if not isinstance(command, m.Forget):
                self.policy[command.call] = self.newest
                self.queue.append(command)

    def step(self) -> None:
        if self.losses and self.random.random() < 0.1:
            return self.lose()
        # One actor runs its train calls in order, its ingest calls in order beside them; others come as they like.
        heads: dict[object, m.Call] = {}
        for call in self.queue:
            key = type(call) if call.worker == LEARNER else call.worker
            heads.setdefault(key, call)
        call = self.queue[0] if self.ordered else self.random.choice(list(heads.values()))
        self.queue.remove(call)
        self.take(self.conductor.on(self.execute(call)))
        return None

    def lose(self) -> None:
        self.losses -= 1
        worker = self.random.choice(self.conductor.workers["generator"])
        self.queue = [call for call in self.queue if call.worker != worker]
        self.take(self.conductor.on(m.WorkerLost(worker)))
        self.take(self.conductor.on(m.WorkerUp(worker)))

    def execute(self, call: m.Call) -> m.Event:
        match call:
            case m.Generate(number, worker, shard, trajectories, _, block):
                version = self.policy[number]
                self.generated[version] += trajectories
                self.sent[block] = version, trajectories
                origin = Provenance(block, "learner", worker, shard, 0, version, "", "", 0.0, 1, None)
                return m.Produced(number, BlockReport(origin, trajectories, 2 * trajectories, dropped={}))
            case m.Ingest(number, _, block, slot, version):
                for train in self.queue:
                    if isinstance(train, m.Train) and train.front is not None:
                        first, last = train.front
                        assert not first <= slot < last, "a block went into the table that is being sampled"
                self.slots[slot] = self.sent[block]
                return m.Ingested(number)
            case m.Train(number, _, updates, front, real_only):
                self.update += updates
                self.newest = self.update
                if real_only:
                    self.real_only += updates
                elif front is not None:
                    held = [self.slots[slot] for slot in range(*front)]
                    assert sum(count for _, count in held) == self.conductor.config.replay.generation
                    self.trained[max(version for version, _ in held)] += updates
                return m.Trained(number, self.update)
            case m.Evaluate(number, _, _):
                return m.Evaluated(number)
        raise AssertionError(call)


def test_a_periodic_run_has_exactly_its_counts() -> None:
    table = Table(make(), None)
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
    table = Table(conductor, None)
    table.run()
    assert table.generated == {0: 2**14, 250_000: 2**14, 500_000: 2**14, 750_000: 2**14}
    assert table.trained == dict.fromkeys((0, 250_000, 500_000, 750_000), 250_000)


def test_once_makes_one_dataset_before_the_first_update() -> None:
    conductor = make(schedule={"kind": "once"}, replay={"generation": 50})
    table = Table(conductor, None)
    table.run()
    assert table.generated == {0: 50}
    assert table.trained == {0: 40}
    assert conductor.catalogue.slots == 13  # one table, no back


@pytest.mark.parametrize("warm", [False, True])
def test_only_the_first_dataset_may_be_unguided(warm: bool) -> None:
    conductor = make(replay={"warmup_guidance": warm})
    guided: dict[int, set[bool]] = {}
    table = Table(conductor, None)
    execute = table.execute

    def watch(call: m.Call) -> m.Event:
        if isinstance(call, m.Generate):
            guided.setdefault(table.policy[call.call], set()).add(call.guided)
        return execute(call)

    table.execute = watch  # type: ignore[method-assign]
    table.run()
    assert guided == {0: {warm}, 10: {True}, 20: {True}, 30: {True}}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    losses=st.integers(0, 3),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    epochs=st.integers(1, 5),
    generation=st.integers(1, 13),
    in_flight=st.integers(1, 3),
    shortage=st.sampled_from(["wait", "real"]),
)
def test_any_order_of_completions_keeps_the_schedule(
    seed: int, losses: int, overlap: float, epochs: int, generation: int, in_flight: int, shortage: str
) -> None:
    conductor = make(
        schedule={"kind": "periodic", "epochs": epochs, "overlap": overlap},
        replay={"generation": generation, "shortage": shortage},
        learner={"updates": 23, "chunk": 4, "in_flight": in_flight},
    )
    table = Table(conductor, seed, losses)
    table.run()
    begins = [round(e * 23 / epochs) for e in range(epochs + 1)]
    assert table.update == 23
    assert sum(table.trained.values()) + table.real_only == 23
    if shortage == "wait":
        assert table.real_only == 0
        if not losses:  # a lost shard that is made again is executed twice
            assert sum(table.generated.values()) == generation * epochs
    assert conductor.generated <= generation * epochs
    if shortage == "wait" and not losses:  # no dataset is begun before its time
        opens = [begins[e] - round(overlap * (begins[e] - begins[e - 1])) for e in range(1, epochs)]
        assert all(version == 0 or version >= min(opens) for version in table.generated)
    if shortage == "wait" and overlap == 0 and not losses:
        assert table.trained == {begins[e]: begins[e + 1] - begins[e] for e in range(epochs)}


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
    ],
)
def test_schedules_that_make_no_sense_are_refused(sections: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**sections)
