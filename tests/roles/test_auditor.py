from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.errors import UserError
from raydiff.evaluation.audit_report import audit_summary
from raydiff.metrics import scalars
from raydiff.roles.auditor import Auditor, AuditReport, joint_error
from raydiff.types import PolicyBlob

Build = Callable[..., Config]
MakePolicy = Callable[[int, int], PolicyBlob]
FEW = {"audit.transitions": 100, "audit.trajectories": 20, "audit.coverage": 120}
WIDTHS = 11, 3  # hopper


def real_block(dataset: Dataset, length: int = 3) -> np.ndarray:
    """Real rows as a block ``[n, L, C]``: pieces of episodes, none across an end."""
    rows = np.concatenate(
        [dataset.observation, dataset.action, dataset.reward[:, None], dataset.terminal[:, None]], 1, dtype=np.float32
    )
    pieces = [
        rows[start : start + length]
        for first, stop in dataset.episode_slices("raydiff")
        for start in range(first, stop - length + 1, length)
    ]
    return np.stack(pieces)


@pytest.fixture(scope="module")
def auditor(role_config: Build, role_dataset: Dataset) -> Auditor:
    return Auditor(role_config(**FEW), role_dataset.transitions("raydiff"))


@pytest.fixture(scope="module")
def report(auditor: Auditor, role_dataset: Dataset, make_policy: MakePolicy) -> AuditReport:
    return auditor.audit(real_block(role_dataset), 3, False, make_policy(0, 40))


def test_real_blocks_are_as_true_as_the_floor(report: AuditReport, role_dataset: Dataset) -> None:
    steps, replay = report.measures.steps, report.measures.replay
    assert (report.block, report.refreshed, report.policy_version) == (3, False, 40)
    assert steps.count + round(100 * (steps.not_invertible + steps.unstable)) == 100
    assert steps.count >= 90
    assert report.error == steps.dynamics_error.trimmed_mean < 1e-8
    assert steps.reward_error < 1e-3
    assert replay is not None
    assert replay.raw.mean.shape == (2,)
    assert replay.normalized.trimmed_mean.max() < 1e-8
    assert report.measures.duplicates is not None
    assert report.measures.duplicates.exact == 1.0  # every row is a real one
    floor = report.floor
    assert floor.steps.count > 300  # four times an audit
    assert 0.0 < floor.steps.dynamics_error.trimmed_mean < 1e-8
    assert floor.duplicates is not None
    assert floor.duplicates.exact == 0.0
    assert floor.coverage is not None
    assert floor.coverage.coverage > 0.9
    np.testing.assert_allclose(floor.action_std, role_dataset.action.std(0), rtol=1e-3)


def test_the_part_of_each_seed_is_audited(auditor: Auditor, role_dataset: Dataset, make_policy: MakePolicy) -> None:
    rows, policies = real_block(role_dataset)[:50], [make_policy(0, 40), make_policy(1, 40)]
    rows[20:, 1:, :11] *= 1.01  # the second seed's part
    first, second = auditor.audit_all(rows, [20, 30], 3, False, policies)
    alone = auditor.audit(rows[:20], 3, False, policies[0])
    assert {k: v for k, v in first.as_record().items() if k != "time"} == {
        k: v for k, v in alone.as_record().items() if k != "time"
    }
    assert second.error is not None
    assert first.error is not None
    assert second.error > 100 * first.error
    assert joint_error([first, second]) == pytest.approx((first.error + second.error) / 2)
    assert joint_error([]) is None
    assert second.measures.agreement != first.measures.agreement


def test_noise_is_found_in_every_figure(auditor: Auditor, role_dataset: Dataset) -> None:
    rows = real_block(role_dataset)
    draw, size = np.random.default_rng(0), role_dataset.observation_size
    rows[:, 1:, :size] += 3 * draw.normal(size=rows[:, 1:, :size].shape) * rows[..., :size].std((0, 1))
    rows[..., -2] += 1.0
    rows[::2, 0, -1] = 1.0
    found = auditor.audit(rows, 3, True).measures
    assert found.steps.dynamics_error.median > 0.1
    assert found.replay is not None
    assert found.replay.normalized.median.min() > 0.1
    assert found.steps.reward_error > 0.5
    assert found.steps.terminal.precision is not None
    assert found.steps.terminal.precision < 0.5
    assert found.coverage is not None
    assert found.coverage.precision < 0.8  # a third of the transitions begin in a state with noise
    assert found.agreement is None  # without a policy


