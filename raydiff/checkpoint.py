"""What a learner leaves on disk: its whole state, and its policy in a form that needs nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from raydiff.errors import UserError
from raydiff.types import PolicyBlob

POLICY_SUFFIX = ".policy.safetensors"


def policy_files(run: Path) -> dict[str, Path]:
    """The policies of a run's finished arms, by arm."""
    files = sorted((run / "checkpoints").glob(f"*{POLICY_SUFFIX}"))
    return {path.name.removesuffix(POLICY_SUFFIX): path for path in files}


def save_learner(folder: Path, arm: str, policy: PolicyBlob, state: dict[str, torch.Tensor]) -> None:
    """Write ``ARM.safetensors`` (state) and ``ARM.policy.safetensors`` (weights, with the spec as metadata)."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    target = folder / f"{arm}.safetensors"
    save_file(plain, target.with_suffix(".part"))
    os.replace(target.with_suffix(".part"), target)
    target = folder / f"{arm}{POLICY_SUFFIX}"
    # One entry: the order in which safetensors writes several is random, and equal policies should be equal files.
    metadata = {"policy": json.dumps({"version": policy.version, "spec": policy.spec})}
    save_numpy({"weights": np.ascontiguousarray(policy.weights)}, target.with_suffix(".part"), metadata=metadata)
    os.replace(target.with_suffix(".part"), target)


def load_policy(path: Path) -> PolicyBlob:
    """Read a policy written by ``save_learner``. Raises ``UserError`` when it is missing or not one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no policy file {path}. Runs keep theirs as checkpoints/ARM.policy.safetensors.")
    try:
        with safe_open(str(path), "numpy") as file:
            header = json.loads((file.metadata() or {})["policy"])
        return PolicyBlob.pack(int(header["version"]), header["spec"], load_file(path)["weights"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a policy of raydiff ({error}).") from None
