"""Pictures: what the heatmap of an evaluation says, its colours, and what it refuses."""

import math
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import lpa3d
from lpa3d import plot
from lpa3d.errors import InputError, InputTypeError, LibraryError
from lpa3d.evaluation.metrics import FRACTIONS, LESS_IS_BETTER

NAMES = {1: "nucleus", 2: "droplet", 3: "centriole"}
REFERENCE = np.array([[1, 1, 1, 0, 2, 2, 2, 2, 0, 2]])
PREDICTION = np.array([[1, 1, 0, 0, 2, 2, 2, 2, 0, 0]])


def evaluate(prediction=PREDICTION, names=NAMES, **keywords):
    return lpa3d.evaluate(REFERENCE, prediction, instances="components", class_names=names, **keywords)


@pytest.fixture
def ax():
    return Figure(layout="constrained").add_subplot()


def cells(axes):
    """Return text and colour of each cell by (row, column), counted without the gaps."""
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    columns, rows = (
        sorted({round(corner, 3) for corner in side}) for side in zip(*(box.xy for box in boxes), strict=True)
    )
    found = {}
    for box in boxes:
        x, y = box.xy
        inside = [
            t.get_text() for t in axes.texts if x < t.get_position()[0] < x + 1 and y < t.get_position()[1] < y + 1
        ]
        assert len(inside) <= 1
        found[rows.index(round(y, 3)), columns.index(round(x, 3))] = "".join(inside), box.get_facecolor()
    return found


def texts(axes):
    found = cells(axes)
    rows, columns = max(found)
    return [[found[r, c][0] for c in range(columns + 1)] for r in range(rows + 1)]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_a_row_for_each_class_and_the_mean_apart(ax):
    e = evaluate()
    assert plot.heatmap(e, ax=ax) is ax
    assert ticks(ax.yaxis) == ["nucleus", "droplet", "centriole", "mean"]
    assert ticks(ax.xaxis) == ["Dice", "IoU", "F1"]
    rows = [e.per_class["nucleus"], e.per_class["droplet"], None, e]
    expected = [[f"{row[key]:.2f}" if row else "" for key in ("dice", "iou", "f1")] for row in rows]
    assert texts(ax) == expected
    steps = np.diff(ax.get_yticks())
    assert steps[-1] > steps[0] == steps[1]


def test_colors_run_from_0_to_1_whatever_the_values(ax):
    e = evaluate()
    found = cells(plot.heatmap(e, ("dice", "pixel_error", "voi", "tp"), ax=ax))
    viridis = colormaps["viridis"]
    assert found[0, 0][1] == viridis(e.per_class["nucleus"]["dice"])
    assert found[0, 1][1] == viridis(1 - e.per_class["nucleus"]["pixel_error"])
    white = (1.0, 1.0, 1.0, 1.0)
    assert {found[r, c][1] for r in range(4) for c in (2, 3)} == {found[2, 0][1]} == {white}
    assert found[3, 3][0] == "Σ 2"
    assert ticks(ax.xaxis) == ["Dice", "pixel\nerror ↓", "VOI ↓", "TP"]
    # In grey the better is the lighter.
    grey = viridis(np.linspace(0, 1, 256))[:, :3] @ (0.299, 0.587, 0.114)
    assert (np.diff(grey) > 0).all()


def test_every_metric_is_drawn_and_only_those_from_0_to_1_have_a_color(ax):
    e = evaluate(names={1: "nucleus"}, iou_thresholds=(0.5, 0.75), size_strata=(2, 4), surfaces=True, warping="2d")
    keys = list(e)
    found = cells(plot.heatmap(e, keys, ax=ax))
    colored = {key for c, key in enumerate(keys) if found[0, c][1] != (1.0, 1.0, 1.0, 1.0)}
    unbounded = {"conformity", "voi", "voi_split", "voi_merge", "cremi", "hausdorff", "hd95", "assd"}
    counts = {f"{key}{at}" for key in ("tp", "fp", "fn") for at in ("", "@0.75")}
    undefined = {key for key in keys if math.isnan(e[key])}
    assert set(keys) - colored == unbounded | counts | undefined
    assert FRACTIONS | unbounded | {"tp", "fp", "fn"} == {key.partition("@")[0] for key in keys}
    arrows = {key.partition("@")[0] for key, name in zip(keys, ticks(ax.xaxis), strict=True) if name.endswith(" ↓")}
    assert arrows == LESS_IS_BETTER


def test_perfect_is_light_and_the_rest_is_darker(ax):
    """No metric is coloured the wrong way round."""
    perfect, poor = evaluate(REFERENCE), evaluate(np.array([[1, 0, 0, 1, 2, 0, 2, 0, 2, 0]]))
    keys = sorted(set(poor) & FRACTIONS)
    found = cells(plot.heatmap({"perfect": perfect, "poor": poor}, keys, ax=ax))
    best = colormaps["viridis"](1.0)
    last = max(found)[0]
    assert all(found[last, c][1] == best for c in range(len(keys)))
    assert all(sum(found[last, c + len(keys)][1][:3]) < sum(best[:3]) for c in range(len(keys)))