def test_agreement_is_the_closed_form(
    auditor: Auditor, report: AuditReport, role_config: Build, role_dataset: Dataset, make_policy: MakePolicy
) -> None:
    """Section I.2 with a Gaussian of width delta round a deterministic policy; under it, its own actions fit best."""
    rows, policy = real_block(role_dataset), Policy.from_blob(make_policy(0, 40))
    delta = role_config().guidance.delta
    constant = math.log(2 * math.pi * delta**2)
    assert report.measures.agreement is not None
    mean = policy.distribution(torch.from_numpy(rows[:, :-1, : WIDTHS[0]].reshape(-1, WIDTHS[0])))[0].numpy()
    squared = (rows[:, :-1, WIDTHS[0] : -2].reshape(-1, WIDTHS[1]) - mean) ** 2
    assert report.measures.agreement.deviation == pytest.approx(squared.mean(), rel=1e-4)
    likelihood = -0.5 * (squared.mean() / delta**2 + constant) * WIDTHS[1]
    assert report.measures.agreement.log_likelihood == pytest.approx(likelihood, rel=1e-4)
    assert report.floor.agreement is not None
    assert report.floor.agreement.deviation == pytest.approx(squared.mean(), rel=0.2)
    rows[:, :-1, WIDTHS[0] : -2] = mean.reshape(len(rows), -1, WIDTHS[1])
    own = auditor.audit(rows, 3, False, make_policy(0, 40)).measures.agreement
    assert own is not None
    assert own.deviation == pytest.approx(0.0, abs=1e-9)
    assert own.log_likelihood == pytest.approx(own.own - -0.5 * WIDTHS[1], rel=1e-5)


def test_what_is_looked_at_is_drawn_by_the_number_of_the_block(auditor: Auditor, role_dataset: Dataset) -> None:
    rows = real_block(role_dataset)
    first, again, other = (auditor.audit(rows, block, False).measures.as_record() for block in (1, 1, 2))
    assert first == again
    assert first["persistence_error"] != other["persistence_error"]


def test_two_auditors_say_the_same(auditor: Auditor, role_config: Build, role_dataset: Dataset) -> None:
    twin = Auditor(role_config(**FEW), role_dataset.transitions("raydiff"))
    rows = real_block(role_dataset)
    assert twin.yardstick.floor.as_record() == auditor.yardstick.floor.as_record()
    assert twin.audit(rows, 5, False).measures.as_record() == auditor.audit(rows, 5, False).measures.as_record()


def test_record_is_plain_and_reaches_tensorboard(report: AuditReport) -> None:
    record = {**json.loads(json.dumps(report.as_record(), allow_nan=False)), "arm": "guided", "update": 7}
    assert len(record["error_by_step"]) == len(record["floor"]["error_by_step"]) == 2
    tags = dict(scalars(record))
    for name in ("dynamics_error", "error_at_1", "error_at_2", "deviation", "coverage", "near_copies", "action_std_0",
                 "floor_dynamics_error", "floor_coverage", "floor_deviation"):  # fmt: skip
        assert f"guided/audit/{name}" in tags
    assert tags["guided/audit/dynamics_error"] == report.error
    assert tags["guided/audit/error_at_2"] == record["error_by_step"][1]


def test_without_trajectories_only_steps_are_replayed(role_config: Build, role_dataset: Dataset) -> None:
    config = role_config(**{**FEW, "audit.trajectories": 0, "audit.coverage": 0})
    found = Auditor(config, role_dataset.transitions("raydiff")).audit(real_block(role_dataset), 0, False)
    record = found.as_record()
    assert record["error_by_step"] is record["coverage"] is record["copies"] is None
    assert record["transitions"] > 90


def test_empty_blocks_are_undefined_and_not_true(auditor: Auditor, role_dataset: Dataset) -> None:
    found = auditor.audit(real_block(role_dataset)[:0], 0, False)
    assert found.error is None
    assert found.as_record()["dynamics_error"] is None
    json.dumps(found.as_record(), allow_nan=False)


def test_environments_that_cannot_be_replayed_are_refused(role_config: Build, role_dataset: Dataset) -> None:
    with pytest.raises(UserError, match="Pendulum-v1"):
        Auditor(role_config(**{"data.environment": "Pendulum-v1"}), role_dataset.transitions("raydiff"))


def audit(arm: str, error: float, refreshed: bool = False, claimed: int = 0, agreed: int = 0) -> dict[str, object]:
    return {"kind": "audit", "arm": arm, "block": 1, "refreshed": refreshed, "dynamics_error": error,
            "error_by_step": [error, None], "error_at": {"1": error}, "terminals_claimed": claimed, "transitions": 10,
            "terminals_simulated": claimed + 1, "terminals_agreed": agreed, "terminal_precision": None, "legal": None,
            "floor": {"dynamics_error": 1e-9}, "update": 5, "time": {"start": 0.0}}  # fmt: skip


def test_summary_holds_means_by_arm_and_the_floor() -> None:
    records = [
        audit("guided", 1.0, claimed=4, agreed=1),
        audit("guided", 3.0, claimed=0),
        audit("guided", 9.0, refreshed=True),
        audit("other", 5.0),
        {"kind": "block", "arm": "guided"},
    ]
    found = audit_summary(records)
    assert list(found) == ["guided", "other"]
    new = found["guided"]["new"]
    assert (new["audits"], new["dynamics_error"], new["transitions"]) == (2, 2.0, 20)
    assert (new["error_by_step"], new["error_at"], new["legal"]) == ([2.0, None], {"1": 2.0}, None)
    # Counts are summed before they are divided: an audit that saw no terminal has no say.
    assert (new["terminal_precision"], new["terminal_recall"]) == (0.25, 1 / 6)
    assert found["guided"]["refreshed"]["dynamics_error"] == 9.0
    assert found["other"]["refreshed"] is None
    assert found["other"]["floor"] == {"dynamics_error": 1e-9}
    assert "time" not in new
    assert "update" not in new
    assert audit_summary([]) == {}
