"""What a runtime must offer: a crew executes the commands of one conductor and reports what finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from raydiff.config import Config
from raydiff.roles.models import Models
from raydiff.runtime import messages as m
from raydiff.types import PolicyBlob, Transitions

Progress = tuple[str, int, int, float, float | None]
"""Of pretraining: what, step, steps, loss, held-out loss."""

Note = Callable[[Progress], None]


@dataclass(frozen=True)
class Materials:
    """What the roles of one learner are built from; ``models`` is ``None`` where nothing is generated."""

    config: Config
    learner_id: str
    real: Transitions
    models: Models | None


@dataclass(frozen=True)
class Outcome:
    """An event for the conductor, and what the recorder wants to know of it (a role's report, of each seed where several
    are trained at once, or facts)."""

    event: m.Event
    reports: tuple[Any, ...] = ()
    worker: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Crew(Protocol):
    """Executes commands. ``poll`` never blocks; the runtime's own ``wait`` does, with a limit."""

    def start(self) -> None:
        """Start the roles, the learner first. Each announces itself by ``WorkerUp``."""

    def submit(self, command: m.Command) -> None:
        """Take a command on. The newest policy of that moment goes with it."""

    def poll(self) -> list[Outcome]:
        """What has finished since the last call."""

    def learner_states(self) -> list[tuple[PolicyBlob, dict[str, torch.Tensor]]]:
        """The last policy and the learner's state of each seed, at the end of a run."""

    def newest_block(self) -> np.ndarray | None:
        """Rows ``[n, L, C]`` of the block made last, of the first seed, at the end of a run; None where none is held."""

    def close(self) -> None:
        """End every role; safe to call twice."""
