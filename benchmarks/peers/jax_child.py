"""Drives benchmarks/peers/jax_sampler.py: hands it a network and a schedule, and times or checks its samples."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydiff.config import SamplerConfig
from raydiff.diffusion.edm import Denoiser


class JaxSampler:
    """The same denoiser in JAX, in a process of its own that is pinned to ``core``. A context manager."""

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
        self.folder = folder
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
        (folder / "job.json").write_text(json.dumps(job))
        script = Path(__file__).with_name("jax_sampler.py")
        environment = {**os.environ, "RAYDIFF_BENCHMARK_CORE": str(core), "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        self.process = subprocess.Popen(
            [python, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version = self._answer()["ready"]

    def seconds(self) -> float:
        """Time of one sampling of the whole batch, noise included."""
        return float(self._ask("run")["seconds"])

    def samples(self) -> np.ndarray:
        """What it makes of the given noise."""
        self._ask("check")
        return np.load(self.folder / "samples.npy")

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

    def __enter__(self) -> JaxSampler:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
