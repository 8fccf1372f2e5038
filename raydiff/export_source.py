"""What an export needs of a policy: a module, its inputs, and the policy's own actions to hold files against.

A perceptron is written as layers, for batches of any size. A diffusion policy, with its guidance and its choice among
candidates, is traced as it acts: what it would draw becomes an input, and the batch has one size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from raydiff.agents.diffusion_policy import DiffusionPolicy
from raydiff.agents.policy import Policy
from raydiff.agents.tanh_policy import LOG_STD_RANGE, mean_and_log_std, squash

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """``module`` maps the inputs, in the order of ``shapes``, to ``action [B, A]``; ``own`` is the policy itself.

    ``shapes``: sizes of each input behind the batch. ``batch`` is None where any number of rows will do. ``weights`` are
    for safetensors, and ``facts`` go into the specification.
    """

    module: nn.Module
    own: Callable[[Inputs], np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    batch: int | None
    weights: dict[str, np.ndarray]
    statistics: tuple[Tensor, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def examples(self, rows: int, seed: int) -> Inputs:
        """Observations as the data have them, and draws: normal, of ``choice`` uniform."""
        generator = torch.Generator().manual_seed(seed)
        found: Inputs = {}
        for name, shape in self.shapes.items():
            draw = torch.rand if name == "choice" else torch.randn
            found[name] = draw((rows, *shape), generator=generator)
        mean, std = self.statistics
        found["observation"] = mean + std * found["observation"]
        return found


def source_of(policy: Policy, batch: int) -> Source:
    """``batch``: rows of a diffusion policy's program."""
    return _diffusion(policy, batch) if isinstance(policy, DiffusionPolicy) else _perceptron(policy)


# ---------------------------------------------------------------------------------------------------- perceptrons


class Perceptron(nn.Module):
    """``observation [B, S]``, and ``noise [B, A]`` where the policy is random, to ``action [B, A]``."""

    observation_mean: Tensor
    observation_std: Tensor
    log_std: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.kind = policy.spec.kind
        self.register_buffer("observation_mean", policy.observation_mean)
        self.register_buffer("observation_std", policy.observation_std)
        if self.kind == "gaussian":
            self.register_buffer("log_std", policy.log_std)
        self.layers = nn.ModuleList()
        for weight, bias in policy.network.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data, layer.bias.data = weight.clone(), bias.flatten().clone()
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        signal = (observation - self.observation_mean) / self.observation_std
        for layer in self.layers[:-1]:
            signal = layer(signal).relu()
        signal = self.layers[-1](signal)
        if noise is None:
            return signal.tanh()
        if self.kind == "gaussian":
            return (signal.tanh() + self.log_std.exp() * noise).clamp(-1, 1)
        return squash(*mean_and_log_std(signal), noise)[0]


def _perceptron(policy: Policy) -> Source:
    size, actions, kind = policy.spec.observation_size, policy.spec.action_size, policy.spec.kind
    module = Perceptron(policy).eval()
    facts: dict[str, Any] = {
        "layers": len(module.layers),
        "network": "x = (observation - observation_mean) / observation_std; then, layer by layer, x = x weight^T + bias, "
        "with ReLU after all layers but the last",
    }
    shapes: dict[str, tuple[int, ...]] = {"observation": (size,)}
    match kind:
        case "gaussian":
            facts["action"] = "clip(tanh(x) + exp(log_std) noise, -1, 1)"
        case "tanh_gaussian":
            facts["action"] = "tanh(mean + exp(clip(log_std)) noise), where x is mean and log_std, one after the other"
            facts["log_std_range"] = list(LOG_STD_RANGE)
        case _:
            facts["action"] = "tanh(x)"
    if kind != "deterministic":
        shapes["noise"] = (actions,)
        facts["noise"] = "zeros in evaluation, standard normal for a draw"

    def own(inputs: Inputs) -> np.ndarray:
        if "noise" not in inputs:
            return policy.act(inputs["observation"])
        with _Given(inputs):
            drawn = policy.act(inputs["observation"], deterministic=False)
        return np.asarray(drawn)

    weights = {name: np.ascontiguousarray(value.numpy()) for name, value in module.state_dict().items()}
    return Source(module, own, shapes, None, weights, (policy.observation_mean, policy.observation_std), facts)


# ---------------------------------------------------------------------------------------------------- diffusion


def _diffusion(policy: DiffusionPolicy, batch: int) -> Source:
    spec = policy.spec
    statistics = policy.observation_mean, policy.observation_std
    with _Counted() as drawn:
        policy.act(policy.observation_mean.expand(batch, -1))
    shapes: dict[str, tuple[int, ...]] = {"observation": (spec.observation_size,)}
    facts: dict[str, Any] = {"diffusion": spec.model_dump(mode="json"), "batch": batch}
    if drawn.normal:
        count = spec.candidates if spec.temperature > 0 else 1
        shapes["noise"] = (count, drawn.normal, spec.network.inputs)
        facts["noise"] = "standard normal, for each candidate: the start, then the noise of each step"
    if drawn.choices:
        shapes["choice"] = (spec.candidates,)
        facts["choice"] = "uniform between 0 and 1: which candidate acts, by its value's softmax"

    def act(*inputs: Tensor) -> Any:
        with _Given(dict(zip(shapes, inputs, strict=True))):
            return policy.act(inputs[0])

    models = {"noise_network": policy.noise_network, "energy": policy.energy, "critic": policy.critic}
    flat = {name: model.flat.requires_grad_(False) for name, model in models.items() if model is not None}
    weights = {name: value.numpy() for name, value in flat.items()}
    weights |= {"observation_mean": statistics[0].numpy(), "observation_std": statistics[1].numpy()}
    own = Source(
        nn.Identity(), lambda inputs: np.asarray(act(*inputs.values())), shapes, batch, weights, statistics, facts
    )
    # Guides differentiate: their backward operations are written out in simpler ones, which ONNX knows.
    simpler = dict(torch.export.default_decompositions().items())
    return replace(own, module=make_fx(act, simpler)(*own.examples(batch, seed=0).values()))


class _Counted(TorchFunctionMode):
    """Counts what is drawn: calls of ``torch.randn``, and choices."""

    normal = choices = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.normal += func is torch.randn
        self.choices += func is torch.multinomial
        return func(*args, **(kwargs or {}))


class _Given(TorchFunctionMode):
    """Takes what would be drawn from inputs, one after the other, and gives tensors where NumPy's arrays are asked."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs, self.used = inputs, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn:
            self.used += 1
            return self.inputs["noise"][:, :, self.used - 1].flatten(0, 1).clone()
        if func is torch.Tensor.normal_:
            return args[0].copy_(self.inputs["noise"])
        if func is torch.multinomial:  # Gumbel's way to draw from probabilities
            gumbel = -(-self.inputs["choice"].log()).log()
            return (args[0].log() + gumbel).argmax(1, keepdim=True)
        if func is torch.Tensor.numpy:
            return args[0]
        return func(*args, **(kwargs or {}))
