"""The roles as Ray actors: the only place where ``@ray.remote`` stands.

Payloads (policy weights, blocks) are results or arguments of their own, so that Ray keeps them in its object store
and moves them once per node; the small rest travels beside them. A block is *returned*, never ``ray.put`` by its
producer: the driver owns it, and it survives the producer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from raydiff.compute import configure_compute
from raydiff.config import Config
from raydiff.files import probe_folder
from raydiff.types import PolicyBlob, Transitions

# Each actor imports its own role only, when it starts: the simulator and scipy are seconds that a generator can save.
if TYPE_CHECKING:
    from raydiff.data.dataset import Dataset
    from raydiff.replay.block import BlockReport
    from raydiff.roles.auditor import AuditReport
    from raydiff.roles.evaluator import EvaluationReport
    from raydiff.roles.learner import TrainReport
    from raydiff.roles.models import Models

NO_WEIGHTS = np.zeros(0, np.float32)
Headers = tuple[PolicyBlob, ...]
"""Policies of all seeds without their weights."""


def split_blobs(blobs: Sequence[PolicyBlob]) -> tuple[np.ndarray, Headers]:
    """Weights ``[N, P]`` of the policies of all seeds and their headers apart: the weights become an object of their
    own."""
    return np.stack([blob.weights for blob in blobs]), tuple(replace(blob, weights=NO_WEIGHTS) for blob in blobs)


def join_blobs(weights: np.ndarray, headers: Headers) -> list[PolicyBlob]:
    """What ``split_blobs`` took apart; the weights are views."""
    return [replace(header, weights=own) for header, own in zip(headers, weights, strict=True)]


def _settle(config: Config, cpus: float, nice: int) -> None:
    """Threads from the promised CPUs, and the place in the operating system's queue."""
    configure_compute(config.cluster.worker_threads or max(1, int(cpus)), config.cluster.matmul)
    os.nice(nice)


def _whereabouts() -> tuple[int, str]:
    """Process id, and Ray's id of the node."""
    return os.getpid(), ray.get_runtime_context().get_node_id()


def _limit_gpu_memory(device: str, gpus: float) -> None:
    """A role with a share of a GPU may take no more than that share of its memory."""
    if device.startswith("cuda") and 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)


@ray.remote(concurrency_groups={"train": 1, "ingest": 1})
class LearnerActor:
    """Trains in one thread and ingests in another."""

    def __init__(self, config: Config, real: Transitions, learner_id: str) -> None:
        _settle(config, config.learner.cpus, 0)
        _limit_gpu_memory(config.learner.device, config.learner.gpus)
        from raydiff.roles.learner import Learner

        self.role = Learner(config, real, learner_id)

    @ray.method(concurrency_group="train", num_returns=2)
    def ready(self) -> tuple[np.ndarray, tuple[tuple[int, str], Headers]]:
        weights, headers = split_blobs(self.role.policies())
        return weights, (_whereabouts(), headers)

    @ray.method(concurrency_group="train", num_returns=2)
    def train(
        self, updates: int, front: tuple[int, int] | None, real_only: bool
    ) -> tuple[np.ndarray, tuple[tuple[TrainReport, ...], Headers]]:
        reports = self.role.train(updates, front, real_only)
        weights, headers = split_blobs(self.role.policies())
        return weights, (reports, headers)

    @ray.method(concurrency_group="ingest")
    def ingest(self, rows: np.ndarray, slot: int, policy_version: int, sizes: Sequence[int]) -> None:
        self.role.ingest(rows, slot, policy_version, sizes)

    @ray.method(concurrency_group="train")
    def states(self) -> list[tuple[PolicyBlob, dict[str, np.ndarray]]]:
        plain = ({key: value.cpu().numpy() for key, value in state.items()} for state in self.role.states())
        return list(zip(self.role.policies(), plain, strict=True))


@ray.remote
class SamplerActor:
    """A generator or a refiner."""

    def __init__(self, config: Config, models: Models, name: str, learner_id: str) -> None:
        section = config.refiner if name.startswith("refiner") else config.generator
        _settle(config, section.cpus, section.nice)
        _limit_gpu_memory(section.device, section.gpus)
        from raydiff.roles.emulated import make_generator

        self.role = make_generator(config, models, name, learner_id)

    def ready(self) -> tuple[int, str]:
        return _whereabouts()

    @ray.method(num_returns=2)
    def generate(
        self,
        weights: np.ndarray,
        headers: Headers,
        trajectories: int,
        shard: int,
        block: int,
        guided: bool,
        strength: float | None = None,
    ) -> tuple[np.ndarray, tuple[BlockReport, ...]]:
        return self.role.generate_all(join_blobs(weights, headers), trajectories, shard, block, guided, strength)

    @ray.method(num_returns=2)
    def refine(
        self,
        rows: np.ndarray,
        sizes: Sequence[int],
        weights: np.ndarray,
        headers: Headers,
        shard: int,
        block: int,
        parent: int,
        strength: float | None = None,
    ) -> tuple[np.ndarray, tuple[BlockReport, ...]]:
        return self.role.refine_all(rows, sizes, join_blobs(weights, headers), shard, block, parent, strength)


@ray.remote
class EvaluatorActor:
    """Plays episodes."""

    def __init__(self, config: Config) -> None:
        _settle(config, config.evaluation.cpus, config.evaluation.nice)
        _limit_gpu_memory(config.evaluation.device, config.evaluation.gpus)
        from raydiff.roles.evaluator import Evaluator

        self.role = Evaluator(config)

    def ready(self) -> tuple[int, str]:
        return _whereabouts()

    def evaluate(self, weights: np.ndarray, headers: Headers, final: bool) -> tuple[EvaluationReport, ...]:
        return self.role.evaluate_all(join_blobs(weights, headers), final)


@ray.remote
class AuditorActor:
    """Replays blocks in the simulator."""

    def __init__(self, config: Config, real: Transitions) -> None:
        _settle(config, config.audit.cpus, config.audit.nice)
        from raydiff.roles.auditor import Auditor

        self.role = Auditor(config, real)

    def ready(self) -> tuple[int, str]:
        return _whereabouts()

    def audit(
        self, rows: np.ndarray, sizes: Sequence[int], block: int, refreshed: bool, weights: np.ndarray, headers: Headers
    ) -> tuple[AuditReport, ...]:
        return self.role.audit_all(rows, sizes, block, refreshed, join_blobs(weights, headers))


@ray.remote(concurrency_groups={"work": 1, "watch": 1})
class PretrainActor:
    """Trains the models and returns them; ``progress`` answers while it does."""

    def __init__(self, config: Config) -> None:
        _settle(config, config.denoiser.cpus, 0)
        _limit_gpu_memory(config.denoiser.device, config.denoiser.gpus)
        self.config = config
        self.last: tuple[str, int, int, float, float | None] | None = None

    @ray.method(concurrency_group="work")
    def run(self, dataset: Dataset, cache: str) -> Models:
        """Works in ``cache``, where training can be resumed; on a node without that folder, in a temporary one."""
        from raydiff.roles.pretrainer import prepare_models

        with ExitStack() as stack:
            try:
                probe_folder(Path(cache))
            except OSError:
                cache = stack.enter_context(TemporaryDirectory(prefix="raydiff-"))
            return prepare_models(self.config, dataset, Path(cache), self._note)

    def _note(self, *progress: Any) -> None:
        self.last = progress

    @ray.method(concurrency_group="watch")
    def progress(self) -> tuple[str, int, int, float, float | None] | None:
        return self.last
