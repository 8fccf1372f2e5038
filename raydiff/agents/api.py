"""What a learner must offer: the protocol that every algorithm in this folder follows.

A learner owns its networks, targets, optimisers and target noise. It takes batches in environment units and
normalises observations itself, with statistics of the real data that never change.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from raydiff.types import Batch, PolicyBlob


class Stage(NamedTuple):
    """A part of training: most algorithms have one, some train critics before policies."""

    name: str
    updates: int


class Agent(Protocol):
    """An offline learner. It is built by ``registry.build_agent``.

    ``publish_critic``: its policies bring the mean of its two target critics along, for guidance by value.
    """

    publish_critic: bool

    def stages(self) -> list[Stage]:
        """The stages in order; their updates add up to the configured number."""

    def begin_stage(self, name: str, table: Any) -> None:
        """Prepare a stage; may compute columns for the rows of ``table``. Raises ``ValueError`` for other names."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step on a batch in environment units. The metrics are detached scalars on the learner's
        device: nothing waits for the device. A metric that this update did not compute keeps its last value."""

    def policy_blob(self, version: int) -> PolicyBlob:
        """The current policy, ready to be sent to generators and evaluators."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue bit by bit, as copies: weights, targets, optimisers, counter, noise."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``. Raises ``ValueError`` when it belongs to another learner."""
