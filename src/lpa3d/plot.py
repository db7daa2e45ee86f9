"""Pictures: the table of an evaluation as a heatmap, distinct colours, labels over the micrograph.

Needs Matplotlib (``pip install 'lpa3d[plot]'``), which is imported when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, InputTypeError, Keyword, LibraryError
from .evaluation.metrics import FRACTIONS, LESS_IS_BETTER, MATCHING, SUMMED

if TYPE_CHECKING:
    from .evaluation.result import Evaluation

__all__ = ["Column", "Row", "class_colors", "distinct_colors", "heatmap", "overview"]

Array = npt.NDArray[Any]
Colors = npt.NDArray[np.float32]

CLASS_COLORS = ("#6fa8dc", "#e8743b", "#5fb36a", "#b277d6", "#f2c230", "#4fc3c7", "#d9658b", "#a68a64", "#8fa3ad")
ERROR_COLOR = (0.93, 0.05, 0.09)
INK, FAINT = "#1a1a1a", "#6b6b6b"
PANEL = 2.55
"""Width of a panel in inches."""

SPELLED = {
    **{key: key.upper() for key in ("pq", "sq", "rq", "f1", "ap50", "ap75", "aji", "nvi", "voi", "cremi", "assd")},
    **{"dice": "Dice", "iou": "IoU", "map": "mAP", "aji_plus": "AJI+", "hd95": "HD95", "tp": "TP"},
    **{"voi_split": "VOI\nsplit", "voi_merge": "VOI\nmerge", "hausdorff": "Hausdorff"},
    **{"fp": "FP", "fn": "FN", "precision_instance": "instance\nprecision", "recall_instance": "instance\nrecall"},
}
"""Names of metrics in print, where they are not the key with spaces."""

CELL = 0.78, 0.4
"""Width and height of a cell of the heatmap in inches."""


@dataclass(frozen=True)
class Column:
    """One column of the overview.

    Attributes
    ----------
    title, subtitle : str
        What stands above it.
    labels : ndarray or None
        Volume that is drawn over the image, None for the image alone.
    colors : ndarray or None
        ``(n, 3)`` table that `labels` index; None where `labels` is a mask of errors, drawn in red.
    nearest : ndarray or None
        For each slice the slice to show instead (the nearest annotated one).
    """

    title: str
    subtitle: str
    labels: Array | None = None
    colors: Colors | None = None
    nearest: Array | None = None


@dataclass(frozen=True)
class Row:
    """One row of the overview: a plane, and the part of it that is shown.

    Attributes
    ----------
    axis, index : int
        Plane ``volume.take(index, axis)``.
    title : str
        What stands at the left of it.
    window : tuple of slice or None
        Part of the plane, None for all. It is framed in the first column of a row that shows the whole plane.
    """

    axis: int
    index: int
    title: str
    window: tuple[slice, slice] | None = None


def distinct_colors(count: int) -> Colors:
    """Return `count` colours, row 0 black, such that numbers close to each other look different.

    Hue goes round by the golden angle while lightness steps, so any few neighbours are far apart.

    Parameters
    ----------
    count : int
        How many, black included.

    Returns
    -------
    ndarray of float32, shape (count, 3)
        Red, green and blue, from 0 to 1.

    Examples
    --------
    >>> from lpa3d.plot import distinct_colors
    >>> distinct_colors(3).shape
    (3, 3)
    """
    k = np.arange(count)
    hue = 2 * np.pi * (k * 0.61803398875 % 1)
    lightness = np.array([0.74, 0.62, 0.84])[k % 3]
    chroma = np.array([0.15, 0.17, 0.12])[k % 3]
    # OKLab to linear sRGB (Ottosson 2020).
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
            -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
            -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
        ],
        axis=1,
    ).clip(0, 1)
    colors = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colors[:1] = 0
    table: Colors = colors.astype(np.float32)
    return table


def class_colors(count: int) -> Colors:
    """Return `count` colours for classes, row 0 black; the ninth class has the colour of the first again.

    Parameters
    ----------
    count : int
        How many, black included.

    Returns
    -------
    ndarray of float32, shape (count, 3)
        Red, green and blue, from 0 to 1.
    """
    colors = [(0.0, 0.0, 0.0)]
    for k in range(count - 1):
        text = CLASS_COLORS[k % len(CLASS_COLORS)]
        colors.append((int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255))
    return np.array(colors, np.float32)


def heatmap(
    evaluation: Evaluation | Mapping[str, Evaluation],
    metrics: str | Sequence[str] = ("dice", "iou", "f1"),
    *,
    path: str | Path | None = None,
    ax: Any = None,
    title: str | None = None,
) -> Any:
    """Draw metrics as a table of coloured cells: a row for each class, the mean below, a column for each metric.

    Parameters
    ----------
    evaluation : Evaluation, or mapping of str to Evaluation
        What `lpa3d.evaluate` returned. Several, by the name of their method, stand side by side; they show every class
        that one of them has. Without classes there is one row.
    metrics : str or sequence of str, optional
        Keys of the evaluation.
    path : str or Path, optional
        Where to save the picture; the suffix says as what (.png, .pdf, .svg).
    ax : matplotlib.axes.Axes, optional
        Where to draw. By default a figure of the right size is made: one of pyplot, which notebooks show, or with
        `path` one that is only saved.
    title : str, optional
        What stands above.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    InputError
        If there is no evaluation or no metric, an evaluation lacks one of the metrics, only some have classes, or the
        suffix of `path` is of no kind of picture.
    InputTypeError
        If an argument is of another type.
    LibraryError
        If Matplotlib is not installed (``pip install 'lpa3d[plot]'``).

    See Also
    --------
    lpa3d.evaluate : measures, and says what every metric means.

    Notes
    -----
    Colours run from 0 to 1, the same in every picture, evenly for the eye, and from dark to light, also in grey. Light
    is good. Metrics of which less is better have an arrow down; those from 0 to 1, such as ``"arand"``, are coloured by
    what they lack to 1. Metrics without bounds (counts, distances, ``"voi"``) are numbers on white. The counts tp, fp
    and fn have no mean: that row has their sum, Σ. A cell is blank where the class is not present, or the metric is not
    defined.

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d.plot
    >>> reference = np.array([[1, 1, 1, 0, 2, 2]])
    >>> prediction = np.array([[1, 1, 0, 0, 2, 2]])
    >>> e = lpa3d.evaluate(reference, prediction, instances="components", class_names={1: "nucleus", 2: "droplet"})
    >>> axes = lpa3d.plot.heatmap(e)
    >>> [text.get_text() for text in axes.texts[:3]]
    ['0.80', '0.67', '1.00']
    """
    methods = _check_methods(evaluation)
    keys = _check_metrics(metrics, methods)
    try:
        from matplotlib import colormaps
        from matplotlib.backend_bases import FigureCanvasBase
        from matplotlib.figure import Figure
    except ImportError:
        raise LibraryError("heatmap() needs Matplotlib; install it: pip install 'lpa3d[plot]'") from None
    if path is not None:
        _check_suffix(path, FigureCanvasBase.get_supported_filetypes())

    classes = list(dict.fromkeys(name for one in methods.values() for name in one.per_class))
    names = [*map(str, classes), "mean" if classes else "all"]
    # The mean is set apart, and so is each method.
    down = [float(row) for row in range(len(classes))] + [len(classes) + (0.25 if classes else 0.0)]
    across = [m * (len(keys) + 0.3) + k for m in range(len(methods)) for k in range(len(keys))]
    columns = [(one, key) for one in methods.values() for key in keys]
    headings = [_spelled(key, one) for one, key in columns]
    lines = max(heading.count("\n") for heading in headings) + 1
    # What stands above the cells: text, its height above them in points, its middle, its size.
    above = 11.0 + 15 * lines
    heads = []
    if len(methods) > 1:
        wrapped = [fill(name, 9 * len(keys), break_long_words=False, break_on_hyphens=False) for name in methods]
        heads = [(name, above, across[m * len(keys)] + len(keys) / 2, 11.5) for m, name in enumerate(wrapped)]
        above += 8 + 15 * (max(name.count("\n") for name in wrapped) + 1)
    if title:
        heads.append((title, above + 4, (across[-1] + 1) / 2, 13.0))
        above += 12 + 17 * (title.count("\n") + 1)
    arrows = any(_base(key) in FRACTIONS & LESS_IS_BETTER for key in keys)
    if ax is None:
        wide, high = CELL[0] * (across[-1] + 1), CELL[1] * (down[-1] + 1)
        size = wide + 0.085 * max(map(len, names)) + (2.0 if arrows else 1.0), high + above / 72 + 0.1
        if path is None:
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=size, layout="constrained")
        else:
            figure = Figure(figsize=size, layout="constrained")
        ax = figure.add_subplot()

    colors = colormaps["viridis"]
    for name, y in zip([*classes, None], down, strict=True):
        for (one, key), x in zip(columns, across, strict=True):
            source = one if name is None else one.per_class.get(name)
            value = source[key] if source is not None and source.present else math.nan
            mean = name is None and bool(classes)
            _draw_cell(ax, x, y, _written(key, value, mean), _goodness(key, value), colors, bold=mean)
    ax.set(xlim=(-0.02, across[-1] + 1.02), ylim=(down[-1] + 1.02, -0.02))
    ax.set_yticks([y + 0.5 for y in down], names, fontsize=10.5, color=INK)
    ax.set_xticks([x + 0.5 for x in across], headings, fontsize=10.5, color=INK)
    ax.tick_params(length=0, labeltop=True, labelbottom=False, top=False, bottom=False)
    ax.spines[:].set_visible(False)
    if classes:
        ax.get_yticklabels()[-1].set_weight("bold")
    for text, height, middle, points in heads:
        ax.annotate(
            text,
            (middle, 0),
            (0, height),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=points,
            weight="bold",
            color=INK,
        )
    _draw_bar(ax, colors, across[-1] + 1, arrows)
    if path is not None:
        ax.figure.savefig(path, dpi=200, facecolor="white")
    return ax


def _check_methods(evaluation: Any) -> dict[str, Evaluation]:
    """Return evaluations by method; a single one is of a method without a name."""
    from .evaluation.result import Evaluation

    methods = {"": evaluation} if isinstance(evaluation, Evaluation) else evaluation
    if not isinstance(methods, Mapping) or not all(isinstance(one, Evaluation) for one in methods.values()):
        raise InputTypeError(
            f"evaluation is a {type(evaluation).__qualname__}; what lpa3d.evaluate returns is needed, or a mapping of "
            f"names to several: {{'ours': e1, 'theirs': e2}}"
        )
    if not methods:
        raise InputError("evaluation is empty; one or more are needed: {'ours': e1, 'theirs': e2}")
    without = [name for name, one in methods.items() if not one.per_class]
    if without and len(without) < len(methods):
        raise InputError(
            f"the evaluation {without[0]!r} has no classes but others have, so that their rows are not the same; pass ",
            Keyword("classes"),
            " (or ",
            Keyword("instances", "components"),
            ") to evaluate for all, or for none",
        )
    return {str(name): one for name, one in methods.items()}


def _check_metrics(metrics: Any, methods: Mapping[str, Evaluation]) -> list[str]:
    """Return keys that every evaluation has."""
    keys = [metrics] if isinstance(metrics, str) else list(metrics)
    if not keys:
        raise InputError("metrics is empty; one or more are needed, e.g. metrics=('dice', 'iou', 'f1')")
    for name, one in methods.items():
        for key in keys:
            if key not in one:
                which = f"the evaluation {name!r}" if name else "the evaluation"
                raise InputError(f"{which} has no metric {key!r}; it has {', '.join(one)}")
    return keys


def _base(key: str) -> str:
    """Return a metric's key without the threshold."""
    return key.partition("@")[0]


