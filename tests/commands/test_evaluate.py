"""The command ``lpa3d evaluate``: what it prints and writes is `lpa3d.evaluate`; limits, and mistakes found early."""

import csv
import inspect
import io as textio
import json
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io, phantom
from lpa3d.commands import evaluate as _evaluate_command
from lpa3d.evaluation.conventions import CONVENTIONS
from lpa3d.files.geometry import NANOMETRES
from tests.test_cli import SUFFIXES, assert_refused, assert_refused_unread, interrupted, names, run

SPACING = (40.0, 8.0, 8.0)
VERB = lpa3d.evaluate


def two_sides() -> tuple[np.ndarray, np.ndarray]:
    """A reference of five bars, and a prediction that cuts one, joins two, misses one and makes one up."""
    reference = np.zeros((6, 12, 10), "uint8")
    for label in range(1, 6):
        reference[:, 2 * label : 2 * label + 2, 1:9] = label
    reference[reference == 5] = 0
    reference[0:2, 0:1, :] = 5
    prediction = reference.astype("uint16") + 10
    prediction[reference == 0] = 0
    prediction[3:][reference[3:] == 1] = 20
    prediction[reference == 3] = 12
    prediction[reference == 5] = 0
    prediction[4:, 11, 0:9] = 300
    return reference, prediction


