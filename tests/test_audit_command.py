"""``raydiff audit`` on a run, on its samples and on files, all made here from collected data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from raydiff.agents.registry import build_agent
from raydiff.audit_figure import error_by_step
from raydiff.checkpoint import save_learner
from raydiff.cli_audit import audit
from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.errors import UserError
from raydiff.evaluation.audit_data import AuditData
from raydiff.presets import dump, load_config
from raydiff.replay.samples import write_samples
from raydiff.synthesis.assemble import episode_rows
from raydiff.types import Trajectories

HORIZON = 8


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect("maze2d-umaze-v1", "waypoint", 2000, 0, tmp_path_factory.mktemp("audit") / "maze.hdf5")


@pytest.fixture(scope="module")
def samples(real: Path) -> dict[str, Trajectories]:
    """``true``: real pieces; ``noisy``: the same with noise in every state but the first."""
    data = AuditData.of_transitions(read_d4rl(real).transitions("raydiff"), HORIZON, 200, 1).trajectories
    rows = data.rows.copy()
    rows[:, 1:, :4] += 0.1 * np.random.default_rng(0).normal(size=rows[:, 1:, :4].shape)
    return {"true": data, "noisy": Trajectories(rows.astype(np.float32), 4, 2)}


@pytest.fixture(scope="module")
def run(real: Path, samples: dict[str, Trajectories], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a finished run leaves it, in as far as an audit reads it."""
    folder = tmp_path_factory.mktemp("runs") / "maze"
    config = load_config(
        None, [f"data.dataset={real}", "data.environment=maze2d-umaze-v1", f"denoiser.length={HORIZON + 1}"]
    )
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(config))
    for name, data in samples.items():
        write_samples(folder / "replay" / f"{name}_sample.npz", data)
    write_samples(folder / "replay" / "real_sample.npz", samples["true"])
    agent = build_agent(config.learner, 4, 2, np.zeros(4), np.ones(4), 0)
    save_learner(folder / "checkpoints", "noisy", agent.policy_blob(9), {})
    return folder