def _check_suffix(path: Any, kinds: Mapping[str, str]) -> None:
    """Refuse a file name that says no kind of picture which Matplotlib can write."""
    suffix = Path(path).suffix
    if suffix[1:].lower() not in kinds:
        what = f"has the suffix {suffix}, which" if suffix else "has no suffix, which"
        raise InputError(
            f"path {str(path)!r} {what} is no kind of picture; one of .{', .'.join(sorted(kinds))} is needed"
        )


def _spelled(key: str, evaluation: Evaluation) -> str:
    """Return how a metric is written above its column."""
    base, _, threshold = key.partition("@")
    main = f"{evaluation.parameters['iou_thresholds'][0]:g}"
    if base in MATCHING and not threshold and main != "0.5":
        threshold = main
    name = SPELLED.get(base, base.replace("_", " ").replace(" ", "\n", 1))
    return name + (f"\n@ {threshold}" if threshold else "") + (" ↓" if base in LESS_IS_BETTER else "")


def _goodness(key: str, value: float) -> float | None:
    """Return the place of a value on the scale of colours, where 1 is best; None for metrics without bounds."""
    base = _base(key)
    if base not in FRACTIONS:
        return None
    return 1 - value if base in LESS_IS_BETTER else value


def _written(key: str, value: float, mean: bool) -> str:
    """Return what stands in a cell, of the row of means or another: nothing where the value is not defined."""
    # COCO's -1 is no precision.
    if math.isnan(value) or (_base(key) in FRACTIONS and value < 0):
        return ""
    text = f"{value:,}" if isinstance(value, int) else f"{value:.2f}".replace("inf", "∞")
    return f"Σ {text}" if mean and _base(key) in SUMMED else text


