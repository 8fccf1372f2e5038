from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydiff.config import Config
from raydiff.evaluation.scores import normalized_score
from raydiff.roles.evaluator import Evaluator
from raydiff.types import PolicyBlob

Build = Callable[..., Config]
MakePolicy = Callable[[int, int], PolicyBlob]


def test_same_seeds_same_returns(role_config: Build, make_policy: MakePolicy) -> None:
    policy = make_policy(0, 40)
    first = Evaluator(role_config()).evaluate(policy, final=False)
    role = Evaluator(role_config())
    role.evaluate(make_policy(1, 41), final=False)
    again = role.evaluate(policy, final=False)
    assert first.returns == again.returns
    assert first.normalized == again.normalized
    assert first.version == 40
    other = Evaluator(role_config(**{"evaluation.seed": 5})).evaluate(policy, final=False)
    assert other.returns != first.returns


def test_final_evaluation_has_its_own_number_of_episodes(role_config: Build, make_policy: MakePolicy) -> None:
    role = Evaluator(role_config())
    during, final = role.evaluate(make_policy(0, 40), False), role.evaluate(make_policy(0, 40), True)
    assert (len(during.returns), len(final.returns), final.raw.episodes) == (2, 3, 3)
    assert (during.final, final.final) == (False, True)
    assert final.returns[:2] == during.returns  # the same first seeds
    assert final.raw.mean == pytest.approx(np.mean(final.returns))
    assert final.normalized.mean == pytest.approx(float(np.mean(normalized_score("hopper", np.array(final.returns)))))
    assert final.start <= final.end


def test_the_policy_of_each_seed_is_scored(role_config: Build, make_policy: MakePolicy) -> None:
    policies = [make_policy(0, 40), make_policy(1, 40)]
    reports = Evaluator(role_config(seed=5, **{"learner.seeds": 2})).evaluate_all(policies, False)
    for report, policy, seed in zip(reports, policies, (5, 6), strict=True):
        alone = Evaluator(role_config(seed=seed)).evaluate(policy, False)
        assert (report.returns, report.raw) == (alone.returns, alone.raw)
    assert reports[0].returns != reports[1].returns
