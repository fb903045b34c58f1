"""Networks of the literature whose 3x3 convolutions can be any of a registry."""

from rotateconv.models.convs import CONVS
from rotateconv.models.registry import MODELS, build_model, equal_size_width

__all__ = ["CONVS", "MODELS", "build_model", "equal_size_width"]
