from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from raydiff.comparison.cautions import cautions
from raydiff.comparison.conditions import Comparison, compare, differences
from raydiff.comparison.runs import load_runs
from raydiff.errors import UserError

MakeRun = Callable[..., Path]
GUIDED = {"guided": [1.0, 2.0]}


def comparison(*folders: Path) -> Comparison:
    return compare(load_runs(folders))


def labels(found: Comparison) -> list[str]:
    return [condition.label for condition in found.conditions]


def test_runs_that_differ_in_seeds_and_names_alone_are_one_condition(make_run: MakeRun) -> None:
    runs = [
        make_run(f"a{seed}", GUIDED | {"real_only": [3.0, 4.0]}, seed=seed, data__cache=str(seed), denoiser__seed=seed,
                 cluster__address=f"host{seed}:6379")
        for seed in (3, 1, 2)
    ]  # fmt: skip
    found = comparison(*runs)
    assert labels(found) == ["guided", "real only"]
    assert [found.conditions[0].seeds(task) for task in found.tasks] == [[1, 2, 3]]
    assert differences(found) == {"generator.count": [2, 0]}


def test_a_setting_sets_conditions_apart_only_where_it_acts(make_run: MakeRun) -> None:
    scores = {"guided": [1.0], "real_only": [2.0], "unguided": [3.0]}
    found = comparison(
        make_run("weak", scores, guidance__strength=0.5),
        make_run("strong", scores, guidance__strength=2.0),
        make_run("iql", scores, guidance__strength=0.5, learner__iql__beta=9.0),  # acts on nothing: TD3+BC learns
    )
    assert labels(found) == ["guided (strength 0.5)", "guided (strength 2)", "real only", "unguided"]
    assert [len(condition.trials) for condition in found.conditions] == [1, 1, 1, 1]
    assert sorted((t.run.name, t.arm) for t in found.repeated) == [
        ("iql", "guided"), ("iql", "real_only"), ("iql", "unguided"), ("strong", "real_only"), ("strong", "unguided"),
    ]  # fmt: skip
    assert differences(found)["guidance.strength"] == [0.5, 2.0, None, None]
    (said,) = [line for line in cautions(found) if line.startswith("Left out")]
    assert "real only of 2 runs, unguided of 2 runs, guided (strength 0.5) of 1 run" in said
    assert found.condition_of(found.runs[1], "real_only").label == "real only"
    assert found.condition_of(found.runs[1], "guided").label == "guided (strength 2)"


@pytest.mark.parametrize(
    "setting", ["dynamics__epochs", "rollout__horizon", "dydiff__iterations", "audit__transitions"]
)
def test_nothing_of_generation_acts_on_real_data_alone(make_run: MakeRun, setting: str) -> None:
    runs = [
        make_run("first", GUIDED | {"real_only": [1.0]}),
        make_run("again", {"real_only": [2.0]}, seed=1, **{setting: 7}),
    ]
    assert labels(comparison(*runs)) == ["guided", "real only"]


def test_settings_that_an_older_run_lacks_are_at_their_defaults(make_run: MakeRun) -> None:
    runs = [make_run("new", GUIDED), make_run("old", GUIDED, seed=1)]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    del config["schedule"], config["learner"]["tau"]
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config))
    assert labels(comparison(*runs)) == ["guided"]


def test_arms_of_one_name_with_other_changes_are_other_conditions(make_run: MakeRun) -> None:
    runs = [
        make_run(name, {"tuned": [1.0]}, arms={"tuned": {"learner.td3_bc.alpha": alpha, "generator.count": 0}})
        for name, alpha in (("a", 5.0), ("b", 10.0))
    ]
    assert labels(comparison(*runs)) == ["tuned (alpha 5)", "tuned (alpha 10)"]


def test_many_differences_are_named_by_their_runs(make_run: MakeRun) -> None:
    changes = {"learner__batch_size": 512, "learner__tau": 0.02, "sampler__steps": 8}
    runs = [make_run("base-seed0", GUIDED), make_run("base-seed1", GUIDED, seed=1)]
    runs += [make_run("large_seed0", GUIDED, **changes), make_run("large_seed1", GUIDED, seed=1, **changes)]
    assert labels(comparison(*runs)) == ["guided (base)", "guided (large)"]


