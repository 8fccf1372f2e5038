from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from raydiff.cli_tasks import refreshed
from raydiff.config import Config
from raydiff.config_learner import LearnerConfig
from raydiff.data.catalogue import catalogue
from raydiff.envs.registry import canonical
from raydiff.errors import UserError
from raydiff.metrics import read_metrics, select
from raydiff.presets import load_config, read_tasks
from raydiff.runtime.plan import flow_limits
from raydiff.runtime.session import train
from raydiff.status import StatusBoard
from raydiff.tasks import groups, offered, short

ROOT = Path(__file__).parents[1]
LEARNERS = get_args(LearnerConfig.model_fields["algorithm"].annotation)
AGENTS = ("hopper", "halfcheetah", "walker2d")
LEVELS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
MAZES = ("umaze", "medium", "large")
ANTS = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
TASKS = [
    *(f"{agent}-{level}-v2" for agent in AGENTS for level in LEVELS),
    *(f"maze2d-{maze}{dense}-v1" for maze in MAZES for dense in ("", "-dense")),
    *(f"antmaze-{maze}-v2" for maze in ANTS),
    *(
        f"{hand}-{level}-v1"
        for hand in ("pen", "hammer", "door", "relocate")
        for level in ("human", "cloned", "expert")
    ),
    *(f"kitchen-{level}-v0" for level in ("complete", "partial", "mixed")),
]


def preset(learner: str) -> Path:
    return ROOT / "configs" / learner / "d4rl.yaml"


@cache
def settings(learner: str, task: str, *overrides: str) -> Config:
    return load_config(preset(learner), [f"task={task}", *overrides])


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    return str(error.value)


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_task_of_every_learner_is_there_and_can_run(learner: str) -> None:
    assert offered(read_tasks(preset(learner))) == TASKS
    for task in TASKS:
        config = settings(learner, task)
        assert config.learner.algorithm == learner
        assert (config.data.dataset, config.name) == (task, f"{learner.replace('_', '-')}-{task}")
        assert config.data.environment == canonical(catalogue()[task].environment)
        assert config.data.transitions == catalogue()[task].rows
        assert config.data.level == ("waypoint" if task.startswith("maze2d") else "random")
        assert config.generator.count == 0
        flow_limits(config)


@pytest.mark.parametrize("learner", LEARNERS)
def test_generators_and_the_smallest_scale_fit_one_task_of_each_family(learner: str) -> None:
    for task in ("hopper-medium-v2", "maze2d-umaze-v1", "antmaze-umaze-v2", "pen-human-v1", "kitchen-mixed-v0"):
        for overrides in (["generator.count=2"], ["scale=tiny"], ["generator.count=2", "scale=tiny"]):
            config = settings(learner, task, *overrides)
            flow_limits(config)
            assert config.learner.updates == 300 or "scale=tiny" not in overrides
            assert config.learner.hidden == (32, 32) or "scale=tiny" not in overrides


REBRAC = {  # Tarasov et al. 2023: penalties of actor and critic
    "halfcheetah": ((0.001, 0.01), (0.01, 0.001), (0.01, 0.1), (0.001, 0.1)),
    "hopper": ((0.01, 0.01), (0.05, 0.5), (0.1, 0.01), (0.001, 0.01)),
    "walker2d": ((0.05, 0.1), (0.05, 0.01), (0.01, 0.01), (0.01, 0)),
}
CLIPS = {"halfcheetah": (9, 2, 7), "hopper": (9, 4, 5), "walker2d": (1, 4, 5)}  # Wang et al. 2023
ETAS = {"umaze": (0.5, 2, False), "umaze-diverse": (2, 3, True), "medium-play": (2, 2, True),
        "medium-diverse": (3, 1, True), "large-play": (4.5, 10, True), "large-diverse": (3.5, 7, True)}  # fmt: skip


