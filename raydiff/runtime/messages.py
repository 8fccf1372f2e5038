"""What the conductor says (commands) and hears (events). Plain data: no payload, no Ray, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from raydiff.replay.block import BlockReport


@dataclass(frozen=True)
class Generate:
    """A generator makes ``trajectories`` windows for the shard; unguided where ``guided`` is false, else with the
    ``strength`` (None: the configured one)."""

    call: int
    worker: str
    shard: int
    trajectories: int
    guided: bool
    block: int
    strength: float | None = None


@dataclass(frozen=True)
class Refine:
    """Bring the trajectories of block ``parent`` up to the current policy, as block ``block``."""

    call: int
    worker: str
    shard: int
    parent: int
    block: int
    strength: float | None = None


@dataclass(frozen=True)
class Ingest:
    """The learner copies block ``block`` into ``slot`` of its table."""

    call: int
    worker: str
    block: int
    slot: int
    policy_version: int


@dataclass(frozen=True)
class Train:
    """The learner runs ``updates`` gradient updates and publishes its policy.

    Synthetic rows come from the slots ``front`` of its table (first, one past the last; all without it), or with
    ``real_only`` not at all.
    """

    call: int
    worker: str
    updates: int
    front: tuple[int, int] | None = None
    real_only: bool = False


@dataclass(frozen=True)
class Evaluate:
    """An evaluator scores the newest policy; ``final`` with the episodes of the final evaluation."""

    call: int
    worker: str
    final: bool


@dataclass(frozen=True)
class Audit:
    """An auditor replays the block in the simulator and holds it against the newest policy.

    ``strength``: what a new block was commanded with where the strength is automatic (0: unguided), else None.
    """

    call: int
    worker: str
    block: int
    refreshed: bool
    strength: float | None = None


@dataclass(frozen=True)
class Forget:
    """The store drops the block: nobody will name it again."""

    block: int


Command = Generate | Refine | Ingest | Train | Evaluate | Audit | Forget
Call = Generate | Refine | Ingest | Train | Evaluate | Audit


@dataclass(frozen=True)
class Produced:
    """A block arrived, from ``Generate`` or ``Refine``."""

    call: int
    report: BlockReport


@dataclass(frozen=True)
class Ingested:
    call: int


@dataclass(frozen=True)
class Trained:
    """The learner has done ``update`` updates in all."""

    call: int
    update: int


@dataclass(frozen=True)
class Evaluated:
    call: int


@dataclass(frozen=True)
class Audited:
    """``error``: of the dynamics, over the data's variance; None where nothing could be replayed."""

    call: int
    error: float | None = None


@dataclass(frozen=True)
class BlockLost:
    """The block that a call (ingest, refine, audit) was to read is gone with its node; the worker is well."""

    call: int


@dataclass(frozen=True)
class WorkerUp:
    """A worker is ready to take calls (again)."""

    worker: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker died; every call it had in flight is lost."""

    worker: str


@dataclass(frozen=True)
class WorkerGone:
    """A worker died too often and is not replaced any more."""

    worker: str


Event = Produced | Ingested | Trained | Evaluated | Audited | BlockLost | WorkerUp | WorkerLost | WorkerGone
