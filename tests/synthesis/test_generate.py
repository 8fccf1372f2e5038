"""``raydiff generate`` on a finished run: the same data whoever makes it, however often it is interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from rich.console import Console

from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.runtime.session import train
from raydiff.status import StatusBoard
from raydiff.synthesis import generate as module
from raydiff.synthesis.generate import generate_dataset, open_source
from raydiff.synthesis.pool import LocalPool, Made

ROOT = Path(__file__).parents[2]
WANTED = 5_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run with a guided and a real-only arm."""
    folder = tmp_path_factory.mktemp("generate")
    keys = ["scale=tiny", f"data.cache={folder / 'cache'}", f"output={folder}", "name=run", "learner.updates=60"]
    keys += ["denoiser.steps=60", "reward.steps=60", "sampler.steps=4", "evaluation.every=60", "audit.count=0"]
    keys += ["arms={real_only: {generator.count: 0}}", "data.transitions=2000", "generator.sigma_limit=1000"]
    config = load_config(ROOT / "configs" / "maze2d" / "umaze.yaml", keys)
    with StatusBoard(Console(quiet=True)) as board:
        return train(config, "local", "refuse", board)


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "synthetic.hdf5"
    _, written = generate_dataset(source(run), WANTED, str(path), "local")
    assert WANTED <= written < WANTED + 2
    return path


def source(run: Path, *overrides: str) -> module.Source:
    return open_source(run, None, ["generator.batch=512", *overrides])


def arrays(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}


def assert_same(path: Path, other: Path) -> None:
    first, second = arrays(path), arrays(other)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_an_interrupted_generation_goes_on(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Interrupted(LocalPool):
        def collect(self) -> list[Made]:
            if len(made) == 2:
                raise KeyboardInterrupt
            done = super().collect()
            made.extend(item.shard for item in done)
            return done

    out = tmp_path / "synthetic.hdf5"
    with monkeypatch.context() as patch:
        patch.setattr(module, "LocalPool", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_dataset(source(run), WANTED, str(out), "local")
    assert not out.exists()
    parts = sorted(Path(f"{out}.parts").glob("*.safetensors"))
    times = [part.stat().st_mtime_ns for part in parts]
    assert made == [0, 1]
    assert len(parts) == 2
    with pytest.raises(UserError, match="another generation"):
        generate_dataset(source(run, "guidance.strength=1"), WANTED, str(out), "local")
    assert [part.stat().st_mtime_ns for part in parts] == times
    generate_dataset(source(run), WANTED, str(out), "local")
    assert_same(out, whole)
    assert not Path(f"{out}.parts").exists()


@pytest.mark.timeout(180)
def test_generators_on_ray_make_the_same_dataset_and_survive_a_kill(run: Path, whole: Path, tmp_path: Path) -> None:
    from raydiff.runtime import pool as ray_side

    killed, said = list[int](), list[str]()

    class Killing(ray_side.RayPool):
        def collect(self) -> list[Made]:
            if self.calls and not killed:
                name, _, _ = next(iter(self.calls.values()))
                os.kill(self.pids[name], signal.SIGKILL)
                killed.append(self.pids[name])
            return super().collect()

    out = tmp_path / "synthetic.hdf5"
    original, ray_side.RayPool = ray_side.RayPool, Killing  # type: ignore[misc]
    try:
        ours = source(run, "generator.count=2", "cluster.cpus=2", "cluster.object_store_mb=200")
        generate_dataset(ours, WANTED, str(out), "ray", say=said.append)
    finally:
        ray_side.RayPool = original  # type: ignore[misc]
    assert_same(out, whole)
    assert any(f"(process {pid}) is started anew" in text for pid in killed for text in said)


def test_the_d4rl_package_loads_it(whole: Path) -> None:
    d4rl = pytest.importorskip("d4rl")
    with h5py.File(whole) as file:
        data = {name: file[name][()] for name in file if isinstance(file[name], h5py.Dataset)}
    found = d4rl.qlearning_dataset(SimpleNamespace(_max_episode_steps=300), dataset=data)
    # The package leaves out the last row of every file, here a closing row that is no transition.
    assert len(found["rewards"]) == int((~data["timeouts"]).sum())
    rows = np.flatnonzero(~data["timeouts"])
    np.testing.assert_array_equal(found["observations"], data["observations"][rows])
    np.testing.assert_array_equal(found["next_observations"], data["observations"][rows + 1])


def test_minari_loads_it(run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    generate_dataset(source(run), WANTED, "minari:mine/synthetic-v0", "local")
    loaded = minari.load_dataset("mine/synthetic-v0")
    expected = arrays(whole)
    assert loaded.total_steps == int((~expected["timeouts"]).sum())
    episode = next(iter(loaded.iterate_episodes()))
    length = len(episode.rewards)
    np.testing.assert_allclose(episode.observations, expected["observations"][: length + 1])
    np.testing.assert_allclose(episode.rewards, expected["rewards"][:length])


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before any model is loaded."""

    def never(*_: object) -> None:
        pytest.fail("the models were loaded before the input was checked")

    monkeypatch.setattr(module, "_models", never)


@pytest.mark.usefixtures("no_work")
def test_bad_input(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run of raydiff"):
        open_source(tmp_path, None, [])
    with pytest.raises(UserError, match=r"no arm best.*guided, real_only"):
        open_source(run, "best", [])
    with pytest.raises(UserError, match=r"give FILE\.hdf5"):
        generate_dataset(source(run), 10, str(tmp_path / "a.csv"))
    (tmp_path / "there.hdf5").write_text("")
    with pytest.raises(UserError, match="exists"):
        generate_dataset(source(run), 10, str(tmp_path / "there.hdf5"))
    with pytest.raises(UserError, match=r"generator\.count=0"):
        source(run, "generator.count=0")
    policy = run / "checkpoints" / "real_only.policy.safetensors"
    assert open_source(policy, None, []).arm == "real_only"
