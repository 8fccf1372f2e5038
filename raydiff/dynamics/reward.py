"""A reward model ``r(s, a, s')`` that relabels synthetic transitions.

A trajectory model smooths the reward column, most of all costs that are quadratic in the action; a small
regression on real transitions does not.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from raydiff.config import RewardConfig
from raydiff.types import Transitions

_PREDICT_ROWS = 65_536
LEAST_TRANSITIONS = 20
_HOLDOUT_SHARE = 0.05
_HOLDOUT_MOST = 10_000


class RewardModel(nn.Module):
    """An MLP on the standardised ``(s, a, s')`` that gives the reward in environment units."""

    input_mean: torch.Tensor
    input_std: torch.Tensor
    reward_mean: torch.Tensor
    reward_std: torch.Tensor

    def __init__(self, input_size: int, hidden: tuple[int, ...], generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(input_size))
        self.register_buffer("input_std", torch.ones(input_size))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        sizes = (input_size, *hidden, 1)
        # skip_init leaves the global random state alone; the generator draws the weights.
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes))
        for layer, fan_in in zip(self.layers, sizes[:-1], strict=True):
            bound = 1.0 / math.sqrt(fan_in)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def standardised(self, x: torch.Tensor) -> torch.Tensor:
        """The standardised reward ``[B]`` of standardised inputs ``x [B, 2S+A]``."""
        for layer in self.layers[:-1]:
            x = functional.silu(layer(x))
        return self.layers[-1](x).squeeze(-1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
        """Rewards ``[...]`` of ``observation [..., S]``, ``action [..., A]``, ``next_observation [..., S]``."""
        x = (torch.cat([observation, action, next_observation], dim=-1) - self.input_mean) / self.input_std
        return self.standardised(x) * self.reward_std + self.reward_mean

    @overload
    def predict(self, observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray) -> np.ndarray: ...
    @overload
    def predict(
        self, observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor
    ) -> torch.Tensor: ...
    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray | torch.Tensor,
        action: np.ndarray | torch.Tensor,
        next_observation: np.ndarray | torch.Tensor,
    ) -> np.ndarray | torch.Tensor:
        """Rewards without gradients, in bounded slices; arrays in give an array, tensors in give a tensor."""
        device = self.input_mean.device
        inputs = [
            torch.as_tensor(value, dtype=torch.float32, device=device)
            for value in (observation, action, next_observation)
        ]
        slices = [slice(i, i + _PREDICT_ROWS) for i in range(0, len(action), _PREDICT_ROWS)]
        parts = [self(*(value[rows] for value in inputs)) for rows in slices]
        rewards = torch.cat(parts) if parts else torch.empty(action.shape[:-1], device=device)
        return rewards if isinstance(observation, torch.Tensor) else rewards.cpu().numpy()

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and statistics as plain tensors, for a safetensors checkpoint."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    @staticmethod
    def from_state(state: dict[str, torch.Tensor]) -> RewardModel:
        """The inverse of ``state``: the layer sizes are those of the tensors."""
        count = sum(1 for name in state if name.startswith("layers.") and name.endswith(".weight"))
        hidden = tuple(state[f"layers.{i}.weight"].shape[0] for i in range(count - 1))
        model = RewardModel(state["input_mean"].shape[0], hidden)
        model.load_state_dict(state)
        return model.eval()


def train_reward_model(
    transitions: Transitions, config: RewardConfig, seed: int
) -> tuple[RewardModel, dict[str, float]]:
    """Fit on real transitions by Adam with a cosine learning rate; the rest is held out to say how well.

    Every successor must be a true one (``Dataset.transitions("dynamics")`` where none are stored). Metrics:
    ``holdout_mse`` (environment units), ``holdout_r2``, ``train_mse``, ``holdout_transitions``.
    ``ValueError`` for fewer than ``LEAST_TRANSITIONS``.
    """
    if len(transitions) < LEAST_TRANSITIONS:
        raise ValueError(f"a reward model needs at least {LEAST_TRANSITIONS} transitions, got {len(transitions)}")
    generator = torch.Generator().manual_seed(seed)
    parts = (transitions.observation, transitions.action, transitions.next_observation)
    inputs = torch.as_tensor(np.concatenate(parts, axis=1, dtype=np.float32))
    target = torch.as_tensor(np.asarray(transitions.reward, dtype=np.float32))
    order = torch.randperm(len(target), generator=generator)
    held = min(max(1, round(_HOLDOUT_SHARE * len(target))), _HOLDOUT_MOST)
    model = RewardModel(inputs.shape[1], config.hidden, generator)
    _fit_statistics(model, inputs[order[held:]], target[order[held:]])
    inputs = (inputs - model.input_mean) / model.input_std
    target = (target - model.reward_mean) / model.reward_std
    train_mse = _descend(model, inputs[order[held:]], target[order[held:]], config, generator)
    model.eval()
    with torch.no_grad():
        error = (model.standardised(inputs[order[:held]]) - target[order[:held]]).square().mean().item()
    scale = float(model.reward_std) ** 2
    spread = target[order[:held]].var(correction=0).item()
    return model, {
        "holdout_mse": error * scale,
        "holdout_r2": 1.0 - error / spread if spread > 0 else float(error < 1e-6),
        "train_mse": train_mse * scale,
        "holdout_transitions": float(held),
    }


def _fit_statistics(model: RewardModel, inputs: torch.Tensor, target: torch.Tensor) -> None:
    for values, mean, std in (
        (inputs, model.input_mean, model.input_std),
        (target, model.reward_mean, model.reward_std),
    ):
        wide = values.double()
        spread = wide.std(dim=0, correction=0)
        mean.copy_(wide.mean(dim=0))
        std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))


def _descend(
    model: RewardModel, inputs: torch.Tensor, target: torch.Tensor, config: RewardConfig, generator: torch.Generator
) -> float:
    """Run the optimiser; the mean standardised squared error of the last tenth of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    recent, total = max(1, config.steps // 10), torch.zeros(())
    for step in range(config.steps):
        rows = torch.randint(len(target), (config.batch_size,), generator=generator)
        loss = functional.mse_loss(model.standardised(inputs[rows]), target[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= config.steps - recent:
            total += loss.detach()
    return total.item() / recent
