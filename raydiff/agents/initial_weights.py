"""How published methods draw their first weights, where they do not leave it to ``torch.nn.Linear``'s default.

All draws are made on the host, so that every device starts from the same bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydiff.agents.networks import MLP


@torch.no_grad()
def start_orthogonal(network: MLP, generator: torch.Generator, last_gain: float = 1e-2) -> None:
    """Orthogonal weights with gain ``sqrt(2)``, those of the last layer with ``last_gain``, and biases of zero: the
    critics of CQL (section H.4)."""
    for index, (weight, bias) in enumerate(network.layers):
        gain = last_gain if index == len(network.layers) - 1 else math.sqrt(2)
        for head in _heads(weight):
            head.copy_(torch.nn.init.orthogonal_(torch.empty(head.shape), gain, generator=generator))
        bias.zero_()


@torch.no_grad()
def start_small(network: MLP, generator: torch.Generator, last: float, bias: float = 0.1) -> None:
    """Biases of ``bias`` in hidden layers, and the last layer uniform within ``last``, biases too: networks of EDAC and
    ReBRAC (section H.5). Hidden weights stay as they were drawn."""
    for _, shift in network.layers[:-1]:
        shift.fill_(bias)
    for part in network.layers[-1]:
        part.copy_(torch.empty(part.shape).uniform_(-last, last, generator=generator))


def _heads(weight: Tensor) -> list[Tensor]:
    """Views of the single weights ``[out, in]`` of a layer, stacked or not."""
    return list(weight) if weight.ndim == 3 else [weight]
