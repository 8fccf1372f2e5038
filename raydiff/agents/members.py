"""Several seeds of one learner that are trained together, each as a run of its own: the members.

Member ``i`` computes what a learner built from the ``i``-th seed alone would, from the ``i``-th part of every batch. A
single seed is the agent itself, without an axis for members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydiff.agents.api import Agent, Stage
from raydiff.agents.batchable import Batchable
from raydiff.agents.compiled import Update, compiled
from raydiff.agents.cuda_graph import Graphed
from raydiff.agents.registry import build_agent
from raydiff.config_learner import BATCHED, LearnerConfig
from raydiff.types import Batch, PolicyBlob


class Members(Protocol):
    """What the learner trains: ``N`` agents in step with each other."""

    def stages(self) -> list[Stage]:
        """As ``api.Agent.stages``: the same for all."""

    def begin_stage(self, name: str, table: Any) -> None:
        """As ``api.Agent.begin_stage``, for all of them on the same real ``table``."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One gradient step of each on its part of a batch, whose fields are ``[N, B, ...]``; the metrics are ``[N]``,
        detached and on the learner's device. A single member takes fields ``[B, ...]`` and gives scalars."""

    def policy_blobs(self, version: int) -> list[PolicyBlob]:
        """The current policy of each."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to continue bit by bit, as copies, of all of them in one."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``. Raises ``ValueError`` when it belongs to other members."""

    def member_state(self, member: int) -> dict[str, Tensor]:
        """The ``state_dict`` that the agent of that seed alone would have, as copies."""


class Single:
    """One agent as the only member: every call goes straight to it."""

    def __init__(self, agent: Agent, update: Update | None = None) -> None:
        """``update``: that of the agent, where it is compiled."""
        self.agent, self.update = agent, update or agent.update
        self.stages, self.begin_stage = agent.stages, agent.begin_stage
        self.state_dict, self.load_state_dict = agent.state_dict, agent.load_state_dict

    def policy_blobs(self, version: int) -> list[PolicyBlob]:
        return [self.agent.policy_blob(version)]

    def member_state(self, member: int) -> dict[str, Tensor]:
        return self.agent.state_dict()


class Batched:
    """One learner whose parameters have a row for each seed: what fills a GPU. Its sums come in another order than
    those of separate runs, so that it equals them up to rounding."""

    def __init__(self, agent: Batchable, update: Update) -> None:
        self.agent, self.update = agent, update
        self.stages, self.begin_stage = agent.stages, agent.begin_stage
        self.state_dict, self.load_state_dict = agent.state_dict, agent.load_state_dict
        self.member_state = agent.member_state

    def policy_blobs(self, version: int) -> list[PolicyBlob]:
        return [self.agent.policy_blob(version, member) for member in range(self.agent.seeds or 1)]


class Looped:
    """Agents that are updated one after the other: right for every algorithm, and as slow as they are many."""

    def __init__(self, agents: Sequence[Agent], updates: Sequence[Update]) -> None:
        """``updates``: those of the agents, compiled or not."""
        self.agents, self.updates = list(agents), list(updates)

    def stages(self) -> list[Stage]:
        return self.agents[0].stages()

    def begin_stage(self, name: str, table: Any) -> None:
        for agent in self.agents:
            agent.begin_stage(name, table)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        found = [update(part_of(batch, member)) for member, update in enumerate(self.updates)]
        return {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}

    def policy_blobs(self, version: int) -> list[PolicyBlob]:
        return [agent.policy_blob(version) for agent in self.agents]

    def state_dict(self) -> dict[str, Tensor]:
        parts = (self.member_state(member) for member in range(len(self.agents)))
        return {f"{member}.{name}": value for member, part in enumerate(parts) for name, value in part.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        parts: list[dict[str, Tensor]] = [{} for _ in self.agents]
        for key, value in state.items():
            member, _, name = key.partition(".")
            if not member.isdecimal() or int(member) >= len(parts):
                raise ValueError(f"the saved state belongs to another learner: {key} is of none of {len(parts)} seeds")
            parts[int(member)][name] = value
        for agent, part in zip(self.agents, parts, strict=True):
            agent.load_state_dict(part)

    def member_state(self, member: int) -> dict[str, Tensor]:
        return self.agents[member].state_dict()


def part_of(batch: Batch, member: int) -> Batch:
    """Fields ``[B, ...]`` of one member of a batch ``[N, B, ...]``, without copying."""
    parts = {name: field[member] for name, field in batch._asdict().items() if field is not None}
    return Batch(**parts)


def build_members(
    config: LearnerConfig,
    observation_size: int,
    action_size: int,
    observation_mean: np.ndarray | Tensor,
    observation_std: np.ndarray | Tensor,
    seeds: Sequence[int],
    publish_critic: bool = False,
) -> Members:
    """The configured learner once for each of ``seeds``, from which its weights are drawn; else as ``build_agent``. Its
    updates are compiled, or recorded as CUDA graphs, where the configuration asks."""
    rest = observation_size, action_size, observation_mean, observation_std
    if len(seeds) > 1 and batches(config):
        batched = build_agent(config, *rest, seeds, publish_critic)
        assert isinstance(batched, Batchable), config.algorithm
        return Batched(batched, _fast(batched, config))
    agents = [build_agent(config, *rest, seed, publish_critic) for seed in seeds]
    updates = [_fast(agent, config) for agent in agents]
    return Single(agents[0], updates[0]) if len(seeds) == 1 else Looped(agents, updates)


def _fast(agent: Agent, config: LearnerConfig) -> Update:
    """Its update, compiled or as CUDA graphs where the configuration asks: the program alone where it is apart."""
    if not isinstance(agent, Batchable):
        return compiled(agent.update) if config.compile else agent.update
    if config.compile:
        agent.program = compiled(agent.program)
    if config.cuda_graph:
        agent.program = Graphed(agent.program)
    return agent.update


def batches(config: LearnerConfig) -> bool:
    """Whether several seeds share batched parameters."""
    wanted = config.batch_seeds
    return wanted == "on" or (wanted == "auto" and config.algorithm in BATCHED and config.device != "cpu")
