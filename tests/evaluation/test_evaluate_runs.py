"""``raydiff evaluate`` on two runs that were made here, and what it makes of scores of several tasks."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from raydiff.agents.diffusion_policy import DiffusionPolicySpec, pack_diffusion_policy
from raydiff.agents.mish import MishMLP
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.policy import Policy
from raydiff.checkpoint import load_policy
from raydiff.cli import main
from raydiff.comparison.rescored import tabulate
from raydiff.comparison.runs import Run
from raydiff.envs.registry import make_env
from raydiff.errors import UserError
from raydiff.evaluation.evaluate_runs import Played, Protocol, play
from raydiff.evaluation.scores import normalized_score
from raydiff.metrics import read_metrics, select

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
SMALL = [
    "scale=tiny", "data.environment=maze2d-umaze-dense", "data.level=waypoint", "data.transitions=1500", "generator.count=0",
    "refiner.count=0", "audit.count=0", "learner.updates=40", "learner.chunk=20", "learner.hidden=[16,16]",
    "learner.batch_size=32", "evaluation.every=40", "evaluation.final_episodes=3",
    "arms={}", "arms={iql: {learner.algorithm: iql}}",
]  # fmt: skip

Raydiff = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def raydiff(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raydiff]:
    """``raydiff ARGUMENTS`` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        patch.setattr(sys, "argv", ["raydiff", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield run


@pytest.fixture(scope="module")
def runs(raydiff: Raydiff, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds, each with the arms real_only (TD3+BC) and iql."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        settings = [*SMALL, f"seed={seed}", f"output={folder}", f"name=maze-{seed}"]
        code, _, err = raydiff("train", DEMO, "--runtime", "local", *settings)
        assert code == 0, err
    return [folder / "maze-0", folder / "maze-1"]


@pytest.fixture(scope="module")
def found(raydiff: Raydiff, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command writes and prints of 4 episodes."""
    path = tmp_path_factory.mktemp("json") / "scores.json"
    code, out, err = raydiff("evaluate", *runs, "--episodes", 4, "--json", path)
    assert code == 0, err
    return json.loads(path.read_text()), out


def policy(found: dict[str, Any], run: Path, arm: str) -> dict[str, Any]:
    return next(row for row in found["policies"] if (row["run"], row["arm"]) == (str(run), arm))


def test_every_return_is_that_of_a_plain_loop(found: tuple[dict[str, Any], str], runs: list[Path]) -> None:
    assert found[0]["protocol"] == {"policies": "last", "episodes": 4, "first_seed": 10_000, "actions": "evaluation"}
    assert len(found[0]["policies"]) == 4
    env = make_env("maze2d-umaze-dense-v1")
    for run in runs:
        row = policy(found[0], run, "iql")
        acting = Policy.from_blob(load_policy(run / "checkpoints" / "iql.policy.safetensors"))
        observation, _ = env.reset(seed=10_000 + 3)
        total, steps, done = 0.0, 0, False
        while not done:
            action = acting.act(np.asarray(observation, dtype=np.float32)[None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, done = total + float(reward), steps + 1, terminated or truncated
        assert row["returns"][3] == pytest.approx(total, rel=1e-5)  # one row or four: other sums in the policy
        assert row["lengths"][3] == steps
        assert (row["update"], row["environment"], row["seed"]) == (40, "maze2d-umaze-dense-v1", runs.index(run))
        assert row["raw"]["mean"] == pytest.approx(np.mean(row["returns"]))
        assert row["normalized"]["mean"] == pytest.approx(
            normalized_score("maze2d-umaze-dense", np.array(row["returns"])).mean()
        )


def test_the_runs_own_final_episodes_come_out_again(found: tuple[dict[str, Any], str], runs: list[Path]) -> None:
    for run in runs:
        for arm in ("real_only", "iql"):
            own = next(r for r in select(read_metrics(run), "evaluate", arm) if r["final"])
            assert policy(found[0], run, arm)["returns"][:3] == pytest.approx(own["returns"], abs=1e-6)


def test_seeds_of_one_condition_are_held_against_those_of_another(found: tuple[dict[str, Any], str]) -> None:
    (task,), (pair,) = found[0]["tasks"], found[0]["pairs"]
    assert found[0]["aggregates"] == []
    assert task["scale"] == "d4rl"
    scores = {row["condition"]: list(row["seeds"].values()) for row in task["conditions"]}
    assert len(scores) == 2
    assert all(len(values) == 2 for values in scores.values())
    for row in task["conditions"]:
        assert row["mean"]["value"] == pytest.approx(np.mean(scores[row["condition"]]))
        assert (row["mean"]["low"], row["mean"]["high"]) == (
            pytest.approx(min(scores[row["condition"]])), pytest.approx(max(scores[row["condition"]]))
        )  # fmt: skip
    first, second = scores[pair["first"]], scores[pair["second"]]
    above = stats.mannwhitneyu(first, second).statistic / 4
    assert pair["probability_of_improvement"]["value"] == pytest.approx(above)
    assert pair["p_of_welch"] == [pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)]
    assert (pair["seeds_shared"], pair["p_of_signs"]) == (2, pytest.approx(0.5, abs=0.5))


def test_the_table_says_what_the_file_says(found: tuple[dict[str, Any], str]) -> None:
    text = " ".join(found[1].split())
    assert "4 episodes each, evaluation actions" in text
    assert "behaviour (the data)" in text
    assert "With 2 seeds an interval is the range of the 2" in text
    for row in found[0]["tasks"][0]["conditions"]:
        assert f"{row['mean']['value']:,.1f}" in text
        assert f"[{row['mean']['low']:,.1f}, {row['mean']['high']:,.1f}]" in text
    assert f"{found[0]['pairs'][0]['probability_of_improvement']['value']:.2f}" in text


def test_the_same_seeds_give_the_same_file_and_others_another(
    raydiff: Raydiff, runs: list[Path], found: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    contents = []
    for name, *options in (("a",), ("b",), ("c", "--seed", 7), ("d", "--sampled"), ("e", "--sampled")):
        path = tmp_path / f"{name}.json"
        assert raydiff("evaluate", runs[0], "--episodes", 2, "--json", path, *options)[0] == 0
        contents.append(path.read_text())
    first, again, elsewhere, drawn, redrawn = contents
    assert first == again
    assert drawn == redrawn
    returns = {name: policy(json.loads(text), runs[0], "iql")["returns"] for name, text in
               (("first", first), ("elsewhere", elsewhere), ("drawn", drawn))}  # fmt: skip
    assert returns["first"] == pytest.approx(policy(found[0], runs[0], "iql")["returns"][:2], abs=1e-6)
    assert returns["elsewhere"] != returns["first"] != returns["drawn"]
    fixed = [policy(json.loads(text), runs[0], "real_only")["returns"] for text in (first, drawn)]
    assert fixed[0] == fixed[1]
    assert any("deterministic" in line and "nothing to sample" in line for line in json.loads(drawn)["cautions"])
    assert not any("nothing to sample" in line for line in json.loads(first)["cautions"])


def test_arms_can_be_chosen(raydiff: Raydiff, runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert raydiff("evaluate", *runs, "--arm", "iql", "--episodes", 1, "--json", path)[0] == 0
    assert {row["arm"] for row in json.loads(path.read_text())["policies"]} == {"iql"}


def test_temperature_and_candidates_replace_those_of_a_diffusion_policy() -> None:
    network = NetworkSpec(kind="mlp", inputs=1, condition=3, hidden=(16, 16))
    torch.manual_seed(0)
    spec = DiffusionPolicySpec(
        observation_size=3, action_size=1, network=network, schedule="discrete", levels=5, solver="ddpm", steps=5,
    )  # fmt: skip
    critic = MishMLP((4, 8, 1), heads=2, generator=torch.Generator().manual_seed(1))
    blob = pack_diffusion_policy(
        3, spec.model_copy(update={"critic_activation": "mish"}), torch.zeros(3), torch.ones(3), NoiseNetwork(network),
        critic=critic,
    )  # fmt: skip

    def returns(**changes: Any) -> list[float]:
        protocol = Protocol(2, 5, **changes)
        return list(play(blob, "Pendulum-v1", protocol, lambda done: None, "x").returns)

    own, cold, chosen = returns(), returns(temperature=0.0), returns(candidates=4)
    assert own == returns(temperature=1.0) == returns(candidates=1) == returns(sampled=True)
    assert len({own[0], cold[0], chosen[0]}) == 3
    plain = pack_diffusion_policy(3, spec, torch.zeros(3), torch.ones(3), NoiseNetwork(network))
    with pytest.raises(UserError, match=r"x: choosing among 4 candidates.*--candidates"):
        play(plain, "Pendulum-v1", Protocol(1, 5, candidates=4), lambda done: None, "x")


def test_what_cannot_be_scored_is_refused_before_anything_is_played(
    raydiff: Raydiff, runs: list[Path], tmp_path: Path
) -> None:
    unfinished, damaged, other = (tmp_path / name for name in ("unfinished", "damaged", "other"))
    for folder in (unfinished, damaged, other):
        shutil.copytree(runs[0], folder)
    shutil.rmtree(unfinished / "checkpoints")
    (damaged / "checkpoints" / "iql.policy.safetensors").write_bytes(b"not weights")
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(
        settings.replace("environment: maze2d-umaze-dense-v1", "environment: Pendulum-v1")
    )
    (tmp_path / "file").write_text("")
    cases = [
        ([tmp_path / "none"], "There is no folder"),
        ([runs[0], unfinished], "no last policy"),
        ([damaged], "is not a policy of raydiff"),
        ([runs[0], "--arm", "iqlx"], "no finished arm called iqlx. Did you mean iql?"),
        ([runs[0], runs[0]], "the same run"),
        ([other], "4 observations and 2 actions"),
        ([runs[0], "--json", tmp_path / "file" / "x.json"], "cannot be written"),
        ([runs[0], "--json", tmp_path], "is a folder"),
        ([runs[0], "--episodes", 0], "--episodes"),
        ([runs[0], "--temperature", 0.5], "--temperature acts on diffusion policies"),
        ([runs[0], "--sampled", "--candidates", 5], "one plain draw per step"),
    ]
    for arguments, said in cases:
        code, out, err = raydiff("evaluate", *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err
        assert len(err.strip().splitlines()) == 1


def scored(task: str, algorithm: str, seed: int, score: float) -> tuple[Run, dict[str, Played]]:
    """A run on a task with one arm whose ten episodes all have this D4RL score."""
    low, high = {"maze2d-umaze-v1": (23.85, 161.86), "Hopper-v4": (-20.272305, 3234.3)}[task]
    settings = {"data.environment": task, "data.dataset": "x.hdf5", "learner.algorithm": algorithm, "seed": seed}
    returns = np.full(10, low + (high - low) * score / 100)
    name = f"{task}-{algorithm}-{seed}"
    played = Played(100, task, False, returns, np.full(10, 300))
    return Run(name, Path(name), settings, {}, [], {}), {"real_only": played}


def test_aggregates_over_tasks_are_those_of_section_j() -> None:
    rng = np.random.default_rng(0)
    scores = {"td3_bc": rng.normal(60, 20, size=(2, 5)), "iql": rng.normal(50, 20, size=(2, 5))}
    made = [
        scored(task, algorithm, seed, float(values[row, seed]))
        for algorithm, values in scores.items()
        for row, task in enumerate(("maze2d-umaze-v1", "Hopper-v4"))
        for seed in range(5)
    ]
    found = tabulate([run for run, _ in made], [played for _, played in made])
    json.dumps(found, allow_nan=False)
    (aggregate,), (pair,) = found["aggregates"], found["pairs"]
    assert len(aggregate["tasks"]) == 2
    by_name = {name: next(r for r in aggregate["conditions"] if name in r["condition"]) for name in scores}
    for name, values in scores.items():
        row = by_name[name]
        assert row["runs"] == 10
        assert row["iqm"]["value"] == pytest.approx(np.sort(values.ravel())[2:-2].mean())  # floor(10 / 4) at each side
        assert row["mean"]["value"] == pytest.approx(values.mean())
        assert row["median"]["value"] == pytest.approx(np.median(values.mean(1)))
        half = 1.96 * np.sqrt((values.var(1) / 5).sum()) / 2  # strata: each task on its own
        assert (row["mean"]["high"] - row["mean"]["low"]) / 2 == pytest.approx(half, rel=0.05)
    first, second = (scores["td3_bc" if "td3_bc" in pair[side] else "iql"] for side in ("first", "second"))
    above = [stats.mannwhitneyu(x, y).statistic / 25 for x, y in zip(first, second, strict=True)]
    assert pair["probability_of_improvement"]["value"] == pytest.approx(np.mean(above))
    assert len(pair["p_of_welch"]) == 2


def test_settings_of_a_runs_own_evaluation_set_no_conditions_apart() -> None:
    made = [scored("Hopper-v4", "iql", seed, 50.0 + seed) for seed in (0, 1)]
    made[0][0].settings["evaluation.final_episodes"] = 3
    made[1][0].settings["evaluation.final_episodes"] = 5
    found = tabulate([run for run, _ in made], [played for _, played in made])
    assert [len(row["seeds"]) for row in found["tasks"][0]["conditions"]] == [2]
    assert not any("episodes differs" in line for line in found["cautions"])