def two_class_maps() -> tuple[np.ndarray, np.ndarray]:
    """The classes of both sides: 1 and 2 are of class 1, all else of class 3."""
    reference, prediction = two_sides()
    maps = [np.where(side == 0, 0, 3).astype("uint8") for side in (reference, prediction)]
    maps[0][(reference == 1) | (reference == 2)] = 1
    maps[1][np.isin(prediction, [11, 20, 12])] = 1
    return maps[0], maps[1]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with both sides, their class maps, and what makes a mistake."""
    monkeypatch.chdir(tmp_path)
    for name, array in zip(("truth", "instances"), two_sides(), strict=True):
        io.write(f"{name}.npy", array)
    for name, array in zip(("kinds", "found"), two_class_maps(), strict=True):
        io.write(f"{name}.tif", array)
    return tmp_path


def evaluate(*words: object, code: int = 0) -> None:
    assert cli.main(["evaluate", *map(str, words), "-q"]) == code


def printed(capsys, *words: object, code: int = 0) -> str:
    """Run and return what was printed; nothing else was said."""
    evaluate(*words, code=code)
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


# ------------------------------------------------------------------------------------------------------- the results


def test_table_and_the_worst_errors(files, capsys):
    e = lpa3d.evaluate(*two_sides())
    assert cli.main(["evaluate", "truth.npy", "instances.npy"]) == 0
    said = capsys.readouterr()
    assert said.out == "\n\n".join(map(repr, (e, e.splits, e.merges, e.missed, e.spurious))) + "\n"
    assert re.fullmatch(r"lpa3d: 1 matched pair; read in .* s, evaluated in .* s\n", said.err)
    assert printed(capsys, "truth.npy", "instances.npy", "--show-errors", 0) == repr(e) + "\n"
    assert [len(errors) for errors in (e.splits, e.merges, e.missed, e.spurious)] == [1, 1, 1, 1]


def test_many_errors_are_cut_short(files, capsys):
    reference = np.zeros((3, 40, 40), "uint16")
    reference[1, ::2, ::2] = np.arange(1, 401).reshape(20, 20)
    io.write("many.npy", reference)
    io.write("none.npy", np.zeros_like(reference))
    for count in (2, 13):
        text = printed(capsys, "many.npy", "none.npy", "--show-errors", count)
        missed = text[text.index("Missed: 400") : text.index("\n\nSpurious: 0")].splitlines()
        assert len(missed) == 3 + count
        assert missed[-1] == f"... {400 - count} more"


@pytest.mark.parametrize(
    ("reference", "prediction"), [*zip(SUFFIXES, [*SUFFIXES[1:], SUFFIXES[0]], strict=True), ("npy", "npy")]
)
def test_json_is_to_dict(files, reference, prediction, capsys):
    for name, suffix, array in zip(("a", "b"), (reference, prediction), two_sides(), strict=True):
        io.write(f"{name}.{suffix}", array, spacing=SPACING, unit="nm")
    found = json.loads(printed(capsys, f"a.{reference}", f"b.{prediction}", "--json", "--surfaces"))
    # The prediction's, where the reference has none.
    with io.open_volume(f"{'b' if reference == 'npy' else 'a'}.{prediction if reference == 'npy' else reference}") as v:
        spacing, unit = v.geometry.spacing or (1, 1, 1), v.geometry.unit
    assert found.pop("reference") == f"a.{reference}"
    assert found.pop("prediction") == f"b.{prediction}"
    assert found.pop("unit") == (unit or None)
    assert found == lpa3d.evaluate(*two_sides(), spacing=spacing, surfaces=True).to_dict()
    if (reference, prediction) != ("npy", "npy"):
        np.testing.assert_allclose(np.multiply(found["parameters"]["spacing"], NANOMETRES[unit]), SPACING)


def test_json_has_no_number_that_json_lacks(files, capsys):
    io.write("empty.npy", np.zeros_like(two_sides()[0]))

    def refuse(text):
        raise AssertionError(text)

    text = printed(capsys, "truth.npy", "empty.npy", "--json", "--surfaces")
    metrics = json.loads(text, parse_constant=refuse)["metrics"]
    assert metrics["conformity"] is None
    assert metrics["hd95"] is None
    row = next(csv.DictReader(textio.StringIO(printed(capsys, "truth.npy", "empty.npy", "--csv", "--surfaces"))))
    assert [key for key, cell in row.items() if cell == ""] == [key for key, value in metrics.items() if value is None]


def test_json_is_indented_on_a_terminal(files, capsys, monkeypatch):
    line = printed(capsys, "truth.npy", "instances.npy", "--json")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert printed(capsys, "truth.npy", "instances.npy", "--json") == json.dumps(json.loads(line), indent=2) + "\n"


def test_csv_has_a_row_for_each_class_and_the_mean(files, capsys):
    e = lpa3d.evaluate(*two_class_maps(), instances="components", class_names={3: "ER, rough", 1: "mito", 9: "none"})
    words = ["kinds.tif", "found.tif", "--instances", "components", "--class-names", "3=ER, rough", "1=mito", "9=none"]
    rows = list(csv.DictReader(textio.StringIO(printed(capsys, *words, "--csv"))))
    assert [row["class"] for row in rows] == ["ER, rough", "mito", "none", "mean"]
    assert list(rows[0]) == ["reference", "prediction", "class", *e]
    for row, one in zip(rows, [*e.per_class.values(), e], strict=True):
        assert (row["reference"], row["prediction"]) == ("kinds.tif", "found.tif")
        assert [row[key] for key in e] == [str(one[key]) if one.present else "" for key in e]
        assert not one.present or [float(row[key]) for key in e] == list(one.values())
    alone = list(csv.DictReader(textio.StringIO(printed(capsys, "truth.npy", "instances.npy", "--csv"))))
    assert [row["class"] for row in alone] == ["all"]
    assert float(alone[0]["pq"]) == lpa3d.evaluate(*two_sides())["pq"]


def test_classes_and_names(files, capsys):
    words = ["truth.npy", "instances.npy", "--classes", "kinds.tif", "found.tif"]
    keywords = {"classes": two_class_maps()}
    e = lpa3d.evaluate(*two_sides(), **keywords)
    assert printed(capsys, *words, "--per-class", "--show-errors", 0) == repr(e) + "\n"
    mean = printed(capsys, *words, "--show-errors", 0)
    assert mean == e.to_text(per_class=False) + "\n"
    assert mean.splitlines()[1].split() == ["mean"]
    assert f"{e['dice']:.4f}" in mean
    Path("names.csv").write_text("name,class\nmito,1\n", encoding="utf-8")
    for given in (["1=mito", "3=ER = rough"], ["names.csv", "3=ER = rough"]):
        out = printed(capsys, *words, "--json", "--class-names", *given)
        expected = lpa3d.evaluate(*two_sides(), **keywords, class_names={1: "mito", 3: "ER = rough"}).to_dict()
        assert json.loads(out)["per_class"] == expected["per_class"]


def test_errors_of_classes_say_which(files, capsys):
    reference, prediction = two_sides()
    e = lpa3d.evaluate(reference, prediction, classes=two_class_maps(), class_names={1: "mito", 3: "reticulum"})
    words = ["truth.npy", "instances.npy", "--classes", "kinds.tif", "found.tif", "--class-names", "1=mito"]
    text = printed(capsys, *words, "3=reticulum", "--errors", "errors.csv")
    for kind, rows in zip(("splits", "merges", "missed", "spurious"), errors_of("errors.csv").values(), strict=True):
        title, *lines = (
            next(part for part in text.split("\n\n") if part.startswith(f"{kind.capitalize()}: ")).strip().splitlines()
        )
        assert title.split()[1] == str(len(getattr(e, kind))) == str(len(rows))
        assert not rows or lines[0].split()[:2] == ["class", "id"]
        assert [line.split()[:2] for line in lines[1:]] == [[row["class"], row["id"]] for row in rows]
    assert {row["class"] for rows in errors_of("errors.csv").values() for row in rows} == {"mito", "reticulum"}
    missed = printed(capsys, *words, "3=reticulum", "--show-errors", 1).split("\n\n")[3].splitlines()
    assert missed[2].startswith("reticulum   3    96")
    assert missed[3] == "... 1 more"


def test_no_errors_are_one_line(files, capsys):
    assert printed(capsys, "truth.npy", "truth.npy").endswith(
        "\n\nNo splits, no merges, nothing missed, nothing spurious\n"
    )


def test_spacing_of_the_prediction_or_none(files, capsys):
    reference, prediction = two_sides()
    io.write("sized.nii.gz", prediction, spacing=SPACING, unit="um")
    words = ["--surfaces", "--show-errors", 0]
    assert cli.main(["evaluate", "truth.npy", "sized.nii.gz", *map(str, words)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("lpa3d: spacing 40 8 8 micron (z y x), from sized.nii.gz; truth.npy has none\n")
    e = lpa3d.evaluate(reference, prediction, spacing=SPACING, surfaces=True)
    assert said.out == f"{e!r}\n  (hausdorff, hd95, assd in micron)\n"
    assert cli.main(["evaluate", "truth.npy", "instances.npy", *map(str, words)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("lpa3d: no voxel size found; distances are in voxels\n")
    assert said.out.endswith("\n  (hausdorff, hd95, assd in voxels)\n")
    # The unit of what the user gives is not known, and where nothing has one there is nothing to say.
    assert " in " not in printed(capsys, "truth.npy", "sized.nii.gz", *words, "--spacing", "40,8,8")
    assert cli.main(["evaluate", "truth.npy", "instances.npy"]) == 0
    assert "voxel size" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--spacing 4,2,1 --iou 0.5,0.75", "--spacing=4,2,1 --iou=0.5,0.75"])
def test_commas_between_numbers(files, words, capsys):
    commas = printed(capsys, "truth.npy", "instances.npy", "--json", *words.split())
    assert commas == printed(capsys, "truth.npy", "instances.npy", "--json", *re.split("[ ,=]", words))


@pytest.mark.parametrize(("value", "told"), [(5, "20 of 720 voxels (2.8 %)"), (99, "0 of 720 voxels (0.0 %)")])
def test_what_is_ignored_is_told(files, capsys, value, told):
    assert np.count_nonzero(two_sides()[0] == 5) == 20
    assert cli.main(["evaluate", "truth.npy", "instances.npy", "--ignore", str(value)]) == 0
    assert f"lpa3d: ignored {told}\n" in capsys.readouterr().err


def test_ignore_by_value_and_by_file(files, capsys):
    reference, prediction = two_sides()
    io.write("ignore.nii.gz", (prediction == 12).astype("uint8"))
    negative = np.where(reference == 5, -1, reference.astype("int16"))
    io.write("negative.npy", negative)
    for name, word, expected in [
        ("truth", "5", lpa3d.evaluate(reference, prediction, ignore=5)),
        ("negative", "-1", lpa3d.evaluate(negative, prediction, ignore=-1)),
        ("truth", "ignore.nii.gz", lpa3d.evaluate(reference, prediction, ignore=prediction == 12)),
    ]:
        found = json.loads(printed(capsys, f"{name}.npy", "instances.npy", "--ignore", word, "--json"))
        assert found["metrics"] == expected.to_dict()["metrics"]
        assert found["parameters"]["ignored"] > 0


def test_scores(files, capsys):
    scores = {11: 0.5, 12: 0.9, 14: 0.1, 20: 0.3, 300: 0.95}
    Path("scores.csv").write_text("id,score\n" + "".join(f"{i},{value}\n" for i, value in scores.items()))
    found = json.loads(printed(capsys, "truth.npy", "instances.npy", "--scores", "scores.csv", "--json"))
    expected = lpa3d.evaluate(*two_sides(), scores=scores)
    assert found["metrics"]["map"] == expected["map"] != lpa3d.evaluate(*two_sides())["map"]


def test_options_reach_the_verb(files, monkeypatch, capsys):
    expected = lpa3d.evaluate(*two_sides())
    seen = {}

    def verb(*args, **keywords):
        seen.update(keywords)
        return expected

    monkeypatch.setattr(lpa3d, "evaluate", verb)
    evaluate("truth.npy", "instances.npy")
    defaults = {name: value.default for name, value in inspect.signature(VERB).parameters.items()}
    assert {**seen, "spacing": None, "iou_thresholds": 0.5} == {name: defaults[name] for name in seen}
    assert (seen["spacing"], seen["iou_thresholds"]) == ((1, 1, 1), [0.5])
    options = (
        "--connectivity 26 --spacing 4 2 1 --iou 0.7 0.5 --iou 0.9 --convention stardist --size-strata 5 15.5 "
        "--surfaces --warping 2d --instances components"
    )
    evaluate("truth.npy", "instances.npy", *options.split())
    assert {key: value for key, value in seen.items() if value is not None} == {
        "connectivity": 26,
        "spacing": (4.0, 2.0, 1.0),
        "iou_thresholds": [0.7, 0.5, 0.9],
        "convention": "stardist",
        "size_strata": [5.0, 15.5],
        "surfaces": True,
        "warping": "2d",
        "instances": "components",
    }
    evaluate("truth.npy", "instances.npy", "--instances", "none")
    assert seen["instances"] is None
    capsys.readouterr()


def test_semantic_only(files, capsys):
    e = lpa3d.evaluate(*two_class_maps(), instances=None)
    assert cli.main(["evaluate", "kinds.tif", "found.tif", "--instances", "none", "--per-class"]) == 0
    said = capsys.readouterr()
    assert said.out == repr(e) + "\n"
    assert f"dice {e['dice']:.4f}; read in" in said.err


def test_two_dimensions(files, capsys):
    sides = [side[0] for side in two_sides()]
    for name, side in zip(("a.npy", "b.npy"), sides, strict=True):
        io.write(name, side)
    expected = lpa3d.evaluate(*sides, spacing=(8, 8), surfaces=True)
    words = ["a.npy", "b.npy", "--surfaces", "--spacing", "8", "8", "8", "--errors", "errors.csv", "--json"]
    assert json.loads(printed(capsys, *words))["metrics"] == expected.to_dict()["metrics"]
    assert (
        Path("errors.csv").read_text().splitlines()[0] == "kind,class,id,size,cost,parts,y_start,y_stop,x_start,x_stop"
    )


# ------------------------------------------------------------------------------------------------ files that it writes


def errors_of(name: str) -> dict[str, list[dict[str, str]]]:
    with open(name, newline="") as file:
        rows = list(csv.DictReader(file))
    return {kind: [row for row in rows if row["kind"] == kind] for kind in ("split", "merge", "missed", "spurious")}


@pytest.mark.parametrize("classes", [False, True])
def test_errors_file(tmp_path, monkeypatch, classes, capsys):
    monkeypatch.chdir(tmp_path)
    cell = phantom.cell((32, 64, 64), seed=3)
    rng = np.random.default_rng(1)
    prediction = rng.permutation(int(cell.instances.max()) + 1).astype("uint32")[cell.instances] // 2
    prediction[cell.instances == 0] = 0
    prediction[::9] += 50
    prediction[cell.instances % 7 == 3] = 0
    kinds = np.where(prediction > 0, 1 + prediction % 3, 0).astype("uint8")
    for name, array in {"a": cell.instances, "b": prediction, "c": cell.classes, "d": kinds}.items():
        np.save(f"{name}.npy", array)
    words = ["a.npy", "b.npy", "--errors", "errors.csv"]
    if classes:
        e = lpa3d.evaluate(cell.instances, prediction, classes=(cell.classes, kinds))
        evaluate(*words, "--classes", "c.npy", "d.npy")
    else:
        e = lpa3d.evaluate(cell.instances, prediction)
        evaluate(*words)
    found = errors_of("errors.csv")
    for kind, errors in zip(found, (e.splits, e.merges, e.missed, e.spurious), strict=True):
        assert len(found[kind]) == len(errors)
        for row, error in zip(found[kind], errors, strict=True):
            assert (int(row["id"]), int(row["size"]), int(row["cost"])) == (error.id, error.size, error.cost)
            box = tuple(slice(int(row[f"{axis}_start"]), int(row[f"{axis}_stop"])) for axis in "zyx")
            assert box == error.box
            parts = [tuple(map(int, part.split(":"))) for part in row["parts"].split(";") if part]
            assert parts == list(zip(error.parts, error.overlaps, strict=True))
            side, kinds_of = (cell.instances, cell.classes) if kind in ("split", "missed") else (prediction, kinds)
            assert row["class"] == (str(kinds_of[side == error.id][0]) if classes else "")
    assert sum(map(len, found.values())) > 5
    assert found["split"] or classes
    assert found["merge"] or classes


def test_pairs_file(files, capsys):
    words = ["truth.npy", "instances.npy", "--pairs", "pairs.csv", "--overwrite"]
    e = lpa3d.evaluate(*two_sides(), surfaces=True)
    assert cli.main(["evaluate", *words, "--surfaces"]) == 0
    assert "1 matched pair; wrote pairs.csv; read in" in capsys.readouterr().err
    rows = list(csv.DictReader(textio.StringIO(Path("pairs.csv").read_text())))
    assert list(rows[0]) == ["class", "reference", "prediction", "voxels", "iou", "hausdorff", "hd95", "assd"]
    assert [row.pop("class") for row in rows] == [""]
    assert [{key: float(cell) for key, cell in row.items()} for row in rows] == e.pairs.to_pandas().to_dict("records")
    evaluate(*words, "--classes", "kinds.tif", "found.tif", "--iou", "0.1")
    rows = list(csv.DictReader(textio.StringIO(Path("pairs.csv").read_text())))
    kinds = two_class_maps()[0]
    assert len(rows) > 1
    assert [row["class"] for row in rows] == [str(kinds[two_sides()[0] == int(row["reference"])][0]) for row in rows]
    io.write("truth.npy", np.zeros_like(two_sides()[0]), overwrite=True)
    evaluate(*words)
    assert Path("pairs.csv").read_text() == "class,reference,prediction,voxels,iou\n"


def test_output_file_is_what_would_be_printed(files, capsys):
    for options in ([], ["--json"], ["--csv"]):
        text = printed(capsys, "truth.npy", "instances.npy", *options)
        if options == ["--json"]:
            assert text.count("\n") == 1
            text = json.dumps(json.loads(text), indent=2) + "\n"
        assert printed(capsys, "truth.npy", "instances.npy", *options, "-o", "out.txt", "--overwrite") == ""
        assert Path("out.txt").read_text() == text
        if options:
            name = f"by_suffix.{options[0].strip('-')}"
            assert printed(capsys, "truth.npy", "instances.npy", "-o", name) == ""
            assert Path(name).read_text() == text
    evaluate("truth.npy", "instances.npy", "--csv", "-o", "odd.json")
    assert Path("odd.json").read_text() == Path("by_suffix.csv").read_text()


def test_outputs_are_kept_or_replaced(files, capsys):
    words = ["truth.npy", "instances.npy", "-o", "out.csv", "--errors", "errors.csv"]
    evaluate(*words)
    before = names(files)
    evaluate(*words, code=2)
    assert capsys.readouterr().err == "lpa3d: error: out.csv exists; pass --overwrite to replace it\n"
    evaluate(*words, "--overwrite")
    assert names(files) == before


# ------------------------------------------------------------------------------------------------------------- limits


def test_limits_that_are_met(files, capsys):
    e = lpa3d.evaluate(*two_sides(), iou_thresholds=(0.5, 0.75))
    words = [
        "--iou",
        "0.5",
        "0.75",
        "--fail-under",
        f"pq={e['pq']}",
        f"pq@0.75={e['pq@0.75']}",
        "--fail-under",
        "dice=.1",
    ]
    out = printed(capsys, "truth.npy", "instances.npy", *words, "--fail-over", f"voi={e['voi']}", "fp@0.750=1e3")
    assert out.startswith(repr(e))


def test_missed_limits(files, capsys):
    e = lpa3d.evaluate(*two_sides(), classes=two_class_maps(), class_names={1: "mito", 3: "a:b", 9: "gone"})
    words = ["truth.npy", "instances.npy", "--classes", "kinds.tif", "found.tif", "--json"]
    words += ["--class-names", "1=mito", "3=a:b", "9=gone"]
    limits = ["--fail-under", "pq=0.99", "dice=0", "mito:pq@0.50=0.98", "a:b:recall=1", "gone:pq=0"]
    limits += ["--fail-over", "voi=0", "fn=100", "mito:voi_split=0.001"]
    files_asked = ["-o", "out.json", "--errors", "errors.csv"]
    evaluate(*words, *limits, *files_asked, code=3)
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(Path("out.json").read_text())["metrics"] == e.to_dict()["metrics"]
    assert Path("errors.csv").exists()
    mito, other = e.per_class["mito"], e.per_class["a:b"]
    assert said.err.splitlines() == [
        f"lpa3d: --fail-under pq=0.99: pq is {e['pq']:.6g}",
        f"lpa3d: --fail-under mito:pq@0.50=0.98: mito:pq@0.5 is {mito['pq']:.6g}",
        f"lpa3d: --fail-under a:b:recall=1: a:b:recall is {other['recall']:.6g}",
        "lpa3d: --fail-under gone:pq=0: no voxel is of class gone",
        f"lpa3d: --fail-over voi=0: voi is {e['voi']:.6g}",
        f"lpa3d: --fail-over mito:voi_split=0.001: mito:voi_split is {mito['voi_split']:.6g}",
    ]


def test_what_is_not_finite_misses_its_limit(files, capsys):
    io.write("empty.npy", np.zeros_like(two_sides()[0]))
    limits = ["--surfaces", "--fail-over", "hd95=100", "--fail-under", "conformity=-5"]
    evaluate("truth.npy", "empty.npy", "--csv", *limits, code=3)
    said = capsys.readouterr()
    assert said.out.startswith("reference,prediction,class,")
    assert said.err.splitlines() == [
        "lpa3d: --fail-under conformity=-5: conformity is -inf",
        "lpa3d: --fail-over hd95=100: hd95 is not known, for want of matched pairs",
    ]


def test_limits_where_no_class_is_present(files, capsys):
    words = ["kinds.tif", "found.tif", "--instances", "components", "--class-names", "7=a", "8=b", "--json"]
    evaluate(*words, "--fail-under", "pq=0", "a:pq=0", code=3)
    warning, *misses = capsys.readouterr().err.splitlines()
    assert warning.startswith("lpa3d: warning: none of the classes 7, 8 is in REFERENCE or PREDICTION")
    assert misses == [
        "lpa3d: --fail-under pq=0: pq is not known, for want of a voxel of any class",
        "lpa3d: --fail-under a:pq=0: no voxel is of class a",
    ]


def test_a_class_that_the_maps_lack_misses_its_limit(files, capsys):
    evaluate("kinds.tif", "found.tif", "--instances", "none", "--fail-under", "9:dice=0", code=3)
    assert capsys.readouterr().err == "lpa3d: --fail-under 9:dice=0: there is no class 9; there are 1, 3\n"


def test_rounding_hides_no_miss(files, capsys):
    dice = lpa3d.evaluate(*two_sides())["dice"]
    limits = ["--fail-under", f"dice={dice + 1e-12!r}", f"dice={dice + 1e-2!r}"]
    evaluate("truth.npy", "instances.npy", *limits, code=3)
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == [
        next(text for text in (f"{dice:.6g}", str(dice)) if float(text) < limit)
        for limit in (dice + 1e-12, dice + 1e-2)
    ]


def test_missed_limits_in_a_process(files):
    done = run("evaluate", "truth.npy", "instances.npy", "--fail-under", "pq=1", "-q")
    assert done.returncode == 3
    assert done.stdout.startswith("Evaluation")
    assert re.fullmatch(r"lpa3d: --fail-under pq=1: pq is 0\.\d+\n", done.stderr)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--iou 0.5 0.75 0.9",
        "--instances none",
        "--instances none --warping 2d",
        "--instances components --surfaces --warping 3d",
        "--size-strata 5 10 --iou 0.3",
        "--convention mitoem --surfaces",
    ],
)
def test_metrics_are_known_in_advance(files, options, capsys):
    args = cli._parser([]).parse_args(["evaluate", "kinds.tif", "found.tif", *options.split()])
    _evaluate_command.check_options(args)
    found = json.loads(printed(capsys, "kinds.tif", "found.tif", *options.split(), "--json"))
    assert sorted(found["metrics"]) == sorted(_evaluate_command._list_metrics(args))


def test_less_is_better_where_identity_scores_least(capsys):
    reference, prediction = two_sides()
    keywords = {"surfaces": True, "warping": "3d"}
    best = lpa3d.evaluate(reference, reference, **keywords)
    worse = lpa3d.evaluate(reference, np.roll(prediction, 1, axis=2), **keywords)
    assert {key for key in best if best[key] < worse[key]} == _evaluate_command.LESS_IS_BETTER
    assert not [key for key in best if best[key] == worse[key]]


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lpa3d evaluate")
    assert "examples:\n  lpa3d evaluate " in text
    assert all(name in text for name in CONVENTIONS)
    assert all(f"\n{group}:\n" in text for group in ("what is compared", "which metrics", "output", "limits"))
    listed = text[text.index("\nmetrics (docs/metrics.md defines them):") :].split()
    e = lpa3d.evaluate(*two_sides(), size_strata=(5, 10), surfaces=True, warping="2d")
    assert set(e) <= set(listed)
    assert not [name for name in e if listed.count(name) > 1]
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--convention ours", "invalid choice: 'ours' (choose from"),
        ("--convention Skimag", "invalid choice: 'Skimag'; did you mean skimage? (choose from"),
        ("--instances some", "invalid choice: 'some'"),
        ("--warping 4d", "invalid choice: '4d'"),
        ("--iou 1.5", "--iou: '1.5' is no number from 0 to 1"),
        ("--iou nan", "--iou: 'nan' is no number from 0 to 1"),
        ("--iou 0.5 other.npy", "--iou: 'other.npy' is no number from 0 to 1 (the two volumes come first)"),
        ("--fail-under pq", "'pq' is no limit, such as pq=0.8"),
        ("--fail-under pq=high", "'pq=high' is no limit"),
        ("--fail-under pq=nan", "'pq=nan' is no limit"),
        ("--fail-under =0.8", "'=0.8' is no limit"),
        ("--fail-under pq@x=0.8", "'pq@x=0.8' is no limit"),
        ("--class-names mito=1", "'mito=1' is no class with its name, such as 1=mitochondria"),
        ("--class-names 1=", "'1=' is no class with its name"),
        ("--show-errors -1", "'-1' is no number of errors"),
        ("--json --csv", "not allowed with argument"),
        ("--classes kinds.tif", "expected 2 arguments"),
        ("--size-strata 5", "expected 2 arguments"),
    ],
)
def test_usage_errors(files, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "truth.npy", "instances.npy", *options.split()])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpa3d: error: ")
    assert message in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("truth.npy small.npy", "truth.npy has shape (6, 12, 10) but small.npy has shape (2, 3, 4)"),
        ("truth.npy missing.npy", "missing.npy does not exist"),
        ("truth.npy instances.npy --ignore small.npy", "but small.npy has shape (2, 3, 4)"),
        ("truth.npy instances.npy --ignore 2.5", "'2.5' has no suffix"),
        ("truth.npy instances.npy --classes kinds.tif small.npy", "but small.npy has shape (2, 3, 4)"),
        ("truth.npy instances.npy --spacing 1 0 1", "every value must be finite and > 0"),
        ("truth.npy instances.npy --iou 0.5 0.75 0.50", "--iou is given 0.5 0.75 0.5; each may be given once"),
        ("truth.npy instances.npy --size-strata 9 5", "--size-strata needs two sizes in voxels, the smaller one first"),
        ("truth.npy instances.npy --size-strata -1 5", "--size-strata needs two sizes"),
        ("truth.npy instances.npy --size-strata 1 nan", "--size-strata needs two sizes"),
        (
            "truth.npy instances.npy --instances none --surfaces",
            "--surfaces is about instances, but --instances is none",
        ),
        ("truth.npy instances.npy --instances none --size-strata 1 2", "--size-strata is about instances"),
        ("truth.npy instances.npy --instances none --scores half.csv", "--scores is about instances"),
        ("truth.npy instances.npy --instances none --errors e.csv", "--errors is about instances"),
        ("truth.npy instances.npy --instances none --pairs p.csv", "--pairs is about instances"),
        ("truth.npy instances.npy --per-class", "--per-class needs classes: pass --classes REFERENCE_CLASSES PREDIC"),
        (
            "truth.npy turned.npy",
            "shape (10, 12, 6); they must be the same: are the axes in reverse order (x, y, z)?\n",
        ),
        (
            "kinds.tif found.tif --instances none --classes kinds.tif found.tif",
            "--classes holds the classes of ids, but",
        ),
        ("truth.npy instances.npy --class-names 1=a", "--class-names needs classes: pass --classes REFERENCE_CLASSES"),
        ("kinds.tif found.tif --instances none --class-names 1=a 1=b", "--class-names has class 1 twice, as a and b"),
        ("kinds.tif found.tif --instances none --class-names 1=a 2=a", "--class-names calls two classes a"),
        ("kinds.tif found.tif --instances none --class-names no.csv", "cannot read no.csv: No such file"),
        ("kinds.tif found.tif --instances none --class-names half.csv", "half.csv, line 1: a class and its name are"),
        ("kinds.tif found.tif --instances none --class-names blank.csv", "--class-names: no class is in blank.csv"),
        ("kinds.tif found.tif --instances none --class-names pairs.csv", "needed are class, name"),
        ("truth.npy instances.npy --scores half.csv", "half.csv, line 1: an id and a score are needed, such as 3,0.9"),
        ("truth.npy instances.npy --scores pairs.csv", "pairs.csv has columns id_a, id_b; needed are id, score"),
        ("truth.npy instances.npy -o no/out.csv", "no does not exist; make it with: mkdir -p"),
        ("truth.npy instances.npy -o truth.npy --overwrite", "cannot write truth.npy: what --output writes is text"),
        ("truth.npy instances.npy --scores half.csv -o half.csv --overwrite", "half.csv is also an input"),
        (
            "truth.npy instances.npy -o o.xlsx",
            "cannot write o.xlsx: what --output writes is text; its name may end in .txt",
        ),
        (
            "truth.npy instances.npy --errors e.json",
            "cannot write e.json: what --errors writes is text; its name may end",
        ),
        (
            "truth.npy instances.npy --pairs p.xls",
            "cannot write p.xls: what --pairs writes is text; its name may end in",
        ),
        ("truth.npy instances.npy -o a.csv --errors ./a.csv", "./a.csv and a.csv would be one new file"),
        ("truth.npy instances.npy --fail-under dise=1", "--fail-under dise=1: dise is no metric; did you mean dice?"),
        ("truth.npy instances.npy --fail-under PQ=1", "--fail-under PQ=1: PQ is no metric; did you mean pq?"),
        ("truth.npy instances.npy --fail-under pqq=1", "pqq is no metric; did you mean pq?"),
        ("truth.npy instances.npy --fail-under F1@0.75=1", "F1@0.75 is no metric; did you mean f1?"),
        ("truth.npy instances.npy --fail-under dice@0.75=1", "dice@0.75 is no metric; did you mean dice?"),
        ("truth.npy instances.npy --fail-over VOI-split=1", "VOI-split is no metric; did you mean voi_split?"),
        (
            "truth.npy instances.npy --fail-under pq=80",
            "--fail-under pq=80: pq is always at most 1; did you mean pq=0.8?",
        ),
        ("truth.npy instances.npy --iou 0.5,0.7 --fail-under pq@0.7=75", "at most 1; did you mean pq@0.7=0.75?"),
        ("truth.npy instances.npy --fail-under dice=-0.1", "dice is always at least 0\n"),
        ("truth.npy instances.npy --fail-under conformity=1.5", "conformity is always at most 1"),
        ("truth.npy instances.npy --fail-over fp=-1", "fp is always at least 0\n"),
        ("truth.npy instances.npy --fail-over arand=500", "arand is always at most 1\n"),
        ("truth.npy instances.npy --fail-under mito:pq=0.5", "mito:pq=0.5: there are no classes; pass --classes REFER"),
        (
            "kinds.tif found.tif --instances components --class-names 1=mito 3=er --fail-under aa:pq=0.3",
            "--fail-under aa:pq=0.3: there is no class aa; there are mito, er",
        ),
        (
            "kinds.tif found.tif --instances none --class-names 1=mito 3=er --fail-under ER:dice=0.3",
            "--fail-under ER:dice=0.3: there is no class ER; did you mean er?",
        ),
        ("truth.npy instances.npy --fail-under quality=1", "quality is no metric; there are accuracy, precision"),
        ("truth.npy instances.npy --fail-under voi=1", "of voi, less is better; pass --fail-over voi=1"),
        ("truth.npy instances.npy --fail-under fp@0.5=1", "of fp, less is better; pass --fail-over fp@0.5=1"),
        ("truth.npy instances.npy --fail-over er:pq=1", "of pq, more is better; pass --fail-under er:pq=1"),
        ("truth.npy instances.npy --fail-under pq@0.75=1", "pq@0.75 is not measured; pass --iou 0.5 0.75"),
        ("truth.npy instances.npy --fail-over hd95=1", "hd95 is not measured; pass --surfaces"),
        ("truth.npy instances.npy --fail-over warping_error=1", "pass --warping 2d or --warping 3d"),
        (
            "truth.npy instances.npy --fail-under map_small=1",
            "map_small is not measured; pass --size-strata SMALL LARGE",
        ),
        (
            "truth.npy instances.npy --instances none --fail-under pq=1",
            "pq is not measured; pass --instances components",
        ),
        ("truth.npy instances.npy --instances none --fail-over hd95=1", "pass --instances components"),
        ("truth.npy instances.npy --instances none --fail-under pq@0.7=1", "pq@0.7 is not measured; pass --instances"),
        ("truth.npy instances.npy --instances none --fail-under pk=1", "pk is no metric; there are accuracy"),
        ("truth.npy instances.npy --instances none --fail-over warping_error=1", "pass --warping 2d or --warping 3d"),
    ],
)
def test_bad_input_before_any_work(files, words, message, capsys, monkeypatch):
    np.save("small.npy", np.zeros((2, 3, 4), "uint8"))
    np.save("turned.npy", np.zeros((10, 12, 6), "uint8"))
    Path("half.csv").write_text("3\n")
    Path("blank.csv").write_text("class,name\n\n")
    Path("pairs.csv").write_text("id_a,id_b\n3,4\n")
    assert_refused_unread(["evaluate", *words.split()], message, files, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("truth.npy float.npy", "float.npy holds float32; a prediction must be bool or integers"),
        ("float.npy truth.npy", "float.npy holds float32; a reference must be bool or integers"),
        ("truth.npy instances.npy --ignore float.npy", "a mask of what is ignored must be bool or integers"),
        ("truth.npy instances.npy --classes float.npy found.tif", "float.npy holds float32; a class map must be"),
    ],
)
def test_images_are_no_labels(files, words, message, capsys):
    np.save("float.npy", np.full((6, 12, 10), 0.5, "float32"))
    assert cli.main(["evaluate", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("truth.npy instances.npy --scores some.csv", "--scores has none for 2 id(s) of PREDICTION: 20, 300; add them"),
        ("truth.npy instances.npy --scores twice.csv", "--scores has more than one score for 1 id(s): 11"),
        ("truth.npy instances.npy --scores nan.csv", "--scores has nan for the id 11; finite scores"),
        (
            "truth.npy instances.npy --classes mixed.npy found.tif",
            "1 id(s) of REFERENCE lie on more than one class: 1; id 1 is on 1 and 3. Split them, or give each one "
            "class in REFERENCE_CLASSES\n",
        ),
        (
            "truth.npy instances.npy --classes kinds.tif holes.npy",
            "1 id(s) of PREDICTION have class 0 in PREDICTION_CLASSES: 300; give them a class",
        ),
        (
            "negative.npy instances.npy",
            "REFERENCE holds negative ids, the smallest is -5; if it marks voxels that do not count, pass --ignore -5;",
        ),
        ("truth.npy negative.npy", "PREDICTION holds negative ids, the smallest is -5; 0 is"),
        ("truth.npy huge.npy", "PREDICTION holds ids up to"),
    ],
)
def test_bad_values_in_terms_of_options(files, words, message, capsys):
    reference, prediction = two_sides()
    Path("some.csv").write_text("11,1\n12,1\n14,1\n")
    Path("twice.csv").write_text("11,1\n11,0.5\n")
    Path("nan.csv").write_text("11,nan\n")
    mixed, holes = two_class_maps()
    mixed[0][reference[0] == 1] = 3
    holes[prediction == 300] = 0
    np.save("mixed.npy", mixed)
    np.save("holes.npy", holes)
    np.save("negative.npy", -reference.astype("int8"))
    np.save("huge.npy", prediction.astype("uint64") << np.uint64(60))
    before = names(files)
    evaluate(*words.split(), "-o", "out.json", "--errors", "errors.csv", code=2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpa3d: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not re.search(r"classes\[|scores=|class_names|instances=|\{id", said.err)
    assert names(files) == before


def test_a_command_that_is_almost_right(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", "truth.npy"])
    assert stop.value.code == 2
    assert "invalid choice: 'eval'; did you mean evaluate? (choose from" in capsys.readouterr().err


def test_bad_input_in_a_process(files):
    assert_refused(run("evaluate", "truth.npy", "kinds.tif", "--fail-under", "voi=1"), "less is better")


def test_files_that_lie_elsewhere_are_warned_about(files, capsys):
    reference, prediction = two_sides()
    io.write("a.tif", reference, spacing=SPACING, unit="nm")
    io.write("b.tif", prediction, spacing=(40, 9, 8), unit="nm")
    evaluate("a.tif", "b.tif", "--ignore", "b.tif")
    text = "lpa3d: warning: a.tif has spacing 40 8 8 but b.tif 40 9 8; voxels are matched by index\n"
    assert capsys.readouterr().err == 2 * text


def test_interruption_leaves_nothing(files):
    stuck = """
