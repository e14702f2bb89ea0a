"""The features of published Frechet distances, where package and weights are at hand."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentrain.data.vision import _torchvision
from gentrain.errors import UsageError
from gentrain.evaluation.estimator import Subject

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SHA256 = "6726825d"  # how it begins


def inception(subject: Subject) -> Callable[[Tensor], Tensor]:
    """The 2,048 features of published FIDs, by torch-fidelity, from weights that already lie in torch's hub folder.

    Raises:
        UsageError: the data are no images of one or three channels, or package or weights are missing.
    """
    if not subject.spec.is_image or subject.spec.shape[0] not in (1, 3):
        raise UsageError(
            f"features=inception: takes images of one or three channels, data={subject.spec.name} has examples of shape"
            f" {list(subject.spec.shape)}; set features=auto"
        )
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UsageError("features=inception: needs torch-fidelity, which is not installed: pip install torch-fidelity")
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.exists():
        raise UsageError(f"features=inception: there is no {path}; it can be had from {INCEPTION_URL}")
    content = path.read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(INCEPTION_SHA256):
        raise UsageError(f"features=inception: {path} is damaged; it can be had from {INCEPTION_URL}")
    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # torch-fidelity would unpickle anything
    _torchvision()  # which torch-fidelity imports: made to fit a CPU-only torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor: Any = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    extractor = extractor.to(subject.device).eval()

    def embed(x: Tensor) -> Tensor:
        pixels = (x * 255).round().byte().expand(-1, 3, -1, -1)
        return torch.cat([extractor(piece)[0] for piece in pixels.split(50)])

    return embed