def test_methods_stand_side_by_side_with_the_classes_of_all(ax):
    ours, theirs = evaluate(names={1: "nucleus"}), evaluate(REFERENCE, names={2: "droplet"})
    plot.heatmap({"ours": ours, "theirs": theirs}, "pq", ax=ax, title="A study")
    assert ticks(ax.yaxis) == ["nucleus", "droplet", "mean"]
    assert ticks(ax.xaxis) == ["PQ", "PQ"]
    pq = f"{ours['pq']:.2f}"
    assert texts(ax) == [[pq, ""], ["", "1.00"], [pq, "1.00"]]
    assert {"ours", "theirs", "A study"} <= {text.get_text() for text in ax.texts}


def test_without_classes_there_is_one_row(ax):
    plot.heatmap(lpa3d.evaluate(REFERENCE, PREDICTION), ("dice", "tp"), ax=ax)
    assert ticks(ax.yaxis) == ["all"]
    assert texts(ax) == [["0.86", "2"]]


def test_headings_say_the_threshold_and_what_the_key_is(ax):
    methods = {"ours": evaluate(iou_thresholds=(0.3, 0.75)), "theirs": evaluate(iou_thresholds=(0.5, 0.75))}
    plot.heatmap(methods, ("f1", "f1@0.75", "fn", "arand"), ax=ax)
    ours, theirs = ticks(ax.xaxis)[:4], ticks(ax.xaxis)[4:]
    assert ours == ["F1\n@ 0.3", "F1\n@ 0.75", "FN\n@ 0.3 ↓", "arand ↓"]
    assert theirs == ["F1", "F1\n@ 0.75", "FN ↓", "arand ↓"]


@pytest.mark.parametrize(("metric", "label"), [("arand", "↓: coloured\nby 1 - value"), ("voi", ""), ("dice", "")])
def test_the_bar_explains_colors_of_metrics_with_an_arrow(ax, metric, label):
    plot.heatmap(evaluate(), metric, ax=ax)
    assert ax.child_axes[0].get_ylabel() == label


def test_marks_of_undefined_values_are_blank(ax):
    e = evaluate(REFERENCE * 0, names={1: "nucleus"}, convention="coco", surfaces=True)
    assert texts(plot.heatmap(e, ("hd95", "conformity", "dice"), ax=ax))[0] == ["", "-∞", "0.00"]
    nothing = lpa3d.evaluate(REFERENCE * 0, PREDICTION, convention="coco")
    assert nothing["map"] == -1
    ax.clear()
    assert texts(plot.heatmap(nothing, "map", ax=ax)) == [[""]]


@pytest.mark.parametrize("name", ["table.png", "table.pdf", "table.svg"])
def test_a_picture_is_saved_without_pyplot(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    e = evaluate()
    plot.heatmap({"ours": e, "a method with a long name": e}, path=tmp_path / name, title="Organelles")
    assert (tmp_path / name).stat().st_size > 1000


def test_nothing_is_cut_off_or_overlaps(tmp_path):
    e = evaluate()
    methods = {"ours": e, "a method with a long name": e}
    axes = plot.heatmap(methods, ("pq", "arand", "fp"), path=tmp_path / "table.png", title="Organelles")
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    labels = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [label.get_window_extent(renderer) for label in labels]
    whole = axes.figure.bbox
    for k, box in enumerate(boxes):
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
        assert not any(box.overlaps(other) for other in boxes[:k]), labels[k]
    with Image.open(tmp_path / "table.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()
    assert pixels.std() > 20


def test_by_default_the_figure_is_pyplots():
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    axes = plot.heatmap(evaluate())
    assert pyplot.get_fignums() == [axes.figure.number]
    pyplot.close(axes.figure)


@pytest.mark.parametrize(
    ("evaluation", "metrics", "error", "message"),
    [
        (lambda: {"dice": 0.5}, "dice", InputTypeError, r"evaluation is a dict; what lpa3d\.evaluate returns"),
        (lambda: 3, "dice", InputTypeError, "evaluation is a int"),
        (dict, "dice", InputError, "evaluation is empty"),
        (evaluate, (), InputError, "metrics is empty"),
        (evaluate, "dise", InputError, "the evaluation has no metric 'dise'; it has accuracy, precision"),
        (lambda: {"ours": evaluate()}, "f1@0.9", InputError, "the evaluation 'ours' has no metric 'f1@0.9'"),
        (
            lambda: {"ours": evaluate(), "theirs": lpa3d.evaluate(REFERENCE, PREDICTION)},
            "pq",
            InputError,
            "the evaluation 'theirs' has no classes but others have",
        ),
    ],
)
def test_what_is_refused(evaluation, metrics, error, message):
    with pytest.raises(error, match=message):
        plot.heatmap(evaluation(), metrics)


@pytest.mark.parametrize(("name", "what"), [("x.foo", r"has the suffix \.foo"), ("x", "has no suffix")])
def test_no_picture_of_an_unknown_kind(tmp_path, name, what):
    with pytest.raises(InputError, match=rf"{name}' {what}, which is no kind of picture; one of \..*, \.png, "):
        plot.heatmap(evaluate(), path=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LibraryError, match=r"heatmap\(\) needs Matplotlib; install it: pip install 'lpa3d\[plot\]'"):
        plot.heatmap(evaluate())
