"""Diffusion models whose truth is known, or that are away from where they start."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gentrain.models.ddpm import DDPM

HO = {"schedule": "linear", "predict": "epsilon"}
"""Ho et al.'s settings."""


class Optimal(nn.Module):
    """The best denoiser there is of data from N(mean, covariance), in any of the three parametrisations."""

    def __init__(self, model: DDPM, mean: Tensor, covariance: Tensor):
        super().__init__()
        self.chain, self.predict, self.steps = model.chain, model.predict, model.steps
        self.mean, self.covariance = mean.double(), covariance.double()

    def require_unlabelled(self) -> None:
        """It knows no labels."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        (step,) = (t * self.steps).round().long().unique().tolist()
        left, z = self.chain.alpha_bar[step], x.double().flatten(1)
        size = len(self.mean)
        gain = (
            math.sqrt(left) * self.covariance @ torch.linalg.inv(left * self.covariance + (1 - left) * torch.eye(size))
        )
        x0 = self.mean + (z - math.sqrt(left) * self.mean) @ gain.T
        epsilon = (z - math.sqrt(left) * x0) / math.sqrt(1 - left)
        v = math.sqrt(left) * epsilon - math.sqrt(1 - left) * x0
        return {"epsilon": epsilon, "v": v, "x0": x0}[self.predict].float().view_as(x)


def gaussian(mean: list[float], covariance: list[list[float]], **settings: object) -> DDPM:
    """A model of points whose network is the best for N(mean, covariance)."""
    model = DDPM((len(mean),), hidden=[4], **{**HO, "sample_steps": None, **settings}).eval()  # type: ignore[arg-type]
    model.network = Optimal(model, torch.tensor(mean), torch.tensor(covariance))
    return model


def shaken(seed: int = 0, **settings: object) -> DDPM:
    """A model of 3 x 3 pixels of four grey levels, with parameters away from where they start."""
    torch.manual_seed(seed)
    settings = {"levels": 4, "steps": 6, "sample_steps": None, "hidden": [8], **HO, **settings}
    model = DDPM((1, 3, 3), **settings).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn_like(p)
    return model


def grey(n: int, levels: int = 4) -> Tensor:
    return torch.randint(levels, (n, 1, 3, 3)) * (2 / (levels - 1)) - 1
