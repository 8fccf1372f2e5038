"""Train a denoiser on windows of real data, resumably, or take it from the cache (sections A.2 and 0.5).

The cache is addressed by content: a denoiser is found again by everything that changes its weights, and by nothing
else.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from raydiff.config import DenoiserConfig
from raydiff.data.windows import Layout, Windows
from raydiff.diffusion.bundle import FORMAT, DenoiserBundle
from raydiff.diffusion.trainer import DenoiserTrainer

Progress = Callable[[int, int, float, float | None], None]
"""``progress(step, steps, mean loss since the last call, held-out loss or None)``."""

CHECKPOINT = "checkpoint.safetensors"
REPORTS = 100
HOLDOUT_EVERY = 5
UNUSED: dict[Layout, set[str]] = {
    "trajectory": {"mask_conditions", "clean_conditions"},
    "transition": {"mask_conditions", "clean_conditions", "length", "stride"},
    "conditional": {"action_space"},
}


def denoiser_key(dataset_hash: str, config: DenoiserConfig, layout: Layout = "trajectory") -> str:
    """Name of the denoiser that this data, configuration and layout lead to, whatever the machine it is trained on."""
    elsewhere = {"cpus", "gpus", "device", "checkpoint_every"}
    content = config.model_dump(mode="json", exclude=elsewhere | UNUSED[layout])
    facts = {"format": FORMAT, "dataset": dataset_hash, "layout": layout, "config": content}
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def load_or_pretrain(
    windows: Windows,
    config: DenoiserConfig,
    *,
    dataset_hash: str,
    cache: Path,
    progress: Progress | None = None,
) -> DenoiserBundle:
    """The denoiser from ``cache/denoisers/<key>/``; trained there (or finished) when it is not complete."""
    folder = cache / "denoisers" / denoiser_key(dataset_hash, config, windows.layout)
    if DenoiserBundle.exists(folder):
        return DenoiserBundle.load(folder, config.device)
    return pretrain(windows, config, dataset_hash=dataset_hash, folder=folder, progress=progress)


def pretrain(
    windows: Windows,
    config: DenoiserConfig,
    *,
    dataset_hash: str,
    folder: Path,
    progress: Progress | None = None,
) -> DenoiserBundle:
    """Train for ``config.steps`` and save the bundle in ``folder``, continuing from a checkpoint that lies there.

    A resumed run ends with the same weights as an uninterrupted one (on CPU, bit for bit). Ctrl-C ends the current
    step, leaves a checkpoint and is raised. ``progress`` is called about every 1 % of the steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, checkpoint = denoiser_key(dataset_hash, config, windows.layout), folder / CHECKPOINT
    trainer = DenoiserTrainer(windows, config)
    if checkpoint.is_file():
        trainer.restore(checkpoint, key)
    try:
        _train(trainer, lambda: trainer.save(checkpoint, key), progress)
    except KeyboardInterrupt:
        trainer.save(checkpoint, key)
        raise
    bundle = DenoiserBundle(
        trainer.average.eval(),
        trainer.normalizer,
        windows.length,
        windows.observation_size,
        windows.action_size,
        key,
        config,
        windows.layout,
    )
    bundle.save(folder)
    checkpoint.unlink(missing_ok=True)
    return bundle


def _train(trainer: DenoiserTrainer, save: Callable[[], None], progress: Progress | None) -> None:
    """Steps until the last one, with reports and checkpoints between them."""
    config, steps = trainer.config, trainer.config.steps
    every = max(1, steps // REPORTS)
    total, count = torch.zeros((), device=trainer.device), 0
    with _interrupts_between_steps() as interrupted:
        while trainer.step < steps:
            value = trainer.advance()
            total, count = total + value, count + 1
            step = trainer.step
            if interrupted():
                raise KeyboardInterrupt
            if step % config.checkpoint_every == 0 and step < steps:
                save()
            if progress is not None and (step % every == 0 or step == steps):
                due = step % (every * HOLDOUT_EVERY) == 0 or step == steps
                progress(step, steps, float(total) / count, trainer.holdout_loss() if due else None)
                total, count = torch.zeros_like(total), 0


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed; inside, the signal itself interrupts nothing.

    A step that is broken off half way could not be resumed exactly. Only the main thread receives signals, and only
    it may change their handlers.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.set()

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
