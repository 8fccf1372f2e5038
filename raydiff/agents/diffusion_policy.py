"""A policy whose actions are sampled by diffusion, as generators and evaluators use it (sections E to H.3).

It draws actions by running the sampler of its method, with that method's guidance, and may choose among several. Its
density has no closed form. What trajectory generators are guided towards is its deterministic path, the action that the
sampler reaches from zero without noise of its own, or by its network's own score (``blurred_score``).
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raydiff.agents.action_guidance import Guidance, energy_guide, weight_guide
from raydiff.agents.energy_network import EnergyNetwork
from raydiff.agents.mish import MishMLP
from raydiff.agents.networks import MLP
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.policy import Policy, PolicySpec
from raydiff.diffusion.vp import VP, Clip, Predict, Schedule, Solver, sample
from raydiff.types import PolicyBlob

CRITICS = {"relu": MLP, "mish": MishMLP}
WITHOUT_NOISE: dict[Solver, Solver] = {"ddpm": "ddim", "dpmpp_2m_sde": "dpmpp_2m"}
MANY_LEVELS = 8192


class DiffusionPolicySpec(PolicySpec):
    """What the flat array of a diffusion policy means: the observation mean and standard deviation ``[S]`` each, the
    noise network, with ``energy_hidden`` the energy network, and with ``critic`` two stacked critics of widths
    ``hidden`` and ``critic_activation``.

    ``schedule`` and ``levels`` are the noise schedule and its T; ``solver`` and ``steps`` the sampler.
    ``clip_denoised`` keeps every denoised action within +-1, and a weight that is diffused beside it (guidance
    ``weight``) within ``weight_range``. ``guidance_scale`` and ``weight_floor`` or ``rescale`` are the guidance's.

    In evaluation, ``temperature`` scales the initial noise and that of the steps; at 0 the policy follows its
    deterministic path. ``choice`` picks one of ``candidates`` actions: a draw from the ``softmax`` of their values, the
    largest ``value`` (each the smaller of two critics), or the largest ``weight`` that was sampled with the action.
    """

    kind: Literal["diffusion"] = "diffusion"
    hidden: tuple[int, ...] = ()
    network: NetworkSpec
    schedule: Schedule
    levels: int = 1
    solver: Solver
    steps: int
    clip_denoised: bool = True
    weight_range: tuple[float, float] | None = None
    guidance: Guidance = "none"
    guidance_scale: float = 1.0
    weight_floor: float = 1e-4
    rescale: bool = False
    energy_hidden: tuple[int, ...] | None = None
    temperature: float = 1.0
    candidates: int = 1
    choice: Literal["softmax", "value", "weight"] = "value"
    critic_activation: Literal["relu", "mish"] = "relu"


class DiffusionPolicy(Policy):
    """``act`` draws from a random stream of the policy's own where none is given: the same for each copy."""

    def __init__(self, spec: DiffusionPolicySpec, weights: Tensor) -> None:
        """``weights`` is the flat float32 array ``[P]`` on the policy's device. Raises ``ValueError`` when its length
        is not the spec's, or the spec contradicts itself."""
        _check(spec)
        self.spec: DiffusionPolicySpec = spec
        self.deterministic = True
        self.vp = VP(spec.schedule, spec.levels)
        self.vp.grid(spec.steps)  # which can refuse
        self.noise_network = NoiseNetwork(spec.network, device=weights.device).requires_grad_(False)
        self.energy = None
        if spec.energy_hidden is not None:
            sizes = spec.observation_size, spec.action_size
            self.energy = EnergyNetwork(*sizes, spec.energy_hidden, device=weights.device).requires_grad_(False)
        self.critic = None
        if spec.critic:
            widths = (spec.observation_size + spec.action_size, *spec.hidden, 1)
            self.critic = CRITICS[spec.critic_activation](widths, heads=2, device=weights.device)
        energy_size = 0 if self.energy is None else len(self.energy.flat)
        critic_size = 0 if self.critic is None else len(self.critic.flat)
        counts = [spec.observation_size, spec.observation_size, len(self.noise_network.flat), energy_size, critic_size]
        if weights.shape != (sum(counts),):
            raise ValueError(f"a policy with {spec} has {sum(counts)} weights, not {tuple(weights.shape)}")
        parts = weights.detach().clone().split(counts)
        self.observation_mean, self.observation_std, network, energy_weights, critic = parts
        self.noise_network.load(network)
        if self.energy is not None:
            self.energy.load(energy_weights)
        if self.critic is not None:
            self.critic.load(critic)
        self._random = torch.Generator(weights.device).manual_seed(0)

    def to_blob(self, version: int) -> PolicyBlob:
        """The policy as one float32 array with its spec."""
        statistics = self.observation_mean, self.observation_std
        return pack_diffusion_policy(version, self.spec, *statistics, self.noise_network, self.energy, self.critic)

    def act(
        self, observation: np.ndarray | Tensor, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions ``[B, A]`` within ±1 for observations ``[B, S]`` in environment units. ``deterministic`` stands for
        evaluation: with the spec's temperature and candidates. Otherwise one plain draw each, at temperature 1."""
        if not isinstance(observation, Tensor):
            observation = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        generator = self._random if generator is None else generator
        with torch.inference_mode(False), torch.no_grad():
            state = self._normalised(observation)
            if not deterministic:
                x = self._sample(state, 1.0, generator)
            elif self.spec.candidates == 1 or self.spec.temperature == 0:
                x = self._sample(state, self.spec.temperature, generator)
            else:
                x = self._chosen(state, generator)
            return self._action(x).cpu().numpy()

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """The action ``[..., A]`` of the deterministic path for observations ``[..., S]`` in environment units, and no
        variance. It costs one sampler run, ``steps`` network calls in every row."""
        with torch.inference_mode(False), torch.no_grad():
            action = self._action(self._sample(self._normalised(observation), 0.0, None))
        return action.view(*observation.shape[:-1], self.spec.action_size), None

    @property
    def noise_size(self) -> int:
        """Entries D of the initial noise: those of an action, and of the weight that is sampled beside it."""
        return self.spec.network.inputs

    def draw(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions ``[..., A]`` as a function of standard normal noise ``[..., D]``, for observations ``[..., S]`` in
        environment units: by the solver of the same order that adds no noise of its own, whose actions are spread as
        the policy's are. (The path of means of a solver with noise, from random noise, hardly is.)"""
        solver = WITHOUT_NOISE.get(self.spec.solver, self.spec.solver)
        with torch.inference_mode(False), torch.no_grad():
            start = noise.clone().to(self.observation_mean).reshape(-1, self.noise_size)
            action = self._action(self._run(self._normalised(observation), start, 0.0, None, solver))
        return action.view(*observation.shape[:-1], self.spec.action_size)

    def blurred_score(self, observation: Tensor, action: Tensor, width: Tensor | float) -> Tensor:
        """Gradient ``[..., A]`` by ``action [..., A]`` of ``log (pi * N(0, width^2))``: of the density of actions with
        noise of standard deviation ``width [..., 1]`` added, at ``observation [..., S]``; all in environment units.

        It is the policy's own prediction, guidance included, at the noise level with ``sigma / alpha = width``, since
        ``a_t / alpha`` is an action with that much noise (section 0.2): one call, where ``distribution`` takes
        ``steps``. The nearest level is taken where the schedule has none at ``width``, so that below its lowest the
        density stays as blurred as there. Denoised actions are kept within +-1, which those of a perfect network never
        leave. Raises ``ValueError`` for a policy with guidance ``weight``: its network knows pairs of action and
        weight, not actions alone.
        """
        if self.spec.guidance == "weight":
            raise ValueError("this policy denoises pairs of action and weight, and has no score of the action alone")
        size = self.spec.action_size
        with torch.inference_mode(False), torch.no_grad():
            rows = action.clone().to(self.observation_mean).reshape(-1, size)
            widths = torch.as_tensor(width).to(rows).expand(*action.shape[:-1], 1).reshape(-1).clone()
            times, known, between = self._levels
            nearest = torch.bucketize(widths, between)
            t, widths = times[nearest], known[nearest, None]
            alpha = (1 + widths.square()).rsqrt()
            noise = self._predict(self._normalised(observation))(alpha * rows, t)
            denoised = (rows - widths * noise).clamp(-1, 1)
            return ((denoised - rows) / widths.square()).view(action.shape)

    @functools.cached_property
    def _levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """``noise_widths`` and the borders between them on a logarithmic scale, for this policy's device."""
        times, widths = noise_widths(self.vp)
        between = (widths[1:] * widths[:-1]).sqrt()
        return times.to(self.observation_mean), widths.to(self.observation_mean), between.to(self.observation_mean)

    # ------------------------------------------------------------------------------------------------ sampling

    def _normalised(self, observation: Tensor) -> Tensor:
        """Rows ``[B, S]`` as the network takes them; a copy that gradients may pass, also in inference mode."""
        rows = observation.clone().to(self.observation_mean).reshape(-1, self.spec.observation_size)
        return (rows - self.observation_mean) / self.observation_std

    def _action(self, x: Tensor) -> Tensor:
        return x[:, : self.spec.action_size].clamp(-1, 1)

    def _sample(self, state: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Sampled vectors ``[B, D]`` in normalised states ``[B, S]``."""
        shape = len(state), self.spec.network.inputs
        if temperature == 0:
            return self._run(state, state.new_zeros(shape), 0.0, None)
        start = torch.randn(shape, generator=generator, device=state.device).mul_(temperature)
        return self._run(state, start, temperature, generator)

    def _run(
        self,
        state: Tensor,
        start: Tensor,
        temperature: float,
        generator: torch.Generator | None,
        solver: Solver | None = None,
    ) -> Tensor:
        spec = self.spec
        return sample(
            self._predict(state),
            start,
            self.vp,
            solver or spec.solver,
            spec.steps,
            temperature=temperature,
            clip=clip_denoised(spec.action_size, spec.weight_range) if spec.clip_denoised else None,
            generator=generator,
        )

    def _predict(self, state: Tensor) -> Predict:
        """The noise in the given states, with the method's guidance."""
        spec = self.spec

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self.noise_network(x, t, state, head_alone=spec.guidance == "weight")

        if spec.guidance == "weight":
            return weight_guide(predict, self.vp, spec.guidance_scale, spec.weight_floor)
        if self.energy is None:
            return predict
        energy = self.energy
        return energy_guide(
            predict, lambda x, t: energy(x, t, state), self.vp, spec.guidance_scale, rescale=spec.rescale
        )

    def _chosen(self, state: Tensor, generator: torch.Generator | None) -> Tensor:
        """One of the candidates ``[B, D]`` for each state."""
        count = self.spec.candidates
        rows = state.repeat_interleave(count, 0)
        x = self._sample(rows, self.spec.temperature, generator)
        if self.spec.choice == "weight":
            merit = x[:, -1]
        else:
            assert self.critic is not None
            merit = self.critic(torch.cat([rows, self._action(x)], -1)).squeeze(-1).amin(0)
        merit = merit.view(-1, count)
        if self.spec.choice == "softmax":
            best = torch.multinomial(merit.softmax(1), 1, generator=generator).squeeze(1)
        else:
            best = merit.argmax(1)
        return x.view(len(state), count, -1)[torch.arange(len(state), device=x.device), best]


@functools.lru_cache
def noise_widths(vp: VP) -> tuple[Tensor, Tensor]:
    """Times and ``sigma / alpha`` of a schedule's noise levels, from the lowest on, both ``[K]`` in float64: of all
    levels, or where there are infinitely many of so many that neighbours differ by a thousandth."""
    times = vp.grid(MANY_LEVELS if vp.kind == "continuous" else vp.steps)[:-1].flip(0)
    alpha, sigma = vp.levels(times)
    return times, sigma / alpha


def clip_denoised(action_size: int, weight_range: tuple[float, float] | None = None) -> Clip:
    """Keeps actions within +-1 and what is diffused beside them, if anything, within ``weight_range``."""

    def clip(x: Tensor) -> Tensor:
        if x.shape[-1] == action_size:
            return x.clamp(-1, 1)
        beside = x[:, action_size:]
        return torch.cat([x[:, :action_size].clamp(-1, 1), beside.clamp(*weight_range) if weight_range else beside], -1)

    return clip


def pack_diffusion_policy(
    version: int,
    spec: DiffusionPolicySpec,
    observation_mean: Tensor,
    observation_std: Tensor,
    network: NoiseNetwork,
    energy: EnergyNetwork | None = None,
    critic: MLP | None = None,
) -> PolicyBlob:
    """Bring the parts of a diffusion policy into one blob on the host. ``critic`` are two stacked target critics, if
    any; the spec's ``critic`` and ``hidden`` follow them."""
    models = [model.flat for model in (network, energy, critic) if model is not None]
    flat = torch.cat([part.detach() for part in (observation_mean, observation_std, *models)])
    hidden = () if critic is None else critic.sizes[1:-1]
    spec = spec.model_copy(update={"critic": critic is not None, "hidden": hidden})
    return PolicyBlob.pack(version, spec.model_dump(), flat.cpu().numpy())


def _check(spec: DiffusionPolicySpec) -> None:
    size = spec.action_size + (spec.guidance == "weight")
    if spec.network.inputs != size or spec.network.condition != spec.observation_size:
        raise ValueError(f"the noise network of {spec} must take {size} noisy numbers and the observation")
    if (spec.guidance == "energy") != (spec.energy_hidden is not None):
        raise ValueError("guidance by energy and an energy network come together")
    if spec.candidates > 1 and spec.choice == "weight" and spec.guidance != "weight":
        raise ValueError("candidates cannot be chosen by weight: no weight is sampled with the action")
    if spec.candidates > 1 and spec.choice != "weight" and not spec.critic:
        raise ValueError(f"choosing among {spec.candidates} candidates by {spec.choice} needs the critics")
