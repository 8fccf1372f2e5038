"""An update that went wrong in a run, done once more from the file that the run saved (``bad_states.py``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from raydiff.compute import configure_compute
from raydiff.config import Config
from raydiff.data.rewards import learner_rewards
from raydiff.data.source import load_dataset
from raydiff.errors import UserError
from raydiff.presets import validate
from raydiff.replay.table import Table
from raydiff.roles.bad_states import FOLDER, HEADER, Recipe, numbers
from raydiff.types import Batch, Transitions


@dataclass(frozen=True)
class Repeated:
    """A saved update done once more. ``metrics`` are those of now, ``recorded`` those of the run; ``before``, ``after``
    are the agent's states."""

    header: dict[str, Any]
    batch: Batch
    metrics: dict[str, float]
    recorded: dict[str, float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    @property
    def exact(self) -> bool:
        """Whether every metric of this update is that of the run, bit by bit. The run may know more of them: those that
        earlier updates left."""
        return all(repr(self.recorded.get(name)) == repr(value) for name, value in self.metrics.items())


def repeat(path: Path) -> Repeated:
    """Do the update of a file that ``BadUpdate.save`` wrote again, from the state before it.

    A learner with several stages may look at the whole dataset when one begins: then it is read again, from where the
    run had it. Raises ``UserError`` for a file that is missing, is none of these, or belongs to another version.
    """
    header, tensors = _read(path)
    try:
        config = validate(header["config"], str(path))
        configure_compute(header["threads"], config.cluster.matmul)  # sums in the order that they had
        batch = Batch(**_part(tensors, "batch."))
        state = _part(tensors, "state.")
        mean, std = (tensors[name].numpy() for name in ("observation_mean", "observation_std"))
        agent = Recipe(config, mean, std, batch.action.shape[1]).build()
        agent.begin_stage(header["stage"], _table(config, batch, len(agent.stages())))
        agent.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The update in {path} cannot be repeated here ({' '.join(str(error).split())}). Use the version of raydiff "
            "and a device of the kind that it was made with."
        ) from None
    on_device = Batch(**{name: field.to(config.learner.device) for name, field in _fields(batch).items()})
    metrics = numbers(agent.update(on_device))
    recorded = {name: float(value) for name, value in header["metrics"].items()}
    return Repeated(header, batch, metrics, recorded, state, {k: v.cpu() for k, v in agent.state_dict().items()})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _fields(batch: Batch) -> dict[str, Tensor]:
    return {name: field for name, field in batch._asdict().items() if field is not None}


def _table(config: Config, batch: Batch, stages: int) -> Table:
    """What a stage may look at as it begins: the real data, or the batch alone where there is one stage."""
    follow = config.learner.needs_next_action
    if stages > 1:
        real = learner_rewards(load_dataset(config.data).transitions(config.data.semantics, follow), config.data)
    else:
        real = Transitions(**{name: field.numpy() for name, field in _fields(batch).items()})
    return Table.from_transitions(real, config.learner.device, follow)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"There is no file {path}. A run that stops at a loss which is not finite says what it saved.")
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an update that a run of raydiff saved ({error}). They lie in its {FOLDER} folder."
        ) from None
