"""A world that executes what a conductor asks for, in any order and with losses, and keeps an account of its own.

Train calls execute and complete in order, Ingest calls likewise, beside each other (two threads of one actor); all
other calls complete in any order. Executing and hearing of it are separate steps, as they are on a cluster.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from conductor_rules import BATCH, FIT, LENGTH, LIMIT, ROLES, Rules

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER, Conductor
from raydiff.types import Agreement, Provenance


class Listener:
    """A controller whose strength is new after everything that it hears, so that none can be taken for another."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, ...]] = []

    @property
    def strength(self) -> float:
        return 1.0 + len(self.heard)

    def measured(self, strength: float, agreement: Agreement) -> None:
        assert agreement == FIT
        self.heard.append((strength,))

    def audited(self, strength: float, error: float, unguided_error: float) -> None:
        assert strength > 0
        self.heard.append((strength, error, unguided_error))

    def record(self) -> dict[str, float]:
        return {"strength": self.strength}


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


class World(Rules):
    """Executes what a conductor asks for and checks, command by command, that it may ask for it."""

    def __init__(self, config: Config, habits: Habits) -> None:
        self.config, self.habits, self.random = config, habits, random.Random(habits.seed)
        self.steered = config.guidance.automatic and config.guidance.kind == "policy"
        self.controller = Listener()
        self.conductor = Conductor(config, "learner", self.controller if self.steered else None)
        self.down = [name for names in self.conductor.workers.values() for name in names if name != LEARNER]
        self.up = {LEARNER}  # the learner starts before the others: they need its first policy
        self.acting = config.generator.method in ("pets", "dydiff")
        self.guided = self.acting or config.guidance.kind != "none"
        self.refines = config.generator.method != "pets" and self.guided
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
        # refinement: trajectories that came back, new and refreshed; blocks known to have gone
        self.generated = self.refreshed = 0
        self.known_gone: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.audits: set[int] = set()
        # strength: of each shard, of each block (0: unguided), and audited errors of unguided blocks
        self.strength_of: dict[int, float | None] = {}
        self.made_with: dict[int, float | None] = {}
        self.unguided_errors: list[float] = []
        self.guided_audits = 0  # since the last verdict on them
        self.evaluations: list[bool] = []
        self.events = self.answers = 0

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
        paces = {"generator": "generate", "refiner": "refine", "evaluator": "evaluate", "auditor": "audit"}
        others = [(call.worker.split("/")[0], call) for call in self.pending.values() if call.worker != LEARNER]
        return options + [(paces[role], "complete", call) for role, call in others]

    def accident(self) -> None:
        """A worker dies, starting or working, and is replaced or (not the last of a needed role) given up."""
        worker = self.random.choice(sorted({*self.down, *self.up} - {LEARNER}))
        role = worker.split("/")[0]
        peers = [name for name in [*self.down, *self.up] if name.startswith(role)]
        gone = self.goners > 0 and (len(peers) > 1 or role in ("refiner", "auditor")) and self.random.random() < 0.5
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
            return m.Audited(call.call, self.random.choice([None, 0.1, 0.2]))
        assert isinstance(call, m.Generate | m.Refine)
        most = self.sizes[call.parent] if isinstance(call, m.Refine) else BATCH
        kept = self.random.randrange(1, most + 1) if self.random.random() < self.habits.partial else most
        kept = 0 if self.random.random() < self.habits.empty else kept
        parent = call.parent if isinstance(call, m.Refine) else None
        origin = Provenance(
            call.block, "learner", call.worker, call.shard, 0, self.version_at[call.call], "", "", 0.0, 1, parent
        )
        return m.Produced(
            call.call, BlockReport(origin, kept, kept * (LENGTH - 1), FIT, dropped={"not finite": most - kept})
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
            elif isinstance(event, m.Audited):
                self.audited(call, event.error)
            elif isinstance(event, m.Trained):
                self.newest = event.update
            elif isinstance(call, m.Evaluate):
                self.evaluations.append(call.final)
        commands = self.conductor.on(event)
        assert len(self.controller.heard) == self.answers
        for command in commands:
            self.take(command)
        assert block not in self.store or self.store[block].transitions, "an empty block is kept"
        self.check()

    def produced(self, call: m.Call, report: BlockReport) -> None:
        self.store[report.provenance.block] = report
        self.sizes[report.provenance.block] = report.trajectories
        if isinstance(call, m.Generate):
            self.generated += report.trajectories
            self.shard_of[call.block] = call.shard
            self.made_with[call.block] = call.strength or 0.0
            self.answers += self.steered and call.guided  # new blocks answer the controller, unless unguided
        elif call.parent in self.conductor.refining.stale:  # what comes back stands for what was too old
            self.shard_of[call.block] = self.shard_of.pop(call.parent)
            if call.parent in self.inserting:
                self.inserting.remove(call.parent)
                self.inserting.add(call.block)
        if isinstance(call, m.Refine):
            self.refreshed += report.trajectories

    def audited(self, call: m.Audit, error: float | None) -> None:
        """Errors of unguided blocks are what later ones are held against."""
        if not self.steered or error is None or call.strength is None:
            return
        if call.strength == 0.0:
            self.unguided_errors.append(error)
            return
        self.guided_audits += 1
        if self.guided_audits >= 5 and len(self.unguided_errors) >= 3:
            self.answers, self.guided_audits = self.answers + 1, 0

    def block_lost(self, call: m.Call) -> None:
        """What the block was to bring must be made again, unless it was in the table before."""
        block = call.parent if isinstance(call, m.Refine) else call.block
        self.known_gone |= {block} if isinstance(call, m.Refine) else set()
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
