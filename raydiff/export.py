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
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from raydiff import exported_policy
from raydiff.agents.policy import Policy
from raydiff.errors import RunFailed, UserError
from raydiff.export_source import Inputs, Source, source_of
from raydiff.types import PolicyBlob

FORMATS = ("pt2", "onnx", "safetensors")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
Act = Callable[[Inputs], np.ndarray]
TOLERANCE = 1e-4  # float32 sums in another order, through a few layers


@dataclass(frozen=True)
class Exported:
    """A file that was written. ``difference``: its largest difference from the policy's own actions; None for files
    that hold none."""

    path: Path
    difference: float | None


def export_policy(
    blob: PolicyBlob,
    folder: Path,
    facts: dict[str, Any],
    formats: Sequence[str] = FORMATS,
    batch: int = 1,
    overwrite: bool = False,
) -> list[Exported]:
    """Write ``policy.pt2``, ``policy.onnx``, ``policy.safetensors`` (of a perceptron with ``policy.py``, which reads it),
    and ``policy.json``, which says what they hold and, under ``origin``, the ``facts``. The folder appears whole or not
    at all. Programs of diffusion policies take ``batch`` rows at once, all others any number.

    Raises ``UserError`` for a folder that holds something and for ONNX without its packages, and ``RunFailed`` where a
    file does not give the policy's own actions.
    """
    _check(folder, formats, overwrite)
    policy = Policy.from_blob(blob)
    with _quiet():
        source = source_of(policy, batch)
    spec = _specification(policy, source, {"update": blob.version, **facts})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
            part = Path(made) / folder.name
            part.mkdir()
            with _quiet():
                found = _write(part, source, spec, formats)
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


def _specification(policy: Policy, source: Source, origin: dict[str, Any]) -> dict[str, Any]:
    rows = "B" if source.batch is None else str(source.batch)
    inputs = {name: f"[{', '.join([rows, *map(str, shape)])}] float32" for name, shape in source.shapes.items()}
    inputs["observation"] += ", in the environment's units"
    for name in ("noise", "choice"):
        if name in inputs:
            inputs[name] += f": {source.facts[name]}"
    return {
        "format": "raydiff policy", "format_version": 1, "kind": policy.spec.kind,
        "observation_size": policy.spec.observation_size, "action_size": policy.spec.action_size, "inputs": inputs,
        "output": f"action [{rows}, {policy.spec.action_size}] float32 within -1 and 1. Where the environment's own bounds "
        "are others, bring them there linearly.",
        **{name: fact for name, fact in source.facts.items() if name not in inputs}, "origin": origin,
    }  # fmt: skip


def _write(folder: Path, source: Source, spec: dict[str, Any], formats: Sequence[str]) -> dict[str, float | None]:
    """Files by name, each with its difference."""
    examples = source.examples(source.batch or 3, seed=0)
    shapes = {name: {0: torch.export.Dim("batch")} for name in examples} if source.batch is None else None
    inputs = tuple(examples.values())
    if "pt2" in formats:
        torch.export.save(torch.export.export(source.module, inputs, dynamic_shapes=shapes), folder / "policy.pt2")
    if "onnx" in formats:
        torch.onnx.export(
            source.module, inputs, folder / "policy.onnx", dynamo=True, external_data=False, verbose=False,
            input_names=list(examples), output_names=["action"], dynamic_shapes=shapes, opset_version=OPSET,
        )  # fmt: skip
    beside = ["policy.json"]
    if "safetensors" in formats:
        save_file(source.weights, folder / "policy.safetensors")
        if spec["kind"] != "diffusion":
            shutil.copy(exported_policy.__file__, folder / "policy.py")
            beside.insert(0, "policy.py")
    (folder / "policy.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
    held = [name for name in formats if name != "safetensors" or "policy.py" in beside]
    found = {f"policy.{name}": _difference(_LOADERS[name](folder), source) for name in held}
    wrong = [name for name, difference in found.items() if not difference <= TOLERANCE]
    if wrong:
        raise RunFailed(
            f"{', '.join(wrong)}: the actions are up to {max(found[name] for name in wrong):.2g} from the policy's own, so "
            "nothing was written. Please report this, with the run's config.yaml."
        )
    return {**{f"policy.{name}": found.get(f"policy.{name}") for name in formats}, **dict.fromkeys(beside)}


def _difference(act: Act, source: Source) -> float:
    """The largest difference in an entry of an action between a file and the policy, over several batches."""
    largest = 0.0
    for seed, rows in enumerate((1, 64) if source.batch is None else (source.batch,) * 3, start=1):
        inputs = source.examples(rows, seed)
        largest = max(largest, float(np.abs(act(inputs) - source.own(inputs)).max()))
    return largest


def _load_program(folder: Path) -> Act:
    module = torch.export.load(folder / "policy.pt2").module()
    return lambda inputs: module(*inputs.values()).numpy()


def _load_onnx(folder: Path) -> Act:
    session = import_module("onnxruntime").InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


def _load_numpy(folder: Path) -> Act:
    act = exported_policy.Policy(folder).act
    return lambda inputs: act(*(value.numpy() for value in inputs.values()))


_LOADERS: dict[str, Callable[[Path], Act]] = {"pt2": _load_program, "onnx": _load_onnx, "safetensors": _load_numpy}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say of packages that nobody needs here."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
