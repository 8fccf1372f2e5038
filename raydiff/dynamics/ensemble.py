"""An ensemble of one-step dynamics models with Gaussian outputs (PETS, MOPO; section I.1).

Every member predicts the change of the observation and the reward, with a variance of its own for each. The members
are stacked, so that all of them train and predict by one batched product per layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from raydiff.config import DynamicsConfig
from raydiff.errors import RunFailed
from raydiff.types import Transitions

Progress = Callable[[int, int, float, float | None], None]
"""``progress(step, steps, loss, held-out error or None)``."""

LEAST_TRANSITIONS = 20
_HOLDOUT_SHARE = 0.2
_LEAST_IMPROVEMENT = 0.01
_BOUND_WEIGHT = 0.01
_MIN_LOG_VAR, _MAX_LOG_VAR = -10.0, 0.5
_FIRST_DECAY, _MOST_DECAY, _OUTPUT_DECAY = 2.5e-5, 7.5e-5, 1e-4
_NO_SPREAD = 1e-12
_PREDICT_ROWS = 4096
_REPORTS = 100


class GaussianEnsemble(nn.Module):
    """``E`` networks of ``(s, a)`` that each give a Gaussian over ``(s' - s, r)``, in environment units.

    Inputs are standardised by ``input_mean`` and ``input_std``. ``elites [K]`` are the members that ``step`` draws
    from. Weights are ``[E, in, out]``, drawn from a normal of standard deviation ``1 / (2 sqrt(in))`` cut at two of
    them.
    """

    input_mean: Tensor
    input_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    elites: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int,
        hidden: tuple[int, ...],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.observation_size, self.action_size, self.members = observation_size, action_size, members
        outputs = observation_size + 1
        self.register_buffer("input_mean", torch.zeros(observation_size + action_size))
        self.register_buffer("input_std", torch.ones(observation_size + action_size))
        self.register_buffer("target_mean", torch.zeros(outputs))
        self.register_buffer("target_std", torch.ones(outputs))
        self.register_buffer("elites", torch.arange(members))
        pairs = list(pairwise((observation_size + action_size, *hidden, 2 * outputs)))
        self.weights = nn.ParameterList(_truncated_normal((members, *pair), generator) for pair in pairs)
        self.biases = nn.ParameterList(torch.zeros(members, 1, out) for _, out in pairs)
        self.min_log_var = nn.Parameter(torch.full((members, 1, outputs), _MIN_LOG_VAR))
        self.max_log_var = nn.Parameter(torch.full((members, 1, outputs), _MAX_LOG_VAR))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance ``[E, N, S+1]`` of the standardised targets, for standardised ``inputs [E, N, S+A]``."""
        x = inputs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = functional.silu(torch.baddbmm(bias, x, weight))
        mean, log_var = torch.baddbmm(self.biases[-1], x, self.weights[-1]).chunk(2, dim=-1)
        return mean, soft_clamp(log_var, self.min_log_var, self.max_log_var)

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance ``[E, N, S+1]`` of ``(s' - s, r)`` in environment units, by every member."""
        inputs = self._standardised(observation, action)
        parts = [self(part.expand(self.members, -1, -1)) for part in inputs.split(_PREDICT_ROWS)]
        mean = torch.cat([part[0] for part in parts], dim=1)
        log_var = torch.cat([part[1] for part in parts], dim=1)
        return mean * self.target_std + self.target_mean, log_var + 2 * self.target_std.log()

    @torch.no_grad()
    def step(
        self,
        observation: Tensor,
        action: Tensor,
        generator: torch.Generator,
        sample: bool,
        *,
        uncertainty: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Successors ``[N, S]``, rewards ``[N]`` and uncertainties ``[N]``, each row by an elite drawn for it.

        With ``sample`` both are drawn from the elite's Gaussian (MOPO), else they are its mean. The uncertainty is
        the largest norm of a member's standard deviations, over all members and with the reward's (MOPO's penalty);
        None unless it is asked for, since it takes all members and the step itself only one for each row.
        """
        rows = len(observation)
        chosen = self.elites[torch.randint(len(self.elites), (rows,), generator=generator, device=observation.device)]
        doubt = None
        if uncertainty:
            means, log_vars = self.predict(observation, action)
            doubt = (0.5 * log_vars).exp().norm(dim=-1).amax(dim=0)
            index = torch.arange(rows, device=observation.device)
            mean, log_var = means[chosen, index], log_vars[chosen, index]
        else:
            mean, log_var = self._predict_by(chosen, observation, action)
        if sample:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            mean = torch.addcmul(mean, (0.5 * log_var).exp(), noise)
        return observation + mean[:, :-1], mean[:, -1], doubt

    def _predict_by(self, chosen: Tensor, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """As ``predict``, but ``[N, S+1]``: row ``i`` by member ``chosen[i]`` alone."""
        inputs = self._standardised(observation, action)
        mean = inputs.new_empty(len(inputs), self.observation_size + 1)
        log_var = torch.empty_like(mean)
        for member in self.elites.tolist():
            rows = (chosen == member).nonzero().squeeze(1)
            x = inputs[rows]
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                x = functional.silu(torch.addmm(bias[member], x, weight[member]))
            outputs = torch.addmm(self.biases[-1][member], x, self.weights[-1][member])
            part, spread = outputs.chunk(2, dim=-1)
            mean[rows] = part
            log_var[rows] = soft_clamp(spread, self.min_log_var[member], self.max_log_var[member])
        return mean * self.target_std + self.target_mean, log_var + 2 * self.target_std.log()

    def standardised(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the networks are trained on, of ``inputs [N, S+A]`` and ``targets [N, S+1]`` in environment units."""
        return (inputs - self.input_mean) / self.input_std, (targets - self.target_mean) / self.target_std

    def _standardised(self, observation: Tensor, action: Tensor) -> Tensor:
        return (torch.cat([observation, action], dim=-1) - self.input_mean) / self.input_std

    def state(self) -> dict[str, Tensor]:
        """Weights and statistics as plain tensors, for a safetensors checkpoint."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    @staticmethod
    def from_state(state: dict[str, Tensor]) -> GaussianEnsemble:
        """The inverse of ``state``: all sizes are those of the tensors."""
        weights = [state[f"weights.{i}"] for i in range(sum(name.startswith("weights.") for name in state))]
        observation_size = len(state["target_mean"]) - 1
        action_size = len(state["input_mean"]) - observation_size
        hidden = tuple(weight.shape[2] for weight in weights[:-1])
        ensemble = GaussianEnsemble(observation_size, action_size, len(weights[0]), hidden)
        ensemble.elites = torch.empty_like(state["elites"])
        ensemble.load_state_dict(state)
        return ensemble.eval()


def soft_clamp(log_var: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``log_var`` brought smoothly between ``low`` and ``high``; about itself well within them."""
    log_var = high - functional.softplus(high - log_var)
    return low + functional.softplus(log_var - low)


def train_ensemble(
    transitions: Transitions,
    config: DynamicsConfig,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> tuple[GaussianEnsemble, dict[str, float]]:
    """Fit an ensemble by the published procedure of MOPO's implementations (section I.1).

    Every member sees the training transitions through index draws of its own, with replacement, in its own order.
    After each pass a member whose held-out error has fallen by more than 1 % since its best is kept; training ends
    after ``config.patience`` passes without any such member, or after ``config.epochs``. The ensemble consists of
    the best of each member, and its elites are those with the smallest error.

    Every successor must be a true one (``Dataset.transitions("dynamics")`` where none are stored). Metrics are those
    of ``holdout_metrics``, ``epochs``, ``train_transitions`` and ``holdout_transitions``. ``ValueError`` for fewer
    than ``LEAST_TRANSITIONS``.
    """
    count = len(transitions)
    if count < LEAST_TRANSITIONS:
        raise ValueError(f"a dynamics model needs at least {LEAST_TRANSITIONS} transitions, got {count}")
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(count, generator=generator)[: config.transitions]
    held = min(max(1, round(_HOLDOUT_SHARE * len(order))), config.holdout)
    inputs, targets = (rows.to(device) for rows in _regression(transitions, order.numpy()))
    holdout, training = (inputs[:held], targets[:held]), (inputs[held:], targets[held:])
    sizes = transitions.observation.shape[1], transitions.action.shape[1]
    ensemble = GaussianEnsemble(*sizes, config.members, config.hidden, generator).to(device)
    _fit_statistics(ensemble, *training, config.normalize_targets)
    epochs = _Descent(ensemble, training, holdout, config, generator).run(progress)
    counts = {"epochs": epochs, "train_transitions": len(order) - held, "holdout_transitions": held}
    return ensemble.eval(), holdout_metrics(ensemble, *holdout) | {name: float(n) for name, n in counts.items()}


@torch.no_grad()
def holdout_metrics(ensemble: GaussianEnsemble, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the elites predict ``targets [N, S+1]`` from ``inputs [N, S+A]``, each alone, as a rollout uses them.

    ``holdout_mse``: squared error of ``(s' - s, r)``, mean over elites, rows and dimensions. ``persistence_ratio``:
    error of the observation over that of predicting no change, in units of the data's spread. ``calibration``:
    squared error over predicted variance, 1 where the spread is right and above it where it is too small.
    """
    size = ensemble.observation_size
    mean, log_var = (part[ensemble.elites] for part in ensemble.predict(inputs[:, :size], inputs[:, size:]))
    squared = (mean - targets).square()
    variance = inputs[:, :size].var(dim=0, correction=0)
    scale = torch.where(variance > 0, variance, 1.0)
    still = (targets[:, :size].square() / scale).mean().item()
    moved = (squared[..., :size] / scale).mean().item()
    return {
        "holdout_mse": squared.mean().item(),
        "persistence_ratio": moved / still if still > 0 else float("nan"),
        "calibration": (squared / log_var.exp()).mean().item(),
    }


def layer_decay(layer: int, layers: int) -> float:
    """Weight decay of a layer: rising from the input, largest at the output; the published five for five layers."""
    return _OUTPUT_DECAY if layer == layers - 1 else min((layer + 1) * _FIRST_DECAY, _MOST_DECAY)


class _Descent:
    """One training run. The members are independent: each has its own rows, its own bounds and its own best."""

    def __init__(
        self,
        ensemble: GaussianEnsemble,
        training: tuple[Tensor, Tensor],
        holdout: tuple[Tensor, Tensor],
        config: DynamicsConfig,
        generator: torch.Generator,
    ) -> None:
        self.ensemble, self.config, self.generator = ensemble, config, generator
        self.inputs, self.targets = ensemble.standardised(*training)
        self.held_inputs, self.held_targets = ensemble.standardised(*holdout)
        self.bootstrap = torch.randint(len(self.inputs), (config.members, len(self.inputs)), generator=generator)
        layers = len(ensemble.weights)
        # Adam's decay is the gradient of half the squared weights, added to that of the loss.
        groups: list[dict[str, Any]] = [
            {"params": [weight], "weight_decay": layer_decay(i, layers)} for i, weight in enumerate(ensemble.weights)
        ]
        groups.append({"params": [*ensemble.biases, ensemble.min_log_var, ensemble.max_log_var]})
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
        self.best = torch.full((config.members,), math.inf, device=self.inputs.device)
        self.kept = [parameter.detach().clone() for parameter in ensemble.parameters()]

    def run(self, progress: Progress | None) -> int:
        """Train, leave the best of each member and the elites in the ensemble; the number of passes."""
        config, batches = self.config, math.ceil(len(self.inputs) / self.config.batch_size)
        steps, stale, epoch = config.epochs * batches, 0, 0
        every = max(1, min(steps // _REPORTS, batches))
        while epoch < config.epochs and stale < config.patience:
            loss = math.nan
            for batch, rows in enumerate(self._orders().split(config.batch_size, dim=1)):
                value = self._advance(rows)
                if batch % every == 0:
                    loss = float(value)
                    if progress is not None:
                        progress(epoch * batches + batch, steps, loss, None)
            stale = 0 if self._keep_better() else stale + 1
            epoch += 1
            over = epoch == config.epochs or stale == config.patience
            if progress is not None:
                progress(steps if over else epoch * batches, steps, loss, float(self.best.mean()))
        if not self.best.isfinite().all():
            raise RunFailed(
                "The dynamics model did not learn: its held-out error was never finite. Look for values in the data "
                f"that are not, and lower dynamics.learning_rate={config.learning_rate:g}."
            )
        with torch.no_grad():
            for parameter, kept in zip(self.ensemble.parameters(), self.kept, strict=True):
                parameter.copy_(kept)
        self.ensemble.elites = self.best.argsort(stable=True)[: config.elites]
        return epoch

    def _orders(self) -> Tensor:
        """The rows ``[E, N]`` of one pass: every member's own, in an order of its own."""
        shuffled = [rows[torch.randperm(len(rows), generator=self.generator)] for rows in self.bootstrap]
        return torch.stack(shuffled).to(self.inputs.device)

    def _advance(self, rows: Tensor) -> Tensor:
        """One step of all members on their rows ``[E, B]``; the mean of their losses."""
        mean, log_var = self.ensemble(self.inputs[rows])
        loss = gaussian_loss(mean, log_var, self.targets[rows])
        bounds = self.ensemble.max_log_var.sum() - self.ensemble.min_log_var.sum()
        self.optimizer.zero_grad(set_to_none=True)
        (loss.sum() + _BOUND_WEIGHT * bounds).backward()
        self.optimizer.step()
        return loss.detach().mean()

    @torch.no_grad()
    def _keep_better(self) -> bool:
        """Keep the members whose held-out error is clearly below their best; whether there is one."""
        mean, _ = self.ensemble(self.held_inputs.expand(self.config.members, -1, -1))
        error = (mean - self.held_targets).square().mean(dim=(1, 2))
        better = error < (1 - _LEAST_IMPROVEMENT) * self.best
        self.best = torch.where(better, error, self.best)
        for kept, parameter in zip(self.kept, self.ensemble.parameters(), strict=True):
            kept[better] = parameter[better]
        return bool(better.any())


def gaussian_loss(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """Each member's loss ``[E]``: twice the negative log density of ``target``, without its constant, per entry."""
    return ((mean - target).square() * (-log_var).exp() + log_var).mean(dim=(1, 2))


def _regression(transitions: Transitions, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Inputs ``[N, S+A]`` and targets ``[N, S+1]`` of these rows, in environment units."""
    observation = np.asarray(transitions.observation[rows], dtype=np.float32)
    action = np.asarray(transitions.action[rows], dtype=np.float32)
    change = np.asarray(transitions.next_observation[rows], dtype=np.float32) - observation
    reward = np.asarray(transitions.reward[rows], dtype=np.float32)[:, None]
    inputs, targets = np.concatenate([observation, action], axis=1), np.concatenate([change, reward], axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _fit_statistics(ensemble: GaussianEnsemble, inputs: Tensor, targets: Tensor, normalize_targets: bool) -> None:
    ensemble.input_mean, ensemble.input_std = _moments(inputs)
    if normalize_targets:
        ensemble.target_mean, ensemble.target_std = _moments(targets)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns; 1 for a column without spread."""
    wide = values.double()
    std = wide.std(dim=0, correction=0)
    return wide.mean(dim=0).float(), torch.where(std < _NO_SPREAD, 1.0, std).float()


def _truncated_normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    std = 1 / (2 * math.sqrt(shape[1]))
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std, generator=generator)
