"""``raydiff export``: what it writes gives the policy's actions in a process that cannot import raydiff."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydiff import export
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.checkpoint import save_learner
from raydiff.cli import main
from raydiff.config_learner import LearnerConfig
from raydiff.errors import RunFailed, UserError
from raydiff.export import export_policy
from raydiff.export_source import source_of
from raydiff.presets import dump, load_config
from raydiff.replay.table import Table
from raydiff.types import PolicyBlob, Transitions

S, A, BATCH = 5, 2, 2
MEAN, STD = np.linspace(-2, 3, S, dtype=np.float32), np.linspace(0.5, 4, S, dtype=np.float32)

# Runs alone, without this repository: every format that a folder holds, on the inputs that lie there.
LOADER = """
import importlib.abc, importlib.util, sys
from pathlib import Path
import numpy as np

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "raydiff":
            raise ImportError("raydiff is not here")

sys.meta_path.insert(0, Without())
try:
    import raydiff
except ImportError:
    pass
else:
    raise SystemExit("raydiff can be imported")

import onnxruntime, torch

for folder in map(Path, sys.argv[1:]):
    inputs = dict(np.load(folder / "inputs.npz"))
    found = {}
    if (folder / "policy.pt2").exists():
        program = torch.export.load(folder / "policy.pt2").module()
        found["pt2"] = program(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    if (folder / "policy.onnx").exists():
        session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == list(inputs)
        found["onnx"] = session.run(["action"], inputs)[0]
    if (folder / "policy.py").exists():
        spec = importlib.util.spec_from_file_location(folder.name, folder / "policy.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found["safetensors"] = module.Policy(folder).act(*inputs.values())
    np.savez(folder / "actions.npz", **found)
assert "raydiff" not in sys.modules
"""


def trained(algorithm: str, **options: Any) -> PolicyBlob:
    """A policy after some updates, so that its last layers are not where they start."""
    config = LearnerConfig(algorithm=algorithm, updates=30, hidden=(16, 16), learning_rate=0.01, **options)
    agent = build_agent(config, S, A, MEAN, STD, seed=1)
    random = torch.Generator().manual_seed(0)
    rows = 64
    observation = MEAN + STD * torch.randn(rows, S, generator=random).numpy()
    action = torch.rand(rows, A, generator=random).numpy() * 2 - 1
    flags = np.zeros(rows, dtype=np.float32)
    table = Table.from_transitions(Transitions(observation, action, action[:, 0], observation[::-1].copy(), flags))
    for stage in agent.stages():
        agent.begin_stage(stage.name, table)
        for _ in range(stage.updates):
            agent.update(table.split(table.gather(32, random)[0]))
    return agent.policy_blob(30)


def observations(rows: int) -> np.ndarray:
    return (MEAN + STD * np.random.default_rng(3).normal(size=(rows, S))).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Each policy exported, with the actions that it should give; its files have been run elsewhere by then."""
    root = tmp_path_factory.mktemp("exports")
    expected: dict[str, np.ndarray] = {}

    def add(
        name: str, blob: PolicyBlob, formats: tuple[str, ...], noise: np.ndarray | None = None, **more: Any
    ) -> None:
        folder = root / name
        export_policy(blob, folder, {"arm": name}, formats, batch=BATCH)
        rows = 7 if noise is None or noise.ndim == 2 else BATCH
        inputs = {"observation": observations(rows), **({} if noise is None else {"noise": noise}), **more}
        np.savez(folder / "inputs.npz", **inputs)

    blob = trained("td3_bc")
    add("deterministic", blob, export.FORMATS)
    expected["deterministic"] = Policy.from_blob(blob).act(observations(7))
    for name, algorithm in (("gaussian", "iql"), ("tanh_gaussian", "cql")):
        blob = trained(algorithm)
        generator = torch.Generator().manual_seed(5)
        expected[name] = Policy.from_blob(blob).act(observations(7), False, generator)
        noise = torch.empty(7, A).normal_(generator=torch.Generator().manual_seed(5)).numpy()
        add(name, blob, export.FORMATS, noise)
        expected[f"{name}, evaluated"] = Policy.from_blob(blob).act(observations(7))
        add(f"{name}, evaluated", blob, ("pt2", "safetensors"), np.zeros((7, A), np.float32))
    swg = {"width": 8, "blocks": 2, "steps": 2, "temperature": 0.7, "candidates": 2, "choose": "weight"}
    blob = trained("swg", swg=swg)
    expected["guided"], noise = drawn(blob, (BATCH * 2, A + 1), 2)
    add("guided", blob, ("pt2", "onnx"), noise.reshape(2, BATCH, 2, A + 1).transpose(1, 2, 0, 3).copy())
    aepo = {"energy": "direct", "width": 8, "blocks": 1, "steps": 2}
    blob = trained("aepo", aepo=aepo)
    expected["closed form"], noise = drawn(blob, (BATCH, A), 1)
    add("closed form", blob, ("pt2",), noise[:, :, None].transpose(1, 2, 0, 3).copy())
    blob = trained("swg", swg={**swg, "temperature": 0.0, "candidates": 1})
    expected["mean path"] = Policy.from_blob(blob).act(observations(BATCH))
    export_policy(blob, root / "mean path", {}, ("pt2", "safetensors"), batch=BATCH)
    np.savez(root / "mean path" / "inputs.npz", observation=observations(BATCH))
    script = root / "loader.py"
    script.write_text(LOADER)
    command = [sys.executable, "-I", str(script), *(str(root / name) for name in expected)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (root / name, action) for name, action in expected.items()}


def drawn(blob: PolicyBlob, shape: tuple[int, ...], times: int) -> tuple[np.ndarray, np.ndarray]:
    """What a diffusion policy does, and what it draws for that, call by call."""
    action = Policy.from_blob(blob).act(observations(BATCH), True, torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(9)
    return action, torch.stack([torch.randn(shape, generator=generator) for _ in range(times)]).numpy()


NAMES = ("deterministic", "gaussian", "gaussian, evaluated", "tanh_gaussian", "tanh_gaussian, evaluated", "guided",
         "closed form", "mean path")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_files_give_the_policys_actions_without_raydiff(folders: dict[str, tuple[Path, np.ndarray]], name: str) -> None:
    folder, expected = folders[name]
    assert np.abs(expected).max() > 0.05
    actions = np.load(folder / "actions.npz")
    formats = {path.suffix[1:] for path in folder.glob("policy.*")} & {"pt2", "onnx"}
    perceptron = (folder / "policy.py").exists()
    assert set(actions.files) == formats | ({"safetensors"} if perceptron else set())
    for form in actions.files:
        np.testing.assert_allclose(actions[form], expected, atol=2e-6, err_msg=form)


def test_the_specification_says_what_is_needed(folders: dict[str, tuple[Path, np.ndarray]]) -> None:
    spec = json.loads((folders["gaussian"][0] / "policy.json").read_text())
    assert (spec["kind"], spec["observation_size"], spec["action_size"], spec["layers"]) == ("gaussian", S, A, 3)
    assert spec["origin"] == {"update": 30, "arm": "gaussian"}
    assert list(spec["inputs"]) == ["observation", "noise"]
    guided = json.loads((folders["guided"][0] / "policy.json").read_text())
    assert guided["inputs"]["noise"].startswith(f"[{BATCH}, 2, 2, {A + 1}] float32: standard normal")
    assert (guided["diffusion"]["guidance"], guided["diffusion"]["candidates"]) == ("weight", 2)
    assert "raydiff" not in (folders["gaussian"][0] / "policy.py").read_text().split('"""')[2]


def test_a_choice_by_softmax_follows_its_input() -> None:
    """The candidate is drawn with the probabilities of the softmax, and by nothing but the two inputs."""
    options = {"candidates": 3, "steps": 2}
    source = source_of(Policy.from_blob(trained("diffusion_ql", diffusion_ql=options)), batch=1)
    assert source.shapes["choice"] == (3,)
    fixed = source.examples(1, seed=2)
    seen = []
    for seed in range(60):
        inputs = {**fixed, "choice": source.examples(1, seed)["choice"]}
        seen.append(tuple(source.own(inputs)[0].round(4)))
        np.testing.assert_allclose(source.module(*inputs.values()).numpy(), source.own(inputs), atol=1e-6)
    assert 2 <= len(set(seen)) <= 3


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = trained("td3_bc")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"exists.*it is no export"):
            export_policy(blob, other, {}, ("safetensors",), overwrite=overwrite)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    export_policy(blob, tmp_path / "mine", {}, ("safetensors",))
    with pytest.raises(UserError, match="--overwrite"):
        export_policy(blob, tmp_path / "mine", {}, ("safetensors",))
    before = (tmp_path / "mine" / "policy.safetensors").read_bytes()
    monkeypatch.setitem(export._LOADERS, "safetensors", lambda folder: lambda inputs: np.ones((1, A)))
    with pytest.raises(RunFailed, match="nothing was written"):
        export_policy(trained("iql"), tmp_path / "mine", {}, ("safetensors",), overwrite=True)
    assert (tmp_path / "mine" / "policy.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]
    with pytest.raises(UserError, match="--formats onxx"):
        export_policy(blob, tmp_path / "new", {}, ("onxx",))
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"ONNX needs no_such_package.*pip install"):
        export_policy(blob, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()


@pytest.fixture
def raydiff(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["raydiff", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out.getvalue(), err.getvalue()

    return run


def test_the_command(raydiff: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump(load_config(None, ["data.environment=Hopper-v4", "seed=4", "name=mine"])))
    save_learner(run / "checkpoints", "guided", trained("iql"), {})
    save_learner(run / "checkpoints", "real_only", trained("td3_bc"), {})
    code, out, err = raydiff("export", run, "--formats", "safetensors")
    assert (code, err) == (0, "")
    folder = run / "export" / "guided"  # the main arm
    assert out.rstrip().splitlines()[-1] == str(folder)
    spec = json.loads((folder / "policy.json").read_text())
    origin = {"update": 30, "run": "mine", "arm": "guided", "environment": "Hopper-v4", "seed": 4}
    assert origin.items() <= spec["origin"].items()
    code, _, _ = raydiff("export", run, "--arm", "real_only", "--out", tmp_path / "p", "--formats", "pt2, safetensors")
    assert code == 0
    assert sorted(path.suffix for path in (tmp_path / "p").iterdir()) == [".json", ".pt2", ".py", ".safetensors"]
    for arguments, said in (
        ([tmp_path / "none"], "not a run of raydiff"),
        ([run, "--arm", "guidde"], "Did you mean guided?"),
        ([run, "--formats", ""], "name one or several of"),
        ([run], "exists"),
    ):
        code, _, err = raydiff("export", *arguments)
        assert code == 2
        assert said in err
