"""One training run of a denoiser: its step, its held-out loss and its resumable state."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from raydiff.config import DenoiserConfig
from raydiff.data.windows import Windows
from raydiff.diffusion.bundle import write_tensors
from raydiff.diffusion.conditional import ConditionalDenoiser
from raydiff.diffusion.edm import loss, loss_at
from raydiff.diffusion.training_set import build_denoiser, fit_normalizer
from raydiff.errors import UserError

HOLDOUT_WINDOWS = 1024


def learning_rate(step: int, config: DenoiserConfig) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then a cosine to zero (section 0.5)."""
    warm = config.warmup * config.steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / (config.steps - warm)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


class DenoiserTrainer:
    """Adam on the denoising loss with averaged weights ``average``; ``step`` counts the finished steps.

    The average's decay rises as ``(1 + step) / (10 + step)`` to ``config.ema``, so that short runs do not keep their
    initial weights.
    """

    def __init__(self, windows: Windows, config: DenoiserConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.normalizer = fit_normalizer(windows, config).to(self.device)
        rows = self.normalizer.encode(torch.from_numpy(windows.rows).to(self.device))
        # Every window as one record of a strided view, so that a batch is a single gather.
        count, columns = rows.shape
        self.records = rows.as_strided((count - windows.length + 1, windows.length * columns), (columns, 1))
        self.shape = (windows.length, columns)
        self.train = torch.from_numpy(np.ascontiguousarray(windows.train, dtype=np.int64)).to(self.device)
        self.validation = _spread(windows.validation, HOLDOUT_WINDOWS).to(self.device)
        sizes = (windows.length, windows.observation_size, windows.action_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.denoiser = build_denoiser(config, windows.layout, *sizes).to(self.device)
        # Which entries are learnt [L, C] and which rows are padding, as records [windows, L]; None: all, and none.
        self.learnt: Tensor | None = None
        if isinstance(self.denoiser, ConditionalDenoiser) and config.mask_conditions:
            self.learnt = ~self.denoiser.given
        self.padding: Tensor | None = None
        if windows.padding is not None:
            flags = torch.from_numpy(windows.padding).to(self.device)
            self.padding = flags.as_strided((count - windows.length + 1, windows.length), (1, 1))
        self.average = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.weights: list[Tensor] = list(self.denoiser.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = torch.optim.Adam(self.weights, lr=config.learning_rate, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(config.seed + 1)
        self.step = 0

    def _clean(self, starts: Tensor) -> Tensor:
        return self.records.index_select(0, starts).view(len(starts), *self.shape)

    def _counted(self, starts: Tensor) -> Tensor | None:
        """Which entries ``[B, L, C]`` of these windows enter the loss; None: all."""
        shape = (len(starts), *self.shape)
        counted = None if self.learnt is None else self.learnt.expand(shape)
        if self.padding is None:
            return counted
        real = ~self.padding.index_select(0, starts).unsqueeze(-1)
        return real.expand(shape) if counted is None else counted & real

    def advance(self) -> Tensor:
        """One optimiser step; returns its loss, a detached scalar on the device."""
        config = self.config
        chosen = torch.randint(len(self.train), (config.batch_size,), generator=self.generator, device=self.device)
        starts = self.train[chosen]
        value = loss(
            self.denoiser,
            self._clean(starts),
            self.generator,
            config.p_mean,
            config.p_std,
            self._counted(starts),
        )
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, config.gradient_clip)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.step, config)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1.0 - decay)
        self.step += 1
        return value.detach()

    @torch.no_grad()
    def holdout_loss(self) -> float:
        """Loss of the averaged weights on held-out windows, always with the same noise."""
        generator = torch.Generator(self.device).manual_seed(0)
        normal = torch.randn(len(self.validation), generator=generator, device=self.device)
        sigma = (self.config.p_mean + self.config.p_std * normal).exp()
        y, counted = self._clean(self.validation), self._counted(self.validation)
        return float(loss_at(self.average, y, sigma, generator, counted))

    def save(self, path: Path, key: str) -> None:
        """Everything that the rest of the run depends on, as one safetensors file, written atomically."""
        tensors = {f"denoiser.{name}": value for name, value in self.denoiser.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, weight in enumerate(self.weights):
            tensors |= {f"adam.{index}.{name}": value for name, value in self.optimizer.state[weight].items()}
        tensors["generator"] = self.generator.get_state()
        state = {"step": self.step, "key": key, "device": self.device.type}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def restore(self, path: Path, key: str) -> None:
        """Continue from what ``save`` wrote; ``UserError`` when it belongs to another training.

        On another kind of device the noise starts from a new seed, since its generator's state does not carry over.
        """
        with safe_open(path, framework="pt", device="cpu") as file:
            state = json.loads(file.metadata()["state"])
            if state["key"] != key:
                raise UserError(f"{path}: this checkpoint is of denoiser {state['key']}, not of {key}. Delete it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        self.step = state["step"]
        self.denoiser.load_state_dict(_part(tensors, "denoiser."))
        self.average.load_state_dict(_part(tensors, "average."))
        moments = {index: _part(tensors, f"adam.{index}.") for index in range(len(self.weights))}
        adam = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": moments, "param_groups": adam["param_groups"]})
        if state["device"] == self.device.type:
            self.generator.set_state(tensors["generator"])
        else:
            self.generator.manual_seed(self.config.seed + 1 + self.step)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _spread(starts: np.ndarray, count: int) -> Tensor:
    """At most ``count`` of the starts, evenly spread."""
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(np.int64))
    return torch.from_numpy(np.ascontiguousarray(starts[chosen], dtype=np.int64))
