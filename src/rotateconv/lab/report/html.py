"""One self-contained page of HTML about a run, or about a comparison: nothing on it is fetched from anywhere."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from rotateconv.lab.config import to_toml
from rotateconv.lab.naming import counted, model_name
from rotateconv.lab.report.colors import COLORS, group_color
from rotateconv.lab.report.html_charts import Series, confusion_matrix, line_chart, rose
from rotateconv.lab.report.page import caption, protocol
from rotateconv.lab.report.statistics import Group
from rotateconv.lab.report.tables import COMPARISON, contrast_table, group_table
from rotateconv.lab.study.run_details import FileSize, MovedLayer, RunDetails
from rotateconv.lab.table import Table

_MISTAKES = 6  # of the pairs of classes that are mistaken most often
_TURNING = (
    "The kernels with the largest norms of each layer: orange is above 0, blue below, and the line is the angle, its "
    "dot the end at positive taps. A run keeps its last weights; its start follows from its seed, or from the model "
    "that it was fitted to; between the two all goes straight. The rose counts all angles of the layer, a petal's area "
    "being their number: filled after the training, outlined in blue before it."
)
_CLOCK = (
    '<div class="clock"><button id="play" type="button">Play</button>'
    '<input id="time" type="range" min="0" max="100" step="any" value="100" aria-label="Time in the training">'
    '<output id="shown"></output></div>'
)


def run_page(details: RunDetails) -> str:
    """Return the page of a run."""
    record = details.record
    about = f"{model_name(record.config)}, trained on {record.data.name}"
    body = f"<h1>{escape(record.name)}</h1><p>{escape(about)}</p>{_sections(details, 0, _CLOCK)}"
    return _page(record.name, body, [details])


def comparison_page(
    name: str, groups: Sequence[Group], controls: Mapping[str, Sequence[str]], runs: Sequence[RunDetails]
) -> str:
    """Return the page of a comparison: its tables and curves, and a part to open for each run."""
    curves = [
        line_chart(title, [_series(group, quantity) for group in groups], log="loss" in title)
        for title, quantity in (
            ("validation accuracy, %", "validation_accuracy"),
            ("training loss", "train_loss"),
            ("mean angle movement, rad", "angle_movement_mean"),
        )
    ]
    contrasts = contrast_table(groups, controls)
    body = [
        f"<h1>{escape(name)}</h1><p>{_bold(protocol(groups))}</p>",
        f"{_table(group_table(groups, COMPARISON))}<p class='faint'>{escape(caption(groups))}</p>",
        f"<h2>Curves</h2><p>Means over the seeds.</p><div class='charts'>{''.join(curves)}</div>",
        f"<h2>Who is ahead</h2>{_table(contrasts)}" if contrasts is not None else "",
        f"<h2>Runs</h2><p>The first seed of each.</p>{_CLOCK if any(one.layers for one in runs) else ''}",
        *(
            f"<details><summary>{escape(one.record.name)}: {one.record.result.test_accuracy:.2f} %</summary>"
            f"{_sections(one, number)}</details>"
            for number, one in enumerate(runs)
        ),
    ]
    return _page(name, "".join(body), runs)


def _sections(details: RunDetails, number: int, clock: str = "") -> str:
    """What a run shows; `number` is its place on the page, `clock` what sets the time of its kernels."""
    record, result = details.record, details.record.result
    packed = next((size for size in details.sizes if size.form.startswith("packed") and size.bytes), None)
    numbers = {
        "test accuracy": f"{result.test_accuracy:.2f} %",
        "parameters": f"{result.parameters:,}",
        **({"packed file": f"{packed.bytes:,} B"} if packed is not None else {}),
        "training": f"{counted(len(record.curves.train_loss), 'epoch')}",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    parts = [f'<dl class="numbers">{cells}</dl>', _facts(details), _curves(details)]
    if details.confusion is not None:
        parts.append(_confusion(details.confusion, record.data.classes))
    if details.layers:
        parts.append(_kernels(details, number, clock))
    parts += [_sizes(details.sizes), _recipe(details)]
    return "".join(parts)


def _facts(details: RunDetails) -> str:
    record = details.record
    data, result, config = record.data, record.result, record.config
    size = " x ".join(map(str, data.input_shape))
    adds = f"; {result.multiply_adds / 1e6:,.2f} M multiply-adds per image" if result.multiply_adds is not None else ""
    facts = {
        "Model": f"{model_name(config)}; {result.parameters:,} parameters{adds}",
        "Data": f"{data.name}: {data.train:,} training, {data.validation:,} validation and {data.test:,} test images "
        f"of {size}, {len(data.classes)} classes",
        "Recipe": f"{config.recipe}: {counted(config.epochs, 'epoch')}, batches of {config.batch_size}, "
        f"{config.optimizer}, learning rate {config.lr:g}, seed {config.seed}",
        "Result": f"test loss {result.test_loss:.4f}, test accuracy {result.test_accuracy:.2f} % of the model "
        + ("that was fitted and recalibrated" if result.keeps_fitted else "after the last epoch")
        + "; the test images were read once",
        "Time": f"{result.seconds_per_epoch:.3g} s an epoch, {result.images_per_second:,.0f} images/s on "
        f"{details.record.environment.began.hardware}",
    }
    return _pairs(facts)


def _curves(details: RunDetails) -> str:
    curves, orange, blue = details.record.curves, "var(--orange)", "var(--blue)"
    charts = [
        line_chart(
            "accuracy, %",
            [Series("training", curves.train_accuracy, blue), Series("validation", curves.validation_accuracy, orange)],
        ),
        line_chart(
            "loss",
            [Series("training", curves.train_loss, blue), Series("validation", curves.validation_loss, orange)],
            log=True,
        ),
    ]
    if any(curves.angle_movement_max):
        series = [
            Series("largest", curves.angle_movement_max, blue),
            Series("mean", curves.angle_movement_mean, orange),
        ]
        charts.append(line_chart("angle movement, rad", series, log=True))
    note = "Training figures are means over each epoch, while the weights change and images are augmented."
    return f'<h2>Curves</h2><p class="faint">{note}</p><div class="charts">{"".join(charts)}</div>'


def _confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    mistakes = sorted(
        ((n, row, column) for row, found in enumerate(counts) for column, n in enumerate(found) if n and row != column),
        reverse=True,
    )[:_MISTAKES]
    rows = tuple((classes[row], classes[column], f"{n:,} of {sum(counts[row]):,}") for n, row, column in mistakes)
    table = Table(("is", "taken for", "images"), rows, 2)
    shown = _table(table) if rows else "<p>No test image was taken for another class.</p>"
    return (
        "<h2>Confusion matrix</h2><p>Test images: a row is what they are, a column what they were taken for.</p>"
        f'<div class="beside">{confusion_matrix(counts, classes)}<div class="scroll"><h3>Mistaken most often</h3>'
        f"{shown}</div></div>"
    )


def _kernels(details: RunDetails, number: int, clock: str) -> str:
    shown = "".join(_layer(layer, f"k{number}-{place}") for place, layer in enumerate(details.layers))
    moved = f"<p>The start of the angles is not known here: {escape(details.start)}.</p>" if details.start else ""
    return (
        f"<section><h2>Kernels</h2><p>{_TURNING}</p>{moved}"
        "<noscript><p>The kernels are drawn by a script, which is off.</p></noscript>"
        f'{clock}<div class="layers">{shown}</div></section>'
    )


def _layer(layer: MovedLayer, place: str) -> str:
    out, within = layer.channels
    name = escape(layer.name)
    moved = "" if layer.moved is None else f", moved by {layer.moved:.3f} rad on average"
    turns = round(2 * math.pi / layer.period)
    return (
        f'<figure class="layer"><h3>{name}</h3>'
        f'<canvas id="{place}" role="img" aria-label="{len(layer.shown)} kernels of {name}"></canvas>'
        f"{rose(layer.before, layer.after, turns, layer.name)}<figcaption>{within} to {out} channels, {layer.size} x "
        f"{layer.size}; {counted(layer.angles, 'angle')}{moved}</figcaption></figure>"
    )


def _sizes(sizes: Sequence[FileSize]) -> str:
    most = max(size.bytes or 0 for size in sizes)

    def bar(size: FileSize) -> str:
        if size.bytes is None:
            return f'<dd class="reason">not written here: {escape(size.reason)}</dd>'
        return f'<dd><i style="width:{70 * size.bytes / most:.2f}%"></i>{size.bytes:,} B</dd>'

    rows = "".join(
        f"<div{' class=dense' if size.form.startswith('dense') else ''}><dt>{escape(size.form)}</dt>{bar(size)}</div>"
        for size in sizes
    )
    note = (
        "All forms hold this model; with quantized weights it is a little worse than above, unless it was trained "
        "with them: <code>rotateconv evaluate</code> measures a file."
    )
    return f'<h2>Sizes</h2><p>{note}</p><dl class="bars">{rows}</dl>'


def _recipe(details: RunDetails) -> str:
    record = details.record
    stages = record.environment.stages
    versions = {"python": stages[0].environment.python, **stages[0].environment.versions}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    where = ", then ".join(dict.fromkeys(stage.environment.hardware for stage in stages))
    commit = stages[0].environment.commit
    facts = {"Versions": named, "Machine": where, **({"Commit": commit} if commit is not None else {})}
    began = f"<p>It began with</p><pre class='wrap'>{escape(details.command)}</pre>" if details.command else ""
    return (
        f"<h2>How to reproduce it</h2>{began}<p>This configuration, as recipe.toml, makes it again: "
        "<code>rotateconv train --config recipe.toml --out RUN</code>. On another processor or with other versions "
        "sums are rounded otherwise, and the figures differ as those of another seed do.</p>"
        f"{_pairs(facts)}<pre>{escape(to_toml(record.config).rstrip())}</pre>"
    )


def _pairs(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _series(group: Group, quantity: str) -> Series:
    values = tuple(sample.mean for sample in group.curve(quantity)) if group.runs else ()
    name = " ".join((group.label, group.setting)).strip()
    color = group_color(group)
    # Made for white: on a dark page they are mixed with its light ink, and black is that ink.
    shown = "var(--ink)" if color == COLORS["conv3x3"] else f"color-mix(in srgb, {color} var(--pure), var(--ink))"
    return Series(name, values, shown)


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=word' if place < table.left else ''}>{_bold(cell)}</{tag}>"
            for place, cell in enumerate(cells)
        )

    rows = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    head = f"<thead><tr>{row(table.head, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _bold(text: str) -> str:
    """Return a text of Markdown without its stars, escaped."""
    return escape(text.replace("**", ""))


def _page(title: str, body: str, runs: Sequence[RunDetails]) -> str:
    """Return the whole page; a policy in it lets no script run but ours."""
    layers = [
        {"id": f"k{number}-{place}", "size": layer.size, "turns": layer.turns, "frames": _base64(layer.frames)}
        for number, one in enumerate(runs)
        for place, layer in enumerate(one.layers)
    ]
    resources = files("rotateconv.lab.report")
    style, script = (resources.joinpath(name).read_text("utf-8") for name in ("html.css", "html.js"))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    kernels = ""
    if layers:
        policy += f"; script-src 'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'"
        # A "<" could end the element.
        plain = json.dumps(layers).replace("<", "\\u003c")
        kernels = f'<script type="application/json" id="kernels">{plain}</script><script>{script}</script>'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body>{body}{kernels}</body></html>\n"
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
