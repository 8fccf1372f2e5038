"""A world that executes what a conductor asks for, in any order and with losses, and keeps an account of its own.

Train calls execute and complete in order, Ingest calls likewise, beside each other (two threads of one actor); all
other calls complete in any order. Executing and hearing of it are separate steps, as they are on a cluster.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.types import Provenance

BATCH, LENGTH = 4, 3
ROWS = BATCH * (LENGTH - 1)
SYNTHETIC = 2  # of the four transitions of a batch
LIMIT = 6_000  # events; a run that needs more makes no progress

ROLES = ("train", "ingest", "generate", "refine", "evaluate", "up")


@dataclass
class Habits:
    """How a world behaves: the seed of its choices, how readily each kind of thing finishes, and its accidents."""

    seed: int = 0
    pace: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 1.0))
    losses: int = 0
    gone: int = 0
    blocks_lost: int = 0
    partial: float = 0.0
    empty: float = 0.0


class World:
    """Executes what a conductor asks for and checks, command by command, that it may ask for it."""

    def __init__(self, config: Config, habits: Habits) -> None:
        self.config, self.habits, self.random = config, habits, random.Random(habits.seed)
        self.conductor = Conductor(config, "learner")
        self.down = [name for names in self.conductor.workers.values() for name in names if name != LEARNER]
        self.up = {LEARNER}  # the learner starts before the others: they need its first policy
        self.guided = config.guidance.kind != "none"
        self.max_lag = config.replay.max_lag if self.guided else None
        # calls: issued and unheard; those of the learner by stage
        self.pending: dict[int, m.Call] = {}
        self.version_at: dict[int, int] = {}
        self.todo: dict[type, deque[m.Call]] = {m.Train: deque(), m.Ingest: deque()}
        self.done: dict[type, deque[m.Event]] = {m.Train: deque(), m.Ingest: deque()}
        self.losses, self.goners, self.blocks_lost = habits.losses, habits.gone, habits.blocks_lost
        self.unreadable: set[int] = set()
        self.orphans: list[m.Call] = []  # lost with their worker, and yet answered
        # learner: updates asked for, done, heard of; slot -> policy version, in its table and as heard of
        self.issued = self.executed = self.newest = 0
        self.table: dict[int, int] = {}
        self.heard: dict[int, int] = {}
        # blocks: reports of those that exist, every number ever used, those counted as on their way
        self.store: dict[int, BlockReport] = {}
        self.numbers: set[int] = set()
        self.inserting: set[int] = set()
        self.ingests: dict[int, int] = {}
        self.inserted = self.sampled = self.real_only = 0
        # shards: lost and not yet made again; of the warm-up, all and those under way or landed; all ever
        self.lost: set[int] = set()
        self.warm_shards: set[int] = set()
        self.warm_out: set[int] = set()
        self.shard_of: dict[int, int] = {}  # of blocks that have not landed yet
        self.used: set[int] = set()
        self.evaluations: list[bool] = []
        self.events = 0

    def run(self, limit: int = LIMIT) -> None:
        self.feed(m.WorkerUp(LEARNER))
        while not self.conductor.finished:
            assert self.events < limit, f"no end after {limit} events: {self.conductor.why_learner_waits()}"
            self.step()
        self.check_end()

    def step(self) -> None:
        options = self.options()
        assert options, f"nothing can happen any more: {self.conductor.why_learner_waits()}"
        weights = [self.habits.pace[kind] for kind, _, _ in options]
        _, what, subject = self.random.choices(options, weights)[0]
        if what == "execute":
            self.execute(subject)
        elif what == "learner":
            self.feed(self.done[subject].popleft())
        elif what == "orphan":
            self.orphans.remove(subject)
            self.orphan(self.complete(subject))
        elif what == "worker":
            self.down.remove(subject)
            self.up.add(subject)
            self.feed(m.WorkerUp(subject))
        else:
            self.feed(self.complete(subject))
        if self.losses and self.random.random() < 0.1:
            self.accident()

    def options(self) -> list[tuple[str, str, object]]:
        options: list[tuple[str, str, object]] = [("up", "worker", name) for name in self.down]
        options += [("up", "orphan", call) for call in self.orphans]
        for kind, name in ((m.Train, "train"), (m.Ingest, "ingest")):
            options += [(name, "execute", kind)] if self.todo[kind] else []
            options += [(name, "learner", kind)] if self.done[kind] else []
        paces = {"generator": "generate", "refiner": "refine", "evaluator": "evaluate"}
        others = [(call.worker.split("/")[0], call) for call in self.pending.values() if call.worker != LEARNER]
        return options + [(paces[role], "complete", call) for role, call in others]

    def accident(self) -> None:
        """A worker dies, starting or working, and is replaced or (not the last of a needed role) given up."""
        worker = self.random.choice(sorted({*self.down, *self.up} - {LEARNER}))
        role = worker.split("/")[0]
        peers = [name for name in [*self.down, *self.up] if name.startswith(role)]
        gone = self.goners > 0 and (len(peers) > 1 or role == "refiner") and self.random.random() < 0.5
        self.losses -= 1
        for number in [n for n, call in self.pending.items() if call.worker == worker]:
            call = self.pending.pop(number)
            self.orphans += [call] if self.random.random() < 0.3 else []
            if isinstance(call, m.Generate):
                self.lost.add(call.shard)
                self.warm_out.discard(call.shard)
                self.inserting.discard(call.block)
        if worker in self.up:
            self.up.remove(worker)
            self.down.append(worker)
        if gone:
            self.goners -= 1
            self.down.remove(worker)
        self.feed(m.WorkerGone(worker) if gone else m.WorkerLost(worker))

    def orphan(self, event: m.Event) -> None:
        """An answer of a call that was given up: its block is dropped, and nothing else comes of it."""
        expected = [m.Forget(event.report.provenance.block)] if isinstance(event, m.Produced) else []
        assert self.conductor.on(event) == expected
        self.check()

    def execute(self, kind: type) -> None:
        call = self.todo[kind].popleft()
        if isinstance(call, m.Ingest):
            if self.lose_block(call.block):
                self.done[kind].append(m.BlockLost(call.call))
                return
            self.table[call.slot] = call.policy_version
            self.done[kind].append(m.Ingested(call.call))
            return
        assert isinstance(call, m.Train)
        assert self.table or call.real_only or not self.config.generator.count, "an update with an empty table"
        if self.max_lag is not None and self.table and not call.real_only:
            lag = self.executed + call.updates - 1 - min(self.table.values())
            assert lag <= self.max_lag, f"a row {lag} updates old may be sampled (max_lag={self.max_lag})"
        self.executed += call.updates
        self.done[kind].append(m.Trained(call.call, self.executed))

    def lose_block(self, block: int) -> bool:
        """Whether a block has gone with its node by the time that somebody reads it."""
        if block not in self.unreadable and self.blocks_lost and self.random.random() < 0.2:
            self.blocks_lost -= 1
            self.unreadable.add(block)
        return block in self.unreadable

    def complete(self, call: m.Call) -> m.Event:
        if isinstance(call, m.Evaluate):
            return m.Evaluated(call.call)
        if isinstance(call, m.Refine | m.Audit) and self.lose_block(getattr(call, "parent", call.block)):
            return m.BlockLost(call.call)
        if isinstance(call, m.Audit):
            return m.Audited(call.call)
        assert isinstance(call, m.Generate | m.Refine)
        kept = self.random.randrange(1, BATCH + 1) if self.random.random() < self.habits.partial else BATCH
        kept = 0 if self.random.random() < self.habits.empty else kept
        parent = call.parent if isinstance(call, m.Refine) else None
        origin = Provenance(
            call.block, "learner", call.worker, call.shard, 0, self.version_at[call.call], "", "", 0.0, 1, parent
        )
        return m.Produced(
            call.call, BlockReport(origin, kept, kept * (LENGTH - 1), dropped={"not finite": BATCH - kept})
        )

    def feed(self, event: m.Event) -> None:
        self.events += 1
        block = None
        if not isinstance(event, m.WorkerUp | m.WorkerLost | m.WorkerGone):
            call = self.pending.pop(event.call, None)
            assert call is not None
            if isinstance(event, m.Produced):
                block = event.report.provenance.block
                self.produced(call, event.report)
            elif isinstance(event, m.Ingested):
                self.ingested(call)
            elif isinstance(event, m.BlockLost):
                self.block_lost(call)
            elif isinstance(event, m.Trained):
                self.newest = event.update
            elif isinstance(call, m.Evaluate):
                self.evaluations.append(call.final)
        for command in self.conductor.on(event):
            self.take(command)
        assert block not in self.store or self.store[block].transitions, "an empty block is kept"
        self.check()

    def produced(self, call: m.Call, report: BlockReport) -> None:
        self.store[report.provenance.block] = report
        if isinstance(call, m.Generate):
            self.shard_of[call.block] = call.shard
        elif call.parent in self.conductor.stale:  # what comes back stands for what was too old
            self.shard_of[call.block] = self.shard_of.pop(call.parent)
            if call.parent in self.inserting:
                self.inserting.remove(call.parent)
                self.inserting.add(call.block)

    def block_lost(self, call: m.Call) -> None:
        """What the block was to bring must be made again, unless it was in the table before."""
        block = call.parent if isinstance(call, m.Refine) else call.block
        if isinstance(call, m.Ingest):
            del self.ingests[block]
        if block in self.shard_of and not isinstance(call, m.Audit):
            self.inserting.discard(block)
            self.warm_out.discard(self.shard_of[block])
            self.lost.add(self.shard_of.pop(block))

    def ingested(self, call: m.Ingest) -> None:
        self.heard[call.slot] = call.policy_version
        transitions = self.ingests.pop(call.block)
        self.shard_of.pop(call.block, None)
        if call.block in self.inserting:
            self.inserting.remove(call.block)
            self.inserted += transitions

    @property
    def lead(self) -> float:
        return self.inserted * self.config.replay.samples_per_insert - self.sampled

    def next_chunk(self) -> int:
        every, learner = self.config.evaluation.every, self.config.learner
        return min(learner.chunk, learner.updates - self.issued, every - self.issued % every)

    def take(self, command: m.Command) -> None:
        if isinstance(command, m.Forget):
            assert command.block in self.store or self.unreadable, f"{command} names a block that is not there"
            self.store.pop(command.block, None)
            if command.block not in self.ingests:
                self.inserting.discard(command.block)
                self.warm_out.discard(self.shard_of.pop(command.block, -1))
            return
        assert command.worker in self.up, f"{command} for a worker that is not up"
        getattr(self, type(command).__name__.lower())(command)
        self.pending[command.call] = command
        self.version_at[command.call] = self.newest

    def train(self, call: m.Train) -> None:
        needed = call.updates * (SYNTHETIC if self.config.generator.count else 0)
        if call.real_only:
            assert self.config.replay.shortage == "real"
            assert self.shortage(call.updates, needed), "real data alone, where synthetic ones are at hand"
            self.real_only += call.updates
        else:
            self.sampled += needed
        self.issued += call.updates
        self.todo[m.Train].append(call)

    def shortage(self, updates: int, needed: int) -> bool:
        """Whether the next updates may not take synthetic data: too few as yet, or too old."""
        versions = [*self.heard.values(), *(c.policy_version for c in self.pending.values() if isinstance(c, m.Ingest))]
        old = self.max_lag is not None and versions and self.issued + updates - min(versions) > self.max_lag
        behind = self.config.replay.behind * ROWS * self.config.replay.samples_per_insert
        return bool(old) or not self.conductor.flow.warm or needed > self.lead + behind

    def ingest(self, call: m.Ingest) -> None:
        report = self.store[call.block]
        assert call.policy_version == report.provenance.policy_version
        assert 0 <= call.slot < self.conductor.limits.slots
        self.ingests[call.block] = report.transitions
        self.todo[m.Ingest].append(call)

    def generate(self, call: m.Generate) -> None:
        assert call.block not in self.numbers
        self.numbers.add(call.block)
        if call.shard not in self.lost:
            self.new_shard(call)
        self.lost.discard(call.shard)
        warm = call.shard in self.warm_shards
        (self.warm_out if warm else self.inserting).add(call.shard if warm else call.block)
        assert call.guided == (self.guided and (not warm or self.config.replay.warmup_guidance))
        assert call.trajectories == BATCH

    def new_shard(self, call: m.Generate) -> None:
        """A shard that nobody has made: of the warm-up, or allowed by the ratio, or forced by the age of the data."""
        assert not self.lost, f"shard {call.shard} is new while {self.lost} wait to be made again"
        assert call.shard not in self.used
        self.used.add(call.shard)
        if len(self.warm_out) * BATCH < self.config.replay.warmup:
            self.warm_shards.add(call.shard)
            return
        replay = self.config.replay
        ahead = replay.ahead * ROWS * replay.samples_per_insert
        if self.lead + len(self.inserting) * ROWS * replay.samples_per_insert < ahead:
            return
        assert self.max_lag is not None, "an insert beyond the ratio"
        assert not any(isinstance(other, m.Train) and not other.real_only for other in self.pending.values())
        # Of what is heard to be in the table or is on its way there, the last of each slot.
        latest = dict(self.heard)
        latest |= {o.slot: o.policy_version for o in self.pending.values() if isinstance(o, m.Ingest)}
        assert self.issued + self.next_chunk() - min(latest.values()) > self.max_lag

    def refine(self, call: m.Refine) -> None:
        assert call.block not in self.numbers
        self.numbers.add(call.block)
        assert call.shard not in self.used
        self.used.add(call.shard)
        assert call.parent in self.store, f"{call} names a block that is not there"
        assert all(o.parent != call.parent for o in self.pending.values() if isinstance(o, m.Refine))
        lag = self.newest - self.store[call.parent].provenance.policy_version
        assert call.parent in self.conductor.stale or lag >= self.config.refiner.min_lag

    def evaluate(self, call: m.Evaluate) -> None:
        assert not any(isinstance(other, m.Evaluate) for other in self.pending.values())
        assert call.final == (self.newest == self.config.learner.updates)
        assert not (call.final and True in self.evaluations), "a second final evaluation"

    def audit(self, call: m.Audit) -> None:
        assert self.config.evaluation.audit
        assert call.block in self.store, f"{call} names a block that is not there"
        assert call.refreshed == (self.store[call.block].provenance.parent_block is not None)

    def check(self) -> None:
        conductor, limiter, replay = self.conductor, self.conductor.limiter, self.config.replay
        assert not conductor.stalled(), f"stalled: {conductor.why_learner_waits()}"
        assert self.down or self.pending or conductor.finished
        block_samples = ROWS * replay.samples_per_insert
        on_its_way = len(self.inserting) * block_samples
        if self.config.generator.count:
            assert self.sampled <= self.inserted * replay.samples_per_insert + replay.behind * block_samples + 1e-6
        if self.max_lag is None:
            assert self.lead + on_its_way <= (replay.ahead + 1) * block_samples + 1e-6
        assert (limiter.inserted, limiter.sampled) == (self.inserted, self.sampled)
        assert limiter.inserting == len(self.inserting) * ROWS
        named = {*conductor.catalogue.entries, *conductor.stale}
        # A block that replaced another and was lost itself leaves that one in the table, but not in the store.
        assert set(self.store) == named or (self.unreadable and set(self.store) < named), (
            "a block is kept and never named again"
        )
        busy = Counter((call.worker, type(call)) for call in self.pending.values())
        total = Counter(call.worker for call in self.pending.values())
        assert busy[LEARNER, m.Train] <= self.config.learner.in_flight
        for worker, count in total.items():
            if worker.startswith("generator"):
                assert count <= self.config.generator.in_flight
                assert busy[worker, m.Refine] <= 1
            elif not worker.startswith("learner"):
                assert count <= (2 if worker.startswith("evaluator") else 1)
        if self.lost and self.newest < self.config.learner.updates:
            free = [w for w in self.up if w.startswith("generator") and total[w] < self.config.generator.in_flight]
            assert not free, f"{free} may make the lost shards {self.lost} and do not"
        if conductor.lag_blocks() and replay.shortage == "real" and self.newest < self.config.learner.updates:
            makers = [w for w in self.up if w.startswith("generator")]
            learning = any(isinstance(call, m.Train) and not call.real_only for call in self.pending.values())
            idle = not any(isinstance(call, m.Generate | m.Refine | m.Ingest) for call in self.pending.values())
            assert not (makers and idle and not learning), "nobody renews what is too old"

    def check_end(self) -> None:
        assert self.issued == self.executed == self.newest == self.config.learner.updates
        assert self.evaluations.count(True) == 1
        assert self.evaluations[-1]
        assert len(self.store) <= self.conductor.limits.slots + len(self.conductor.stale)
        assert self.conductor.on(m.WorkerUp(LEARNER)) == [], "work is issued after the end"
