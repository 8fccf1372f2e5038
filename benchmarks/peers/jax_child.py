"""Drives the JAX peers: hands them their job, and times or checks what they do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from raydiff.config import SamplerConfig
from raydiff.diffusion.edm import Denoiser


class JaxChild:
    """A script of this folder under a Python that has JAX, in a process of its own that is pinned to ``core`` and
    answers lines. A context manager."""

    def __init__(self, python: Path, script: str, folder: Path, job: dict[str, Any], core: int) -> None:
        self.folder = folder
        (folder / "job.json").write_text(json.dumps(job))
        environment = {**os.environ, "RAYDIFF_BENCHMARK_CORE": str(core), "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        self.process = subprocess.Popen(
            [python, Path(__file__).with_name(script), folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.version = self._answer()["ready"]

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JAX peer ended with exit code {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class JaxLearner(JaxChild):
    """TD3+BC and IQL of ``updates`` updates a call; ``job`` as jax_learner.py reads it."""

    def __init__(self, python: Path, folder: Path, job: dict[str, Any], core: int) -> None:
        super().__init__(python, "jax_learner.py", folder, job, core)

    def seconds(self, algorithm: str) -> float:
        """Time of one call."""
        return float(self._ask(algorithm)["seconds"])


class JaxSampler(JaxChild):
    """The same denoiser in JAX."""

    def __init__(
        self,
        python: Path,
        folder: Path,
        denoiser: Denoiser,
        network: dict[str, Any],
        sampler: SamplerConfig,
        sigmas: torch.Tensor,
        noise: torch.Tensor,
        core: int,
    ) -> None:
        folder.mkdir(parents=True)
        weights = {name: value.detach().numpy() for name, value in denoiser.network.state_dict().items()}
        np.savez(folder / "weights.npz", **weights)
        np.save(folder / "noise.npy", noise.numpy())
        job = {
            **network,
            "precision": sampler.precision,
            "churn": sampler.churn,
            "churn_min": sampler.churn_min,
            "churn_max": sampler.churn_max,
            "churn_noise": sampler.churn_noise,
            "sigmas": sigmas.tolist(),
        }
        super().__init__(python, "jax_sampler.py", folder, job, core)

    def seconds(self) -> float:
        """Time of one sampling of the whole batch, noise included."""
        return float(self._ask("run")["seconds"])

    def samples(self) -> np.ndarray:
        """What it makes of the given noise."""
        self._ask("check")
        return np.load(self.folder / "samples.npy")
