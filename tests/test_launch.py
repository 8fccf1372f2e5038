"""The files that start clusters: valid by Ray's own schema, by the shell and by what they copy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"


def test_the_cluster_file_is_valid_by_rays_own_rules() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    content: dict[str, Any] = yaml.safe_load((LAUNCH / "ray-cluster.yaml").read_text())
    prepared = util.prepare_config(content)
    util.validate_config(prepared)
    assert prepared["max_workers"] == len(content["provider"]["worker_ips"])
    starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    assert sum("RAY_AUTH_MODE=token" in line for line in starts) == 2
    with pytest.raises(Exception, match="misspelt"):
        util.validate_config({**prepared, "misspelt": 1})


def test_the_script_is_a_script() -> None:
    script = LAUNCH / "local.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=10)


def test_the_image_copies_what_exists_and_runs_as_a_user() -> None:
    lines = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    for words in lines:
        if words[0] == "COPY":
            assert all((LAUNCH.parent / name).exists() for name in words[1:-1]), words
    assert lines[0] == ["FROM", "python:3.11-slim"]
    users = [words[1] for words in lines if words[0] == "USER"]
    assert users == ["raydiff"]
    torch = next(word for words in lines for word in words if word.startswith("torch=="))
    assert torch in (LAUNCH.parent / "constraints.txt").read_text().splitlines()
