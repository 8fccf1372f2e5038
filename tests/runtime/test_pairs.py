"""Every learner with every generator: those that go together do so for real, the others are refused in one sentence,
and the tables of the documentation say the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.source import load_dataset
from raydiff.errors import UserError
from raydiff.presets import load_config
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models
from raydiff.runtime import messages as m
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Materials
from raydiff.runtime.local import LocalCrew
from raydiff.runtime.pairs import (
    BY_OWN_SCORE,
    GENERATORS,
    LEARNERS,
    MODES,
    TARGETS,
    pairs,
    pairs_table,
    reasons_list,
    refusal,
    targets_table,
)
from raydiff.runtime.plan import flow_limits
from raydiff.runtime.steering import make_controller
from raydiff.runtime.team import refines

DOCS = (Path(__file__).parents[2] / "docs" / "learners.md").read_text()
UPDATES = 12

TINY = {
    "data.environment": "hopper", "data.transitions": 600,
    "denoiser.steps": 60, "denoiser.batch_size": 32, "denoiser.network.width": 16, "denoiser.network.depth": 1,
    "reward.steps": 40, "reward.hidden": [16], "rollout.horizon": 2,
    "dynamics.members": 2, "dynamics.elites": 1, "dynamics.hidden": [16], "dynamics.epochs": 2,
    "sampler.solver": "dpmpp_2m_sde", "sampler.steps": 3, "refiner.steps": 2, "refiner.min_lag": 1,
    "generator.count": 1, "generator.batch": 16, "audit.count": 0,
    "replay.generation": 16, "replay.lifetime": 2, "replay.warmup": 16, "replay.samples_per_insert": 1,
    "learner.updates": UPDATES, "learner.chunk": 1, "learner.in_flight": 1,
    "learner.batch_size": 32, "learner.hidden": [16, 16],
    "learner.diffusion_ql.candidates": 1, "learner.diffusion_ql.solver_steps": 3,
    "learner.swg.width": 16, "learner.swg.blocks": 2, "learner.swg.steps": 3,
    "learner.aepo.width": 16, "learner.aepo.blocks": 1, "learner.aepo.steps": 3, "learner.aepo.energy_hidden": [16],
    "learner.qgpo.width": 16, "learner.qgpo.blocks": 1, "learner.qgpo.steps": 3, "learner.qgpo.energy_hidden": [16],
    "learner.qgpo.support_actions": 2, "learner.qgpo.support_steps": 2,
}  # fmt: skip

OWN_SCORE = [
    ("diffusion_ql", {"learner.diffusion_ql.variant": "efficient"}),
    ("aepo", {}),
    ("aepo", {"learner.aepo.energy": "direct"}),
    ("qgpo", {}),
]
RUNS = [(learner, generator, {}) for learner, generator in itertools.product(LEARNERS, GENERATORS)
        if generator != BY_OWN_SCORE and (learner, generator) != ("rebrac", "synther")]  # fmt: skip
RUNS += [
    (learner, BY_OWN_SCORE, {**settings, "guidance.mode": mode}) for learner, settings in OWN_SCORE for mode in MODES
]
RUNS += [
    (learner, "pgd, policy", {"guidance.mode": mode}) for learner in LEARNERS for mode in MODES if mode != "score_exact"
]
RUNS += [("rebrac", "synther", {"learner.rebrac.critic_penalty": 0})]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """``build(learner, generator, **dotted overrides)``."""
    cache = tmp_path_factory.mktemp("pairs")

    def make(learner: str, generator: str, **overrides: Any) -> Config:
        values = {**TINY, "data.cache": cache, "learner.algorithm": learner, **GENERATORS[generator], **overrides}
        return load_config(None, [f"{key}={value}" for key, value in values.items()])

    return make


@pytest.fixture(scope="module")
def dataset(build: Callable[..., Config]) -> Dataset:
    return load_dataset(build("td3_bc", "synther").data)


@pytest.fixture(scope="module")
def models_of(dataset: Dataset) -> Callable[[Config], Models]:
    """The models of a method, trained once."""
    made: dict[str, Models] = {}

    def get(config: Config) -> Models:
        method = config.generator.method
        if method not in made:
            made[method] = prepare_models(config, dataset, Path(config.data.cache))
        return made[method]

    return get


def label(value: object) -> str:
    return ",".join(map(str, value.values())) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("learner", "generator", "settings"), RUNS, ids=label)
def test_pairs_that_go_together_do(
    build: Callable[..., Config],
    dataset: Dataset,
    models_of: Callable[[Config], Models],
    learner: str,
    generator: str,
    settings: dict[str, Any],
) -> None:
    config = build(learner, generator, **settings)
    real = dataset.transitions(config.data.semantics, config.learner.needs_next_action)
    crew, conductor = LocalCrew(Materials(config, "pair", real, models_of(config))), Conductor(config, "pair")
    trained, made = list[m.Trained](), list[m.Produced]()
    lags, losses = [], {}
    crew.start()
    first = crew.policies[0]
    while not conductor.learned:
        for outcome in crew.poll():
            if isinstance(outcome.event, m.Trained):
                trained.append(outcome.event)
                lags.append(outcome.reports[0].lag)
                losses |= outcome.reports[0].losses
            elif isinstance(outcome.event, m.Produced):
                made.append(outcome.event)
            for command in conductor.on(outcome.event):
                crew.submit(command)
    assert [event.update for event in trained] == list(range(1, UPDATES + 1))
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))
    assert None not in lags  # every update saw synthetic rows
    assert conductor.limiter.sampled > 0
    last = crew.policies[0]
    assert (first.version, last.version) == (0, UPDATES)
    assert not (first.weights == last.weights).all()
    origins = [event.report.provenance for event in made]
    assert len({origin.policy_version for origin in origins}) > 2
    assert max(origin.policy_version for origin in origins) >= UPDATES - 3
    assert any(origin.parent_block is not None for origin in origins) == refines(config)
    assert all(event.report.agreement is not None for event in made)
    guided = config.generator.method == "pgd" and config.guidance.kind != "none"
    kind = config.guidance.mode if config.guidance.kind == "policy" else config.guidance.kind
    assert {origin.guidance for origin in origins if origin.policy_version} == {kind if guided else "none"}
    policy = Policy.from_blob(last)
    assert policy.deterministic == TARGETS[learner].deterministic
    assert hasattr(policy, "draw") == TARGETS[learner].sampled


REFUSED = [(learner, generator, config) for learner, generator, config in pairs() if refusal(config) is not None]


def test_these_are_refused_and_no_others() -> None:
    names = {(learner, generator) for learner, generator, _ in REFUSED}
    assert names == {("rebrac", "synther"), ("swg", BY_OWN_SCORE), ("diffusion_ql", BY_OWN_SCORE)}
    ran = {(learner, generator) for learner, generator, _ in RUNS}
    closed = {(learner, BY_OWN_SCORE) for learner in LEARNERS if not TARGETS[learner].sampled}
    everything = set(itertools.product(LEARNERS, GENERATORS))
    assert ran | names | closed == everything


@pytest.mark.parametrize(("learner", "generator", "config"), REFUSED)
def test_the_sentence_is_the_error_and_stands_in_the_documentation(
    learner: str, generator: str, config: Config
) -> None:
    with pytest.raises(UserError) as error:
        flow_limits(config)
    assert str(error.value) == refusal(config)
    assert str(error.value) in DOCS
    assert f"learner.algorithm={learner}" in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"generator.method": "pets", "rollout.horizon": 1},
        {"generator.method": "pgd", "denoiser.length": 2},
        {"generator.method": "dydiff", "denoiser.length": 2},
    ],
)
def test_trajectories_of_one_transition_have_no_next_action(
    build: Callable[..., Config], settings: dict[str, Any]
) -> None:
    config = build("rebrac", "pgd, policy", **settings)
    with pytest.raises(UserError, match=f"generator.method={settings['generator.method']} makes single transitions"):
        Conductor(config, "check")
    for cure in ({"learner.rebrac.critic_penalty": 0}, {"generator.count": 0}, {"learner.algorithm": "td3_bc"}):
        flow_limits(build("rebrac", "pgd, policy", **settings, **cure))


def test_what_is_refused_here_runs_with_the_cures_that_the_sentences_name(build: Callable[..., Config]) -> None:
    for cure in (
        {"guidance.diffusion_policy": "surrogate"},
        {"learner.diffusion_ql.variant": "efficient"},
        {"learner.diffusion_ql.steps": 13},
        {"guidance.delta": 0.5},
        {"guidance.kind": "value"},
        {"generator.count": 0},
    ):
        flow_limits(build("diffusion_ql", BY_OWN_SCORE, **cure))
    with pytest.raises(UserError, match=r"12 noise levels .*steps=13 or more"):
        flow_limits(build("diffusion_ql", BY_OWN_SCORE, **{"learner.diffusion_ql.steps": 12}))
    flow_limits(build("swg", BY_OWN_SCORE, **{"guidance.diffusion_policy": "surrogate"}))


def test_the_automatic_strength_knows_which_policies_have_no_variance(build: Callable[..., Config]) -> None:
    for learner in LEARNERS:
        controller = make_controller(build(learner, "pgd, policy", **{"guidance.automatic": True}), 3)
        assert controller is not None
        assert controller.target.deterministic == TARGETS[learner].deterministic


def test_the_tables_of_the_documentation_are_these() -> None:
    assert pairs_table() in DOCS
    assert reasons_list() in DOCS
    assert targets_table() in DOCS
