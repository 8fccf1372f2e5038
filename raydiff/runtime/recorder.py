"""From outcomes to records and to the status table: the only writer of what one learner's run did."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from raydiff.evaluation.statistics import mean_over_runs
from raydiff.metrics import MetricsWriter, Record
from raydiff.replay.block import BlockReport
from raydiff.roles.auditor import AuditReport, joint_error
from raydiff.roles.evaluator import EvaluationReport
from raydiff.roles.learner import TrainReport
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Outcome
from raydiff.status import Status
from raydiff.types import Agreement

RATE_WINDOW_S = 10.0
LONG_WAIT_S = 10.0
LONG_CHUNK_S = 30.0
FILTERED = "trajectories: filtered"  # on purpose, by generator.filter
DISCARD_WARNING = 0.2
REAL_ONLY_WARNING = 0.5


class Rate:
    """Things per second over the last seconds."""

    def __init__(self) -> None:
        self.points: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        self.points.append((time.monotonic(), count))

    def per_second(self) -> float:
        now = time.monotonic()
        while self.points and now - self.points[0][0] > RATE_WINDOW_S:
            self.points.popleft()
        if not self.points:
            return 0.0
        return sum(count for _, count in self.points) / max(now - self.points[0][0], 1.0)


def _phase(conductor: Conductor) -> str:
    if conductor.learned:
        return "scoring"
    return "learning" if conductor.flow.warm or conductor.issued else "warm-up"


def _agreement(found: Agreement | None) -> Record:
    """How a block fits its policy, as columns of its record."""
    if found is None:
        return {"deviation": None, "log_likelihood": None, "own_log_likelihood": None}
    return {
        "deviation": found.deviation,
        "log_likelihood": found.log_likelihood,
        "own_log_likelihood": found.own,
    }


class Recorder:
    """Records of one arm; ``message`` prints a line above the status table."""

    def __init__(self, writer: MetricsWriter, arm: str, message: Any) -> None:
        self.writer, self.arm, self.message = writer, arm, message
        self.started = time.monotonic()
        self.updates, self.trajectories = Rate(), defaultdict[str, Rate](Rate)
        self.drawn = 0  # synthetic transitions
        self.lag: tuple[float, float] | None = None
        self.score: tuple[float, float, float] | None = None
        self.error: float | None = None  # of the last audit
        self.waits: defaultdict[str, float] = defaultdict(float)
        self.waiting: tuple[str, float, float] | None = None  # cause, since, last said
        self.ticked = self.started
        self.chunk: tuple[m.Train, float, float] | None = None  # what the learner does, since, when to say so
        self.warned = self.warned_of_shortage = False
        self.provenance: list[dict[str, Any]] = []

    def outcome(self, outcome: Outcome, conductor: Conductor) -> None:
        """Write what happened. Call it after the conductor heard of it."""
        reports, seeds = outcome.reports, conductor.config.seeds
        match reports:
            case (TrainReport(), *_):
                self._trained(reports, conductor)
                records = [self._train(report, outcome.worker, conductor) for report in reports]
            case (BlockReport(), *_):
                records = [self._block(report, outcome.worker, conductor) for report in reports]
                self.provenance += [self._origin(*pair, len(seeds)) for pair in zip(reports, seeds, strict=True)]
            case (EvaluationReport(), *_):
                self._scored(reports)
                records = [self._evaluate(report, outcome.worker) for report in reports]
            case (AuditReport(), *_):
                self.error = joint_error(reports)
                records = [self._audit(report, outcome.worker, conductor) for report in reports]
            case _:
                records = []
                self._event(outcome, conductor)
        for seed, record in zip(seeds if records else (), records, strict=True):
            self._write({**record, "seed": seed} if len(seeds) > 1 else record)
        if reports and isinstance(reports[0], BlockReport):
            self._strength(reports[0], conductor)
        self._warn(conductor)

    def tick(self, conductor: Conductor) -> None:
        """Account for waiting; a wait of over ten seconds is said aloud, and again every ten seconds. So is a chunk of
        updates that takes over thirty, again whenever its time has doubled."""
        now = time.monotonic()
        self._watch_chunk(conductor, now)
        why, elapsed, self.ticked = conductor.why_learner_waits(), now - self.ticked, now
        if why is None:
            self.waiting = None
            return
        cause, sentence = why
        self.waits[cause] += elapsed
        if self.waiting is None or self.waiting[0] != cause:
            self.waiting = (cause, now, now)
        elif now - self.waiting[2] > LONG_WAIT_S:
            self.waiting = (cause, self.waiting[1], now)
            self.message(f"{self.arm}: the learner has waited {now - self.waiting[1]:.0f} s: {sentence}")

    def _watch_chunk(self, conductor: Conductor, now: float) -> None:
        """Some chunks are far longer than others: the first of a stage may prepare what the later ones look up."""
        chunk = next((call for call in conductor.in_flight.values() if isinstance(call, m.Train)), None)
        if chunk is None or self.chunk is None or chunk != self.chunk[0]:
            self.chunk = None if chunk is None else (chunk, now, now + LONG_CHUNK_S)
            return
        _, since, due = self.chunk
        if now >= due:
            self.chunk = (chunk, since, since + 2 * (now - since))
            self.message(
                f"{self.arm}: the learner has worked for {now - since:.0f} s on its next {chunk.updates:,} updates "
                f"({conductor.update:,} of {conductor.config.learner.updates:,} are done)"
            )

    def status(self, conductor: Conductor) -> Status:
        """The row of the status table."""
        config, limiter = conductor.config, conductor.limiter
        up = {role: (sum(n in conductor.up for n in names), len(names)) for role, names in conductor.workers.items()}
        rows = sum(entry.transitions for entry in conductor.catalogue.entries.values() if entry.landed)
        producing = bool(conductor.limits.slots)
        return Status(
            phase=_phase(conductor),
            arm=self.arm,
            update=conductor.update,
            updates=config.learner.updates,
            updates_per_s=self.updates.per_second(),
            trajectories_per_s={worker: rate.per_second() for worker, rate in sorted(self.trajectories.items())},
            workers={role: counts for role, counts in up.items() if counts[1]},
            replay_rows=rows,
            replay_capacity=conductor.limits.slots * conductor.limits.block_transitions,
            samples_per_insert=(limiter.achieved, conductor.target_ratio) if producing else (None, None),
            lag=self.lag,
            waits={cause: seconds for cause, seconds in self.waits.items() if seconds >= 0.1},
            discards=dict(conductor.discards),
            score=self.score,
            strength=conductor.steering.strength,
            error=self.error,
            elapsed_s=time.monotonic() - self.started,
        )

    def _write(self, record: Record) -> None:
        record["arm"] = self.arm
        record.setdefault("time", {})["at"] = time.time()
        self.writer.write(record)

    def _trained(self, reports: Sequence[TrainReport], conductor: Conductor) -> None:
        """What is counted once for all seeds, which are in step."""
        self.updates.add(reports[0].updates)
        lags = [report.lag for report in reports if report.lag is not None]
        if lags:
            self.lag = (sum(lag.mean for lag in lags) / len(lags), float(max(lag.max for lag in lags)))
        # Counted up to the end of this chunk: those in flight were issued but not yet drawn.
        self.drawn += reports[0].updates * conductor.limits.synthetic_per_update if lags else 0

    def _train(self, report: TrainReport, worker: str, conductor: Conductor) -> Record:
        return {
            "kind": "train",
            "update": report.update,
            "updates": report.updates,
            "losses": report.losses,
            "lag": asdict(report.lag) if report.lag is not None else None,
            "synthetic_sampled": self.drawn,
            "synthetic_inserted": conductor.limiter.inserted,
            "time": {"worker": worker, "start": report.start, "end": report.end, "waited": report.waited},
        }

    @staticmethod
    def _origin(report: BlockReport, seed: int, seeds: int) -> dict[str, Any]:
        """A row of the table of provenance."""
        row = {**asdict(report.provenance), "trajectories": report.trajectories, "transitions": report.transitions}
        return {**row, "run_seed": seed} if seeds > 1 else row

    def _block(self, report: BlockReport, worker: str, conductor: Conductor) -> Record:
        self.trajectories[worker].add(report.trajectories)
        origin = report.provenance
        return {
            "kind": "block",
            "block": origin.block,
            "parent_block": origin.parent_block,
            "generator": origin.generator,
            "shard": origin.shard,
            "policy_version": origin.policy_version,
            "guidance": origin.guidance,
            "strength": origin.strength,
            "update": conductor.update,
            "trajectories": report.trajectories,
            "transitions": report.transitions,
            "nfe": origin.nfe,
            **_agreement(report.agreement),
            "reward_mean": report.reward_mean,
            "dropped": report.dropped,
            "time": {"worker": worker, **origin.time},
        }

    def _scored(self, reports: Sequence[EvaluationReport]) -> None:
        """Scores for the status table, and at the end said aloud: over episodes, or over seeds where there are some."""
        scores = [report.normalized or report.raw for report in reports]
        first, each = reports[0], ", ".join(f"{score.mean:.1f}" for score in scores)
        mean, low, high = scores[0].mean, scores[0].low, scores[0].high
        if len(scores) > 1:
            found = mean_over_runs([[score.mean for score in scores]], 0)
            mean, low, high = found.value, *(found.value if side is None else side for side in (found.low, found.high))
        self.score = (mean, low, high)
        if first.final:
            many = len(scores) > 1
            verb = "score" if first.normalized else "return"
            self.message(
                f"{self.arm}: the {'policies' if many else 'policy'} after {first.version:,} updates "
                f"{verb if many else verb + 's'} {mean:.1f} [{low:.1f}, {high:.1f}] over "
                + (f"{len(scores)} seeds ({each})" if many else f"{scores[0].episodes} episodes")
            )

    def _evaluate(self, report: EvaluationReport, worker: str) -> Record:
        return {
            "kind": "evaluate",
            "update": report.version,
            "final": report.final,
            "returns": report.returns,
            "normalized": report.normalized.as_dict() if report.normalized else None,
            "raw": report.raw.as_dict(),
            "time": {"worker": worker, "start": report.start, "end": report.end},
        }

    def _strength(self, report: BlockReport, conductor: Conductor) -> None:
        """What the controller made of a new block, where the strength is automatic."""
        state = conductor.steering.record()
        origin = report.provenance
        if state is not None and origin.parent_block is None and origin.guidance != "none":
            self._write({"kind": "strength", "update": conductor.update, **state})

    def _audit(self, report: AuditReport, worker: str, conductor: Conductor) -> Record:
        record = report.as_record()
        record["time"]["worker"] = worker
        return {**record, "update": conductor.update}

    def _event(self, outcome: Outcome, conductor: Conductor) -> None:
        names = {
            m.WorkerUp: "worker_up",
            m.WorkerLost: "worker_lost",
            m.WorkerGone: "quarantine",
            m.BlockLost: "block_lost",
        }
        name = names.get(type(outcome.event))
        if name is None:
            return
        cause = outcome.facts.get("cause", "")
        if name in ("worker_lost", "quarantine"):
            then = "it is replaced" if name == "worker_lost" else "it died too often and is given up"
            if name == "quarantine" and outcome.worker.startswith("auditor") and not conductor.workers["auditor"]:
                then += ", the last of its kind: audits stop here"
            self.message(f"{self.arm}: lost {outcome.worker} ({cause}); {then}")
        facts = {"worker": outcome.worker, **outcome.facts}
        self._write({"kind": "event", "event": name, "worker": outcome.worker, "detail": cause, "time": facts})

    def _warn(self, conductor: Conductor) -> None:
        dropped = sum(
            n for reason, n in conductor.discards.items() if reason.startswith("trajectories") and reason != FILTERED
        )
        made = (conductor.generated + conductor.refined) * len(conductor.config.seeds) + dropped
        if not self.warned and made > 10_000 and dropped > DISCARD_WARNING * made:
            self.warned = True
            self.message(f"{self.arm}: {dropped} of {made} trajectories were dropped: {dict(conductor.discards)}")
        real, many = conductor.real_only, min(1_000, conductor.config.learner.updates)
        if not self.warned_of_shortage and conductor.issued >= many and real > REAL_ONLY_WARNING * conductor.issued:
            self.warned_of_shortage = True
            self.message(
                f"{self.arm}: {real:,} of {conductor.issued:,} updates so far are on real data alone, because synthetic "
                "ones were missing or too old (replay.shortage=real). More generators, longer epochs or a larger "
                "replay.max_lag would change that."
            )
