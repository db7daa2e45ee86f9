"""Pictures of labelled volumes: distinct colours, overlays on the micrograph, and the overview of the demo.

Needs Matplotlib (``pip install 'lpa3d[plot]'``), which is imported when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Column", "Row", "class_colors", "distinct_colors", "overview"]

Array = npt.NDArray[Any]
Colors = npt.NDArray[np.float32]

CLASS_COLORS = ("#6fa8dc", "#e8743b", "#5fb36a", "#b277d6", "#f2c230", "#4fc3c7", "#d9658b", "#a68a64", "#8fa3ad")
ERROR_COLOR = (0.93, 0.05, 0.09)
INK, FAINT = "#1a1a1a", "#6b6b6b"
PANEL = 2.55
"""Width of a panel in inches."""


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
    """Return `count` colours for classes, row 0 black; the ninth class has the colour of the first again."""
    colors = [(0.0, 0.0, 0.0)]
    for k in range(count - 1):
        text = CLASS_COLORS[k % len(CLASS_COLORS)]
        colors.append((int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255))
    return np.array(colors, np.float32)


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
    shaded[_borders(labels)] *= 0.55
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
    spacing, unit
        Voxel size (z, y, x) and its unit, for the aspect of cuts and the scale bar; without a unit the bar counts
        voxels.
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
