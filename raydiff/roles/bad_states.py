"""The first update that gave a loss or a weight which is not finite: found again, and kept in a file.

Looking at every loss would make the learner wait for its device at every update. So losses are looked at when a chunk
ends, and the updates since a copy of the agent's state are repeated one by one only if something has gone wrong.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.members import Members, build_members, part_of
from raydiff.checkpoint import part_name
from raydiff.config import Config
from raydiff.files import whole_file
from raydiff.guidance.build import needs_critic
from raydiff.replay.table import Table
from raydiff.roles.stages import stage_at
from raydiff.seeds import key_seed
from raydiff.types import Batch

FOLDER = "bad_states"
_FEWEST = 50  # updates between two copies of the state: copying costs a tenth of an update or less
HEADER = "bad_update"


@dataclass(frozen=True)
class Recipe:
    """What the agents of all seeds are built from: the settings, and mean and standard deviation ``[S]`` of the real
    observations."""

    config: Config
    observation_mean: np.ndarray
    observation_std: np.ndarray
    action_size: int

    def build(self) -> Members:
        config, size = self.config, len(self.observation_mean)
        return build_members(
            config.learner, size, self.action_size, self.observation_mean, self.observation_std,
            [key_seed(seed, "agent") for seed in config.seeds], needs_critic(config.guidance),
        )  # fmt: skip

    def alone(self, member: int) -> Recipe:
        """That of one seed as a run of its own."""
        values = {"seed": self.config.seeds[member], "learner": self.config.learner.model_copy(update={"seeds": 1})}
        return replace(self, config=self.config.model_copy(update=values))


class BadUpdate(FloatingPointError):
    """An update that went wrong, with all that is needed to repeat it: it travels to whoever owns the run folder.

    ``header``: plain facts. ``tensors``: ``state.*`` of the agent before the update, ``batch.*``, and the observation
    statistics.
    """

    def __init__(self, what: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__(what, header, tensors)
        self.what, self.header, self.tensors = what, header, tensors

    def __str__(self) -> str:
        return self.what

    def save(self, run: Path, arm: str) -> Path:
        """Write it to the run's folder as ``bad_states/ARM-update-N.safetensors``, atomically; ``ARM@seedS`` where several
        seeds were trained. Raises ``OSError``."""
        name = part_name(arm, self.header["config"]["seed"] if self.header["seeds"] > 1 else None)
        path = run / FOLDER / f"{name}-update-{self.header['update']}.safetensors"
        with whole_file(path) as part:
            save_file(self.tensors, part, metadata={HEADER: json.dumps(self.header)})
        return path


@dataclass
class _Span:
    """The agent's state before ``update``, when ``stage`` had begun (-1: none), and the batches since."""

    state: dict[str, Tensor]
    update: int
    stage: int
    batches: list[Batch]


class Rewind:
    """Copies of the agent's state from a short time ago, and the batches since: at most two spans of a chunk, or of
    ``_FEWEST`` updates where chunks are shorter. Everything stays on the learner's device."""

    def __init__(self) -> None:
        self._spans: deque[_Span] = deque(maxlen=2)

    def keep(self, agent: Members, update: int, stage: int, batches: Sequence[Batch]) -> None:
        """Before the updates on ``batches``."""
        if not self._spans or len(self._spans[-1].batches) >= _FEWEST:
            self._spans.append(_Span(agent.state_dict(), update, stage, []))
        self._spans[-1].batches += batches

    def find(
        self, recipe: Recipe, stages: Sequence[Stage], table: Table, arm: str, member: int = 0
    ) -> BadUpdate | None:
        """Repeat what is kept until the first update after which a metric or an entry of the state is not finite; None
        where nothing goes wrong this time, as sums on a GPU come in no fixed order. Of several seeds, that of number
        ``member`` is repeated, alone."""
        spans, seeds = list(self._spans), recipe.config.learner.seeds
        if seeds > 1:
            spans = [_span_of(span, recipe, stages, table, member) for span in spans]
            recipe, arm = recipe.alone(member), f"{arm}, seed {recipe.config.seeds[member]}"
        start = next((i for i in reversed(range(len(spans))) if not _broken(spans[i].state)), 0)
        agent, update, stage = recipe.build(), spans[start].update, spans[start].stage
        if stage >= 0:
            agent.begin_stage(stages[stage].name, table)
        agent.load_state_dict(spans[start].state)
        for batch in itertools.chain.from_iterable(span.batches for span in spans[start:]):
            if stage_at(stages, update) != stage:
                stage = stage_at(stages, update)
                agent.begin_stage(stages[stage].name, table)
            before = agent.state_dict()
            metrics = numbers(agent.update(batch))
            bad = _broken(metrics) or [name for name in _broken(agent.state_dict()) if name not in _broken(before)]
            update += 1
            if bad:
                return _bad_update(recipe, stages[stage].name, update, bad, metrics, before, batch, arm, seeds)
        return None


def _span_of(span: _Span, recipe: Recipe, stages: Sequence[Stage], table: Table, member: int) -> _Span:
    """One seed's part of a span, as it would be if that seed were trained alone."""
    members = recipe.build()
    if span.stage >= 0:
        members.begin_stage(stages[span.stage].name, table)
    members.load_state_dict(span.state)
    state = members.member_state(member)
    return _Span(state, span.update, span.stage, [part_of(batch, member) for batch in span.batches])


def non_finite(values: Mapping[str, Tensor]) -> dict[str, int]:
    """How many entries of each tensor are not finite, by name, where there are any."""
    counts = {name: int((~value.isfinite()).sum()) for name, value in values.items() if value.is_floating_point()}
    return {name: count for name, count in counts.items() if count}


def _bad_update(
    recipe: Recipe,
    stage: str,
    update: int,
    bad: Sequence[str],
    metrics: Mapping[str, float],
    before: Mapping[str, Tensor],
    batch: Batch,
    arm: str,
    seeds: int,
) -> BadUpdate:
    fields = {name: value for name, value in batch._asdict().items() if value is not None}
    void = non_finite(fields)
    cause = "; its batch holds " + ", ".join(f"{n:,} of {name}" for name, n in void.items()) if void else ""
    what = f"{arm}: {', '.join(bad)} became non-finite in update {update:,}{f' ({stage})' if stage != 'train' else ''}"
    header = {
        "arm": arm, "seeds": seeds, "update": update, "stage": stage, "non_finite": list(bad),
        "metrics": {name: repr(value) for name, value in metrics.items()},
        "threads": torch.get_num_threads(),
        "config": recipe.config.model_dump(mode="json"),
    }  # fmt: skip
    tensors = {f"state.{name}": value for name, value in before.items()}
    tensors |= {f"batch.{name}": value for name, value in fields.items()}
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    statistics = {"observation_mean": recipe.observation_mean, "observation_std": recipe.observation_std}
    plain |= {name: torch.tensor(np.asarray(value)) for name, value in statistics.items()}
    return BadUpdate(what + (f"{cause} that are not finite" if cause else ""), header, plain)


def numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of an update on the host."""
    return {name: float(value) for name, value in metrics.items()}


def _broken(values: Mapping[str, Tensor] | Mapping[str, float]) -> list[str]:
    return list(non_finite({name: torch.as_tensor(value) for name, value in values.items()}))
