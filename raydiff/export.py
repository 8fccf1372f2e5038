"""Policies for use without raydiff: a program of torch.export, ONNX, and safetensors with a specification in JSON.

Actions are a function of the observation and of ``noise``, which every file takes as an input of its own where the
policy is random: nothing is drawn inside, so that all of them give the same actions. What is exported is held against
the policy's own actions before anything is written where it belongs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from raydiff import exported_policy
from raydiff.agents.diffusion_policy import DiffusionPolicy
from raydiff.agents.policy import Policy
from raydiff.agents.tanh_policy import LOG_STD_RANGE, mean_and_log_std, squash
from raydiff.errors import RunFailed, UserError
from raydiff.types import PolicyBlob

FORMATS = ("pt2", "onnx", "safetensors")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4  # float32 sums in another order, through a few layers


@dataclass(frozen=True)
class Exported:
    """A file that was written. ``difference``: its largest difference from the policy's own actions; None for files
    that hold none."""

    path: Path
    difference: float | None


class Perceptron(nn.Module):
    """A policy of a plain perceptron as a module: ``observation [B, S]``, and ``noise [B, A]`` where it is random, to
    ``action [B, A]``."""

    observation_mean: Tensor
    observation_std: Tensor
    log_std: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.kind = policy.spec.kind
        self.register_buffer("observation_mean", policy.observation_mean)
        self.register_buffer("observation_std", policy.observation_std)
        if self.kind == "gaussian":
            self.register_buffer("log_std", policy.log_std)
        self.layers = nn.ModuleList()
        for weight, bias in policy.network.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight.clone(), bias.flatten().clone()
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        signal = (observation - self.observation_mean) / self.observation_std
        for layer in self.layers[:-1]:
            signal = layer(signal).relu()
        signal = self.layers[-1](signal)
        if noise is None:
            return signal.tanh()
        if self.kind == "gaussian":
            return (signal.tanh() + self.log_std.exp() * noise).clamp(-1, 1)
        return squash(*mean_and_log_std(signal), noise)[0]


def export_policy(
    blob: PolicyBlob, folder: Path, facts: dict[str, Any], formats: Sequence[str] = FORMATS, overwrite: bool = False
) -> list[Exported]:
    """Write ``policy.pt2``, ``policy.onnx``, ``policy.safetensors`` with ``policy.py``, and ``policy.json``, which says
    what they hold and, under ``origin``, the ``facts``. The folder appears whole or not at all.

    Raises ``UserError`` for a folder that holds something, for ONNX without its packages and for policies that cannot
    be exported, and ``RunFailed`` where a file does not give the policy's own actions.
    """
    _check(folder, formats, overwrite)
    policy = Policy.from_blob(blob)
    if isinstance(policy, DiffusionPolicy):
        raise UserError(
            f"The policy of {facts.get('arm', 'this arm')} denoises its actions; such policies cannot be exported yet."
        )
    module = Perceptron(policy).eval()
    random = policy.spec.kind != "deterministic"
    spec = _specification(policy, blob, module, random, facts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
            part = Path(made) / folder.name
            part.mkdir()
            found = _write(part, module, policy, spec, random, formats)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(part, folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}). Choose another folder with --out."
        ) from None
    return [Exported(folder / name, difference) for name, difference in found.items()]


def _check(folder: Path, formats: Sequence[str], overwrite: bool) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"--formats {','.join(formats)}: name one or several of {', '.join(FORMATS)}, with commas.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if folder.is_dir() and overwrite and (folder / "policy.json").is_file():
            return
        raise UserError(
            f"{folder} exists. Choose another with --out"
            + (", or replace it with --overwrite." if (folder / "policy.json").is_file() else "; it is no export.")
        )
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: pip install 'raydiff[export]'. Or leave it out with --formats "
            "pt2,safetensors."
        )


def _specification(
    policy: Policy, blob: PolicyBlob, module: Perceptron, random: bool, facts: dict[str, Any]
) -> dict[str, Any]:
    size, actions = policy.spec.observation_size, policy.spec.action_size
    spec: dict[str, Any] = {
        "format": "raydiff policy", "format_version": 1, "kind": policy.spec.kind,
        "observation_size": size, "action_size": actions, "layers": len(module.layers),
        "inputs": {"observation": f"[B, {size}] float32, in the environment's units"},
        "output": f"action [B, {actions}] float32 within -1 and 1. Where the environment's own bounds are others, bring "
        "them there linearly.",
        "network": "x = (observation - observation_mean) / observation_std; then, layer by layer, x = x weight^T + bias, "
        "with ReLU after all layers but the last",
    }  # fmt: skip
    if random:
        spec["inputs"]["noise"] = f"[B, {actions}] float32: zeros in evaluation, standard normal for a draw"
    match policy.spec.kind:
        case "gaussian":
            spec["action"] = "clip(tanh(x) + exp(log_std) noise, -1, 1)"
        case "tanh_gaussian":
            spec["action"] = "tanh(mean + exp(clip(log_std)) noise), where x is mean and log_std, one after the other"
            spec["log_std_range"] = list(LOG_STD_RANGE)
        case _:
            spec["action"] = "tanh(x)"
    return {**spec, "origin": {"update": blob.version, **facts}}


def _write(
    folder: Path, module: Perceptron, policy: Policy, spec: dict[str, Any], random: bool, formats: Sequence[str]
) -> dict[str, float | None]:
    """Files by name, each with its difference; ``policy.json`` last, with all of them."""
    inputs = _examples(policy, random)
    with _quiet():
        shapes = {name: {0: torch.export.Dim("batch")} for name in inputs}
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
        if "pt2" in formats:
            torch.export.save(program, folder / "policy.pt2")
        if "onnx" in formats:
            torch.onnx.export(
                module, tuple(inputs.values()), folder / "policy.onnx", dynamo=True, external_data=False, verbose=False,
                input_names=list(inputs), output_names=["action"], dynamic_shapes=shapes, opset_version=OPSET,
            )  # fmt: skip
    if "safetensors" in formats:
        weights = {name: np.ascontiguousarray(value.numpy()) for name, value in module.state_dict().items()}
        save_file(weights, folder / "policy.safetensors")
        shutil.copy(exported_policy.__file__, folder / "policy.py")
    (folder / "policy.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    found: dict[str, float | None] = {f"policy.{name}": _difference(folder, name, policy, random) for name in formats}
    wrong = [name for name, difference in found.items() if not (difference or 0.0) <= TOLERANCE]
    if wrong:
        raise RunFailed(
            f"{', '.join(wrong)}: the actions are up to {max(found[name] or 0.0 for name in wrong):.2g} from the policy's "
            "own, so nothing was written. Please report this, with the run's config.yaml."
        )
    return {**found, **({"policy.py": None} if "safetensors" in formats else {}), "policy.json": None}


def _examples(policy: Policy, random: bool, rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Observations as the data have them, and noise where the policy takes it."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, policy.spec.observation_size, generator=generator)
    examples = {"observation": policy.observation_mean + policy.observation_std * drawn}
    if random:
        examples["noise"] = torch.randn(rows, policy.spec.action_size, generator=generator)
    return examples


def _difference(folder: Path, name: str, policy: Policy, random: bool) -> float:
    """The largest difference in an entry of an action between a file and the policy, over batches of several sizes."""
    act, largest = _LOADERS[name](folder), 0.0
    for rows in (1, 64):
        examples = {key: value.numpy() for key, value in _examples(policy, random, rows, seed=rows).items()}
        if random:
            examples["noise"][:] = 0
        own = policy.act(examples["observation"])
        largest = max(largest, float(np.abs(act(**examples) - own).max()))
    return largest


def _load_program(folder: Path) -> Callable[..., np.ndarray]:
    module = torch.export.load(folder / "policy.pt2").module()
    return lambda **inputs: module(*(torch.from_numpy(value) for value in inputs.values())).numpy()


def _load_onnx(folder: Path) -> Callable[..., np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, inputs)[0]


def _load_numpy(folder: Path) -> Callable[..., np.ndarray]:
    return exported_policy.Policy(folder).act


_LOADERS: dict[str, Callable[[Path], Callable[..., np.ndarray]]] = {
    "pt2": _load_program,
    "onnx": _load_onnx,
    "safetensors": _load_numpy,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of packages that nobody needs here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
