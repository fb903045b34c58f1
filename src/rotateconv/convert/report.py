"""The result of a conversion: an entry for every convolution of the model, and a table of them."""

from dataclasses import dataclass

from rotateconv._text_table import text_table


@dataclass(frozen=True)
class ConversionEntry:
    """The result for one convolution.

    Attributes:
        name: In the model; the first, if it is registered under several.
        shape: Of its kernel before.
        parameters_before, parameters_after: Of the layer; equal if it was skipped.
        residual: ‖K - K̂‖ / ‖K‖ over the whole kernel K and its conversion K̂; None if it was skipped.
        reason: Why it was skipped; None if it was converted.
        output_residual: ‖y - ŷ‖ / ‖y - mean(y)‖ of the outputs on the images that the layer was fitted to; None
            without images.
    """

    name: str
    shape: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    residual: float | None
    reason: str | None
    output_residual: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """The result for every convolution of a model; `str(report)` is a table.

    Attributes:
        entries: In the order of the model's modules.
        parameters_before, parameters_after: Of the whole model; shared ones count once.
    """

    entries: tuple[ConversionEntry, ...]
    parameters_before: int
    parameters_after: int

    @property
    def converted(self) -> tuple[ConversionEntry, ...]:
        """The convolutions that were converted."""
        return tuple(entry for entry in self.entries if entry.reason is None)

    @property
    def skipped(self) -> tuple[ConversionEntry, ...]:
        """The convolutions that stayed as they were, each with its reason."""
        return tuple(entry for entry in self.entries if entry.reason is not None)

    def __str__(self) -> str:
        total = ("whole model", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}")
        change = f"{self.parameters_after / self.parameters_before:.1%} of the parameters"
        return text_table([_HEAD, *map(_cells, self.entries), (*total, change)], right=(2, 3))


_HEAD = ("convolution", "kernel", "parameters", "converted", "relative residual, or why it was skipped")


def _cells(entry: ConversionEntry) -> tuple[str, ...]:
    return (
        entry.name,
        "x".join(map(str, entry.shape)),
        f"{entry.parameters_before:,}",
        f"{entry.parameters_after:,}",
        _result(entry),
    )


def _result(entry: ConversionEntry) -> str:
    if entry.reason is not None:
        return f"skipped: {entry.reason}"
    of_outputs = "" if entry.output_residual is None else f", of its outputs {entry.output_residual:.4f}"
    return f"{entry.residual:.4f}{of_outputs}"
