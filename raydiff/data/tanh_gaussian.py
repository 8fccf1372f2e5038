"""SAC's stochastic policy in NumPy: what is kept of a training, acts alone and goes into the file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raydiff.data.acting import Act, Arrays


@dataclass(frozen=True)
class TanhGaussian:
    """The stochastic policy of SAC (Haarnoja et al. 2018, appendix C): ``tanh`` of a normal variable whose mean and
    log standard deviation come from a ReLU network.

    ``layers`` are the hidden ``(weight [out, in], bias [out])``, ``mean`` and ``log_std`` the two output layers.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    mean: tuple[np.ndarray, np.ndarray]
    log_std: tuple[np.ndarray, np.ndarray]

    LOG_STD_RANGE = (-20.0, 2.0)

    def distribution(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log standard deviation ``[A]`` before the ``tanh``, of one observation ``[S]``."""
        hidden = observation.astype(np.float32)
        for weight, bias in self.layers:
            hidden = np.maximum(weight @ hidden + bias, 0)
        log_std = self.log_std[0] @ hidden + self.log_std[1]
        return self.mean[0] @ hidden + self.mean[1], np.clip(log_std, *self.LOG_STD_RANGE)

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """An action ``[A]`` and its log-density (appendix C, equation 21), of one observation ``[S]``."""
        mean, log_std = self.distribution(observation)
        noise = rng.standard_normal(len(mean), dtype=np.float32)
        before = mean + np.exp(log_std) * noise
        # log(1 - tanh(u)^2) in a form that does not lose its digits where tanh saturates
        squash = 2 * (np.log(2) - before - np.logaddexp(0, -2 * before))
        density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - squash
        return np.tanh(before), float(density.sum())

    def actor(self, seed: int) -> Act:
        """The policy as an actor with a noise of its own."""
        rng = np.random.default_rng(seed)
        return lambda observation: self.sample(observation, rng)

    def arrays(self) -> Arrays:
        """Weights and biases under the names that D4RL's files give them."""
        named = {f"fc{i}": layer for i, layer in enumerate(self.layers)}
        named |= {"last_fc": self.mean, "last_fc_log_std": self.log_std}
        return {f"{name}/{part}": array for name, pair in named.items()
                for part, array in zip(("weight", "bias"), pair, strict=True)}  # fmt: skip
