"""When to generate and when to learn: the schedules of a run, as arithmetic without a clock.

``Continuous`` paces generation and learning against each other by samples per insert. ``Datasets`` makes whole
datasets in turn, as policy-guided diffusion (B.6, Algorithm 2) and SynthER (section C) do: the learner trains on
one half of the table while the next is generated into the other; they swap at the update at which the next is due.

A flow counts shards from their issue on: ``issued``, then ``landed`` or ``lost``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.runtime.plan import FlowLimits
from raydiff.runtime.team import follows_policy


@dataclass(frozen=True)
class Shard:
    """A piece of generation: the same policy gives the same bytes whoever makes it. ``first``: of the warm-up, or of
    the first dataset. ``strength``: that of its guidance where it is automatic, else None."""

    number: int
    trajectories: int
    first: bool
    strength: float | None = None


class Flow(Protocol):
    """What the conductor asks before it issues work, and tells of work done."""

    @property
    def warm(self) -> bool:
        """Whether the learner has the synthetic data that it starts with."""

    @property
    def target_ratio(self) -> float | None:
        """Samples per insert that the schedule aims at, where it aims at any."""

    def front(self, issued: int) -> tuple[int, int] | None:
        """Slots that the updates after ``issued`` ones sample: first, one past the last. None: all of the table."""

    def next_shard(self, update: int) -> tuple[int, bool] | None:
        """Trajectories of the next shard and whether it is of the first data; None while none may be issued."""

    def forced_shard(self) -> tuple[int, bool] | None:
        """One more, whatever the pace: for when data too old to sample must be replaced. None where the schedule
        itself settles the age of the data."""

    def issued(self, shard: Shard) -> None: ...

    def lost(self, shard: Shard) -> None: ...

    def landed(self, shard: Shard, transitions: int) -> None: ...

    def may_sample(self, issued: int, updates: int) -> bool:
        """Whether the ``updates`` that follow ``issued`` ones may take synthetic rows."""

    def until_stop(self, issued: int) -> int | None:
        """Updates until the next point at which a learner call must end; None where there is none."""

    def why_not_warm(self) -> str: ...

    def why_not_sample(self, updates: int) -> str: ...


def make_flow(config: Config, limits: FlowLimits) -> Flow:
    """The flow of the configured schedule. Raises ``UserError`` where no generated data could ever be used."""
    if config.schedule.kind == "continuous" or not limits.slots:
        return Continuous(config, limits)
    return Datasets(config, limits)


class Continuous:
    """A warm-up, then inserts as fast as samples per insert allows."""

    def __init__(self, config: Config, limits: FlowLimits) -> None:
        self.limiter, self.limits = limits.limiter, limits
        self.warmup, self.batch = config.replay.warmup, config.generator.batch
        self.rows = config.rows - 1
        self.warm_issued = self.warm_landed = 0
        self._check_lag(config)

    @staticmethod
    def _check_lag(config: Config) -> None:
        """A learner that goes on while data are made leaves them behind by what it has in flight and the next call."""
        learner, max_lag = config.learner, config.replay.max_lag
        least = (learner.in_flight + 1) * learner.chunk
        if config.replay.shortage == "wait" or not follows_policy(config) or not config.generator.count:
            return
        if max_lag is not None and max_lag < least:
            raise UserError(
                f"replay.max_lag={max_lag} with replay.shortage=real: the learner goes on while data are generated, so "
                f"they are at least {least} updates old (learner.chunk={learner.chunk}, {learner.in_flight} calls in "
                "flight, and the next) when they can first be used, and all would be thrown away. Raise replay.max_lag "
                "well above that, lower learner.chunk or learner.in_flight, or use replay.shortage=wait."
            )

    @property
    def target_ratio(self) -> float | None:
        return self.limiter.samples_per_insert if self.limits.slots else None

    @property
    def warm(self) -> bool:
        return not self.limits.synthetic_per_update or self.warm_landed >= self.warmup

    def front(self, issued: int) -> tuple[int, int] | None:
        return None

    def next_shard(self, update: int) -> tuple[int, bool] | None:
        first = self.warm_issued < self.warmup
        return (self.batch, first) if first or self.limiter.may_insert() else None

    def forced_shard(self) -> tuple[int, bool] | None:
        return self.batch, False

    def issued(self, shard: Shard) -> None:
        self._count(shard, +1)

    def lost(self, shard: Shard) -> None:
        self._count(shard, -1)

    def _count(self, shard: Shard, sign: int) -> None:
        if shard.first:
            self.warm_issued += sign * shard.trajectories
        else:
            self.limiter.inserting += sign * shard.trajectories * self.rows

    def landed(self, shard: Shard, transitions: int) -> None:
        if shard.first:
            self.warm_landed += shard.trajectories
        else:
            self._count(shard, -1)
            self.limiter.inserted += transitions

    def may_sample(self, issued: int, updates: int) -> bool:
        samples = updates * self.limits.synthetic_per_update
        return self.warm and (not samples or self.limiter.may_sample(samples))

    def until_stop(self, issued: int) -> int | None:
        return None

    def why_not_warm(self) -> str:
        return f"the warm-up has {self.warm_landed} of {self.warmup} trajectories"

    def why_not_sample(self, updates: int) -> str:
        return self.limiter.why_not_sample(updates * self.limits.synthetic_per_update)


class Datasets:
    """``epochs`` datasets of ``size`` trajectories. The one numbered ``e`` is what updates ``begins[e]`` to
    ``begins[e + 1]`` are trained on; its generation opens before that by the share ``overlap`` of an epoch."""

    def __init__(self, config: Config, limits: FlowLimits) -> None:
        self.limiter, self.slots = limits.limiter, limits.slots
        self.batch, self.size = config.generator.batch, config.replay.generation
        self.epochs = config.schedule.epochs if config.schedule.kind == "periodic" else 1
        updates, overlap = config.learner.updates, config.schedule.overlap
        self.begins = [round(e * updates / self.epochs) for e in range(self.epochs + 1)]
        self.opens = [0] + [
            begins - round(overlap * (begins - before))
            for before, begins in zip(self.begins, self.begins[1:-1], strict=False)
        ]
        self.stops = sorted({*self.begins, *self.opens})
        self.making, self.made, self.arrived = 0, 0, 0  # number of the dataset in the making; issued, landed of it

    @property
    def target_ratio(self) -> float | None:
        return None

    @property
    def warm(self) -> bool:
        return self.making > 0

    def front(self, issued: int) -> tuple[int, int] | None:
        return self._half(self.due(issued))

    def due(self, issued: int) -> int:
        """The dataset that the update after ``issued`` ones belongs to."""
        return min(bisect_right(self.begins, issued) - 1, self.epochs - 1)

    def _half(self, dataset: int) -> tuple[int, int]:
        """Where a dataset lies: slots are filled in turn, and each dataset fills as many as a half has."""
        if self.epochs == 1:
            return 0, self.slots
        half = self.slots // 2
        return (0, half) if dataset % 2 == 0 else (half, 2 * half)

    def next_shard(self, update: int) -> tuple[int, bool] | None:
        if self.making >= self.epochs or update < self.opens[self.making] or self.made >= self.size:
            return None
        return min(self.batch, self.size - self.made), self.making == 0

    def forced_shard(self) -> tuple[int, bool] | None:
        return None

    def issued(self, shard: Shard) -> None:
        self.made += shard.trajectories

    def lost(self, shard: Shard) -> None:
        self.made -= shard.trajectories

    def landed(self, shard: Shard, transitions: int) -> None:
        self.arrived += shard.trajectories
        self.limiter.inserted += transitions
        if self.arrived >= self.size:
            self.making, self.made, self.arrived = self.making + 1, 0, 0

    def may_sample(self, issued: int, updates: int) -> bool:
        return self.due(issued) < self.making

    def until_stop(self, issued: int) -> int | None:
        after = bisect_right(self.stops, issued)
        return self.stops[after] - issued if after < len(self.stops) else None

    def why_not_warm(self) -> str:
        return f"the first dataset has {self.arrived} of {self.size} trajectories"

    def why_not_sample(self, updates: int) -> str:
        return (
            f"dataset {self.making + 1} of {self.epochs} has {self.arrived} of {self.size} trajectories, and the one "
            "before it has had its updates"
        )
