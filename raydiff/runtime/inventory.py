"""Descriptions of clusters: this machine, or a file for ``raydiff plan --cluster FILE``.

The file is JSON or YAML, for example::

    nodes:
      - {name: head, cpus: 16}                          # the first node is the driver's, where raydiff runs
      - {name: gpu1, cpus: 32, gpus: 4, object_store_mb: 20000}
      - {name: gpu2, cpus: 32, gpus: [1.0, 0.4]}        # free share of each GPU, where others use some

Without ``object_store_mb`` a node has what ``cluster.object_store_mb`` says.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.runtime.placement import Cluster, Node

THIS_MACHINE = "this machine"
Share = Annotated[float, Field(ge=0, le=1)]


class _NodeEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = Field(min_length=1)
    cpus: float = Field(ge=0)
    gpus: list[Share] = []
    object_store_mb: float | None = Field(None, gt=0)

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_of_gpus(cls, value: Any) -> Any:
        return [1.0] * value if isinstance(value, int) and value >= 0 else value


class _ClusterFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    nodes: list[_NodeEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> _ClusterFile:
        names = [node.name for node in self.nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two nodes are called {twice[0]}")
        return self


def read_cluster(path: Path, config: Config) -> Cluster:
    """The cluster that a file describes; its first node is the driver's. Raises ``UserError`` naming what is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # YAML reads JSON too
    except FileNotFoundError:
        raise UserError(f"There is no cluster description {path}. Give a JSON or YAML file that lists nodes.") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON or YAML: {' '.join(str(error).split())}.") from None
    try:
        entries = _ClusterFile.model_validate(content).nodes
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise UserError(
            f"{path} does not describe a cluster: {where}: {problem['msg'].lower()}. It must read like "
            "{nodes: [{name: head, cpus: 8, gpus: 2}, {name: second, cpus: 8}]}."
        ) from None
    store = float(config.cluster.object_store_mb)
    nodes = tuple(
        Node(
            entry.name,
            entry.cpus,
            tuple(entry.gpus),
            entry.object_store_mb or store,
        )
        for entry in entries
    )
    return Cluster(nodes, nodes[0].name)


def this_machine(config: Config) -> Cluster:
    """The machine that this process runs on, as Ray will count it when the run starts its own."""
    cpus, gpus = config.cluster.cpus, config.cluster.gpus
    node = Node(
        THIS_MACHINE,
        float(usable_cpus() if cpus is None else cpus),
        (1.0,) * (usable_gpus() if gpus is None else gpus),
        float(config.cluster.object_store_mb),
    )
    return Cluster((node,), THIS_MACHINE, started_here=True)


def usable_cpus() -> int:
    """CPUs that this process may run on (its affinity, where the system tells)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_gpus() -> int:
    """CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