import time, lpa3d
def evaluate(*args, **keywords):
    print("half", flush=True)
    time.sleep(600)
lpa3d.evaluate = evaluate
"""
    before = names(files)
    words = ["evaluate", "truth.npy", "instances.npy", "-o", "out.json", "--errors", "errors.csv"]
    assert interrupted(stuck, words, signal.SIGINT) == (130, "lpa3d: interrupted\n")
    assert names(files) == before


def test_failed_write_leaves_nothing(files, monkeypatch, capsys):
    written = Path.write_text

    def full(path, text, **keywords):
        written(path, text, **keywords)
        if text.startswith("kind,"):
            raise OSError(28, "No space left on device")
        return len(text)

    monkeypatch.setattr(Path, "write_text", full)
    before = names(files)
    evaluate("truth.npy", "instances.npy", "-o", "out.json", "--errors", "errors.csv", code=1)
    assert capsys.readouterr().err == "lpa3d: error: cannot write errors.csv: No space left on device\n"
    assert names(files) == before


def test_finite_everywhere():
    """What the tests above compare as equal holds no NaN, which is equal to nothing."""
    e = lpa3d.evaluate(*two_sides(), classes=two_class_maps())
    assert all(math.isfinite(value) for one in (e, *e.per_class.values()) for value in one.values())