def synthetic_file(path: Path, data: Trajectories, **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in episode_rows(data).items():
            file[name] = array
        file.attrs.update(attributes)
    return path


def test_a_run_is_held_against_its_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(str(run), n=60)
    found = json.loads((run / "report" / "audit.json").read_text())
    assert (run / "report" / "audit.png").stat().st_size > 10_000
    assert (found["environment"], found["horizon"], list(found["arms"])) == ("maze2d-umaze-v1", 8, ["noisy", "true"])
    true, noisy, floor = found["arms"]["true"], found["arms"]["noisy"], found["floor"]
    assert len(floor["error_by_step"]) == len(noisy["error_by_step"]) == HORIZON
    assert max(floor["error_by_step"]) < 1e-8
    assert max(true["error_by_step"]) < 1e-8
    assert max(found["numerical_floor"]["error_by_step"]) < 1e-8
    variance = read_d4rl(found_path(run)).observation.var(0)
    # Noise in the later state alone: its variance over the data's. In single steps the earlier state has it too.
    assert noisy["error_by_step_mean"][0] == pytest.approx(float((0.01 / variance).mean()), rel=0.3)
    assert noisy["raw_error_mean"] > 0.01
    assert true["copies"] == 1.0
    assert noisy["copies"] < 0.2 < floor["coverage"]
    assert floor["copies"] < 0.05
    assert true["legal"] == floor["legal"] == 1.0
    assert noisy["legal"] < 1.0
    assert true["deviation"] is None  # that arm left no policy
    assert noisy["deviation"] > 0
    assert noisy["policy_version"] == 9
    assert noisy["floor"]["deviation"] > 0
    printed = capsys.readouterr().out
    for text in ("real data (floor)", "noisy", "8 steps", "coverage", "legal", "audit.png"):
        assert text in printed


def found_path(run: Path) -> str:
    return str(load_config(run / "config.yaml").data.dataset)


def test_a_sample_of_a_run_knows_its_run(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "one.json"
    audit(str(run / "replay" / "noisy_sample.npz"), n=30, out=out, horizon=3, policy=run)
    found = json.loads(out.read_text())
    assert list(found["arms"]) == ["noisy"]
    assert found["horizon"] == len(found["arms"]["noisy"]["error_by_step"]) == 3
    assert found["arms"]["noisy"]["policy_version"] == 9
    assert sorted(path.name for path in out.parent.iterdir()) == ["one.json", "one.png"]


def test_the_same_audit_gives_the_same_figures(run: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        audit(str(run), n=20, out=tmp_path / f"{name}.json", seed=seed)
        found.append((tmp_path / f"{name}.json").read_text())
    assert found[0] == found[1] != found[2]


def test_a_dataset_alone_is_its_own_floor(real: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    audit(str(real), n=30, out=tmp_path / "floor.json")
    found = json.loads((tmp_path / "floor.json").read_text())
    assert found["arms"] == {}
    assert (found["horizon"], len(found["floor"]["error_by_step"])) == (16, 16)  # of one long episode, pieces of 16
    assert max(found["floor"]["error_by_step"]) < 1e-8
    assert "real data (floor)" in capsys.readouterr().out


def test_a_synthetic_file_is_held_against_the_data_that_are_named(
    real: Path, samples: dict[str, Trajectories], tmp_path: Path
) -> None:
    rows = samples["noisy"].rows.copy()
    rows[::2, 3, -1] = 1.0  # half of them end at the fourth step, and their successor is not in the file
    data = Trajectories(rows, 4, 2)
    path = synthetic_file(tmp_path / "made.hdf5", data, environment="maze2d-umaze-v1", level="synthetic")
    with pytest.raises(UserError, match=r"is synthetic.*--data"):
        audit(str(path), n=10)
    audit(str(path), n=500, data=str(real), out=tmp_path / "made.json")
    found = json.loads((tmp_path / "made.json").read_text())
    assert found["horizon"] == HORIZON  # whole trajectories
    arm = found["arms"]["made"]
    ended = len(rows[::2])
    assert arm["replayed_by_step"] == [len(rows)] * 3 + [len(rows) - ended] * (HORIZON - 3)
    assert arm["terminals_claimed"] == ended
    assert (arm["terminals_simulated"], arm["terminal_precision"], arm["terminal_recall"]) == (0, 0.0, None)
    assert arm["transitions"] == 3 * ended + HORIZON * (len(rows) - ended)


def test_other_environments_and_files_are_refused_in_one_paragraph(run: Path, real: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "replay").mkdir(parents=True)
    (empty / "config.yaml").write_text((run / "config.yaml").read_text())
    loose = write_samples(tmp_path / "loose_sample.npz", Trajectories(np.zeros((3, 3, 8), dtype=np.float32), 4, 2))
    broken = tmp_path / "broken_sample.npz"
    broken.write_bytes(b"PK\x03\x04 nothing more")
    nameless = synthetic_file(tmp_path / "nameless.hdf5", Trajectories(np.zeros((3, 3, 8), dtype=np.float32), 4, 2))
    pendulum = synthetic_file(
        tmp_path / "p.hdf5", Trajectories(np.zeros((30, 3, 6), dtype=np.float32), 3, 1), environment="Pendulum-v1"
    )
    cases: list[tuple[str, dict[str, Any], str]] = [
        (str(tmp_path), {}, "not a run of raydiff"),
        (str(empty), {}, "no synthetic trajectories"),
        (str(tmp_path / "none.npz"), {}, "There is no file"),
        (str(tmp_path / "none.hdf5"), {}, "none.hdf5"),
        (str(loose), {}, "lies in no run.*--environment"),
        (str(broken), {"data": str(real), "environment": "maze2d-umaze"}, "not a sample of trajectories"),
        (str(nameless), {}, "does not say which environment"),
        (str(nameless), {"environment": "halfcheetah"}, "4 and 2 dimensions.*17 and 6"),
        (str(pendulum), {}, "Pendulum-v1: data cannot be replayed"),
        (str(run), {"policy": tmp_path}, "not a run with a policy"),
        (str(run), {"out": real / "x.json"}, "cannot be written"),
        (str(run), {"out": tmp_path / "x.png"}, "ends in .json"),
    ]
    for source, options, said in cases:
        with pytest.raises(UserError, match=said) as raised:
            audit(source, n=5, **options)
        assert "\n" not in str(raised.value)


def test_the_command_line_knows_its_options(run: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(audit)
    done = CliRunner().invoke(app, [str(run), "--n", "20", "--json", str(tmp_path / "x.json"), "--horizon", "2"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "x.json").read_text())["horizon"] == 2
    assert CliRunner().invoke(app, [str(run), "--n", "0"]).exit_code == 2


def test_the_picture_names_references_that_are_far_below_and_draws_those_that_are_not() -> None:
    arm = {"error_by_step": [0.1, 0.2, None], "error_by_step_median": [0.05, 0.1, None]}
    low, near = {"error_by_step": [1e-9, 3e-9, 4e-9]}, {"error_by_step": [0.01, 0.02, 0.03]}
    found = {"environment": "Hopper-v4", "arms": {"guided": arm}, "floor": near, "numerical_floor": low}
    figure = error_by_step(found)
    assert figure is not None
    lines = {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in figure.axes[0].get_lines()}
    assert lines["guided"] == [0.1, 0.2]
    assert lines["real data (floor)"] == [0.01, 0.02, 0.03]
    assert lines["simulator, in float32: at most 4e-09"] == []
    nothing = {"error_by_step": None}
    empty = {"environment": "Hopper-v4", "arms": {"guided": nothing}, "floor": nothing, "numerical_floor": nothing}
    assert error_by_step(empty) is None
