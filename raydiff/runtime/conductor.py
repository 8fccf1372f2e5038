"""The conductor: every decision of a run, as one pure state machine. ``on(event)`` returns commands.

It reads no clock, holds no payload and never blocks: a runtime issues its commands, waits for any to finish and
feeds the completion back. Work in flight counts against every limit when it is issued. The invariants, kept for
any order of completions and any losses (tests/runtime/test_conductor.py):

* while the learner has updates to do, something is in flight, or some worker is being replaced;
* the schedule holds: sampled <= samples_per_insert * inserted + behind, and generation leads by less than ``ahead``
  plus one block; or each dataset is whole before the first update that is due to it;
* no update samples a trajectory whose policy is more than ``max_lag`` updates old;
* what is refreshed stays within ``refiner.fraction`` of what is generated, and no new shard is made while a block that
  may be refreshed is ``refiner.max_lag`` behind.

Where ``max_lag`` holds the learner back although the ratio would let it go on, generation goes on beyond the
ratio until the oldest blocks are replaced: pacing, never eviction, keeps the data fresh.
"""

from __future__ import annotations

from collections import Counter, deque

from raydiff.config import Config
from raydiff.errors import RunFailed
from raydiff.replay.block import BlockReport
from raydiff.replay.catalogue import Catalogue
from raydiff.runtime import messages as m
from raydiff.runtime.flow import Flow, Shard, make_flow
from raydiff.runtime.landing import Landings
from raydiff.runtime.plan import FlowLimits, flow_limits
from raydiff.runtime.refining import Refining
from raydiff.runtime.scoring import Scoring
from raydiff.runtime.steering import Controller, Steering
from raydiff.runtime.team import follows_policy, guided, workers

LEARNER = "learner/0"
EMPTY_BLOCKS_IN_A_ROW = 20
DISPENSABLE = ("refiner", "auditor")
"""Roles that a run goes on without."""


