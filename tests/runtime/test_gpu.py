"""The local runtime with learner, generators and refiner on one GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.metrics import MetricsWriter, read_metrics, select
from raydiff.roles.models import Models
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.local import LocalCrew
from raydiff.runtime.recorder import Recorder
from raydiff.runtime.running import Running


@pytest.mark.gpu
def test_learner_generators_and_refiner_on_one_gpu(
    small: Callable[..., Config], dataset: Dataset, models: Models, tmp_path: Path
):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = small(**{f"{role}.device": "cuda" for role in ("learner", "generator", "refiner", "evaluation")})
    crew = LocalCrew(Materials(config, "guided", dataset.transitions("raydiff"), models))
    with MetricsWriter(tmp_path) as writer:
        running = Running(Conductor(config, "guided"), crew, Recorder(writer, "guided", lambda text: None))
        crew.start()
        while not running.finished:
            running.step()
    assert running.conductor.update == config.learner.updates
    assert select(read_metrics(tmp_path), "block", "guided")