def test_settings_that_go_with_the_task_do_not_set_conditions_apart(make_run: MakeRun) -> None:
    runs = [
        make_run("cheetah", GUIDED, generator__batch=384),
        make_run("hopper", GUIDED, environment="Hopper-v4", generator__batch=576),
        make_run("alias", GUIDED, environment="halfcheetah", generator__batch=384, seed=1, finished=False),
    ]
    found = comparison(*runs)
    assert labels(found) == ["guided"]
    cheetah, hopper = found.tasks
    assert found.task_settings == {"generator.batch": {cheetah: 384, hopper: 576}}
    assert (cheetah.environment, hopper.environment) == ("HalfCheetah-v4", "Hopper-v4")
    assert found.conditions[0].seeds(cheetah) == [0, 1]  # the unfinished run is found by its alias
    two = [*runs, make_run("other", GUIDED, generator__batch=512)]  # two sizes on one task: now they differ
    assert labels(comparison(*two)) == ["guided (batch 384)", "guided (batch 576)", "guided (batch 512)"]


def test_scales_are_told_apart(make_run: MakeRun) -> None:
    found = comparison(
        make_run("d4rl", GUIDED, data__dataset="/data/halfcheetah-medium-v2.hdf5"),
        make_run("minari", GUIDED, data__dataset="minari:mujoco/halfcheetah/medium-v0"),
        make_run("raw", GUIDED, environment="Pendulum-v1", normalized=False),
    )
    assert [(task.data, task.scale) for task in found.tasks] == [
        ("halfcheetah-medium-v2.hdf5", "d4rl"),
        ("minari:mujoco/halfcheetah/medium-v0", "minari"),
        ("random data, 100,000 transitions collected", "raw"),
    ]
    assert found.short(found.tasks[2]) == "Pendulum-v1"
    assert found.short(found.tasks[0]) == "HalfCheetah-v4 · halfcheetah-medium-v2.hdf5"  # two tasks in one environment


@pytest.mark.parametrize(
    ("facts", "settings", "said"),
    [
        ({"mujoco": "2.1"}, {}, "different MuJoCo versions: 3.3 in a; 2.1 in b"),
        ({"hash": "feedfacecafebeef"}, {}, "different datasets (by their hash): abc in a; feedfacecafe in b"),
        ({"raydiff": "0.2.0"}, {}, "different versions of raydiff: 0.1.0 in a; 0.2.0 in b"),
        ({}, {"evaluation__final_episodes": 100}, "number of final evaluation episodes differs: 20 in a; 100 in b"),
        ({}, {"evaluation__seed": 7}, "first evaluation seed differs: 10,000 in a; 7 in b"),
        ({}, {"learner__updates": 500}, "number of learner updates differs: 10,000 in a; 500 in b"),
    ],
)
def test_what_makes_scores_incomparable_is_said(
    make_run: MakeRun, facts: dict[str, str], settings: dict[str, int], said: str
) -> None:
    alike = make_run("a", GUIDED), make_run("c", GUIDED, seed=1)
    assert not any("differ" in line for line in cautions(comparison(*alike)))
    other = make_run("b", GUIDED, seed=1, facts=facts, **settings)
    lines = cautions(comparison(alike[0], other))
    assert len([line for line in lines if said in line]) == 1, lines


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, "single seed"), (2, "range of the 2"), (3, "three quarters"), (5, "84 %"), (10, None)],
)
def test_few_seeds_are_said_to_be_few(make_run: MakeRun, seeds: int, said: str | None) -> None:
    lines = cautions(comparison(*(make_run(f"s{seed}", GUIDED, seed=seed) for seed in range(seeds))))
    assert (lines == []) if said is None else (said in " ".join(lines))


def test_unfinished_runs_are_named(make_run: MakeRun) -> None:
    found = comparison(make_run("done", GUIDED), make_run("half", GUIDED, seed=1, finished=False))
    assert any(line.startswith("Not finished: half.") for line in cautions(found))


def test_folders_that_are_no_runs_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a", GUIDED)
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        load_runs([run, tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"it has no config\.yaml and no metrics\.jsonl\. It holds runs: name those"):
        load_runs([run, tmp_path])
    with pytest.raises(UserError, match="same run"):
        load_runs([run, tmp_path / "x" / ".." / "a"])
    empty = make_run("empty", {})
    with pytest.raises(UserError, match="no records of any arm"):
        load_runs([run, empty])
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_runs([run])


def test_runs_of_one_name_are_named_by_their_paths(make_run: MakeRun, tmp_path: Path) -> None:
    runs = load_runs([make_run("x/demo", GUIDED), make_run("y/demo", GUIDED, seed=1)])
    assert [run.name for run in runs] == ["x/demo", "y/demo"]
