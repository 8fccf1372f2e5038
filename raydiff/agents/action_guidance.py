"""Guidance of action diffusion: each function makes a guided noise prediction of a plain one.

``weight_guide(predict, vp, scale, floor) -> Predict`` (SWG), where the last entry of ``x`` is the weight;
``energy_guide(predict, energy, vp, scale, rescale) -> Predict`` (QGPO, AEPO) with a learnt intermediate energy.
They are given to ``raydiff.diffusion.vp.sample`` as its ``predict``, so that one that differentiates through the
network calls it once. Sampling disables gradients; a guide enables them for itself and returns detached values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from raydiff.agents.closed_form import closed_form_gradient
from raydiff.diffusion.vp import VP, Predict

Guidance = Literal["none", "weight", "energy"]

Slope = Callable[[Tensor], Tensor]
"""``slope(action [B, A]) -> dQ/da [B, A]`` in the given states."""

Variance = Callable[[Tensor], Tensor]
"""``variance(t [B]) -> [B]``: that of a clean action given its noisy value."""

Mean = Callable[[Tensor, Tensor], Tensor]
"""``mean(predicted [B, A], t [B]) -> [B, A]``: the posterior mean for what the network predicts."""

Energy = Callable[[Tensor, Tensor], Tensor]
"""``energy(x_t [B, A], t [B]) -> [B]``: the intermediate energy of the given states; its gradient by ``x_t`` is a term
of the score."""


def weight_guide(predict: Predict, vp: VP, scale: float, floor: float) -> Predict:
    """Self-weighted guidance: the noise prediction of pairs ``x_t [B, A + 1]`` of action and weight, guided by the
    gradient of the logarithm of their own denoised weight, by the whole of ``x_t`` and through the network (equations
    20 and 26 of the paper; section E.2). With a ``scale`` of 1 actions come in proportion to their weight.

    Below ``floor``, a positive number, a denoised weight guides nowhere; there is no upper bound (section E.3).
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            pair, t = x_t.detach().clone().requires_grad_(), t.clone()
            noise = predict(pair, t)
            alpha, sigma = vp.levels(t)
            weight = (pair[:, -1] - sigma * noise[:, -1]) / alpha
            (gradient,) = torch.autograd.grad(weight.clamp_min(floor).log().sum(), pair)
        return noise.detach() - scale * sigma[:, None] * gradient

    return guided


def energy_guide(predict: Predict, energy: Energy, vp: VP, scale: float, rescale: bool = False) -> Predict:
    """``eps - scale sigma dE/dx`` (equation 13 of AEPO, section F.2). ``scale`` 0 is no guidance. With ``rescale`` the
    result has the length of ``eps`` (equation 45): that bounds a step, and undoes much of it where actions are few."""

    def guided(x: Tensor, t: Tensor) -> Tensor:
        noise = predict(x, t)
        if scale == 0.0:
            return noise
        with torch.inference_mode(False), torch.enable_grad():
            x, t = x.clone().requires_grad_(), t.clone()
            gradient = torch.autograd.grad(energy(x, t).sum(), x)[0]
        return _guided(noise, gradient, vp.levels(t)[1], scale, rescale)

    return guided


def closed_form_guide(
    predict: Predict,
    slope: Slope,
    variance: Variance,
    vp: VP,
    beta: float,
    scale: float,
    *,
    mean: Mean | None = None,
    damped: bool = False,
    rescale: bool = False,
) -> Predict:
    """``energy_guide`` with AEPO's closed form in place of a learnt energy (section F.4, direct mode). Its gradient by
    the posterior mean ``(x - sigma eps) / alpha`` is carried to ``x`` through the network behind ``predict``.

    ``slope`` is ``dQ/da`` in the given states, ``variance`` that of the posterior at a time, ``beta`` the inverse
    temperature; ``damped`` as in ``closed_form_gradient``. ``mean`` corrects the posterior mean where that is asked."""

    def guided(x: Tensor, t: Tensor) -> Tensor:
        if scale == 0.0:
            return predict(x, t)
        with torch.inference_mode(False), torch.enable_grad():
            x, t = x.clone().requires_grad_(), t.clone()
            noise = predict(x, t)
            alpha, sigma = (level[:, None] for level in vp.levels(t))
            centre = (x - sigma * noise) / alpha
            if mean is not None:
                centre = mean(centre, t)
            by_mean = closed_form_gradient(slope, centre.detach(), variance(t)[:, None], beta, damped=damped)
            gradient = torch.autograd.grad(centre, x, by_mean)[0]
        return _guided(noise.detach(), gradient, sigma[:, 0], scale, rescale)

    return guided


def _guided(noise: Tensor, gradient: Tensor, sigma: Tensor, scale: float, rescale: bool) -> Tensor:
    """``noise - scale sigma gradient [B, A]``, with ``rescale`` as long as ``noise``."""
    guided = torch.addcmul(noise, sigma[:, None], gradient, value=-scale)
    if not rescale:
        return guided
    before = torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
    after = torch.linalg.vector_norm(guided, dim=-1, keepdim=True)
    return guided * (before / after.clamp_min(torch.finfo(after.dtype).tiny))
