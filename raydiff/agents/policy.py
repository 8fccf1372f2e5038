"""The policy that generators guide towards and evaluators score: rebuilt from one flat array and a short spec.

``deterministic`` is ``tanh`` of a network. ``gaussian`` has that as its mean and a standard deviation for each action
that does not depend on the state; it is not squashed. ``tanh_gaussian`` (``tanh_policy.py``) is ``tanh`` of a Gaussian
whose mean and standard deviation are a network's. ``diffusion`` (``diffusion_policy.py``) denoises its actions. All take
observations in environment units and normalise them as in training. Actions lie within -1 and 1.

A policy may bring its critic along, for guidance by value: the mean of the two target critics of the learner, whose
gradient, unlike that of the smaller one, does not jump where the two cross.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from raydiff.agents.layer_norm_mlp import LayerNormMLP
from raydiff.agents.networks import MLP
from raydiff.types import PolicyBlob


class PolicySpec(BaseModel):
    """What the flat array of a policy means. It holds, in this order, the observation mean and standard deviation
    ``[S]`` each, the network's weights, for a Gaussian the log standard deviations ``[A]``, and with ``critic`` the
    weights of the two critics, stacked: those of a ``LayerNormMLP`` with ``critic_layer_norm``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["deterministic", "gaussian", "tanh_gaussian", "diffusion"]
    observation_size: int
    action_size: int
    hidden: tuple[int, ...]
    critic: bool = False
    critic_layer_norm: bool = False


class Policy:
    """A policy for acting and for guidance. It has no gradients.

    ``observation_std`` is the divisor as used in training, with its epsilon; ones and a mean of zeros where
    observations are not normalised.
    """

    OUTPUTS = 1
    """Outputs of the network for each entry of an action."""

    def __init__(self, spec: PolicySpec, weights: Tensor) -> None:
        """``weights`` is the flat float32 array ``[P]`` on the policy's device. Raises ``ValueError`` when its length
        is not the spec's."""
        self.spec = spec
        self.deterministic = spec.kind == "deterministic"
        outputs = self.OUTPUTS * spec.action_size
        self.network = MLP((spec.observation_size, *spec.hidden, outputs), device=weights.device)
        self.critic = None
        if spec.critic:
            sizes = (spec.observation_size + spec.action_size, *spec.hidden, 1)
            self.critic = (LayerNormMLP if spec.critic_layer_norm else MLP)(sizes, heads=2, device=weights.device)
        tail = spec.action_size if spec.kind == "gaussian" else 0
        last = 0 if self.critic is None else len(self.critic.flat)
        counts = [spec.observation_size, spec.observation_size, len(self.network.flat), tail, last]
        if weights.shape != (sum(counts),):
            raise ValueError(f"a policy with {spec} has {sum(counts)} weights, not {tuple(weights.shape)}")
        parts = weights.detach().clone().split(counts)
        self.observation_mean, self.observation_std, network, self.log_std, critic = parts
        self.network.load(network)
        if self.critic is not None:
            self.critic.load(critic)

    @staticmethod
    def from_blob(blob: PolicyBlob, device: torch.device | str = "cpu") -> Policy:
        """Rebuild a published policy. Raises ``ValueError`` when the blob is damaged."""
        blob.verify()
        weights = torch.tensor(blob.weights, device=device)
        if blob.spec.get("kind") == "diffusion":
            if "posterior" in blob.spec:
                from raydiff.agents.closed_form_policy import ClosedFormPolicy, ClosedFormPolicySpec

                return ClosedFormPolicy(ClosedFormPolicySpec.model_validate(blob.spec), weights)
            from raydiff.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicySpec  # which is a Policy

            return DiffusionPolicy(DiffusionPolicySpec.model_validate(blob.spec), weights)
        spec = PolicySpec.model_validate(blob.spec)
        if spec.kind == "tanh_gaussian":
            from raydiff.agents.tanh_policy import TanhGaussianPolicy  # which is a Policy

            return TanhGaussianPolicy(spec, weights)
        return Policy(spec, weights)

    def to_blob(self, version: int) -> PolicyBlob:
        """The policy as one float32 array with its spec."""
        statistics = self.observation_mean, self.observation_std
        return pack_policy(version, self.spec, *statistics, self.network.flat, self.log_std, self.critic)

    @property
    def has_critic(self) -> bool:
        """Whether ``value`` and ``value_gradient`` can be asked."""
        return self.critic is not None

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
        mean = self.output(observation).tanh_()
        return mean, None if self.deterministic else (2 * self.log_std).exp().expand_as(mean)

    def output(self, observation: Tensor) -> Tensor:
        """The network's output ``[..., A]`` (or more per action) for observations in environment units."""
        rows = observation.to(self.observation_mean).reshape(-1, self.spec.observation_size)
        output = self.network((rows - self.observation_mean) / self.observation_std)
        return output.view(*observation.shape[:-1], output.shape[-1])

    def action_gradient(self, observation: Tensor, action: Tensor, delta: float | None = None) -> Tensor:
        """Gradient ``[..., A]`` of the log density of ``action [..., A]`` (section B.4). A deterministic policy stands
        for a Gaussian of standard deviation ``delta`` round its action; raises ``ValueError`` without one."""
        mean, variance = self.distribution(observation)
        if variance is not None:
            return (mean - action) / variance
        if delta is None:
            raise ValueError("a deterministic policy has no density: give delta, the width of a Gaussian round it")
        return (mean - action) / delta**2

    @torch.no_grad()
    def value(self, observation: Tensor, action: Tensor) -> Tensor:
        """The critic's ``Q(s, a) [...]`` for ``observation [..., S]`` and ``action [..., A]`` in environment units.
        Raises ``ValueError`` where the policy was published without it."""
        return self._values(observation, action).view(observation.shape[:-1])

    def value_gradient(self, observation: Tensor, action: Tensor) -> Tensor:
        """``dQ/da [..., A]``; the same units and errors."""
        with torch.inference_mode(False), torch.enable_grad():  # generators sample in inference mode
            action = action.clone().requires_grad_()
            return torch.autograd.grad(self._values(observation.clone(), action).sum(), action)[0]

    def _values(self, observation: Tensor, action: Tensor) -> Tensor:
        """Mean of the two critics ``[B]``, all leading axes flattened; it is differentiable by the action."""
        if self.critic is None:
            raise ValueError("this policy was published without its critic")
        rows = observation.to(self.observation_mean).reshape(-1, self.spec.observation_size)
        rows = (rows - self.observation_mean) / self.observation_std
        inputs = torch.cat([rows, action.to(rows).reshape(-1, self.spec.action_size)], -1)
        return (self.critic.head(0, inputs) + self.critic.head(1, inputs)).squeeze(-1) / 2


def pack_policy(
    version: int,
    spec: PolicySpec,
    observation_mean: Tensor,
    observation_std: Tensor,
    network: Tensor,
    log_std: Tensor,
    critic: MLP | None = None,
) -> PolicyBlob:
    """Bring the parts of a policy into one blob on the host. ``log_std`` is empty for a deterministic policy;
    ``critic`` are the two that the policy brings along, if any, and the spec says so in any case."""
    parts = [observation_mean, observation_std, network, log_std] + ([] if critic is None else [critic.flat])
    flat = torch.cat([part.detach() for part in parts])
    spec = spec.model_copy(update={"critic": critic is not None})
    return PolicyBlob.pack(version, spec.model_dump(), flat.cpu().numpy())
