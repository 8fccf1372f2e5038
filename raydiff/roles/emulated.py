"""A generator of fixed speed: real blocks, but each call takes a given time whatever the machine can do.

For measuring everything around the generators (conductor, transport, ingestion) with more of them than there are
cores. ``generator.emulate_s`` chooses it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.roles.generator import Generator
from raydiff.roles.models import Models
from raydiff.types import PolicyBlob


class EmulatedGenerator(Generator):
    """Makes the first block of each kind and size for real and hands out copies of it, one per
    ``generator.emulate_s``: a block for several seeds takes as many times that."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._made: dict[tuple[str, int, int], tuple[np.ndarray, BlockReport]] = {}

    def generate(
        self,
        policy: PolicyBlob,
        trajectories: int,
        shard: int,
        block: int,
        guided: bool,
        strength: float | None = None,
        member: int = 0,
    ) -> tuple[np.ndarray, BlockReport]:
        start, kind = time.time(), ("generate", trajectories, member)
        if kind not in self._made:
            self._made[kind] = super().generate(policy, trajectories, shard, block, guided, strength, member)
        return self._copy(kind, policy, shard, block, None, start)

    def refine(
        self,
        rows: np.ndarray,
        policy: PolicyBlob,
        shard: int,
        block: int,
        parent: int,
        strength: float | None = None,
        member: int = 0,
    ) -> tuple[np.ndarray, BlockReport]:
        start, kind = time.time(), ("refine", len(rows), member)
        if kind not in self._made:
            self._made[kind] = super().refine(rows, policy, shard, block, parent, strength, member)
        return self._copy(kind, policy, shard, block, parent, start)

    def _copy(
        self, kind: tuple[str, int, int], policy: PolicyBlob, shard: int, block: int, parent: int | None, start: float
    ) -> tuple[np.ndarray, BlockReport]:
        rows, report = self._made[kind]
        assert self.config.generator.emulate_s is not None
        time.sleep(max(0.0, start + self.config.generator.emulate_s - time.time()))
        provenance = replace(
            report.provenance,
            block=block,
            shard=shard,
            policy_version=policy.version,
            guidance="emulated",
            parent_block=parent,
            time={"start": start, "end": time.time()},
        )
        return rows.copy(), replace(report, provenance=provenance)


def make_generator(config: Config, models: Models, name: str, learner_id: str) -> Generator:
    """The generator or refiner ``name``, of real or of emulated speed."""
    emulated = config.generator.emulate_s is not None and name.startswith("generator")
    return (EmulatedGenerator if emulated else Generator)(config, models, name, learner_id)
