"""The account that a world of the conductor keeps: what each command may be, worked out anew from what was heard."""

from __future__ import annotations

from collections import Counter

from raydiff.runtime import messages as m
from raydiff.runtime.conductor import LEARNER
from raydiff.types import Agreement

BATCH, LENGTH = 4, 3
ROWS = BATCH * (LENGTH - 1)
SYNTHETIC = 2  # of the four transitions of a batch
LIMIT = 6_000  # events; a run that needs more makes no progress

ROLES = ("train", "ingest", "generate", "refine", "evaluate", "audit", "up")
FIT = Agreement(deviation=0.1, log_likelihood=-1.0, own=0.5)


class Rules:
    """The part of ``World`` that judges commands and states; the attributes are the world's."""

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
        assert call.guided == (self.acting or (self.guided and (not warm or self.config.replay.warmup_guidance)))
        assert (call.strength is None) == (not self.steered or not call.guided)
        assert call.strength == self.strength_of.setdefault(call.shard, call.strength), "a shard made otherwise"
        assert call.trajectories == BATCH

    def new_shard(self, call: m.Generate) -> None:
        """A shard that nobody has made: of the warm-up, or allowed by the ratio, or forced by the age of the data."""
        assert not self.lost, f"shard {call.shard} is new while {self.lost} wait to be made again"
        assert call.shard not in self.used
        self.used.add(call.shard)
        assert call.strength in (None, self.controller.strength)
        if self.conductor.flow.warm and self.refines and self.config.refiner.max_lag is not None:
            overdue = self.overdue()
            assert not overdue or not all(map(self.affordable, overdue)), f"new, while {overdue} are overdue"
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

    def overdue(self) -> list[int]:
        """Blocks in the table that are so old that they must be refreshed first, and that nobody refreshes."""
        taken = {call.parent for call in self.pending.values() if isinstance(call, m.Refine)}
        outside = {*self.shard_of, *self.ingests, *taken, *self.known_gone}
        behind = {b: self.newest - report.provenance.policy_version for b, report in self.store.items()}
        return [b for b, lag in behind.items() if lag >= self.config.refiner.max_lag and b not in outside]

    def affordable(self, block: int) -> bool:
        """Whether the block may be refreshed for all that was generated; what waits for it or is under way counts."""
        taken = [call.parent for call in self.pending.values() if isinstance(call, m.Refine)]
        claims = {*taken, *self.conductor.refining.stale, block}
        claimed = sum(self.sizes[claim] for claim in claims)
        share = self.config.refiner.fraction
        return share is None or self.refreshed + claimed <= share * self.generated

    def refine(self, call: m.Refine) -> None:
        assert self.refines, "nothing can be refreshed by this method"
        assert call.strength == (self.controller.strength if self.steered else None)
        assert self.affordable(call.parent), "more is refreshed than the share of what is generated"
        assert call.block not in self.numbers
        self.numbers.add(call.block)
        assert call.shard not in self.used
        self.used.add(call.shard)
        assert call.parent in self.store, f"{call} names a block that is not there"
        assert call.parent not in self.known_gone, f"{call} names a block that nobody can read"
        assert all(o.parent != call.parent for o in self.pending.values() if isinstance(o, m.Refine))
        lag = self.newest - self.store[call.parent].provenance.policy_version
        assert call.parent in self.conductor.refining.stale or lag >= self.config.refiner.min_lag

    def evaluate(self, call: m.Evaluate) -> None:
        assert not any(isinstance(other, m.Evaluate) for other in self.pending.values())
        assert call.final == (self.newest == self.config.learner.updates)
        assert not (call.final and True in self.evaluations), "a second final evaluation"

    def audit(self, call: m.Audit) -> None:
        assert call.worker.startswith("auditor")
        assert call.block in self.store, f"{call} names a block that is not there"
        assert call.block not in self.audits, "audited twice"
        self.audits.add(call.block)
        refreshed = self.store[call.block].provenance.parent_block is not None
        assert call.strength == (self.made_with[call.block] if self.steered and not refreshed else None)
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
        named = {*conductor.catalogue.entries, *conductor.refining.stale}
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
                assert busy[worker, m.Refine] <= 1 or self.config.refiner.max_lag is not None
            elif not worker.startswith("learner"):
                assert count <= 1
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
        assert len(self.store) <= self.conductor.limits.slots + len(self.conductor.refining.stale)
        assert self.conductor.on(m.WorkerUp(LEARNER)) == [], "work is issued after the end"
