"""DyDiff: a trajectory model of states given actions, iterated with the policy (section D).

The states of a first rollout come from a one-step model; each iteration then draws all states at once for the
policy's actions so far, and takes the policy's actions in the new states. The trajectories are on-policy without
any guidance, and no step is predicted from another's prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raydiff.config import Config
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.conditional import given_entries
from raydiff.diffusion.samplers import hold
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.dynamics.reward import RewardModel
from raydiff.dynamics.termination import termination_of
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.dydiff_refine import Act, FixedActions, RowActions, iterate, roll_out, stop_at_terminals
from raydiff.generators.filter import reward_filter
from raydiff.generators.sampling import Sampling, churn_of
from raydiff.guidance.api import ActionDistribution, DrawnActions
from raydiff.types import Trajectories


class DyDiffGenerator:
    """Generates and refines with the same models. Keeps no state between calls, so equal calls give equal bytes.

    ``bundle`` is a conditional denoiser of rows ``(s, a)``, ``starts [K, S]`` are real states to start from, and
    ``environment`` is the id whose terminations end trajectories. Nothing is guided: ``strength`` has no effect.
    """

    def __init__(
        self,
        bundle: DenoiserBundle,
        ensemble: GaussianEnsemble,
        reward: RewardModel,
        starts: np.ndarray,
        environment: str,
        config: Config,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sampling = Sampling(bundle, "conditional", config.sampler, device)
        self.bundle, self.ensemble, self.reward = self.sampling.bundle, ensemble.to(device), reward.to(device)
        self.starts = torch.as_tensor(starts, dtype=torch.float32, device=device)
        self.termination = termination_of(environment)
        self.config, self.device = config, torch.device(device)

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` trajectories of ``policy`` from states drawn uniformly, of which ``generator.filter`` keeps a share:
        rows ``[m, L, S+A+2]`` with ``m <= n``.

        Without a policy actions are uniform within +-1, and one iteration is as good as several. With
        ``dydiff.iterations=0`` the states are the one-step model's.
        """
        generator = keyed_generator(key, self.device)
        first = self.starts[torch.randint(len(self.starts), (n,), generator=generator, device=self.device)]
        act, iterations = self._actions(policy, n, generator), self.config.dydiff.iterations
        if policy is None:
            iterations = min(iterations, 1)
        states, actions = roll_out(lambda s, a: self._step(s, a, generator), first, act, self.bundle.length)
        return self._finish(states, actions, act, iterations, policy, generator, filtered=True)

    @torch.inference_mode()
    def refine(
        self,
        trajectories: Trajectories,
        policy: ActionDistribution | None,
        key: tuple[int, ...],
        strength: float | None = None,
    ) -> GeneratedTrajectories:
        """The same number of trajectories from the same first states, brought up to ``policy``: its actions in the
        stored states, then ``dydiff.iterations`` (at least one) as in generation. Without a policy the stored actions
        stay. Raises ``ValueError`` for trajectories of another length than the denoiser's."""
        if trajectories.length != self.bundle.length:
            raise ValueError(f"trajectories of {trajectories.length} rows, but the denoiser has {self.bundle.length}")
        generator = keyed_generator(key, self.device)
        rows = torch.from_numpy(trajectories.rows).to(self.device)
        states, actions = rows[..., : self.bundle.observation_size], rows[..., self.bundle.observation_size : -2]
        act: Act = FixedActions(actions)
        if policy is not None:
            act = self._actions(policy, len(rows), generator)
            actions = act(states)
        iterations = max(self.config.dydiff.iterations, 1) if policy is not None else 1
        return self._finish(states, actions, act, iterations, policy, generator, filtered=False)

    def _actions(self, policy: ActionDistribution | None, n: int, generator: torch.Generator) -> Act:
        shape = (n, self.bundle.length, self.bundle.action_size)
        if policy is None:
            return FixedActions(torch.rand(shape, generator=generator, device=self.device).mul_(2).sub_(1))
        if not self.config.dydiff.sample_actions:
            return RowActions(policy, None)
        if isinstance(policy, DrawnActions):
            shape = (*shape[:2], policy.noise_size)
        elif policy.deterministic:
            return RowActions(policy, None)
        return RowActions(policy, torch.randn(shape, generator=generator, device=self.device))

    def _step(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        return self.ensemble.step(observation, action, generator, sample=self.config.rollout.sample)[0]

    def _noise(self, generator: torch.Generator) -> Callable[[], torch.Generator]:
        """Where each iteration draws its noise from: on from the last one, or from the same point again."""
        if self.config.dydiff.fresh_noise:
            return lambda: generator
        seed = int(torch.randint(2**62, (1,), generator=generator, device=self.device))
        return lambda: torch.Generator(self.device).manual_seed(seed)

    def _draw(self, first: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """States ``[n, L, S]`` from the conditional model; those of row 0 are ``first`` bit for bit."""
        normalizer, sampling, size = self.bundle.normalizer, self.sampling, self.bundle.observation_size
        known = normalizer.encode(torch.cat([first[:, None].expand(-1, actions.shape[1], -1), actions], dim=-1))
        given = given_entries(actions.shape[1], size, actions.shape[2]).to(self.device)
        x = sampling.solve(
            sampling.denoise,
            sampling.noise(len(first), generator),
            sampling.sigmas,
            churn=churn_of(sampling.sampler),
            generator=generator,
            replace=hold(given, known),
            replace_after_churn=self.config.dydiff.replace_after_churn,
        )
        states = normalizer.decode(x)[..., :size].clone()
        states[:, 0] = first
        return states

    def _finish(
        self,
        states: Tensor,
        actions: Tensor,
        act: Act,
        iterations: int,
        policy: ActionDistribution | None,
        generator: torch.Generator,
        filtered: bool,
    ) -> GeneratedTrajectories:
        """The iterations, then rewards, the filter by predicted return and terminations."""
        update, noise = self.config.dydiff.update, self._noise(generator)
        states, actions = iterate(
            lambda first, taken: self._draw(first, taken, noise()), states, actions, act, iterations, update
        )
        reward, terminal = self._judge(states, actions)
        if filtered:
            # The return is over all rows, also those behind a terminal (section D.6).
            kept = reward_filter(_finite(reward.sum(1)), self.config.generator, generator)
            states, actions, reward, terminal = states[kept], actions[kept], reward[kept], terminal[kept]
        rows = stop_at_terminals(states, actions, reward, terminal).cpu().numpy()
        trajectories = Trajectories(rows, self.bundle.observation_size, self.bundle.action_size)
        delta, agreement = self.config.guidance.delta, None
        if policy is not None:
            agreement = action_agreement(trajectories, policy, self.device, delta)
        return GeneratedTrajectories(trajectories, iterations * self.sampling.calls(), "none", 0.0, agreement)

    def _judge(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Reward ``[n, H]`` and whether it terminates ``[n, H]``, for each transition of the rows ``[n, L, ...]``."""
        n, horizon = len(states), states.shape[1] - 1
        parts = [part.flatten(0, 1) for part in (states[:, :-1], actions[:, :-1], states[:, 1:])]
        return self.reward.predict(*parts).view(n, horizon), self.termination(*parts).view(n, horizon)


def _finite(returns: Tensor) -> Tensor:
    """Returns ``[n]`` in which a trajectory that ran out of all bounds ranks last."""
    finite = returns.isfinite()
    return torch.where(finite, returns, returns[finite].min()) if finite.any() else torch.zeros_like(returns)
