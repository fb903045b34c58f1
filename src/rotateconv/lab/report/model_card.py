"""The card of a model on the Hugging Face Hub, made from the record of its run."""

from collections.abc import Sequence
from dataclasses import dataclass

from rotateconv.lab.config import to_toml
from rotateconv.lab.naming import model_name
from rotateconv.lab.study.run_record import RunRecord
from rotateconv.lab.table import Table

CARD_PICTURE = "training.svg"
"""Picture of the training, beside the card."""


@dataclass(frozen=True)
class HubFile:
    """A file of the model: its name, what it holds, its size and the test accuracy in percent."""

    name: str
    content: str
    bytes: int
    accuracy: float


def model_card(record: RunRecord, files: Sequence[HubFile], license: str) -> str:
    """Return README.md: what the Hub reads of a model, and what people do."""
    from huggingface_hub import EvalResult, ModelCardData

    data, result = record.data, record.result
    found = EvalResult(
        task_type="image-classification",
        dataset_type=data.name,
        dataset_name=data.name,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(result.test_accuracy, 4),
    )
    turned = any(mean is not None for mean in record.curves.angle_movement_mean)
    kind = ", with convolution kernels that are line segments of a learned angle" if turned else ""
    facts = ModelCardData(
        license=license,
        library_name="rotateconv",
        pipeline_tag="image-classification",
        tags=["image-classification", "rotateconv", "onnx"],
        model_name=record.name,
        eval_results=[found],
    )
    rows = tuple((f"[`{one.name}`]({one.name})", one.content, f"{one.bytes:,}", f"{one.accuracy:.2f}") for one in files)
    size = " x ".join(map(str, data.input_shape))
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (data.mean, data.std))
    versions = ", ".join(f"{package} {version}" for package, version in record.environment.began.versions.items())
    return f"""---
{facts.to_yaml()}
---

# {record.name}

{model_name(record.config)}: {result.parameters:,} parameters{kind}. Trained on the {data.train:,} images of
{data.name}, and tested once, at the end, on {data.test:,} others. License: {license}.

{Table(("file", "holds", "bytes", "test accuracy %"), rows, 2).markdown()}

![Loss, accuracy and angles over the epochs]({CARD_PICTURE})

## Use

```python
from rotateconv.hub import RotateConvNet

model = RotateConvNet.from_pretrained("FOLDER-OR-NAME")
```

Both files take images of {size}, as (image - mean) / std of pixels between 0 and 1, with mean {mean} and std {std};
`rotateconv predict model.onnx PHOTO` does that. The classes are {", ".join(data.classes)}.

## How it was made

`rotateconv train --config recipe.toml`, with {versions} and this recipe.toml:

```toml
{to_toml(record.config).rstrip()}
```
"""
