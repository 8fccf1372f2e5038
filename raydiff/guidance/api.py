"""What guidance needs of a policy, and what it gives to a sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from raydiff.diffusion.samplers import Guide, Shift


class ActionDistribution(Protocol):
    """What guidance needs of a policy. ``distribution(observation [..., S])`` takes environment units and returns the
    mean ``[..., A]`` and variance ``[..., A]`` of the action; the variance is None for a deterministic policy."""

    deterministic: bool

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class Critic(Protocol):
    """What guidance by value needs beside that, all in environment units: ``value_gradient(observation [..., S],
    action [..., A])`` is ``dQ/da [..., A]``. ``has_critic`` tells whether the policy brought its critic along."""

    @property
    def has_critic(self) -> bool: ...

    def value_gradient(self, observation: Tensor, action: Tensor) -> Tensor: ...


@runtime_checkable
class OwnScore(Protocol):
    """A policy that knows the score of its own law with noise added, all in environment units:
    ``blurred_score(observation [..., S], action [..., A], width [..., 1])`` is the gradient ``[..., A]`` by ``action``
    of the log density of its actions with noise of standard deviation ``width``."""

    def blurred_score(self, observation: Tensor, action: Tensor, width: Tensor | float) -> Tensor: ...


@runtime_checkable
class DrawnActions(Protocol):
    """A policy that has no law in closed form, but draws: ``draw(observation [..., S], noise [..., D])`` gives actions
    ``[..., A]`` in environment units as a function of standard normal noise of ``noise_size`` D entries."""

    @property
    def noise_size(self) -> int: ...

    def draw(self, observation: Tensor, noise: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Hooks:
    """Guidance as arguments of a solver.

    ``guide`` corrects what the denoiser said, ``shift`` moves the sample before the churn of a step. ``shift`` costs
    ``calls_per_step`` network calls more in every step but the last. ``name`` and ``strength`` are for the provenance:
    the mode or kind, and the strength that was applied (``none`` and 0 where only ``euler_from_unchurned`` differs
    from unguided sampling).
    """

    guide: Guide | None
    shift: Shift | None
    euler_from_unchurned: bool
    calls_per_step: int
    name: str
    strength: float

    def calls(self, steps: int) -> int:
        """Network calls per trajectory that guidance adds to those of the solver."""
        return self.calls_per_step * (steps - 1)
