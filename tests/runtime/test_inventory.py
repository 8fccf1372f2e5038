from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.runtime.inventory import read_cluster, this_machine, usable_cpus, usable_gpus
from raydiff.runtime.placement import Cluster, Node


def config(*overrides: str) -> Config:
    return load_config(None, overrides)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_description_in_json_and_in_yaml(tmp_path: Path) -> None:
    nodes = [{"name": "head", "cpus": 16}, {"name": "gpu", "cpus": 32, "gpus": 2, "object_store_mb": 9000}]
    expected = Cluster((Node("head", 16, (), 512.0), Node("gpu", 32, (1.0, 1.0), 9000.0)), "head")
    assert read_cluster(write(tmp_path / "c.json", json.dumps({"nodes": nodes})), config()) == expected
    text = "nodes:\n- {name: head, cpus: 16}\n- {name: gpu, cpus: 32, gpus: [1.0, 1.0], object_store_mb: 9000}\n"
    assert read_cluster(write(tmp_path / "c.yaml", text), config()) == expected


@pytest.mark.parametrize(("text", "parts"), [
    ("nodes: []", ["nodes", "at least 1"]),
    ("nodes: [{name: a}]", ["nodes.0.cpus", "field required"]),
    ("nodes: [{name: a, cpus: -1}]", ["nodes.0.cpus", "greater than or equal to 0"]),
    ("nodes: [{name: a, cpus: 1, gpus: [2]}]", ["nodes.0.gpus.0", "less than or equal to 1"]),
    ("nodes: [{name: a, cpus: 1, memory: 5}]", ["nodes.0.memory", "not permitted"]),
    ("nodes: [{name: a, cpus: 1}, {name: a, cpus: 2}]", ["two nodes are called a"]),
    ("- a", ["the file", "valid dictionary"]),
    ("nodes: [", ["cannot be read as JSON or YAML"]),
])  # fmt: skip
def test_what_is_no_description_is_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read_cluster(write(tmp_path / "cluster.yaml", text), config())
    for part in ["cluster.yaml", *parts]:
        assert part in str(error.value)


def test_a_missing_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no cluster description"):
        read_cluster(tmp_path / "none.yaml", config())


def test_this_machine_is_counted_as_the_configuration_wants() -> None:
    assert usable_cpus() == len(os.sched_getaffinity(0))
    [node] = this_machine(config()).nodes
    assert (node.cpus, len(node.gpus), node.object_store_mb) == (usable_cpus(), usable_gpus(), 512)
    [node] = this_machine(config("cluster.cpus=64", "cluster.gpus=3", "cluster.object_store_mb=100")).nodes
    assert (node.cpus, node.gpus, node.object_store_mb) == (64, (1.0, 1.0, 1.0), 100)
    assert this_machine(config()).started_here
