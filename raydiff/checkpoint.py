"""What a learner leaves on disk: its whole state, and its policy in a form that needs nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from raydiff.errors import UserError
from raydiff.types import PolicyBlob

POLICY_SUFFIX = ".policy.safetensors"
_PART = re.compile(r"(.+)@seed(\d+)")  # no arm may have such a name


def part_name(arm: str, seed: int | None) -> str:
    """What the files of an arm are called; where several seeds were trained at once, those of one of them."""
    return arm if seed is None else f"{arm}@seed{seed}"


def arm_and_seed(name: str) -> tuple[str, int | None]:
    """The arm, and the seed if the arm has several, of a name that ``part_name`` made."""
    found = _PART.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def policy_files(run: Path) -> dict[str, Path]:
    """The policies of a run's finished arms, by arm, or by ``ARM@seedS`` where it has several seeds; seeds in order."""
    files = sorted((run / "checkpoints").glob(f"*{POLICY_SUFFIX}"))
    found = {path.name.removesuffix(POLICY_SUFFIX): path for path in files}
    return dict(sorted(found.items(), key=lambda item: (arm_and_seed(item[0])[0], arm_and_seed(item[0])[1] or 0)))


def policy_of(files: Mapping[str, Path], arm: str) -> str | None:
    """The name in ``policy_files`` of an arm, of its first seed where it has several; None where there is none."""
    return arm if arm in files else next((name for name in files if arm_and_seed(name)[0] == arm), None)


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
