"""Every bad input, through the real command line: exit code 2 and one paragraph that says what, where and what to do;
nothing is started and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from raydiff.cli import main

pytestmark = pytest.mark.timeout(30)  # input that is taken for good begins a whole run

Arrays = dict[str, np.ndarray]
MANY = "long" * 80  # longer than a file name may be


def good() -> Arrays:
    """Data of HalfCheetah's sizes: two episodes that time out and one that terminates."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(60, 17)).astype(np.float32)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, size=(60, 6)).astype(np.float32),
        "rewards": rng.normal(size=60).astype(np.float32),
        "terminals": np.arange(60) == 59,
        "timeouts": np.isin(np.arange(60), [19, 39]),
        "next_observations": observations + 1,
    }


def changed(**arrays: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return {name: arrays.get(name, np.copy)(array) for name, array in good().items()}


def put(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The array with ``value`` somewhere in ``row``."""

    def apply(array: np.ndarray) -> np.ndarray:
        array[row, ...] = value
        return array

    return apply


def without(*names: str) -> Arrays:
    return {name: array for name, array in good().items() if name not in names}


def ends_everywhere(array: np.ndarray) -> np.ndarray:
    return np.ones_like(array)


DATA: dict[str, tuple[Arrays, tuple[str, ...]]] = {
    "missing-key": (without("rewards"), ("'rewards'", "Arrays present: actions, next_observations", "schema needs")),
    "lengths": (changed(actions=lambda a: a[:-1]), ("'actions' has 59 rows, but 'observations' has 60", "one row")),
    "nan": (changed(observations=put(7, np.nan)), ("'observations'", "NaN", "row 7", "Remove those rows")),
    "infinite": (changed(rewards=put(3, np.inf)), ("'rewards' has 1 values", "infinite", "row 3", "Remove those rows")),
    "nan-in-successors": (changed(next_observations=put(8, np.nan)), ("'next_observations'", "row 8")),
    "short-episodes": (
        {**without("next_observations"), "timeouts": np.arange(60) % 2 == 1, "terminals": np.zeros(60, bool)},
        ("longest of 30 episodes has 2 rows", "denoiser.length=3", "Shorten denoiser.length"),
    ),
    "few-transitions": (
        {name: array[:8] for name, array in good().items()},
        ("8 transitions", "reward model needs at least 20", "reward.kind=denoiser"),
    ),
    "actions-outside": (
        changed(actions=lambda a: 3 * a),
        ("outside the action space of HalfCheetah-v4 [-1, 1]", "magnitude is 2.9", "Rescale or clip"),
    ),
    "observation-size": (
        changed(observations=lambda a: a[:, :11], next_observations=lambda a: a[:, :11]),
        ("observations have 11 dimensions, but HalfCheetah-v4 has 17", "Set data.environment"),
    ),
    "action-size": (changed(actions=lambda a: a[:, :3]), ("actions have 3 dimensions", "has 6", "data.environment")),
    "successor-size": (changed(next_observations=lambda a: a[:, :5]), ("'next_observations' has 5 columns", "Remove")),
    "no-rows": (changed(**dict.fromkeys(good(), lambda a: a[:0])), ("holds no rows", "again")),
    "text": (changed(rewards=lambda a: np.full(60, b"one")), ("'rewards' holds values of type", "not numbers")),
    "scalar": (changed(rewards=lambda a: a[0]), ("'rewards' has shape ()", "one row per step")),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """The files that the cases name."""
    for name, (arrays, _) in {"good": (good(), ()), **DATA}.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key, array in arrays.items():
                file[key] = array
    with h5py.File(folder / "hopper.hdf5", "w") as file:
        for key, array in good().items():
            file[key] = array
        file.attrs["environment"] = "Walker2d-v4"
    (folder / "not.hdf5").write_bytes(b"\x89HDF, but not really" * 100)
    (folder / "cut.hdf5").write_bytes((folder / "good.hdf5").read_bytes()[:3000])
    for name, text in {
        "demo": "name: demo\nscales: {tiny: {seed: 1}}\narms: {plain: {generator.count: 0}}\n",
        "unknown": "learner: {bach_size: 3}\n",
        "broken": "learner: {updates: 3\n",
        "list": "- learner\n",
        "circle": "extends: circle2.yaml\n",
        "circle2": "extends: circle.yaml\n",
        "orphan": "extends: parent.yaml\n",
        "scales": "scales: [tiny]\n",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    for name in ("cache", "runs/old", "runs/thesis"):
        (folder / name).mkdir(parents=True)
    for name in ("runs/old/config.yaml", "runs/old/metrics.jsonl", "runs/thesis/config.yaml", "runs/file"):
        (folder / name).write_text("")


# name: (arguments, words that the paragraph must hold). {0} is the folder that `prepare` filled; `train` cases get a
# good data file, a cache and an output folder unless they name their own.
CASES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # the command line itself
    "no-such-command": (["tran"], ("No such command 'tran'", "raydiff --help")),
    "no-such-subcommand": (["data", "colect"], ("colect", "raydiff data --help")),
    "no-command": (["data"], ("Missing command", "raydiff data --help")),
    "no-such-option": (["train", "--runtme", "local"], ("--runtme", "raydiff train --help")),
    "no-such-choice": (["train", "--runtime", "spark"], ("--runtime", "spark", "'ray'", "'local'", "train --help")),
    "no-such-policy": (["train", "--on-existing", "ask"], ("--on-existing", "'refuse'", "'overwrite'")),
    "missing-argument": (["data", "info"], ("Missing argument 'DATASET'", "raydiff data info --help")),
    "missing-option": (["data", "collect", "hopper"], ("Missing option '--out'", "raydiff data collect --help")),
    "option-out-of-range": (
        ["data", "collect", "hopper", "--transitions", "5", "--out", "{0}/x.hdf5"],
        ("--transitions", "greater than or equal to 100", "data collect --help"),
    ),
    "option-of-wrong-type": (["data", "collect", "hopper", "--seed", "one", "--out", "{0}/x.hdf5"], ("--seed", "valid integer")),
    # the configuration
    "unknown-key": (
        ["train", "learner.bach_size=3"],
        ("Unknown key learner.bach_size in the command line", "nearest is learner.batch_size", "--help"),
    ),
    "unknown-key-in-file": (
        ["train", "{0}/unknown.yaml"],
        ("Unknown key learner.bach_size in {0}/unknown.yaml", "nearest is learner.batch_size", "--help"),
    ),
    "wrong-type": (["train", "learner.updates=many"], ("learner.updates='many'", "valid integer", "Correct")),
    "out-of-range": (["train", "learner.batch_size=0"], ("learner.batch_size=0", "greater than or equal to 1")),
    "not-a-number": (["train", "denoiser.p_mean=.nan"], ("denoiser.p_mean=nan", "finite number")),
    "infinite-number": (["train", "learner.learning_rate=.inf"], ("learner.learning_rate=inf", "finite number")),
    "value-for-a-group": (["train", "learner=5"], ("learner", "group of keys", "5")),
    "override-without-sign": (["train", "{0}/demo.yaml", "learner.chunk"], ("'learner.chunk'", "key=value")),
    "override-without-key": (["train", "{0}/demo.yaml", "=5"], ("'=5'", "key=value")),
    "override-unreadable": (["train", "learner.hidden=[64"], ("'learner.hidden=[64'", "cannot be read")),
    "override-very-long": (["train", f"learner.{MANY}=1"], ("Unknown key learner.long",)),
    "unknown-scale": (["train", "{0}/demo.yaml", "scale=huge"], ("scale=huge", "{0}/demo.yaml", "On offer: tiny")),
    "scale-without-preset": (["train", "scale=tiny"], ("scale=tiny", "preset", "none")),
    "scale-of-wrong-type": (["train", "{0}/demo.yaml", "scale=[tiny]"], ("scale=['tiny']", "On offer: tiny")),
    "missing-config": (["train", "{0}/dem.yaml"], ("no configuration file {0}/dem.yaml", "Did you mean {0}/demo.yaml")),
    "config-is-a-folder": (["train", "{0}/runs"], ("{0}/runs cannot be read", "directory")),
    "config-is-not-yaml": (["train", "{0}/broken.yaml"], ("{0}/broken.yaml cannot be read as YAML", "line")),
    "config-is-data": (["train", "{0}/good.hdf5"], ("{0}/good.hdf5 cannot be read as YAML",)),
    "config-is-a-list": (["train", "{0}/list.yaml"], ("{0}/list.yaml must hold keys and values", "list")),
    "config-extends-nothing": (["train", "{0}/orphan.yaml"], ("no configuration file {0}/parent.yaml",)),
    "config-extends-itself": (["train", "{0}/circle.yaml"], ("extends", "{0}/circle", "Remove")),
    "scales-are-a-list": (["train", "{0}/scales.yaml"], ("{0}/scales.yaml", "scales must map")),
    "arm-with-unknown-key": (
        ["train", "arms={{fast: {{learner.lerning_rate: 1}}}}"],
        ("Unknown key learner.lerning_rate in arms.fast", "nearest is learner.learning_rate"),
    ),
    "arm-with-bad-value": (["train", "arms={{fast: {{learner.tau: 2}}}}"], ("arms.fast", "learner.tau=2", "Correct")),
    "arm-is-no-group": (["train", "arms={{fast: 5}}"], ("arms.fast=5", "valid dictionary")),
    "arm-with-other-data": (
        ["train", "arms={{other: {{data.seed: 1}}}}"],
        ("arms.other changes data", "share its data", "run of its own"),
    ),
    # settings that would stall, and what this machine cannot do
    "stall-limiter": (
        ["train", "replay.ahead=0.01", "replay.behind=0.01"],
        ("would stall", "replay.ahead", "replay.behind", "Raise"),
    ),
    "stall-max-lag": (
        ["train", "replay.max_lag=20"],
        ("replay.max_lag=20", "learner.chunk=50", "stall", "Raise replay.max_lag"),
    ),
    "stall-warmup": (
        ["train", "replay.warmup=20000"],
        ("replay.warmup=20000", "never fit", "wait for ever", "Lower replay.warmup"),
    ),
    "stall-real-only": (["train", "replay.real_fraction=1"], ("real_fraction=1", "stall", "generator.count=0")),
    "stall-in-an-arm": (["train", "arms={{slow: {{replay.max_lag: 20}}}}"], ("replay.max_lag=20", "stall")),
    "noise-levels": (["train", "sampler.sigma_min=90"], ("sampler.sigma_min=90", "below sampler.sigma_max=10")),
    "refiner-noise": (["train", "refiner.sigma=90"], ("refiner.sigma=90", "sampler.sigma_max=10", "Lower")),
    "device-unknown": (["train", "learner.device=tpu"], ("learner.device=tpu", "Use cpu, cuda")),
    "device-absent": (["train", "generator.device=cuda:99"], ("generator.device=cuda:99", "CUDA devices", "=cpu")),
    "device-absent-locally": (
        ["train", "--runtime", "local", "learner.device=cuda:99"],
        ("learner.device=cuda:99", "CUDA devices", "learner.device=cpu"),
    ),
    "device-without-a-share": (["train", "learner.device=cuda", "cluster.gpus=4"], ("learner.device=cuda", "Set")),
    "too-many-cpus": (
        ["train", "cluster.cpus=1", "learner.cpus=8"],
        ("cannot place", "learner 1/1 needs 8 CPU", "1 of 1 CPU left", "Lower learner.cpus", "cluster.cpus"),
    ),
    "too-many-generators": (
        ["train", "cluster.cpus=2", "learner.cpus=1", "generator.count=5"],
        ("generator 5/5 needs 0.25 CPU", "0 of 2 CPU left", "generator.count to 3"),
    ),
    "too-many-gpus": (
        ["train", "learner.gpus=99"],
        ("learner 1/1 needs 99 GPU", "no GPU", "Lower learner.gpus"),
    ),
    "blocks-too-small": (
        ["train", "generator.batch=16", "replay.ahead=100", "replay.behind=100"],
        ("generator.batch=16", "100 KB", "generator.batch of at least", "--runtime local"),
    ),
    "blocks-of-an-arm-too-small": (
        ["train", "arms={{small: {{generator.batch: 16, replay.ahead: 100, replay.behind: 100}}}}"],
        ("generator.batch=16", "100 KB"),
    ),
    "store-too-small": (
        ["train", "cluster.object_store_mb=80", "replay.generation=100000"],
        ("object store", "cluster.object_store_mb=80", "Raise it", "replay.lifetime"),
    ),
    # the run folder
    "run-exists": (
        ["train", "name=old"],
        ("{0}/runs/old exists", "name=NAME", "--on-existing overwrite"),
    ),
    "not-a-run": (
        ["train", "name=thesis", "--on-existing", "overwrite"],
        ("{0}/runs/thesis", "is not a run", "no metrics.jsonl", "output=FOLDER"),
    ),
    "not-a-folder": (["train", "name=file", "--on-existing", "overwrite"], ("{0}/runs/file", "is not a run")),
    "no-permission": (
        ["train", "output={0}/good.hdf5/runs"],
        ("{0}/good.hdf5/runs/run cannot be written", "output=FOLDER", "permissions"),
    ),
    "read-only": (["train", "output=/proc/runs"], ("/proc/runs/run cannot be written", "output=FOLDER", "permissions")),
    "name-too-long": (["train", f"name={MANY}"], ("cannot be written", "name too long")),
    # the data, as far as it is not the content of a file
    "data-missing": (["train", "data.dataset={0}/none.hdf5"], ("{0}/none.hdf5", "does not exist", "data.dataset=PATH")),
    "data-is-a-folder": (["train", "data.dataset={0}/runs"], ("{0}/runs", "is a folder", "data.dataset=PATH")),
    "data-not-hdf5": (["train", "data.dataset={0}/not.hdf5"], ("{0}/not.hdf5", "cannot be read as HDF5", "again")),
    "data-cut-short": (["train", "data.dataset={0}/cut.hdf5"], ("{0}/cut.hdf5", "cannot be read as HDF5", "cut short")),
    "data-with-a-long-name": (["train", f"data.dataset=/{MANY}"], ("does not exist", "data.dataset=PATH")),
    "data-of-another-user": (["train", "data.dataset=~no-such-user/x"], ("~no-such-user/x", "does not exist")),
    "data-of-another-environment": (
        ["train", "data.dataset={0}/hopper.hdf5"],
        ("{0}/hopper.hdf5", "belong to Walker2d-v4", "asks for HalfCheetah-v4", "data.environment=Walker2d-v4"),
    ),
    "unknown-environment": (["train", "data.environment=ants"], ("no environment 'ants'", "ant", "maze2d-*")),
    "environment-of-another-kind": (["train", "data.environment=CartPole-v1"], ("CartPole-v1", "continuous")),
    "data-of-unknown-origin": (
        ["train", "data.environment=null"],
        ("{0}/good.hdf5 does not say which environment", "data.environment", "Hopper-v4"),
    ),
    "data-unknown-to-d4rl": (["train", "data.dataset=hopper-mediun-v2"], ("no dataset 'hopper-mediun-v2'", "hopper-medium-v2")),
    "max-lag-of-a-periodic-run": (
        ["train", "schedule.kind=periodic", "replay.max_lag=1000"],
        ("replay.max_lag=1000", "schedule.kind=periodic", "Remove"),
    ),
    "more-datasets-than-updates": (
        ["train", "schedule.kind=periodic", "schedule.epochs=20000"],
        ("schedule.epochs=20000", "learner.updates=10000", "Lower"),
    ),
    "cache-not-writable": (
        ["train", "data.cache={0}/good.hdf5/cache"],
        ("{0}/good.hdf5/cache", "cannot be written", "data.cache", "RAYDIFF_CACHE"),
    ),
    "cache-not-writable-to-collect": (
        ["train", "data.cache={0}/good.hdf5/cache", "data.dataset=null"],
        ("{0}/good.hdf5/cache", "cannot be written", "data.cache", "RAYDIFF_CACHE"),
    ),
    "collect-nowhere": (
        ["data", "collect", "hopper", "--out", "{0}/good.hdf5/x.hdf5"],
        ("{0}/good.hdf5/x.hdf5", "cannot be written", "write permission", "--out"),
    ),
    "collect-unknown": (["data", "collect", "ants", "--out", "{0}/x.hdf5"], ("no environment 'ants'", "ant")),
    "collect-level": (
        ["data", "collect", "hopper", "--levels", "best", "--out", "{0}/x"],
        ("'best'", "random", "expert"),
    ),
    "collect-over-a-file": (["data", "collect", "hopper", "--out", "{0}/good.hdf5"], ("good.hdf5 exists", "--overwrite")),
    "list-of-nothing": (["data", "list", "hoper"], ("'hoper'", "raydiff data list")),
    "download-unknown": (["data", "download", "hopper-mediun-v2"], ("hopper-mediun-v2", "hopper-medium-v2")),
    "convert-to-nothing": (["data", "convert", "{0}/good.hdf5", "{0}/x.csv"], ("{0}/x.csv", ".parquet")),
    "convert-over-a-file": (["data", "convert", "{0}/good.hdf5", "{0}/hopper.hdf5"], ("{0}/hopper.hdf5 exists",)),
    "report-of-nothing": (["report", "{0}/none"], ("{0}/none",)),
    "info-of-nothing": (["data", "info", "{0}/none.hdf5"], ("{0}/none.hdf5", "does not exist")),
    "info-of-another-environment": (
        ["data", "info", "{0}/good.hdf5", "--environment", "hopper"],
        ("{0}/good.hdf5", "17 dimensions, but Hopper-v4 has 11"),
    ),
}  # fmt: skip
for _name, (_, _words) in DATA.items():
    CASES[f"data-{_name}"] = (["train", f"data.dataset={{0}}/{_name}.hdf5"], (f"{{0}}/{_name}.hdf5", *_words))
    CASES[f"data-{_name}-locally"] = (["train", "--runtime", "local", *CASES[f"data-{_name}"][0][1:]], _words)


def complete(arguments: list[str], folder: Path) -> list[str]:
    """The arguments with their paths; what a case is not about is good and lies in ``folder``."""
    arguments = [argument.format(folder) for argument in arguments]
    if arguments[:1] == ["train"]:
        defaults = [
            f"output={folder}/runs",
            f"data.cache={folder}/cache",
            f"data.dataset={folder}/good.hdf5",
            "data.environment=halfcheetah",
        ]
        given = {argument.partition("=")[0] for argument in arguments}
        arguments += [default for default in defaults if default.partition("=")[0] not in given]
    return arguments


def contents(folder: Path) -> dict[Path, int]:
    """Every file and folder below, and when the files were changed."""
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


def assert_one_paragraph(error: str, words: tuple[str, ...], folder: Path) -> None:
    assert error.startswith("raydiff: "), error
    assert error.endswith(".\n"), error
    assert "\n" not in error[:-1], error
    assert "Traceback" not in error
    for word in words:
        assert word.format(folder) in error, error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import raydiff.runtime.session  # noqa: F401  its imports are not what is measured

    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_in_one_paragraph(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = CASES[name]
    monkeypatch.setattr(sys, "argv", ["raydiff", *complete(arguments, folder)])
    before, children = contents(folder), psutil.Process().children(recursive=True)
    began = time.process_time()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert time.process_time() - began < 2.0
    captured = capsys.readouterr()
    assert stopped.value.code == 2, captured.err
    assert_one_paragraph(captured.err, words, folder)
    assert captured.out == ""
    assert contents(folder) == before
    assert psutil.Process().children(recursive=True) == children


def test_bad_data_leave_an_old_run_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = complete(["train", "name=old", "--on-existing", "overwrite", "data.dataset={0}/nan.hdf5"], folder)
    monkeypatch.setattr(sys, "argv", ["raydiff", *arguments])
    before = contents(folder)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert_one_paragraph(capsys.readouterr().err, ("nan.hdf5",), folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["unknown-key", "data-nan", "read-only", "blocks-too-small"])
def test_bad_input_in_a_process_of_its_own(name: str, folder: Path, tmp_path: Path) -> None:
    """As a user types it, with Ray as the runtime: its folder stays empty and no process outlives the command."""
    arguments, words = CASES[name]
    before = contents(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "raydiff.cli", *complete(arguments, folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(tmp_path / "ray")},
    )
    output, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert_one_paragraph(error, words, folder)
    assert output == ""
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]
    assert not [pid for pid in psutil.pids() if session_of(pid) == process.pid]


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
