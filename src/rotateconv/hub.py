"""Models on the Hugging Face Hub, or in folders of its form: needs the extra `hub`."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from rotateconv._files import read_regular
from rotateconv.convert.layers import added_layers, put_layers
from rotateconv.errors import InputError
from rotateconv.models import build_model
from rotateconv.models.described import MAX_PARAMETERS, check_build, check_size
from rotateconv.models.registry import BuildArguments
from rotateconv.nn.config import RotateConfig
from rotateconv.nn.outline import outlined
from rotateconv.quantization.pack_description import check_list
from rotateconv.quantization.pack_file import LARGEST_HEADER

try:
    from huggingface_hub import PyTorchModelHubMixin
except (ImportError, RuntimeError) as error:
    raise ImportError(f"rotateconv.hub needs huggingface_hub ({error}): pip install 'rotateconv[hub]'") from None

_BESIDE = ("classes", "mean", "std", "layers")  # arguments that are not build_model's


class RotateConvNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="rotateconv",
    license="mit",
    tags=["image-classification", "rotateconv"],
):
    """A model of `build_model` with the Hub's save_pretrained, from_pretrained and push_to_hub.

    A folder holds config.json, the arguments below, and model.safetensors, the state dict; nothing in
    it can run code.

    Args:
        name, conv, num_classes, in_channels, width, growth, dropout: As in build_model.
        classes: Names of the classes, in the order of the outputs.
        mean, std: Per channel, of images between 0 and 1: the model sees (image - mean) / std.
        layers: Options of the RotateConv2d layers that build_model does not make by itself (`RotateConfig.to_dict`),
            by name: of a model that was converted.

    Attributes:
        model: What build_model gave.

    Raises:
        ValueError: If build_model does not know or cannot build the model.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RotateConvNet("resnet20", conv="rotate2").save_pretrained(folder)
        ...     model = RotateConvNet.from_pretrained(folder)
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        name: str = "resnet20",
        conv: str = "rotate4",
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        growth: int | None = None,
        dropout: float = 0.0,
        classes: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        layers: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = build_model(name, conv, num_classes, in_channels, width, growth=growth, dropout=dropout)
        try:
            put_layers(self.model, {name: RotateConfig.from_dict(options) for name, options in (layers or {}).items()})
        except AttributeError as error:
            raise InputError(f"layers must be options by the name of a convolution of {name}: {error}") from None
        self.classes, self.mean, self.std = classes, mean, std

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        classes: list[str] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> "RotateConvNet":
        """A copy of a model that build_model built, converted or not, ready to be saved.

        Raises:
            ValueError: If it is not one of build_model's, or was changed since in another way.
        """
        arguments: BuildArguments | None = getattr(model, "build_arguments", None)
        if arguments is None:
            raise InputError(f"expected a model of build_model with a conv of CONVS, got a {type(model).__name__}")
        with torch.random.fork_rng(devices=[]):
            added = added_layers(model, build_model(**arguments))
            layers = {name: config.to_dict() for name, config in added.items()}
            found = cls(**arguments, classes=classes, mean=mean, std=std, layers=layers or None)
        try:
            found.model.load_state_dict(model.state_dict())
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()
            raise InputError(f"the model is not what build_model built any more: {first}") from None
        return found

    def forward(self, images: Tensor) -> Tensor:
        """The scores (N, num_classes) of normalized images (N, in_channels, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "RotateConvNet":
        """The model in a folder or a repository of the Hub: as the Hub's own, but for what is damaged or too large.

        Args:
            args, kwargs: As in `PyTorchModelHubMixin.from_pretrained`, and `max_parameters`: numbers (parameters and
                buffers) above which a model is refused before it takes memory, `MAX_PARAMETERS` if not given.

        Raises:
            ValueError: If config.json or model.safetensors is missing, damaged or too large, or one does not fit the
                other.
        """
        try:
            model: RotateConvNet = super().from_pretrained(*args, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise InputError(f"the config.json of {args[0] if args else 'the model'} is no JSON") from None
        except AttributeError as error:  # what the Hub's code says of a config.json that holds a list
            raise InputError(f"the config.json of {args[0] if args else 'the model'} is no object: {error}") from None
        return model

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        max_parameters: int = MAX_PARAMETERS,
        **model_kwargs: Any,
    ) -> "RotateConvNet":
        """The Hub's own falls back to pickled weights, prints, and does not say what it misses in a sentence."""
        if Path(model_id).is_dir():
            file = Path(model_id, "model.safetensors")
        else:
            from huggingface_hub import hf_hub_download

            fetched = hf_hub_download(
                model_id,
                "model.safetensors",
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            file = Path(fetched)
        check_build({key: value for key, value in model_kwargs.items() if key not in _BESIDE})
        for key in ("classes", "mean", "std"):
            if model_kwargs.get(key) is not None:
                check_list(key, model_kwargs[key])
        try:
            with outlined():
                outline = cls(**model_kwargs)
        except (RuntimeError, OverflowError, TypeError):
            raise InputError(f"{model_id} holds a model that is larger than any memory, or none") from None
        check_size(outline, max_parameters)
        weights = _read_weights(file, LARGEST_HEADER + 8 * max_parameters)
        try:
            with outlined():  # whether they fit, before the model takes memory
                outline.load_state_dict({name: tensor.to("meta") for name, tensor in weights.items()}, strict=strict)
            with torch.random.fork_rng(devices=[]):
                model = cls(**model_kwargs)
            model.load_state_dict(weights, strict=strict)
        except RuntimeError as error:
            raise InputError(f"{file} does not fit its config.json: {str(error).splitlines()[1].strip()}") from None
        return model.to(map_location).eval()


def _read_weights(file: Path, most: int) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file of at most so many bytes; InputError where it is none, or damaged."""
    try:
        weights = load(read_regular(file, most))
    except FileNotFoundError:
        raise InputError(f"{file.parent} holds no {file.name}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except SafetensorError as error:
        raise InputError(f"{file} is no safetensors file, or it was cut off: {error}") from None
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{file} holds numbers that are not finite: {name}")
    return {re.sub(r"^net\.", "model.", name): tensor for name, tensor in weights.items()}  # of before 0.1.0
