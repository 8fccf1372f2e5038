"""From a configuration and a policy to the hooks of a solver."""

from __future__ import annotations

from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.samplers import Denoise, Guide
from raydiff.guidance.api import ActionDistribution, Critic, Hooks
from raydiff.guidance.energy import EnergyGuidance
from raydiff.guidance.policy import PolicyGuidance
from raydiff.guidance.schedule import rescaling
from raydiff.guidance.value import ValueGuidance


def needs_critic(config: GuidanceConfig) -> bool:
    """Whether policies must be published with their critic."""
    return config.kind in ("value", "analytic_energy")


def guidance_hooks(
    normalizer: TrajectoryNormalizer,
    config: GuidanceConfig,
    policy: ActionDistribution | None,
    steps: int,
    *,
    start: float = 0.0,
    denoise: Denoise | None = None,
) -> Hooks | None:
    """The hooks of ``config`` for a run of ``steps`` steps, or None where the solver is to run as it is: without a
    policy, with ``kind`` none or with strength 0.

    Mode ``paper_code`` with ``euler_from_unchurned`` has hooks even then, with nothing but that flag, since the
    published code has that step whether it guides or not; ``denoise`` is needed by this mode only. ``start`` as in
    ``PolicyGuidance``. Raises ``ValueError`` where the policy has no critic and one is needed, or ``denoise`` is
    missing.
    """
    as_coded = config.kind == "policy" and config.mode == "paper_code"
    euler = as_coded and config.euler_from_unchurned
    if policy is None or config.kind == "none" or config.strength == 0.0:
        return Hooks(None, None, True, 0, "none", 0.0) if euler else None
    guide: Guide | None
    name: str = config.kind
    if config.kind == "policy":
        guidance = PolicyGuidance(policy, normalizer, config, steps, start=start, denoise=denoise)
        name, published = config.mode, config.mode in ("paper", "paper_code")
        guide, shift = (None, guidance.shift) if as_coded else (guidance, None)
    else:
        published, shift = config.kind == "value" and config.normalize, None
        critic = _critic(policy, config.kind)
        if config.kind == "value":
            guide = ValueGuidance(critic, normalizer, config, steps, start=start)
        else:
            guide = EnergyGuidance(critic, normalizer, config)
    strength = config.strength * (rescaling(steps, start) if published else 1.0)
    return Hooks(guide, shift, euler, 1 if as_coded else 0, name, strength)


def _critic(policy: ActionDistribution, kind: str) -> Critic:
    if not isinstance(policy, Critic) or not policy.has_critic:
        raise ValueError(
            f"guidance.kind={kind} follows a critic, but this policy was published without its own. Train with "
            f"guidance.kind={kind}, which publishes it, or use guidance.kind=policy."
        )
    return policy
