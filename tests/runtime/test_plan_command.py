from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.runtime.placement import Cluster, Node
from raydiff.runtime.plan_command import plan_table, plan_text

ROOT = Path(__file__).parents[2]
CLUSTER = """
nodes:
- {name: head, cpus: 4}
- {name: gpu, cpus: 8, gpus: 2}
"""


def shown(renderable: object) -> str:
    console = Console(width=110, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_plan_says_what_goes_where(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    config = load_config(None, ["generator.gpus=0.5", "generator.device=cuda", "generator.count=3", "denoiser.gpus=1"])
    lines = [line.split() for line in shown(plan_table(config, file)).splitlines()]
    assert ["pretrainer", "(first)", "gpu", "1", "GPU", "0", "cpu"] in lines
    assert ["learner/0", "head", "1", "-", "cpu"] in lines
    assert ["generator/2", "gpu", "0.25", "0.5", "of", "GPU", "1", "cuda"] in lines
    assert any(line[:2] == ["head", "(driver)"] for line in lines)
    assert any("GPU 0: 1, GPU 1: 0.5" in " ".join(line) for line in lines)


def test_the_plan_tells_of_arms_and_of_promised_cpus() -> None:
    demo = load_config(ROOT / "configs" / "demo.yaml")
    many = Cluster((Node("this machine", 4096.0),), "this machine", started_here=True)
    text = shown(plan_text(demo, many))
    assert "arms: real_only, real_only_alpha_10, unguided" in text
    assert "4096 logical CPUs are promised on " in text
    two = Cluster((Node("a", 2.0), Node("b", 2.0)), "a")
    assert "promised" not in shown(plan_text(demo, two))


def test_the_plan_tells_of_seeds_that_are_trained_at_once() -> None:
    two = Cluster((Node("a", 4.0),), "a")
    values = ["seed=2", "learner.seeds=4", "generator.batch=64", "arms.real_only.generator.count=0"]
    text = " ".join(shown(plan_text(load_config(None, values), two)).split())
    assert "guided: one learner trains the seeds 2 to 5 at once; each block has 64 trajectories for each" in text
    assert "real_only: one learner trains the seeds 2 to 5 at once." in text
    assert "at once" not in shown(plan_text(load_config(None, []), two))


def test_an_arm_that_does_not_fit_is_refused() -> None:
    config = load_config(None, ["arms.more.generator.count=20"])
    assert config.arms["more"]
    with pytest.raises(UserError, match=r"generator \d+/20 needs 0.25 CPU"):
        plan_text(config, Cluster((Node("a", 2.0),), "a"))


def test_a_plan_needs_no_ray(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    code = f"""
import sys
sys.modules["ray"] = None
sys.argv = ["raydiff", "plan", "generator.count=4", "--cluster", {str(tmp_path / "cluster.yaml")!r}]
from raydiff.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "generator/3" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", code.replace("generator.count=4", "learner.cpus=9")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "learner 1/1 needs 9 CPU; node gpu has 8 of 8 CPU left; node head has 4 of 4 CPU left" in done.stderr


def test_the_plan_of_learners_at_once_says_whose_worker_goes_where() -> None:
    config = load_config(ROOT / "configs" / "several.yaml", ["scale=small", "arms.real_only.generator.count=0"])
    text = shown(plan_text(config, Cluster((Node("this machine", 2.0),), "this machine", started_here=True)))
    lines = [line.split() for line in text.splitlines()]
    assert ["all", "pretrainer", "(first)", "this", "machine", "1", "-", "cpu"] in lines
    for arm in ("guided", "iql"):
        assert [arm, "learner/0", "this", "machine", "0.5", "-", "cpu"] in lines
        assert [arm, "generator/0", "this", "machine", "0.25", "-", "cpu"] in lines
    assert "at the same time: guided, iql." in text
    assert "arms: real_only; each of them fits" in text
    with pytest.raises(UserError, match=r"2 arms together: .* of iql needs 0.25 CPU; .* with arms_together=false"):
        plan_text(config, Cluster((Node("this machine", 1.5),), "this machine", started_here=True))