@pytest.mark.parametrize("agent", AGENTS)
def test_locomotion_has_the_published_numbers(agent: str) -> None:
    for level, penalties in zip(("medium", "medium-replay", "medium-expert", "random"), REBRAC[agent], strict=True):
        rebrac = settings("rebrac", f"{agent}-{level}-v2").learner
        assert (rebrac.rebrac.actor_penalty, rebrac.rebrac.critic_penalty) == penalties
        assert (rebrac.batch_size, rebrac.learning_rate, rebrac.actor_learning_rate) == (1024, 1e-3, None)
        assert (rebrac.hidden, rebrac.normalize_observations) == ((256, 256, 256), False)
    for level, clip in zip(("medium", "medium-replay", "medium-expert"), CLIPS[agent], strict=True):
        diffusion = settings("diffusion_ql", f"{agent}-{level}-v2").learner
        assert (diffusion.diffusion_ql.gradient_clip, diffusion.diffusion_ql.eta, diffusion.updates) == (
            clip,
            1,
            2_000_000,
        )
    for level in LEVELS:
        iql, cql = settings("iql", f"{agent}-{level}-v2"), settings("cql", f"{agent}-{level}-v2")
        assert (iql.learner.iql.expectile, iql.learner.iql.beta) == (0.7, 3)
        assert (iql.data.reward_normalization, iql.data.reward_scale, iql.data.reward_shift) == (
            "return_range",
            1000,
            0,
        )
        assert (cql.learner.cql.alpha, cql.learner.cql.lagrange, cql.learner.actor_learning_rate) == (10, False, 3e-5)
        assert settings("td3_bc", f"{agent}-{level}-v2").learner.td3_bc.alpha == 2.5


@pytest.mark.parametrize("maze", ANTS)
def test_antmaze_has_the_published_numbers(maze: str) -> None:
    """Rewards ``s r + c`` (section 0.4) above all: without them few of these learn anything there."""
    rewards = {"td3_bc": (1, -1), "iql": (1, -1), "swg": (1, -1), "qgpo": (1, -1), "cql": (10, -5), "rebrac": (100, 0),
               "diffusion_ql": (4, -2)}  # fmt: skip
    for learner, (scale, shift) in rewards.items():
        data = settings(learner, f"antmaze-{maze}-v2").data
        assert (data.reward_normalization, data.reward_scale, data.reward_shift) == ("none", scale, shift)
    of = {learner: settings(learner, f"antmaze-{maze}-v2").learner for learner in rewards}
    assert (of["iql"].iql.expectile, of["iql"].iql.beta, of["swg"].swg.expectile) == (0.9, 10, 0.9)
    assert (of["rebrac"].discount, of["rebrac"].learning_rate, of["rebrac"].actor_learning_rate) == (0.999, 5e-5, 3e-4)
    assert (of["cql"].cql.gap, of["cql"].cql.lagrange, of["cql"].cql.difference_min) == (0.8, True, -200)
    assert of["qgpo"].qgpo.support_actions == 32
    options = of["diffusion_ql"].diffusion_ql
    assert (options.eta, options.gradient_clip, options.max_q_backup) == ETAS[maze]
    assert of["diffusion_ql"].actor_learning_rate == (1e-3 if maze == "medium-play" else None)


def test_manipulation_has_the_published_numbers() -> None:
    pen = settings("diffusion_ql", "pen-human-v1")
    assert (pen.data.reward_normalization, pen.learner.actor_learning_rate) == ("standard", 3e-5)
    assert (pen.learner.diffusion_ql.eta, pen.learner.diffusion_ql.gradient_clip) == (0.15, 7)
    assert settings("diffusion_ql", "kitchen-complete-v0").learner.updates == 250_000
    assert settings("diffusion_ql", "kitchen-mixed-v0").learner.diffusion_ql.eta == 0.005
    for task in ("pen-cloned-v1", "kitchen-partial-v0"):
        iql = settings("iql", task)
        assert (iql.learner.iql.beta, iql.data.reward_scale) == (0.5, 1)
    human = settings("rebrac", "pen-human-v1").learner
    assert (human.rebrac.actor_penalty, human.rebrac.critic_penalty, human.batch_size) == (0.1, 0.5, 256)


@pytest.mark.parametrize(("overrides", "parts"), [
    (["task=hopper-medium-v1"], ["has no settings for it", "The nearest is task=hopper-medium-v2"]),
    (["task=Hopper-medum-v2"], ["The nearest is task=hopper-medium-v2"]),
    (["task=bullet-hopper-medium-v0"], ["cannot be scored here", "no simulator", "task=hopper-medium-v2"]),
    (["task=maze2d-eval-umaze-v1"], ["cannot be scored here", "task=maze2d-umaze-v1"]),
    (["task=carla-lane-v0"], ["cannot be learnt here: its observations are camera images"]),
    (["task=[1]"], ["has no settings for it"]),
    ([], ["settings for 45 datasets", "task=hopper-random-v2", "task=` lists them"]),
    (["task="], ["settings for 45 datasets"]),
])  # fmt: skip
def test_a_task_that_is_not_there_names_the_nearest(overrides: list[str], parts: list[str]) -> None:
    text = complaint(preset("cql"), *overrides)
    assert all(part in text for part in [*parts, str(preset("cql"))]), text
    assert "\n" not in text


