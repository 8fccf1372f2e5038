"""The policy that generators guide towards and evaluators score: rebuilt from one flat array and a short spec.

Two kinds. ``deterministic`` is ``tanh`` of a network. ``gaussian`` has that as its mean and a standard deviation for
each action that does not depend on the state; it is not squashed. Both take observations in environment units and
normalise them as in training. Actions lie within -1 and 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from raydiff.agents.networks import MLP
from raydiff.types import PolicyBlob


class PolicySpec(BaseModel):
    """What the flat array of a policy means. It holds, in this order, the observation mean and standard deviation
    ``[S]`` each, the network's weights, and for a Gaussian the log standard deviations ``[A]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["deterministic", "gaussian"]
    observation_size: int
    action_size: int
    hidden: tuple[int, ...]


class Policy:
    """A policy for acting and for guidance. It has no gradients.

    ``observation_std`` is the divisor as used in training, with its epsilon; ones and a mean of zeros where
    observations are not normalised.
    """

    def __init__(self, spec: PolicySpec, weights: Tensor) -> None:
        """``weights`` is the flat float32 array ``[P]`` on the policy's device. Raises ``ValueError`` when its length
        is not the spec's."""
        self.spec = spec
        self.deterministic = spec.kind == "deterministic"
        self.network = MLP((spec.observation_size, *spec.hidden, spec.action_size), device=weights.device)
        tail = 0 if self.deterministic else spec.action_size
        counts = [spec.observation_size, spec.observation_size, len(self.network.flat), tail]
        if weights.shape != (sum(counts),):
            raise ValueError(f"a policy with {spec} has {sum(counts)} weights, not {tuple(weights.shape)}")
        self.observation_mean, self.observation_std, network, self.log_std = weights.detach().clone().split(counts)
        self.network.load(network)

    @staticmethod
    def from_blob(blob: PolicyBlob, device: torch.device | str = "cpu") -> Policy:
        """Rebuild a published policy. Raises ``ValueError`` when the blob is damaged."""
        blob.verify()
        return Policy(PolicySpec.model_validate(blob.spec), torch.tensor(blob.weights, device=device))

    def to_blob(self, version: int) -> PolicyBlob:
        """The policy as one float32 array with its spec."""
        return pack_policy(
            version, self.spec, self.observation_mean, self.observation_std, self.network.flat, self.log_std
        )

    @torch.no_grad()
    def act(
        self, observation: np.ndarray | Tensor, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions ``[B, A]`` within ±1 for observations ``[B, S]`` in environment units: the mean, or a draw from the
        Gaussian. A deterministic policy always gives its mean."""
        if not isinstance(observation, Tensor):
            observation = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        mean, variance = self.distribution(observation)
        if variance is not None and not deterministic:
            noise = torch.empty_like(mean).normal_(generator=generator)
            mean = torch.addcmul(mean, variance.sqrt(), noise)
        return mean.clamp_(-1, 1).cpu().numpy()

    @torch.no_grad()
    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean ``[..., A]`` and variance ``[..., A]`` of the action for observations ``[..., S]`` in environment
        units; the variance of a deterministic policy is None."""
        rows = observation.to(self.observation_mean).reshape(-1, self.spec.observation_size)
        mean = self.network((rows - self.observation_mean) / self.observation_std).tanh_()
        mean = mean.view(*observation.shape[:-1], self.spec.action_size)
        return mean, None if self.deterministic else (2 * self.log_std).exp().expand_as(mean)

    def action_gradient(self, observation: Tensor, action: Tensor, delta: float | None = None) -> Tensor:
        """Gradient ``[..., A]`` of the log density of ``action [..., A]`` (section B.4). A deterministic policy stands
        for a Gaussian of standard deviation ``delta`` round its action; raises ``ValueError`` without one."""
        mean, variance = self.distribution(observation)
        if variance is not None:
            return (mean - action) / variance
        if delta is None:
            raise ValueError("a deterministic policy has no density: give delta, the width of a Gaussian round it")
        return (mean - action) / delta**2


def pack_policy(
    version: int, spec: PolicySpec, observation_mean: Tensor, observation_std: Tensor, network: Tensor, log_std: Tensor
) -> PolicyBlob:
    """Bring the parts of a policy into one blob on the host. ``log_std`` is empty for a deterministic policy."""
    flat = torch.cat([observation_mean, observation_std, network.detach(), log_std.detach()])
    return PolicyBlob.pack(version, spec.model_dump(), flat.cpu().numpy())
