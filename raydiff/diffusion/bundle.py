"""A trained denoiser with everything needed to sample from it, on disk or on its way to another process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raydiff.config import DenoiserConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.data.windows import Layout
from raydiff.diffusion.edm import Denoiser
from raydiff.diffusion.training_set import build_denoiser, columns_of
from raydiff.errors import UserError

FORMAT = 3
WEIGHTS, SPEC = "weights.safetensors", "bundle.json"


@dataclass(frozen=True)
class DenoiserBundle:
    """Averaged weights in ``denoiser`` (in evaluation mode), the ``normalizer`` of its rows, the number of rows
    ``length`` and the sizes of their parts; ``hash`` names the training that it came from, and ``layout`` says what a
    row is."""

    denoiser: Denoiser
    normalizer: TrajectoryNormalizer
    length: int
    observation_size: int
    action_size: int
    hash: str
    config: DenoiserConfig
    layout: Layout = "trajectory"

    @property
    def columns(self) -> int:
        return columns_of(self.layout, self.observation_size, self.action_size)

    def to(self, device: torch.device | str) -> DenoiserBundle:
        """A copy on ``device``, or itself when it is there already."""
        if all(tensor.device == torch.device(device) for tensor in self._tensors().values()):
            return self
        arrays, spec = self.to_arrays()
        return DenoiserBundle.from_arrays(arrays, spec, device)

    def _tensors(self) -> dict[str, torch.Tensor]:
        statistics = {"mean": self.normalizer.mean, "std": self.normalizer.std}
        return dict(self.denoiser.state_dict()) | statistics

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A flat dict of arrays and a JSON-able spec, from which ``from_arrays`` rebuilds it in any process."""
        tensors = {f"denoiser.{name}": value for name, value in self.denoiser.state_dict().items()}
        tensors |= {f"normalizer.{name}": value for name, value in self.normalizer.state().items()}
        spec = {
            "format": FORMAT,
            "layout": self.layout,
            "length": self.length,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hash": self.hash,
            "sigma_data": self.denoiser.sigma_data,
            "config": self.config.model_dump(mode="json"),
        }
        return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}, spec

    @staticmethod
    def from_arrays(
        arrays: dict[str, np.ndarray], spec: dict[str, Any], device: torch.device | str = "cpu"
    ) -> DenoiserBundle:
        """The inverse of ``to_arrays``; ``ValueError`` for another format."""
        if spec.get("format") != FORMAT:
            raise ValueError(f"denoiser bundle has format {spec.get('format')}, this version reads {FORMAT}")
        config = DenoiserConfig.model_validate(spec["config"])
        parts: dict[str, dict[str, torch.Tensor]] = {"denoiser": {}, "normalizer": {}}
        for name, array in arrays.items():
            part, _, key = name.partition(".")
            parts[part][key] = torch.from_numpy(np.array(array))
        layout, sizes = spec["layout"], (spec["length"], spec["observation_size"], spec["action_size"])
        denoiser = build_denoiser(config, layout, *sizes)
        denoiser.sigma_data = spec["sigma_data"]
        denoiser.load_state_dict(parts["denoiser"])
        return DenoiserBundle(
            denoiser.to(device).eval().requires_grad_(False),
            TrajectoryNormalizer.from_state(parts["normalizer"]).to(device),
            *sizes,
            spec["hash"],
            config,
            layout,
        )

    def save(self, folder: Path) -> None:
        """Write ``weights.safetensors`` and then ``bundle.json``, each atomically; the second one means complete."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays, spec = self.to_arrays()
        write_tensors(folder / WEIGHTS, {name: torch.from_numpy(array) for name, array in arrays.items()})
        temporary = folder / f".{SPEC}.{os.getpid()}"
        temporary.write_text(json.dumps(spec, indent=1), encoding="utf-8")
        os.replace(temporary, folder / SPEC)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a complete bundle lies in ``folder``."""
        return (folder / SPEC).is_file()

    @staticmethod
    def load(folder: Path, device: torch.device | str = "cpu") -> DenoiserBundle:
        """Read what ``save`` wrote; ``UserError`` when it is missing or damaged."""
        try:
            spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            arrays = {name: tensor.numpy() for name, tensor in load_file(folder / WEIGHTS).items()}
            return DenoiserBundle.from_arrays(arrays, spec, device)
        except FileNotFoundError as error:
            missing = error.filename or folder / WEIGHTS
            raise UserError(f"{folder}: no denoiser here ({missing} is missing). `raydiff train` makes one.") from error
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{folder}: the denoiser stored here cannot be read ({error}). Delete the folder; it is trained anew."
            ) from error


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically: beside ``path``, then moved over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)
