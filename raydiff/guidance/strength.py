"""Automatic strength of policy guidance: generated actions as likely as the policy's own (section B.7).

A ``StrengthController`` follows the policy during a run, by the agreement that every generated block reports. For one
policy, ``find_strength`` searches. Both drive the same number to zero: how far actions are from the target, in nats
per action entry, or for a deterministic policy the logarithm of squared deviation over its target.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydiff.config import GuidanceConfig
from raydiff.guidance.api import ActionDistribution
from raydiff.types import Agreement

if TYPE_CHECKING:
    from raydiff.generators.api import Generator

SMALLEST = 1e-3
"""Strengths below this share of ``max_strength`` are no longer told apart."""

LARGEST_STEP, SMALLEST_STEP = 1.0, 0.1
"""Bounds of one change of log strength."""

MEMORY = 4
"""Measurements among which one is found to be worse than another: older ones are of another policy."""

BACKOFF = 0.8
"""A strength whose audited error is too large may be reached to this part; a passed audit takes half of that back."""

DOUBLINGS, BISECTIONS = 8, 6


class Target:
    """How far generated actions are from where they should be: positive where more strength is needed.

    Gaussian policies: the target is a log-likelihood, ``target`` of the configuration or what the policy's own actions
    would have. Deterministic ones: a mean squared deviation, ``target`` or ``delta`` squared.
    """

    def __init__(self, config: GuidanceConfig, action_size: int, deterministic: bool) -> None:
        self.config, self.action_size, self.deterministic = config, action_size, deterministic

    def value(self, agreement: Agreement) -> float:
        if self.config.target is not None:
            return self.config.target
        return self.config.delta**2 if self.deterministic else agreement.own

    def measured(self, agreement: Agreement) -> float:
        """What is compared with ``value``."""
        return agreement.deviation if self.deterministic else agreement.log_likelihood

    def gap(self, agreement: Agreement) -> float:
        measured, target = self.measured(agreement), self.value(agreement)
        if self.deterministic:
            return math.log(max(measured, 1e-12) / max(target, 1e-12))
        return (target - measured) / self.action_size

    def reached(self, gap: float) -> bool:
        """Within 0.1 nats per action entry, or within 10 % of the deviation."""
        return abs(math.expm1(gap) if self.deterministic else gap) <= 0.1


class StrengthController:
    """The strength of a run's guidance. Blocks may answer late and out of order.

    An answer asks for ``log strength`` of the block plus ``rate`` times the gap; the strength rises at least to that
    where the gap is positive, and falls at least to that where it is negative. So several answers to one strength
    move it once, and late ones to a strength long left behind do not move it back. Where a stronger block fits worse
    than a weaker one shortly before it, more would not help (mode ``paper`` stirs the sample once it has collapsed):
    it returns to the weaker one, and goes on in smaller steps.
    """

    def __init__(self, config: GuidanceConfig, action_size: int, deterministic: bool) -> None:
        self.config, self.target = config, Target(config, action_size, deterministic)
        self.limit, self.step = config.max_strength, LARGEST_STEP
        self._strength = self._clipped(config.strength)
        self.recent: deque[tuple[float, float]] = deque(maxlen=MEMORY)  # strength and gap
        self.answers = 0
        self.last: dict[str, Any] = {}

    @property
    def strength(self) -> float:
        """For the next block."""
        return self._strength

    def measured(self, strength: float, agreement: Agreement) -> None:
        """A block guided with ``strength`` fits the policy so well. Values that are not finite are ignored."""
        gap = self.target.gap(agreement)
        if not math.isfinite(gap):
            return
        best, least = min(self.recent, key=lambda pair: abs(pair[1]), default=(strength, gap))
        self.recent.append((strength, gap))
        if strength > best and gap > max(least, 0.0) + 0.1:  # farther from the policy in spite of more strength
            self.step = max(self.step / 2, SMALLEST_STEP)
            self._strength = self._clipped(best)
        else:
            change = max(-self.step, min(self.config.rate * gap, self.step))
            self.step = min(1.25 * self.step, LARGEST_STEP)
            asked = max(strength, self._least) * math.exp(change)
            self._strength = self._clipped((max if gap > 0.0 else min)(asked, self._strength))
        self.answers += 1
        self.last = {
            "target": self.target.value(agreement),
            "measured": self.target.measured(agreement),
            "measured_at": strength,
            "gap": gap,
            "reached": self.target.reached(gap),
        }

    def audited(self, strength: float, error: float, unguided_error: float) -> None:
        """The simulator's verdict on a block: beyond ``max_error`` times the error without guidance, the limit falls
        below its strength; a block near the limit that passes raises it again."""
        if not (math.isfinite(error) and unguided_error > 0.0):
            return
        if error > self.config.max_error * unguided_error:
            self.limit = min(self.limit, BACKOFF * strength)
        elif strength >= BACKOFF * self.limit:
            self.limit = min(self.limit / math.sqrt(BACKOFF), self.config.max_strength)
        self.limit = max(self.limit, self._least)
        self._strength = self._clipped(self._strength)

    def record(self) -> dict[str, Any]:
        """For the log: ``strength`` of the next block and its ``limit``; once a block has answered also ``target`` and
        what was ``measured`` at which strength, whether that ``reached`` it, and ``unreachable`` where it is short of
        the target at the limit of the strength, or more strength has made it worse again and again (once may be a
        policy that moves), with the ``best`` of the last few."""
        known = {"strength": self.strength, "limit": self.limit, "answers": self.answers, **self.last}
        if self.recent:
            best, gap = min(self.recent, key=lambda pair: abs(pair[1]))
            short = self.last["gap"] > 0.0 and not self.last["reached"]
            known["unreachable"] = short and (self.strength >= self.limit or self.step < LARGEST_STEP / 2)
            known["best"], known["best_gap"] = best, gap
        return known

    @property
    def _least(self) -> float:
        return SMALLEST * self.config.max_strength

    def _clipped(self, strength: float) -> float:
        return max(self._least, min(strength, self.limit))


@dataclass(frozen=True)
class Probe:
    """One trial of ``find_strength``; ``gap`` is positive where more strength is needed."""

    strength: float
    measured: float
    target: float
    gap: float


@dataclass(frozen=True)
class FoundStrength:
    """The ``strength`` that comes nearest to the target, whether it is ``reached`` there (within 0.1 nats per action
    entry, or 10 % of the squared deviation), and all trials in their order."""

    strength: float
    reached: bool
    trace: list[Probe]


def find_strength(
    generator: Generator, policy: ActionDistribution, config: GuidanceConfig, key: tuple[int, ...], probe: int = 512
) -> FoundStrength:
    """The strength for one policy, by ``probe`` trajectories per trial, all from the same random numbers.

    From ``max_strength / 256`` it doubles until actions are as near to the policy as they should be, then bisects six
    times. Where none is, the nearest is returned: the search does not rely on more strength bringing actions nearer
    everywhere. ``generator`` must follow ``config``. Raises ``ValueError`` where no generated transition is valid.
    """
    trace: list[Probe] = []
    target: Target | None = None

    def gap_at(strength: float) -> float:
        nonlocal target
        made = generator.generate(policy, probe, key, strength)
        if made.agreement is None:
            raise ValueError("none of the probe's transitions is valid, so nothing is known about their actions")
        target = target or Target(config, made.trajectories.action_size, policy.deterministic)
        fit = made.agreement
        gap = target.gap(fit)
        trace.append(Probe(strength, target.measured(fit), target.value(fit), gap if math.isfinite(gap) else math.inf))
        return trace[-1].gap

    low, high, enough = 0.0, config.max_strength / 2**DOUBLINGS, gap_at(0.0) <= 0.0
    while not enough and high <= config.max_strength:
        enough = gap_at(high) <= 0.0
        if not enough:
            low, high = high, 2 * high
    if enough and len(trace) > 1:
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high) if low > 0.0 else high / 2
            if gap_at(middle) <= 0.0:
                high = middle
            else:
                low = middle
    best = min(trace, key=lambda trial: abs(trial.gap))
    assert target is not None
    return FoundStrength(best.strength, target.reached(best.gap), trace)