def _draw_cell(ax: Any, x: float, y: float, text: str, goodness: float | None, colors: Any, bold: bool) -> None:
    """Draw one cell with its corner at (x, y), coloured if it has a text and a place on the scale."""
    from matplotlib.patches import Rectangle

    colored = goodness is not None and bool(text)
    color = colors(goodness) if colored else (1.0, 1.0, 1.0, 1.0)
    edge = "white" if colored else "#d4d4d4"
    ax.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, facecolor=color, edgecolor=edge, linewidth=0.6))
    if text:
        light = 0.2126 * color[0] ** 2.2 + 0.7152 * color[1] ** 2.2 + 0.0722 * color[2] ** 2.2 > 0.18
        style = {"fontsize": 10.5, "weight": "bold" if bold else "normal", "color": INK if light else "white"}
        ax.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", **style)


def _draw_bar(ax: Any, colors: Any, columns: float, arrows: bool) -> None:
    """Draw the scale of colours right of so many columns."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    place = ax.inset_axes((1 + 0.2 / columns, 0, 0.16 / columns, 1))
    bar = ax.figure.colorbar(ScalarMappable(Normalize(0, 1), colors), cax=place)
    bar.outline.set_visible(False)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    place.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    if arrows:
        # Upright, since a single row is not as high as the words are long.
        style = {"rotation": 0, "ha": "left", "va": "center"}
        bar.set_label("↓: coloured\nby 1 - value", **style, fontsize=9, color=FAINT)


def _borders(labels: Array) -> npt.NDArray[np.bool_]:
    """Return the labelled pixels whose right or lower neighbour has another label, also none."""
    border: npt.NDArray[np.bool_] = np.zeros(labels.shape, np.bool_)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    border &= labels > 0
    return border


def _overlay(grey: Array, labels: Array, colors: Colors | None) -> Colors:
    """Return labels as coloured glass over a grey image; errors in opaque red over a pale one."""
    base = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32) / np.float32(255)
    if colors is None:
        base = np.where((labels > 0)[..., None], np.array(ERROR_COLOR), 0.45 + 0.5 * base)
        return np.asarray(base, np.float32)
    shaded = np.where((labels > 0)[..., None], colors[labels] * (0.68 + 0.32 * base), 0.25 + 0.72 * base)
    borders = _borders(labels)
    # Where ids change from line to line, as in a cut through 2D labels, all is border and dark lines set nothing apart.
    if 2 * np.count_nonzero(borders) < np.count_nonzero(labels):
        shaded[borders] *= 0.55
    return np.asarray(shaded, np.float32)


def _plane(volume: Array, row: Row, index: int) -> Array:
    plane: Array = volume.take(index, row.axis)
    return plane if row.window is None else plane[row.window]


def overview(
    path: Path,
    image: Array,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    spacing: tuple[float, float, float],
    unit: str,
    annotated: Sequence[int],
    legend: Sequence[tuple[str, Sequence[float]]],
    caption: str,
    width: int = 2700,
    palette: int | None = None,
) -> None:
    """Draw columns of labels over an image, one row for each plane, and save them as a PNG.

    Parameters
    ----------
    path : Path
        Where the picture goes.
    image : (Z, Y, X) uint8
        Micrograph.
    columns, rows : sequences of Column and Row
        What is drawn.
    spacing : tuple of float
        Voxel size (z, y, x), for the aspect of cuts and the scale bar.
    unit : str
        That of `spacing`; where it is empty the bar counts voxels.
    annotated : sequence of int
        Slices that carry seeds; they are marked beside cuts that cross them.
    legend : sequence of (str, colour)
        Classes.
    caption : str
        Text below.
    width : int, optional
        Width in pixels.
    palette : int, optional
        Reduce the picture to so many colours (at most 256), which makes the file half as large.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shapes = [_plane(image, row, row.index).shape for row in rows]
    sizes = [[spacing[axis] for axis in range(3) if axis != row.axis] for row in rows]
    heights = [PANEL * shape[0] * size[0] / (shape[1] * size[1]) for shape, size in zip(shapes, sizes, strict=True)]
    left, right, top, gap = 1.42, 0.1, 0.66, 0.07
    lines = caption.count("\n") + 1
    bottom = 0.55 + 0.24 * lines
    across = left + right + len(columns) * PANEL + (len(columns) - 1) * gap
    down = top + bottom + sum(heights) + (len(rows) - 1) * gap
    figure = Figure(figsize=(across, down), dpi=width / across, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def axes(x: float, y: float, wide: float, high: float) -> Any:
        return figure.add_axes((x / across, 1 - (y + high) / down, wide / across, high / down))

    y = top
    for r, (row, height) in enumerate(zip(rows, heights, strict=True)):
        figure.text(
            (left - 0.14) / across,
            1 - (y + height / 2) / down,
            row.title,
            ha="right",
            va="center",
            fontsize=9.5,
            color=INK,
            linespacing=1.45,
        )
        for c, column in enumerate(columns):
            panel = axes(left + c * (PANEL + gap), y, PANEL, height)
            panel.set_xticks([])
            panel.set_yticks([])
            for spine in panel.spines.values():
                spine.set(linewidth=0.6, color="#333333")
            _draw_panel(panel, image, column, row, sizes[r], annotated)
            if c == 0:
                _draw_scale(panel, shapes[r], sizes[r], unit)
                _draw_windows(panel, row, rows)
        y += height + gap

    for c, column in enumerate(columns):
        x = (left + c * (PANEL + gap) + PANEL / 2) / across
        figure.text(x, 1 - 0.27 / down, column.title, ha="center", va="center", fontsize=12.5, weight="bold", color=INK)
        figure.text(x, 1 - 0.5 / down, column.subtitle, ha="center", va="center", fontsize=9.5, color=FAINT)

    from matplotlib.patches import Patch

    handles = [Patch(facecolor=tuple(color), edgecolor="#333333", linewidth=0.5, label=name) for name, color in legend]
    handles.append(Patch(facecolor=ERROR_COLOR, label="wrong voxels"))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=((left - 0.06) / across, (bottom - 0.06) / down),
        ncols=len(handles),
        frameon=False,
        fontsize=10.5,
        handlelength=1.1,
        handleheight=1.0,
        columnspacing=1.6,
        borderpad=0.1,
    )
    figure.text(
        left / across,
        (bottom - 0.42) / down,
        caption,
        ha="left",
        va="top",
        fontsize=10.5,
        color=INK,
        linespacing=1.5,
    )
    if palette is None:
        canvas.print_png(path)
        return
    from PIL import Image  # comes with Matplotlib

    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    picture.quantize(palette, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_panel(
    panel: Any, image: Array, column: Column, row: Row, size: Sequence[float], annotated: Sequence[int]
) -> None:
    """Draw one plane of one column."""
    index = row.index
    if column.nearest is not None and row.axis == 0:
        index = int(column.nearest[index])
    grey = _plane(image, row, index)
    if column.labels is None:
        picture: Array = np.repeat(grey[..., None], 3, axis=-1)
    else:
        labels = _plane(column.labels, row, index)
        if column.nearest is not None and row.axis != 0:
            # A slice seen from the side is a line of one voxel, which is hard to see; draw three, on a pale image.
            above, below = np.zeros_like(labels), np.zeros_like(labels)
            above[:-1], below[1:] = labels[1:], labels[:-1]
            labels = np.maximum(labels, np.maximum(above, below))
            grey = (160 + grey // 3).astype(np.uint8)
        picture = _overlay(grey, labels, column.colors)
    panel.imshow(picture, aspect=size[0] / size[1], interpolation="nearest")
    if index != row.index:
        panel.text(
            0.025,
            0.97,
            f"z = {index}",
            transform=panel.transAxes,
            fontsize=9,
            va="top",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )
    if row.axis != 0:
        wide = grey.shape[1]
        for z in annotated:
            panel.plot([-0.035 * wide, -0.012 * wide], [z, z], color="#c2410c", linewidth=1.0, clip_on=False)
        panel.set_xlim(-0.5, wide - 0.5)


def _draw_windows(panel: Any, row: Row, rows: Sequence[Row]) -> None:
    """Frame what other rows show of this plane."""
    from matplotlib.patches import Rectangle

    for other in rows:
        if row.window is None and other.window is not None and (other.axis, other.index) == (row.axis, row.index):
            down, across = other.window
            corner = (across.start - 0.5, down.start - 0.5)
            size = across.stop - across.start, down.stop - down.start
            panel.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#ffd400", linewidth=1.4))


def _draw_scale(panel: Any, shape: tuple[int, ...], size: Sequence[float], unit: str) -> None:
    """Draw a bar of a round length, about a quarter of the panel."""
    voxel = size[1] if unit else 1.0
    target = shape[1] * voxel / 3
    power = 10.0 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    name = unit or "voxels"
    text = f"{length:g} {name}"
    if unit == "nm" and length >= 1000:
        text = f"{length / 1000:g} µm"
    x1, y = shape[1] * 0.95, shape[0] - 0.06 * shape[1] * size[1] / size[0]
    x0 = x1 - length / voxel
    panel.plot([x0, x1], [y, y], color="black", linewidth=4.2, solid_capstyle="butt")
    panel.plot([x0, x1], [y, y], color="white", linewidth=2.6, solid_capstyle="butt")
    lift = 0.03 * shape[1] * size[1] / size[0]
    label = panel.text(
        (x0 + x1) / 2, y - lift, text, ha="center", va="bottom", fontsize=9, color="white", weight="bold"
    )
    from matplotlib.patheffects import withStroke

    label.set_path_effects([withStroke(linewidth=1.8, foreground="black")])
