from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.checkpoint import load_policy, save_learner
from raydiff.config_learner import LearnerConfig
from raydiff.errors import UserError
from raydiff.types import PolicyBlob

S, A = 4, 2


@pytest.fixture(params=["td3_bc", "iql"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PolicyBlob, dict[str, torch.Tensor]]:
    settings = LearnerConfig(algorithm=request.param, hidden=(8, 8))
    agent = build_agent(settings, S, A, np.zeros(S, np.float32), np.ones(S, np.float32), 0)
    policy, state = agent.policy_blob(700), agent.state_dict()
    save_learner(tmp_path / "checkpoints", "alpha_2.5", policy, state)
    return tmp_path / "checkpoints", policy, state


def test_files_of_an_arm(saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]]) -> None:
    folder, policy, state = saved
    assert sorted(path.name for path in folder.iterdir()) == ["alpha_2.5.policy.safetensors", "alpha_2.5.safetensors"]
    save_learner(folder, "guided", policy, state)
    assert len(list(folder.iterdir())) == 4


def test_state_round_trip(saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]]) -> None:
    folder, _, state = saved
    read = load_file(folder / "alpha_2.5.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key].cpu()) for key in state)


def test_policy_round_trip(saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]]) -> None:
    folder, policy, _ = saved
    read = load_policy(folder / "alpha_2.5.policy.safetensors")
    read.verify()
    assert (read.version, read.checksum) == (700, policy.checksum)
    assert read.spec == json.loads(json.dumps(policy.spec))
    np.testing.assert_array_equal(read.weights, policy.weights)
    observation = np.random.default_rng(0).normal(size=(5, S)).astype(np.float32)
    original, again = (Policy.from_blob(blob, "cpu").act(observation, deterministic=True) for blob in (policy, read))
    np.testing.assert_array_equal(original, again)


def test_saving_again_replaces_the_policy(saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]]) -> None:
    folder, policy, state = saved
    save_learner(folder, "alpha_2.5", PolicyBlob.pack(701, policy.spec, policy.weights + 1), state)
    read = load_policy(folder / "alpha_2.5.policy.safetensors")
    assert read.version == 701
    np.testing.assert_array_equal(read.weights, policy.weights + 1)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("damage", [
    lambda content: content[:-10],
    lambda content: content[:20],
    lambda content: b"",
    lambda content: b"\xff" * 8 + content[8:],
    lambda content: b"not a policy at all, but long enough to look at",
], ids=["cut", "header only", "empty", "huge header", "text"])  # fmt: skip
def test_damaged_policy_is_a_users_error(
    saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]], damage: object
) -> None:
    path = saved[0] / "alpha_2.5.policy.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "is not a policy of raydiff" in refusal(path)


def test_other_safetensors_are_not_policies(saved: tuple[Path, PolicyBlob, dict[str, torch.Tensor]]) -> None:
    folder, policy, _ = saved
    assert "is not a policy of raydiff" in refusal(folder / "alpha_2.5.safetensors")
    good = {"spec": policy.spec, "version": 700}
    for name, header in (
        ("weights", json.dumps({"spec": policy.spec})),
        ("weights", json.dumps(good | {"version": "newest"})),
        ("weights", "{"),
        ("weights", "[]"),
        ("other", json.dumps(good)),
    ):
        save_numpy({name: policy.weights}, folder / "other.safetensors", metadata={"policy": header})
        assert "is not a policy of raydiff" in refusal(folder / "other.safetensors")


def test_missing_policy_says_where_runs_keep_theirs(tmp_path: Path) -> None:
    assert "checkpoints/ARM.policy.safetensors" in refusal(tmp_path / "guided.policy.safetensors")
    assert "There is no policy file" in refusal(tmp_path)