class Conductor:
    """Flow control of one learner. Feed ``WorkerUp`` and completions to ``on`` until ``finished``."""

    def __init__(self, config: Config, learner_id: str, controller: Controller | None = None) -> None:
        """``controller`` sets the strength of the guidance; without one it is the configured one.

        Raises ``UserError`` where the limits of the configuration would stall each other.
        """
        self.config, self.learner_id = config, learner_id
        self.limits: FlowLimits = flow_limits(config)
        self.limiter, self.catalogue = self.limits.limiter, Catalogue(self.limits.slots)
        self.flow: Flow = make_flow(config, self.limits)
        self.refining, self.landings = Refining(config, self.catalogue), Landings(self.catalogue)
        self.steering, self.scoring = Steering(controller), Scoring(config.evaluation.every)
        self.workers = workers(config)
        self.max_lag = config.replay.max_lag if follows_policy(config) else None
        self.up: set[str] = set()
        self.in_flight: dict[int, m.Call] = {}
        self.calls = self.blocks = self.next_shard = 0
        # generation: shards in flight by block, and lost ones to make again
        self.shards: dict[int, Shard] = {}
        self.reissue: deque[Shard] = deque()
        self.issued = self.update = self.real_only = 0
        self.discards: Counter[str] = Counter()
        self.empty_in_a_row = 0

    @property
    def learned(self) -> bool:
        """Whether the learner has done all its updates."""
        return self.update >= self.config.learner.updates

    @property
    def target_ratio(self) -> float | None:
        """Samples per insert that the schedule aims at, where it aims at any."""
        return self.flow.target_ratio

    @property
    def generated(self) -> int:
        """New trajectories that came back."""
        return self.refining.generated

    @property
    def refined(self) -> int:
        """Refreshed trajectories that came back."""
        return self.refining.refined

    @property
    def finished(self) -> bool:
        return self.learned and self.scoring.final_done

    def stalled(self) -> bool:
        """Nothing is in flight, every worker is up, and yet the run is not finished: a fault of this class."""
        names = {name for role in self.workers.values() for name in role}
        return not self.in_flight and not self.finished and names <= self.up

    def on(self, event: m.Event) -> list[m.Command]:
        """Take one event into account and return what to do next. Raises ``RunFailed`` if the run cannot go on."""
        call = getattr(event, "call", None)
        if call is not None and call not in self.in_flight:  # its worker was declared dead before this answer came
            return [m.Forget(event.report.provenance.block)] if isinstance(event, m.Produced) else []
        commands: list[m.Command] = []
        match event:
            case m.WorkerUp(worker):
                self.up.add(worker)
            case m.WorkerLost(worker):
                self._lose(worker)
            case m.WorkerGone(worker):
                commands += self._give_up(worker)
            case m.Produced(call, report):
                commands += self._produced(self.in_flight.pop(call), report)
            case m.Ingested(call):
                self._ingested(self.in_flight.pop(call))
            case m.Trained(call, update):
                self.in_flight.pop(call)
                self.scoring.trained(self.update, update)
                self.update = update
            case m.Evaluated(call):
                self.scoring.evaluated(self.in_flight.pop(call))
            case m.Audited(call, error):
                audit = self.in_flight.pop(call)
                self.steering.audited(audit.strength if isinstance(audit, m.Audit) else None, error)
            case m.BlockLost(call):
                commands += self._block_lost(self.in_flight.pop(call))
        return commands + self._issue()

    def why_learner_waits(self) -> tuple[str, str] | None:
        """Cause and sentence on why the learner has nothing to do, or ``None`` while it has (or is done)."""
        if self.issued >= self.config.learner.updates or any(isinstance(c, m.Train) for c in self.in_flight.values()):
            return None
        if LEARNER not in self.up:
            return "start", "the learner is starting"
        if not self.flow.warm:
            return "warm-up", self.flow.why_not_warm()
        if self.lag_blocks():
            lag = self.lag_after(self.next_chunk())
            return "max_lag", f"the next updates would sample data {lag} updates old (max_lag={self.max_lag})"
        return "inserts", self.flow.why_not_sample(self.next_chunk())

    # --- issuing work ---

    def _issue(self) -> list[m.Command]:
        commands = self._issue_train()
        if not self.learned:
            commands += self._issue_production()
        commands += self._issue_evaluation()
        return commands if self.learned else commands + self._issue_audit()

    def _record(self, call: m.Call) -> m.Call:
        self.in_flight[call.call] = call
        return call

    def _call(self) -> int:
        self.calls += 1
        return self.calls

    def _block(self) -> int:
        self.blocks += 1
        return self.blocks

    def _room(self, role: str, per_worker: int = 1) -> list[str]:
        """Workers of the role that may take another call, once for each, those with the fewest in flight first."""
        busy = Counter(call.worker for call in self.in_flight.values())
        up = [name for name in self.workers[role] if name in self.up]
        return [name for held in range(per_worker) for name in up if busy[name] <= held]

    def next_chunk(self) -> int:
        """Updates of the next learner call: it ends where an evaluation is due, so that curves share their points, and
        where the schedule wants a policy of exactly that update."""
        learner, every = self.config.learner, self.config.evaluation.every
        stop = self.flow.until_stop(self.issued)
        chunk = min(learner.chunk, learner.updates - self.issued, every - self.issued % every)
        return chunk if stop is None else min(chunk, stop)

    def lag_after(self, updates: int) -> int:
        """Largest lag that the next ``updates`` could sample, blocks on their way out of the table included."""
        versions = self.landings.leaving()
        oldest = self.catalogue.oldest_version()
        versions += [] if oldest is None else [oldest]
        return self.issued + updates - min(versions) if versions else 0

    def lag_blocks(self) -> bool:
        """Whether the age of the data keeps the learner from its next call."""
        chunk = self.next_chunk()
        return self.max_lag is not None and self.flow.warm and chunk > 0 and self.lag_after(chunk) > self.max_lag

    def _issue_train(self) -> list[m.Command]:
        commands: list[m.Command] = []
        training = sum(isinstance(call, m.Train) for call in self.in_flight.values())
        while LEARNER in self.up and training + len(commands) < self.config.learner.in_flight:
            chunk = self.next_chunk()
            if chunk <= 0:
                break
            real_only = self.lag_blocks() or not self.flow.may_sample(self.issued, chunk)
            if real_only and self.config.replay.shortage == "wait":
                break
            if real_only:
                self.real_only += chunk
            else:
                self.limiter.sampled += chunk * self.limits.synthetic_per_update
            front = None if real_only else self.flow.front(self.issued)
            self.issued += chunk
            commands.append(self._record(m.Train(self._call(), LEARNER, chunk, front, real_only)))
        return commands

    def _next_shard(self) -> Shard | None:
        """A shard that may be made now; None while the schedule wants none."""
        wasted = self.flow.warm and self._too_old(self.update) and not self._may_freshen(self.config.generator.batch)
        wanted = None if wasted else self.flow.next_shard(self.update)
        if wanted is None and self._must_renew():
            wanted = self.flow.forced_shard()
        if wanted is None:
            return None
        self.next_shard += 1
        strength = self.steering.strength if guided(self.config, wanted[1]) else None
        return Shard(self.next_shard - 1, *wanted, strength)

    def _may_freshen(self, trajectories: int) -> bool:
        """Whether refiners may bring up to date what is too old on arrival."""
        return bool(self.workers["refiner"]) and self.refining.allows(trajectories)

    def _must_renew(self) -> bool:
        """Whether the learner rests because of the age of blocks that none on their way to the table replaces."""
        learning = any(isinstance(call, m.Train) and not call.real_only for call in self.in_flight.values())
        if learning or not self.lag_blocks():
            return False
        oldest = self.catalogue.oldest_version()
        return oldest is not None and self._too_old(oldest)

    def _too_old(self, version: int) -> bool:
        """Whether the updates issued next may not sample data of this policy version any more."""
        return self.max_lag is not None and self.issued + self.next_chunk() - version > self.max_lag

    def _issue_production(self) -> list[m.Command]:
        commands: list[m.Command] = []
        # Before the learner may sample, everybody makes what it waits for.
        refinable, front = self.flow.may_sample(self.issued, 0), self.flow.front(self.issued)
        for worker in self._room("generator", self.config.generator.in_flight):
            overdue = self.refining.overdue(self.update, front) if refinable and not self.reissue else None
            if overdue is not None:
                commands.append(self._refine(worker, overdue))
                continue
            shard = self.reissue.popleft() if self.reissue else self._next_shard()
            if shard is not None:
                commands.append(self._generate(worker, shard))
        # The limiter paces inserts, not refreshes: what time is left brings old data up to date.
        idle = self._room("refiner") + (self._room("generator") if self.config.generator.refine_when_idle else [])
        for worker in idle if refinable else []:
            parent = self.refining.worthwhile(self.update, front, timely=not self._too_old(self.update))
            if parent is None:
                break
            commands.append(self._refine(worker, parent))
        return commands

    def _generate(self, worker: str, shard: Shard) -> m.Command:
        self.flow.issued(shard)
        towards = guided(self.config, shard.first)
        command = m.Generate(
            self._call(), worker, shard.number, shard.trajectories, towards, self._block(), shard.strength
        )
        self.shards[command.block] = shard
        return self._record(command)

    def _refine(self, worker: str, parent: int) -> m.Command:
        self.refining.begin(parent)
        self.next_shard += 1
        strength = self.steering.strength
        return self._record(m.Refine(self._call(), worker, self.next_shard - 1, parent, self._block(), strength))

    def _issue_evaluation(self) -> list[m.Command]:
        running = any(isinstance(call, m.Evaluate) for call in self.in_flight.values())
        if running or not self.scoring.wants(self.learned):
            return []
        free = self._room("evaluator")
        if not free:
            return []
        self.scoring.due = False
        return [self._record(m.Evaluate(self._call(), free[0], self.learned and not self.scoring.final_done))]

    def _issue_audit(self) -> list[m.Command]:
        commands: list[m.Command] = []
        for worker in self._room("auditor"):
            block = self.scoring.next_audit(self.catalogue.entries, self.steering.wants_unguided)
            if block is None:
                break
            entry = self.catalogue.entries[block]
            entry.audited, refreshed = True, entry.provenance.parent_block is not None
            commands.append(self._record(m.Audit(self._call(), worker, block, refreshed, entry.strength)))
        return commands

    # --- hearing of work ---

    def _produced(self, command: m.Call, report: BlockReport) -> list[m.Command]:
        """Place an arrived block, send it to a refiner, or say why not."""
        for reason, count in report.dropped.items():
            self.discards[f"trajectories: {reason}"] += count
        self.empty_in_a_row = 0 if report.transitions else self.empty_in_a_row + 1
        if self.empty_in_a_row >= EMPTY_BLOCKS_IN_A_ROW:
            raise RunFailed(
                f"{EMPTY_BLOCKS_IN_A_ROW} blocks in a row came back empty ({', '.join(report.dropped)}): the denoiser "
                "does not make usable trajectories. Train it longer (denoiser.steps) or lower guidance.strength."
            )
        if isinstance(command, m.Refine):
            return self._refreshed(command, report)
        assert isinstance(command, m.Generate)
        self.refining.generated += report.trajectories
        self.steering.made(command.strength, report.agreement)
        return self._arrived(report, self.shards.pop(command.block))

    def _arrived(self, report: BlockReport, shard: Shard) -> list[m.Command]:
        """A new block: it counts as an insert once it has landed."""
        block = report.provenance.block
        if not report.transitions:
            self.flow.lost(shard)
            self.discards["blocks: empty"] += 1
            return [m.Forget(block)]
        if self._too_old(report.provenance.policy_version):
            if self._may_freshen(report.trajectories):
                self.refining.stale[block] = (report, shard)
                return []
            self._drop_stale(shard)
            return [m.Forget(block)]
        return self._place(report, shard)

    def _drop_stale(self, shard: Shard) -> None:
        self.flow.lost(shard)
        self.discards["blocks: older than max_lag on arrival"] += 1

    def _refreshed(self, command: m.Refine, report: BlockReport) -> list[m.Command]:
        self.refining.refined += report.trajectories
        self.refining.end(command.parent)
        if command.parent in self.refining.stale:
            _, shard = self.refining.stale.pop(command.parent)
            return [m.Forget(command.parent), *self._arrived(report, shard)]
        if command.parent in self.catalogue.entries and report.transitions:
            return self._place(report, None)
        self.discards["blocks: empty" if not report.transitions else "refreshed blocks: parent had left"] += 1
        return [m.Forget(command.block)]

    def _place(self, report: BlockReport, shard: Shard | None) -> list[m.Command]:
        """Have the learner take the block in; a refreshed block (no shard) is no insert."""
        call, origin, strength = self._call(), report.provenance, None
        if self.steering.controller is not None and shard is not None and origin.parent_block is None:
            strength = shard.strength or 0.0
        slot, replaced = self.landings.place(call, report, shard, strength)
        command = self._record(m.Ingest(call, LEARNER, origin.block, slot, origin.policy_version))
        return [command] if replaced is None else [command, m.Forget(replaced)]

    def _ingested(self, command: m.Call) -> None:
        arrival = self.landings.landed(command.call)
        self.scoring.newest_block = arrival.block
        if arrival.shard is not None:
            self.flow.landed(arrival.shard, arrival.transitions)

    def _block_lost(self, command: m.Call) -> list[m.Command]:
        """A block has gone with its node: it is made again, and until then the learner keeps what it has."""
        self.discards["blocks: lost with their node"] += 1
        shard: Shard | None = None
        commands: list[m.Command] = []
        if isinstance(command, m.Ingest):
            shard = self.landings.lost(command.call)
            commands.append(m.Forget(command.block))
        elif isinstance(command, m.Refine):
            self.refining.end(command.parent, readable=False)
            if command.parent in self.refining.stale:
                _, shard = self.refining.stale.pop(command.parent)
                commands.append(m.Forget(command.parent))
        if shard is not None:
            self.flow.lost(shard)
            self.reissue.append(shard)
        return commands

    def _lose(self, worker: str) -> None:
        self.up.discard(worker)
        for number in [n for n, call in self.in_flight.items() if call.worker == worker]:
            call = self.in_flight.pop(number)
            if isinstance(call, m.Generate):
                shard = self.shards.pop(call.block)
                self.flow.lost(shard)
                self.reissue.append(shard)
            elif isinstance(call, m.Refine):
                self.refining.end(call.parent)
            elif isinstance(call, m.Evaluate):
                self.scoring.lost(call)

    def _give_up(self, worker: str) -> list[m.Command]:
        self._lose(worker)
        role = worker.split("/")[0]
        self.workers[role].remove(worker)
        if self.workers[role] or (role == "generator" and self.learned):
            return []
        if role not in DISPENSABLE:
            raise RunFailed(f"every {role} is gone: {worker} was the last and died too often")
        if role == "auditor":
            return []
        forgotten: list[m.Command] = [m.Forget(block) for block in self.refining.stale]
        for _, shard in self.refining.stale.values():  # nobody is left to bring them up to date
            self._drop_stale(shard)
        self.refining.stale.clear()
        return forgotten