def test_presets_without_tasks_say_where_there_are_some() -> None:
    assert "has no tasks" in complaint(ROOT / "configs" / "demo.yaml", "task=hopper-medium-v2")
    with pytest.raises(UserError, match="the defaults has no tasks"):
        load_config(None, ["task=hopper-medium-v2"])


def test_later_wins_from_the_preset_to_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "learner: {updates: 1, chunk: 1, tau: 0.1, batch_size: 1, in_flight: 1}\n"
        "tasks:\n  hopper-*-v2: {learner: {chunk: 2, tau: 0.2, batch_size: 2}}\n"
        "  hopper-medium-v2: {learner.tau: 0.3, learner.batch_size: 3, note: of this one}\n"
        "scales: {tiny: {learner.batch_size: 4, learner.in_flight: 4}}\n"
    )
    config = load_config(path, ["task=hopper-medium-v2", "scale=tiny", "learner.in_flight=2", "data.dataset=own.hdf5"])
    learner = config.learner
    assert (learner.updates, learner.chunk, learner.tau, learner.batch_size, learner.in_flight) == (1, 2, 0.3, 4, 2)
    assert (config.data.dataset, config.data.environment, config.name) == (
        "own.hdf5",
        "Hopper-v4",
        "run-hopper-medium-v2",
    )
    assert load_config(path, ["task=hopper-medium-expert-v2"]).learner.tau == 0.2
    assert [note for _, _, note in groups(read_tasks(path))] == ["", "of this one"]
    (tmp_path / "over.yaml").write_text("extends: own.yaml\ntasks: {hopper-medium-v2: {learner.tau: 0.4}}")
    assert load_config(tmp_path / "over.yaml", ["task=hopper-medium-v2"]).learner.tau == 0.4
    assert load_config(tmp_path / "over.yaml", ["task=hopper-medium-v2"]).learner.batch_size == 3


@pytest.mark.parametrize(("text", "part"), [
    ("tasks: [hopper-medium-v2]", "tasks must map D4RL ids"),
    ("tasks: {hopper-medium-v2: 5}", "tasks must map D4RL ids"),
    ("tasks: {hoper-*-v2: {}}", "has the key hoper-*-v2, which is no dataset"),
    ("tasks: {bullet-*: {}}", "has the key bullet-*, which is no dataset of D4RL that can be scored here"),
    ("tasks: {hopper-*-v2: {learner.updats: 5}}", "Unknown key learner.updats in"),
])  # fmt: skip
def test_malformed_tables(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    assert part in complaint(tmp_path / "own.yaml", "task=hopper-medium-v2")


def test_names_in_short() -> None:
    assert short(["hopper-medium-v2"]) == "hopper-medium-v2"
    assert short(["hopper-medium-v2", "hopper-medium-replay-v2", "pen-human-v1"]) == (
        "hopper-{medium, medium-replay}-v2; pen-human-v1"
    )
    assert short(["hopper-random-v2", "walker2d-random-v2"]) == "{hopper, walker2d}-random-v2"


def test_the_documents_say_what_the_presets_hold() -> None:
    """Make them anew with: python -m raydiff.cli_tasks docs/tasks.md configs."""
    text = (ROOT / "docs" / "tasks.md").read_text()
    assert all(f"<!-- tasks: {learner} -->\n| tasks |" in text for learner in LEARNERS)
    assert refreshed(text, ROOT / "configs") == text
    assert refreshed(text.replace("9 |", "8 |").replace("=2.5", "=2"), ROOT / "configs") == text


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_task_is_learnt_from_data_collected_in_its_environment(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("RAYDIFF_CACHE", str(tmp_path_factory.getbasetemp() / "tasks"))  # collected once for all
    config = settings(
        learner, "maze2d-umaze-v1", "scale=tiny", "data.dataset=null", "learner.updates=8", "learner.chunk=4",
        "learner.batch_size=32", "evaluation.every=1000", "evaluation.final_episodes=1", f"output={tmp_path}",
    )  # fmt: skip
    folder = train(config, "local", "refuse", StatusBoard(None))
    trained: list[Any] = select(read_metrics(folder), "train", "real_only")
    assert [record["update"] for record in trained] == [4, 8]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["updates"] == 8
    recorded = load_config(folder / "config.yaml").data
    assert recorded.environment == "maze2d-umaze-v1"
    assert (recorded.reward_normalization, recorded.reward_scale == 1) == ("none", learner not in ("qgpo", "aepo"))
