"""The strength of the guidance where it is automatic: what goes out with the work, and what is learnt from its results.

The controller itself is ``raydiff.guidance.strength`` (section B.7). New blocks answer it, each with the strength that
it was commanded with. Refreshed ones do not: they start from data that were guided before.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Protocol

from raydiff.config import Config
from raydiff.guidance.strength import StrengthController
from raydiff.runtime.pairs import TARGETS
from raydiff.runtime.team import steers
from raydiff.types import Agreement

VERDICT = 5
"""Audits that make one verdict, by their median: a single one, of some hundred transitions, says little."""

LEAST = 3
"""Audits of unguided blocks without which there is nothing to hold guided ones against."""


class Controller(Protocol):
    """What the conductor needs of ``StrengthController``."""

    @property
    def strength(self) -> float: ...

    def measured(self, strength: float, agreement: Agreement) -> None: ...

    def audited(self, strength: float, error: float, unguided_error: float) -> None: ...

    def record(self) -> dict[str, Any]: ...


def make_controller(config: Config, action_size: int) -> Controller | None:
    """The controller of ``guidance.automatic``; None where the strength is given."""
    if not steers(config):
        return None
    return StrengthController(config.guidance, action_size, TARGETS[config.learner.algorithm].deterministic)


class Steering:
    """One learner's strength; without a controller it is the configured one, which commands leave out (None)."""

    def __init__(self, controller: Controller | None) -> None:
        self.controller = controller
        self.unguided: list[float] = []  # audited errors
        self.guided: list[tuple[float, float]] = []  # strengths and audited errors since the last verdict

    @property
    def strength(self) -> float | None:
        """For the next command that is guided."""
        return self.controller.strength if self.controller is not None else None

    @property
    def wants_unguided(self) -> bool:
        """Whether more unguided blocks should be audited first."""
        return self.controller is not None and len(self.unguided) < VERDICT

    def made(self, strength: float | None, agreement: Agreement | None) -> None:
        """A new block has come back, guided with ``strength``."""
        if self.controller is not None and strength is not None and agreement is not None:
            self.controller.measured(strength, agreement)

    def audited(self, strength: float | None, error: float | None) -> None:
        """A block made with ``strength`` (0: unguided; None: not by a command of its own) has been audited."""
        if self.controller is None or strength is None or error is None:
            return
        if strength == 0.0:
            self.unguided.append(error)
            return
        self.guided.append((strength, error))
        if len(self.guided) < VERDICT or self.unguided_error is None:
            return
        strengths, errors = zip(*self.guided, strict=True)
        self.guided.clear()
        self.controller.audited(median(strengths), median(errors), self.unguided_error)

    @property
    def unguided_error(self) -> float | None:
        """What guided blocks are held against; None until enough unguided ones have been audited."""
        return median(self.unguided) if len(self.unguided) >= LEAST else None

    def record(self) -> dict[str, Any] | None:
        """What the controller says of itself, for the log; None where there is none."""
        if self.controller is None:
            return None
        return {**self.controller.record(), "unguided_error": self.unguided_error}
