"""A policy that raydiff has exported, with NumPy and safetensors alone: this file stands beside it and needs no raydiff.

    from policy import Policy
    action = Policy(".").act(observation)

It is for policies whose network is a plain perceptron: ``deterministic``, ``gaussian`` and ``tanh_gaussian``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


class Policy:
    """``policy.json`` and ``policy.safetensors`` of a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.spec: dict[str, Any] = json.loads((Path(folder) / "policy.json").read_text(encoding="utf-8"))
        self.weights: dict[str, np.ndarray] = load_file(Path(folder) / "policy.safetensors")
        if self.spec["kind"] == "diffusion":
            raise ValueError("a diffusion policy is more than a perceptron: load policy.onnx or policy.pt2")

    def act(self, observation: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Actions ``[B, A]`` within -1 and 1 for observations ``[B, S]`` in the environment's units. Without ``noise``
        they are those of an evaluation; with standard normal ``noise [B, A]`` they are draws of a random policy."""
        signal = np.asarray(observation, dtype=np.float32)
        signal = (signal - self.weights["observation_mean"]) / self.weights["observation_std"]
        last = self.spec["layers"] - 1
        for layer in range(last + 1):
            signal = signal @ self.weights[f"layers.{layer}.weight"].T + self.weights[f"layers.{layer}.bias"]
            signal = np.maximum(signal, 0) if layer < last else signal
        drawn = np.float32(0) if noise is None else np.asarray(noise, dtype=np.float32)
        match self.spec["kind"]:
            case "gaussian":
                return np.clip(np.tanh(signal) + np.exp(self.weights["log_std"]) * drawn, -1, 1)
            case "tanh_gaussian":
                mean, log_std = np.split(signal, 2, axis=-1)
                return np.tanh(mean + np.exp(np.clip(log_std, *self.spec["log_std_range"])) * drawn)
        return np.tanh(signal)
