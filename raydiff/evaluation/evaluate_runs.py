"""The last policies of runs, played again: as many episodes as asked for, from seeds that are the same for all.

The protocol is that of section J: the last policy, never the best of those seen in training, and the action that its
method evaluates by (a mean, or what its sampler gives), or with ``sampled`` one plain draw per step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from raydiff.agents.policy import Policy
from raydiff.checkpoint import POLICY_SUFFIX, arm_and_seed, load_policy, policy_files
from raydiff.envs.registry import environment_spec
from raydiff.errors import RunFailed, UserError
from raydiff.evaluation.rollout import rollout_returns
from raydiff.metrics import Record
from raydiff.roles.evaluator import score_returns
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob

AT_ONCE = 25  # simulators in memory; fixed, for the sums of a policy's batch depend on how many rows it has


@dataclass(frozen=True)
class Protocol:
    """Episode ``i`` starts from seed ``first_seed + i``. With ``sampled`` actions are drawn, else they are those that
    the method evaluates by. ``temperature`` and ``candidates`` of diffusion policies replace their own."""

    episodes: int
    first_seed: int
    sampled: bool = False
    temperature: float | None = None
    candidates: int | None = None

    @property
    def tricks(self) -> dict[str, float]:
        """What replaces settings of a diffusion policy, by name."""
        found = {"temperature": self.temperature, "candidates": self.candidates}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)


@dataclass(frozen=True)
class Played:
    """One policy under a protocol: ``returns [n]`` and ``lengths [n]`` of its episodes in ``environment``.

    ``version`` is the learner's update. ``random``: whether the policy has anything to draw.
    """

    version: int
    environment: str
    random: bool
    returns: np.ndarray
    lengths: np.ndarray

    def record(self, arm: str, seed: int | None = None) -> Record:
        """The record that a run would have written of this as its final evaluation; with the ``seed`` where the arm has
        several."""
        normalized, raw = score_returns(self.returns, self.environment, 0)
        return {
            "kind": "evaluate",
            "arm": arm,
            **({"seed": seed} if seed is not None else {}),
            "update": self.version,
            "final": True,
            "returns": [float(value) for value in self.returns],
            "normalized": normalized.as_dict() if normalized is not None else None,
            "raw": raw.as_dict(),
        }


def last_policies(run: Path, arms: Sequence[str] = ()) -> dict[str, PolicyBlob]:
    """The last policy of every finished arm of a run, or of those of ``arms`` that it has; of an arm of several seeds
    that of each, as ``ARM@seedS``.

    Raises ``UserError`` where a run has none, or none of them, and for damaged files.
    """
    found = policy_files(run)
    if not found:
        raise UserError(
            f"{run} has no last policy (checkpoints/ARM{POLICY_SUFFIX}): none of its arms has ended. Let the run end, or "
            "leave it out."
        )
    chosen = [name for name in found if not arms or name in arms or arm_and_seed(name)[0] in arms]
    if not chosen:
        near = [name for arm in arms for name in difflib.get_close_matches(arm, found, n=1)]
        raise UserError(
            f"{run} has no finished arm called {' or '.join(arms)}.{f' Did you mean {near[0]}?' if near else ''} It has "
            f"{', '.join(found)}."
        )
    return {arm: load_policy(found[arm]) for arm in chosen}


def play(policy: PolicyBlob, environment: str, protocol: Protocol, note: Callable[[int], None], name: str) -> Played:
    """Play the episodes of a protocol; ``note(done)`` counts them, and ``name`` says whose policy it is in errors.

    Raises ``UserError`` for a policy of other sizes than the environment's, and ``RunFailed`` where its actions are not
    finite.
    """
    actor, spec = _actor(policy, protocol, name), environment_spec(environment)
    sizes = (actor.spec.observation_size, actor.spec.action_size)
    if sizes != (spec.observation_size, spec.action_size):
        raise UserError(
            f"{name}: the policy is one for {sizes[0]} observations and {sizes[1]} actions, and {spec.id} has "
            f"{spec.observation_size} and {spec.action_size}. Restore the config.yaml that the run wrote."
        )
    generator = torch.Generator().manual_seed(key_seed(protocol.first_seed, "sampled actions"))
    returns, lengths = [], []
    for start in range(0, protocol.episodes, AT_ONCE):
        try:
            played = rollout_returns(
                lambda observation: actor.act(observation, not protocol.sampled, generator),
                environment,
                protocol.seeds[start : start + AT_ONCE],
            )
        except ValueError as error:
            raise RunFailed(f"{name}: {error}") from None
        returns.append(played.returns)
        lengths.append(played.lengths)
        note(start + len(played.returns))
    random = actor.spec.kind != "deterministic"
    return Played(policy.version, spec.id, random, np.concatenate(returns), np.concatenate(lengths))


def _actor(policy: PolicyBlob, protocol: Protocol, name: str) -> Policy:
    changes = {key: value for key, value in protocol.tricks.items() if key in policy.spec}
    try:
        return Policy.from_blob(replace(policy, spec=policy.spec | changes))
    except ValueError as error:
        raise UserError(
            f"{name}: {error}. Leave out {' and '.join(f'--{key}' for key in changes)}, or choose other arms by --arm."
            if changes
            else f"{name}: the policy cannot be rebuilt ({error}). Restore the file that the run wrote."
        ) from None
