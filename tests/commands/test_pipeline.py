"""The command ``lpa3d pipeline``: it does what the verbs do by hand, and finds the mistakes in its file early."""

import inspect
import json
import re
import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io, phantom
from lpa3d.commands import pipeline_file as _pipeline
from lpa3d.files.writers import WRITERS
from lpa3d.propagation import rules
from lpa3d.verbs.dispatch import OPTIONS
from tests.commands.test_stitch import BAD, DEPTH, class_map, expert, sections
from tests.test_cli import assert_refused, assert_refused_unread, interrupted, names, run

SPACING = (40.0, 8.0, 8.0)


def truth() -> np.ndarray:
    """Both bars and the fork."""
    ids = np.zeros((DEPTH, 12, 14), "uint8")
    ids[:, 1:4, 1:9], ids[:, 5:8, 1:9], ids[:, 9:12, 1:12] = 1, 2, 3
    return ids


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with volumes of all kinds."""
    monkeypatch.chdir(tmp_path)
    arrays = {"slices": sections(), "classes": class_map(), "expert": expert(), "truth": truth()}
    arrays["labels"] = lpa3d.stitch(sections(), bad_slices=[BAD])
    for name, array in arrays.items():
        io.write(f"{name}.tif", array, spacing=SPACING, unit="nm")
    return tmp_path


def pipeline(text: str, *options: str, code: int = 0) -> None:
    Path("config.toml").write_text(text)
    assert cli.main(["pipeline", "config.toml", *options]) == code


ALL = """
[inputs]
slices = "slices.tif"
classes = "classes.tif"
instances = "expert.tif"
reference = "truth.tif"
[stitch]
bad_slices = [2]
classes = false
[fuse]
complete_slices = "4"
[propagate]
unseeded = "label"
sweeps = 2
[merge]
min_contact = 0.2
[evaluate]
iou_thresholds = [0.5, 0.75]
[outputs]
stitched = "out_stitched.npy"
volume = "out_volume.npy"
seeds = "out_seeds.zarr"
provenance = "out_provenance.npy"
conflicts = "out_conflicts.csv"
confidence = "out_confidence.npy"
labels = "out_labels.tif"
errors = "out_errors.csv"
pairs = "out_pairs.csv"
report = "out_report.json"
"""


# --------------------------------------------------------------------------------------------------------- the results


def test_it_is_the_verbs_by_hand(files, capsys):
    pipeline(ALL)
    stitched = lpa3d.stitch(sections(), bad_slices=[2])
    fused = lpa3d.fuse(classes=class_map(), instances=expert(), slices=stitched, complete_slices=[4])
    labels, confidence = lpa3d.propagate(
        fused.volume, fused.seeds, spacing=SPACING, unseeded="label", sweeps=2, return_confidence=True
    )
    merged = lpa3d.merge(labels, classes=fused.volume, spacing=SPACING, min_contact=0.2)
    result = lpa3d.evaluate(truth(), merged, spacing=SPACING, iou_thresholds=[0.5, 0.75])
    expected = {
        "stitched.npy": stitched,
        "volume.npy": fused.volume,
        "seeds.zarr": fused.seeds,
        "provenance.npy": fused.provenance,
        "confidence.npy": confidence,
        "labels.tif": merged,
    }
    for name, array in expected.items():
        found = io.read(f"out_{name}")
        np.testing.assert_array_equal(found, array, err_msg=name)
        assert found.dtype == array.dtype
    with io.open_volume("out_labels.tif") as out:
        assert out.geometry.spacing == SPACING
    said = capsys.readouterr()
    assert said.out.startswith(repr(result) + "\n\n")
    for step in _pipeline.STEPS:
        assert len(re.findall(rf"^lpa3d: {step}: .*; \d+\.\d s$", said.err, re.MULTILINE)) == 1
    assert re.search(r"^lpa3d: stitch: 22 sections on 6 of 8 slices \(1 empty, 1 bad\) became ", said.err, re.MULTILINE)
    assert "read in " in said.err.splitlines()[-1]

    report = json.loads(Path("out_report.json").read_text())
    assert list(report) == ["config", "versions", "inputs", "spacing", "unit", "steps", "outputs"]
    assert report["versions"]["lpa3d"] == lpa3d.__version__
    assert report["inputs"]["slices"] == {"file": "slices.tif", "shape": [DEPTH, 12, 14], "dtype": "uint16"}
    assert [step["step"] for step in report["steps"]] == list(_pipeline.STEPS)
    steps = {step["step"]: step for step in report["steps"]}
    assert steps["stitch"]["parameters"]["bad_slices"] == [2]
    assert steps["stitch"]["parameters"]["max_gap"] == 5
    assert steps["propagate"]["parameters"]["unseeded"] == "label"
    assert steps["stitch"]["counts"]["objects"] == int(stitched.max())
    counts = steps["fuse"]["counts"]
    assert sum(counts["provenance"].values()) == stitched.size
    assert counts["provenance"]["complete"] == np.count_nonzero(fused.provenance == lpa3d.Provenance.COMPLETE)
    assert sum(one["voxels"] for one in counts["conflicts"].values()) == fused.conflicts.voxels.sum()
    assert steps["propagate"]["counts"] == {
        "seeds": len(np.unique(fused.seeds)) - 1,
        "seed_voxels": int(np.count_nonzero(fused.seeds)),
        "objects": len(np.unique(labels)) - 1,
        "labelled_voxels": int(np.count_nonzero(labels)),
        "unlabelled_foreground_voxels": 0,
    }
    assert steps["merge"]["counts"] == {"fragments": len(np.unique(labels)) - 1, "objects": len(np.unique(merged)) - 1}
    assert steps["evaluate"]["counts"] == json.loads(json.dumps(result.to_dict()))


def test_it_is_the_commands_by_hand(files, capsys):
    pipeline(ALL, "-q")
    capsys.readouterr()
    commands = [
        "stitch slices.tif stitched.tif --bad-slices 2",
        "fuse --classes classes.tif --instances expert.tif --slices stitched.tif --complete-slices 4 --volume v.tif "
        "--seeds s.tif --conflicts conflicts.csv",
        "propagate v.tif s.tif p.tif --unseeded label --sweeps 2",
        "merge p.tif by_hand.tif --classes v.tif --min-contact 0.2",
        "evaluate truth.tif by_hand.tif --iou 0.5 0.75 --errors errors.csv --pairs pairs.csv",
    ]
    for command in commands:
        assert cli.main([*command.split(), "-q"]) == 0
    np.testing.assert_array_equal(io.read("out_labels.tif"), io.read("by_hand.tif"))
    for table in ("conflicts", "errors", "pairs"):
        assert Path(f"out_{table}.csv").read_text() == Path(f"{table}.csv").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('slices = "slices.tif"\n[stitch]', lambda: lpa3d.stitch(sections())),
        (
            'slices = "slices.tif"\nclasses = "classes.tif"\n[stitch]\nbad_slices = "2"\naxis = "z"',
            lambda: lpa3d.stitch(sections(), classes=class_map(), bad_slices=[2]),
        ),
        (
            'instances = "expert.tif"\nclasses = "classes.tif"\n[propagate]',
            lambda: lpa3d.propagate(class_map(), expert() * (class_map() > 0), spacing=SPACING),
        ),
        (
            'slices = "labels.tif"\n[merge]\nmin_contact = 0.1',
            lambda: lpa3d.merge(lpa3d.stitch(sections(), bad_slices=[BAD]), spacing=SPACING, min_contact=0.1),
        ),
        (
            'instances = "expert.tif"\n[fuse]\naxis = 2\ncomplete_slices = [1, 12]',
            lambda: lpa3d.fuse(instances=expert(), axis=2, complete_slices=[1, 12]).seeds,
        ),
        (
            'classes = "classes.tif"\n[fuse]\n[propagate]\nunseeded = "label"',
            lambda: lpa3d.propagate(class_map(), np.zeros(truth().shape, "uint8"), spacing=SPACING, unseeded="label"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")
def test_parts_of_the_chain(files, text, expected):
    pipeline(f'[inputs]\n{text}\n[outputs]\nlabels = "out.npy"', "-q")
    np.testing.assert_array_equal(io.read("out.npy"), expected())


def test_evaluate_alone(files, capsys):
    pipeline('[inputs]\ninstances = "labels.tif"\nreference = "truth.tif"\n[evaluate]\nshow_errors = 0', "-q")
    result = lpa3d.evaluate(truth(), io.read("labels.tif"), spacing=SPACING)
    assert capsys.readouterr() == (repr(result) + "\n", "")


def test_classes_of_the_evaluation(files, capsys):
    text = """
    [inputs]
    instances = "truth.tif"
    classes = "classes.tif"
    reference = "truth.tif"
    reference_classes = "classes.tif"
    [evaluate]
    class_names = {1 = "bar", 2 = "rest"}
    ignore = "expert.tif"
    per_class = true
    fail_under = ["bar:pq=0.9"]
    """
    pipeline(text, "-q")
    result = lpa3d.evaluate(
        truth(),
        truth(),
        spacing=SPACING,
        classes=(class_map(),) * 2,
        class_names={1: "bar", 2: "rest"},
        ignore=expert(),
    )
    assert capsys.readouterr().out.startswith(result.to_text(per_class=True))
    pipeline(text.replace('"expert.tif"', "3").replace("bar:pq", "bear:pq"), code=2)
    assert "config.toml: [evaluate] fail_under bear:pq=0.9: there is no class bear; did you mean bar?" in (
        capsys.readouterr().err
    )


def test_tables_of_links_and_classes(files, monkeypatch):
    seen = {}
    for step in ("stitch", "fuse", "merge"):
        verb = getattr(lpa3d, step)

        def spy(*args, step=step, verb=verb, **keywords):
            seen[step] = keywords
            kept = {key: keywords[key] for key in ("classes", "instances", "slices") if step == "fuse"}
            return verb(*args, **kept)

        monkeypatch.setattr(lpa3d, step, spy)
    Path("sections.csv").write_text("0,10,1,11\n")
    Path("kinds.csv").write_text("id,class\n7,2\n")
    Path("pairs.csv").write_text("id_a,id_b\n3,7\n")
    Path("scores.csv").write_text("1,2,0.25\n")
    pipeline(
        """
        [inputs]
        slices = "slices.tif"
        instances = "expert.tif"
        classes = "classes.tif"
        [stitch]
        classes = false
        axis = "x"
        must_link = "sections.csv"
        cannot_link = [[[3, 31], [3, 32]]]
        [fuse]
        instance_classes = "kinds.csv"
        slice_classes = {1 = 2}
        priority = ["classes", "slices", "instances"]
        [merge]
        scores = "scores.csv"
        must_link = "pairs.csv"
        cannot_link = [[1, 2]]
        [outputs]
        labels = "out.npy"
        """,
        "-q",
    )
    assert seen["stitch"] == {
        "classes": None,
        "axis": 2,
        "must_link": [((0, 10), (1, 11))],
        "cannot_link": [((3, 31), (3, 32))],
    }
    assert {key: value for key, value in seen["fuse"].items() if not isinstance(value, np.ndarray)} == {
        "axis": 2,
        "instance_classes": {7: 2},
        "slice_classes": {1: 2},
        "priority": ("classes", "slices", "instances"),
    }
    del seen["merge"]["classes"]
    assert seen["merge"] == {
        "spacing": SPACING,
        "scores": [(1, 2, 0.25)],
        "must_link": [(3, 7)],
        "cannot_link": [(1, 2)],
    }


def test_cost_and_spacing(files):
    cost = np.random.default_rng(0).random((DEPTH, 12, 14)).astype("float32") * 9
    np.save("cost.npy", cost)
    text = '[inputs]\ninstances = "labels.tif"\nclasses = "classes.tif"\ncost = "cost.npy"\nspacing = [3, 1, 2.5]\n'
    pipeline(f'{text}[propagate]\nslice_axis = "none"\n[outputs]\nlabels = "out.tif"\nreport = "out.json"', "-q")
    expected = lpa3d.propagate(class_map(), io.read("labels.tif"), cost=cost, spacing=(3, 1, 2.5), slice_axis=None)
    np.testing.assert_array_equal(io.read("out.tif"), expected)
    with io.open_volume("out.tif") as out:
        assert out.geometry.spacing == (3, 1, 2.5)
    assert json.loads(Path("out.json").read_text())["spacing"] == [3, 1, 2.5]


def test_files_are_relative_to_the_configuration(files, monkeypatch):
    Path("config.toml").write_text('[inputs]\nslices = "slices.tif"\n[stitch]\n[outputs]\nlabels = "out.npy"')
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert cli.main(["pipeline", "../config.toml", "-q"]) == 0
    np.testing.assert_array_equal(io.read("../out.npy"), lpa3d.stitch(sections()))
    text = Path("../config.toml").read_text().replace("slices.tif", str(files / "slices.tif"))
    Path("here.toml").write_text(text)
    assert cli.main(["pipeline", "here.toml", "-q"]) == 0
    np.testing.assert_array_equal(io.read("out.npy"), lpa3d.stitch(sections()))


def test_two_dimensions(files):
    io.write("flat.npy", sections()[0])
    io.write("flat_classes.npy", np.minimum(sections()[0], 1))
    pipeline(
        '[inputs]\nslices = "flat.npy"\nclasses = "flat_classes.npy"\n[stitch]\n[fuse]\n[propagate]\n[merge]\n'
        '[outputs]\nlabels = "out.npy"',
        "-q",
    )
    assert io.read("out.npy").shape == (12, 14)


# --------------------------------------------------------------------------------------------------------- the example


def example(capsys) -> str:
    assert cli.main(["pipeline", "--example"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_the_example_runs_on_the_phantom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = example(capsys)
    header = text[: text.index("[inputs]")]
    exec("\n".join(line[6:] for line in header.splitlines() if line.startswith("#     ")), {})
    pipeline(text)
    said = capsys.readouterr()
    cell = phantom.cell((64, 96, 96))
    labels = io.read("labels.zarr")
    result = lpa3d.evaluate(cell.instances, labels, spacing=cell.spacing)
    assert said.out.startswith(repr(result))
    assert "stitch: 623 sections on 58 of 64 slices (6 empty) became " in said.err
    slices = io.read("slices.zarr")
    stitched = lpa3d.stitch(slices, classes=cell.classes)
    fused = lpa3d.fuse(classes=cell.classes, instances=io.read("expert.zarr"), slices=stitched, complete_slices=[0, 32])
    propagated = lpa3d.propagate(fused.volume, fused.seeds, spacing=cell.spacing)
    np.testing.assert_array_equal(labels, lpa3d.merge(propagated, classes=fused.volume, spacing=cell.spacing))
    assert sorted(json.loads(Path("report.json").read_text())["outputs"]) == ["conflicts", "labels", "report"]


def uncomment(text: str) -> str:
    """Return the example with the lines that show defaults switched on."""
    return re.sub(r"^# (?=\w+ = )", "", text[text.index("[inputs]") :], flags=re.MULTILINE)


def test_the_example_has_all_keys(capsys):
    shown = tomllib.loads(uncomment(example(capsys)))
    assert {section: set(keys) for section, keys in shown.items()} == {
        section: set(keys) for section, keys in _pipeline.SECTIONS.items()
    }


# Shown with a value although the default is that there is none.
SHOWN = {
    "instance_classes",
    "slice_classes",
    "max_distance",
    "sweeps",
    "scores",
    "class_names",
    "ignore",
    "size_strata",
}
SHOWN |= {"warping"}


def test_the_example_shows_the_defaults(tmp_path, capsys):
    text = example(capsys)
    set_in_example = {section: set(keys) for section, keys in tomllib.loads(text).items()}
    shown = tomllib.loads(uncomment(text))
    for step, keys in _pipeline.STEPS.items():
        defaults = {name: one.default for name, one in inspect.signature(getattr(lpa3d, step)).parameters.items()}
        defaults |= {"per_class": False, "show_errors": 5, "fail_under": [], "fail_over": [], "classes": True}
        for key, value in shown[step].items():
            if key not in SHOWN | set_in_example[step]:
                parsed = keys[key].parse(value)
                parsed = parsed[0] if key == "iou_thresholds" else parsed
                same = tuple(parsed) if isinstance(parsed, list) and defaults[key] == () else parsed
                same = tuple(same) if key == "priority" else same
                assert same == defaults[key], (step, key)


# --------------------------------------------------------------------------------------------------- keys and the verbs


EXTRA = {
    "stitch": {"classes"},
    "merge": {"classes"},
    "evaluate": {"per_class", "show_errors", "fail_under", "fail_over"},
}
ELSEWHERE = {
    "stitch": {"classes", "out"},
    "fuse": {"classes", "instances", "slices", "out"},
    "propagate": {"spacing", "cost", "return_confidence", "out"},
    "merge": {"classes", "spacing", "out"},
    # Labels are ids, numbered anew by each run: nobody can have scores for them.
    "evaluate": {"spacing", "classes", "instances", "scores"},
}


@pytest.mark.parametrize("step", _pipeline.STEPS)
def test_keys_are_the_keywords_of_the_verb(step):
    keywords = {
        name for name, one in inspect.signature(getattr(lpa3d, step)).parameters.items() if one.kind is one.KEYWORD_ONLY
    }
    # A pipeline holds its volumes in memory.
    keywords -= set(OPTIONS)
    assert ELSEWHERE[step] <= keywords
    assert set(_pipeline.STEPS[step]) == keywords - ELSEWHERE[step] | EXTRA.get(step, set())


def test_limits_of_values_are_those_of_the_verbs():
    parse = _pipeline.STEPS["propagate"]["sweeps"].parse
    assert parse(rules.MOST_SWEEPS) == rules.MOST_SWEEPS
    with pytest.raises(_pipeline.MISTAKES):
        parse(rules.MOST_SWEEPS + 1)
    for key, value in (("unseeded", "label"), ("seed_conflicts", "majority"), ("slice_axis", "y")):
        assert _pipeline.STEPS["propagate"][key].parse(value) in (value, 1)


VALUES = [
    "none",
    6.0,
    True,
    False,
    -1,
    0,
    1,
    3,
    6,
    26,
    0.5,
    2.5,
    "auto",
    "drop",
    "majority",
    "z",
    "isbi",
    "2d",
    [],
    [1, 2],
    [0.5, 0.5],
    {"1": 1},
    {"1": "axon"},
    ["slices", "instances"],
]


@pytest.mark.parametrize(
    ("step", "key"),
    [(step, key) for step, keys in _pipeline.STEPS.items() for key in keys if key not in EXTRA.get(step, ())],
)
@pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")
def test_what_is_let_through_is_a_value_for_the_verb(step, key):
    """No verb refuses in its middle of the chain what the configuration could have refused, where slices exist."""
    volume = np.ones((4, 5, 6), "uint8")
    arguments = {"stitch": [volume], "fuse": [], "propagate": [volume, volume], "merge": [volume]}
    verb, arguments = getattr(lpa3d, step), arguments.get(step, [volume, volume])
    taken = []
    for value in VALUES:
        try:
            parsed = _pipeline.STEPS[step][key].parse(value)
            if key == "priority":
                parsed = _pipeline.check_priority(parsed, ["instances", "slices"])
        except _pipeline.MISTAKES:
            continue
        if isinstance(parsed, _pipeline.File) or (key.endswith("_link") and parsed):
            continue
        keywords = {key: parsed}
        if step == "fuse":
            keywords |= {"instances": volume, "slices": volume}
        if key == "class_names":
            keywords["classes"] = volume, volume
        if key == "min_contact" and not 0 <= (parsed or 0) <= 1:
            keywords["scores"] = {}
        verb(*arguments, **keywords)
        taken.append(value)
    assert len(taken) < len(VALUES), "a key that takes anything"
    # Scores are in a file; whatever is in it is a test of its own.
    assert taken or key == "scores"


# ------------------------------------------------------------------------------------------------------------ mistakes

START = '[inputs]\nslices = "slices.tif"\nclasses = "classes.tif"\ninstances = "expert.tif"\nreference = "truth.tif"\n'
FEW = START.replace('reference = "truth.tif"\n', "")
END = '[outputs]\nlabels = "out.npy"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[inputs\n", "config.toml is no TOML file: "),
        ("", "config.toml: no step is switched on; add a section: [stitch], [fuse]"),
        (f"{FEW}[stich]\n{END}", "config.toml has a section [stich], which is not known; did you mean stitch?"),
        (f"max_gap = 3\n{FEW}", "config.toml has max_gap outside of all sections, which is not known; there are"),
        (f"max_gap = 3\n{FEW}", "it belongs below [stitch]"),
        ("stitch = true\n", "config.toml: stitch is a value, but a section is needed: [stitch]"),
        (
            f"{FEW}[stitch]\nmax_gaps = 3\n{END}",
            "[stitch] has a key max_gaps, which is not known; did you mean max_gap?",
        ),
        (f"{FEW}[stitch]\nunseeded = 'label'\n{END}", "not known; it belongs below [propagate]"),
        (f"{FEW}[fuse]\nout = 'x'\n{END}", "[fuse] has a key out, which is not known; there are priority,"),
        (
            f"{FEW}[stitch]\nmax_gap = 0\n{END}",
            "[stitch] max_gap is 0; a whole number of slices, at least 1, is needed",
        ),
        (f"{FEW}[stitch]\nmax_gap = true\n{END}", "[stitch] max_gap is True; a whole number"),
        (f"{FEW}[stitch]\nbranching = 1\n{END}", "[stitch] branching is 1; true or false is needed"),
        (f"{FEW}[stitch]\naxis = 'w'\n{END}", '[stitch] axis is \'w\'; "z", "y" or "x" (or 0, 1, 2) is needed'),
        (f"{FEW}[stitch]\nbad_slices = '9-3'\n{END}", "[stitch] bad_slices is '9-3'; a list of slices such as"),
        (f"{FEW}[fuse]\n[stitch]\nbad_slices = [8]\n{END}", "[stitch] bad_slices holds 8; slices across z are 0 to 7"),
        (
            f"{FEW}[stitch]\nmust_link = [[1, 2]]\n{END}",
            "[stitch] must_link is [[1, 2]]; a list of pairs of sections",
        ),
        (f"{FEW}[fuse]\n[stitch]\nmust_link = 'none.csv'\n{END}", "config.toml: cannot read none.csv: No such file"),
        (
            f"{FEW}[fuse]\npriority = ['slice']\n{END}",
            "[fuse] priority names slice, which is no source; did you mean",
        ),
        (f"{FEW}[fuse]\npriority = ['slices']\n{END}", "[fuse] priority is slices, without classes"),
        (f"{FEW}[fuse]\ncomplete_slices = [-1]\n{END}", "[fuse] complete_slices is [-1]; a list of slices"),
        (f"{FEW}[fuse]\ncomplete_slices = [8]\n{END}", "[fuse] complete_slices holds 8; slices across z are 0 to 7"),
        (f"{FEW}[fuse]\ninstance_classes = {{a = 1}}\n{END}", "[fuse] instance_classes is {'a': 1}; a table of ids"),
        (
            f"{FEW}[fuse]\n[propagate]\nunseeded = 'lable'\n{END}",
            'unseeded is \'lable\'; "drop" or "label" is needed',
        ),
        (
            f"{FEW}[fuse]\n[propagate]\nmissing_slices = [9]\n{END}",
            "[propagate] missing_slices holds 9; slices across",
        ),
        (
            f"{FEW}[fuse]\n[propagate]\nconnectivity = 7\n{END}",
            "[propagate] connectivity is 7; 6, 18 or 26 is needed",
        ),
        (
            f"{FEW}[fuse]\n[merge]\nmin_contact = 2\n{END}",
            "[merge] min_contact is 2; a share of the surface from 0 to 1",
        ),
        (
            f"{FEW}[fuse]\n[merge]\nmin_contact = nan\n{END}",
            '[merge] min_contact is nan; a number, or "none", is needed',
        ),
        (
            f"{START}[fuse]\n[evaluate]\niou_thresholds = 50\n{END}",
            "iou_thresholds is 50; one or several numbers from 0",
        ),
        (f"{START}[fuse]\n[evaluate]\nfail_under = ['pq']\n{END}", "fail_under is ['pq']; a list of limits such as"),
        (
            f"{START}[fuse]\n[evaluate]\nfail_under = ['voi=1']\n{END}",
            "config.toml: [evaluate] fail_under voi=1: of voi, less is better; pass fail_over voi=1",
        ),
        (
            f"{START}[fuse]\n[evaluate]\nfail_over = ['hd95=9']\n{END}",
            "[evaluate] fail_over hd95=9: hd95 is not measured; pass surfaces",
        ),
        (
            f"{START}[fuse]\n[evaluate]\nper_class = true\n{END}",
            "[evaluate] per_class needs [inputs] reference_classes",
        ),
        (f"[stitch]\n{END}", "[stitch] needs [inputs] slices, ids slice by slice"),
        (f"{FEW}[stitch]\n[propagate]\n{END}", "[inputs] has instances and slices, which [fuse] unites"),
        (f"[inputs]\nclasses = 'classes.tif'\n[propagate]\n{END}", "there are no labels to start from"),
        (f"[inputs]\ninstances = 'expert.tif'\n[propagate]\n{END}", "[propagate] needs a class map"),
        (
            f"[inputs]\ninstances = 'expert.tif'\n[evaluate]\n{END}",
            "[evaluate] needs [inputs] reference, what is right",
        ),
        (f"[fuse]\n{END}", "[fuse] needs at least one of [inputs] classes, instances, slices"),
        (
            f"{START}[fuse]\n{END}",
            "[inputs] reference is for [evaluate], which is not there; add it, or leave reference",
        ),
        (f"{START}cost = 'x.tif'\n[fuse]\n[evaluate]\n", "[inputs] cost is for [propagate], which is not there"),
        (f"{START}[fuse]\n[evaluate]\n{END}stitched = 'a.npy'", "[outputs] stitched is made by [stitch], which is not"),
        (f"{START}[fuse]\n[evaluate]\n{END}report = 'a.npy'", "it is text, whose name must end in .json"),
        (f"{START}[fuse]\n[evaluate]\n{END}volume = 'a.csv'", "'a.csv' has no suffix that is known"),
        (f"{START}[fuse]\n[evaluate]\n{END}volume = 'out.npy'", "out.npy and out.npy would be one new file"),
        (f"{START}[fuse]\n[evaluate]\n{END}volume = 'truth.tif'", "truth.tif is also an input"),
        (
            f"{START}[fuse]\n[evaluate]\n{END}volume = 'labels.tif'",
            "labels.tif exists; pass --overwrite to replace it\n",
        ),
        (f"{START}[fuse]\n[evaluate]\n{END}volume = 'no/v.npy'", "no does not exist; make it with: mkdir -p"),
        (f"{START.replace('slices.tif', 'none.tif')}[fuse]\n[evaluate]\n", "none.tif does not exist"),
        (f"{START.replace('slices.tif', 'small.npy')}[fuse]\n[evaluate]\n", "but classes.tif has shape (8, 12, 14)"),
        (f"{START}spacing = [1, 0, 1]\n[fuse]\n[evaluate]\n", "[inputs] spacing is [1, 0, 1]; three sizes z, y, x"),
        ('[inputs]\nslices = "slices.tif"\n[stitch]\n', "nothing of the result would be kept; add [outputs] labels"),
        (
            f'[inputs]\nslices = "slices.tif"\n[stitch]\nclasses = true\n{END}',
            "[stitch] classes is true, but there is no",
        ),
        (
            f"{START}[stitch]\n[fuse]\nslice_classes = {{7 = 0}}\n[evaluate]\n{END}",
            "config.toml: [fuse] slice_classes gives id 7 the class 0, which is background",
        ),
        (
            f"{START}[stitch]\n[fuse]\nslice_classes = {{7 = 300}}\n[evaluate]\n{END}",
            "[fuse] slice_classes gives id 7 the class 300; classes from 0 to 255 are possible",
        ),
        (
            f'[inputs]\nclasses = "classes.tif"\n[fuse]\ncomplete_slices = [1]\n{END}',
            "[fuse] complete_slices is about labels, but there are none; give [inputs] instances or slices",
        ),
        (
            f"{START}[fuse]\n[evaluate]\n[propagate]\nsweeps = 0\n{END}confidence = 'c.npy'",
            "[outputs] confidence comes from diffusion, but [propagate] sweeps is 0",
        ),
    ],
)
def test_bad_configurations_before_any_work(files, text, message, capsys, monkeypatch):
    np.save("small.npy", np.zeros((2, 3, 4), "uint8"))
    Path("config.toml").write_text(text)
    assert_refused_unread(["pipeline", "config.toml", "-q"], message, files, capsys, monkeypatch)


def test_images_are_no_labels(files, capsys):
    np.save("float.npy", np.full((DEPTH, 12, 14), 0.5, "float32"))
    Path("config.toml").write_text(f"{START.replace('slices.tif', 'float.npy')}[fuse]\n[evaluate]\n")
    assert cli.main(["pipeline", "config.toml", "-q"]) == 2
    assert "float.npy holds float32; slices must be bool" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pipeline", "one of the arguments CONFIG --example is required"),
        ("pipeline config.toml --example", "not allowed with argument"),
        ("pipline config.toml", "did you mean pipeline?"),
    ],
)
def test_usage_errors(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_configuration_that_cannot_be_read(files):
    assert_refused(run("pipeline", "none.toml"), "cannot read none.toml: No such file")
    Path("config.toml").write_bytes(b"[inputs]\nslices = '\xff'\n")
    assert_refused(run("pipeline", "config.toml"), "config.toml is no TOML file: it is not UTF-8 text")


def test_a_configuration_may_begin_with_a_byte_order_mark(files, capsys):
    Path("config.toml").write_text(f"{START}[fuse]\n[evaluate]\n{END}", encoding="utf-8-sig")
    assert cli.main(["pipeline", "config.toml", "--dry-run", "-q"]) == 0


def test_the_configuration_is_not_overwritten(files, capsys):
    text = f'{START}[fuse]\n[evaluate]\n[outputs]\nreport = "config.json"\n'
    Path("config.json").write_text(text)
    assert cli.main(["pipeline", "config.json", "--overwrite"]) == 2
    assert "config.json is also an input" in capsys.readouterr().err
    assert Path("config.json").read_text() == text


def test_errors_of_verbs_name_the_section_and_its_keys(files, capsys):
    pipeline(f'[inputs]\nslices = "slices.tif"\n[stitch]\nmust_link = [[[0, 10], [1, 77]]]\n{END}', code=2)
    assert "lpa3d: error: config.toml: [stitch] must_link names 1 section" in capsys.readouterr().err
    mixed = expert()
    mixed[0, 1, 1] = 7
    io.write("mixed.tif", mixed)
    text = f'[inputs]\nclasses = "classes.tif"\ninstances = "mixed.tif"\n[propagate]\n{END}'
    pipeline(text, code=2)
    assert "config.toml: [propagate] " in (message := capsys.readouterr().err)
    assert "seed_conflicts='majority'" in message
    assert not Path("out.npy").exists()


def test_classes_of_sections_can_be_left_aside(files, capsys):
    text = f'[inputs]\nslices = "slices.tif"\nclasses = "classes.tif"\n[stitch]\nCLASSES\n{END}'
    pipeline(text.replace("CLASSES", ""))
    assert "sections lie on more than one class, and have that of most of their voxels" in capsys.readouterr().err
    pipeline(text.replace("CLASSES", "classes = false"), "-q", "--overwrite")
    assert "more than one class" not in capsys.readouterr().err
    np.testing.assert_array_equal(io.read("out.npy"), lpa3d.stitch(sections()))


# --------------------------------------------------------------------------------------- dry runs, limits, interruption


def test_dry_run(files, monkeypatch, capsys):
    before = sorted([*names(files), "config.toml"])
    monkeypatch.setattr(io.Volume, "read", None)
    for step in _pipeline.STEPS:
        monkeypatch.setattr(lpa3d, step, inspect.unwrap(getattr(lpa3d, step)))
    pipeline(ALL, "--dry-run", "-q")
    said = capsys.readouterr()
    assert said.err == ""
    assert names(files) == before
    lines = said.out.splitlines()
    assert lines[:2] == ["inputs", "  slices            slices.tif, 8 12 14, uint16"]
    assert re.findall(r"^  \d (\w+)", said.out, re.MULTILINE) == list(_pipeline.STEPS)
    assert "  1 stitch          axis=0 max_gap=5 branching=True bad_slices=(2,)" in said.out
    assert "  labels            out_labels.tif" in lines
    Path("out_labels.tif").touch()
    pipeline(ALL, "--dry-run", code=2)


def test_limits(files, capsys):
    text = f"{START}[stitch]\nclasses = false\n[fuse]\n[propagate]\n[evaluate]\nfail_over = ['voi=0.000001']\n{END}"
    pipeline(text, "-q", code=3)
    said = capsys.readouterr()
    assert re.search(r"^lpa3d: config.toml: \[evaluate\] fail_over voi=1?e?-?0?[\d.]+: voi is ", said.err, re.MULTILINE)
    assert Path("out.npy").exists()


def test_outputs_appear_together(files, monkeypatch, capsys):
    writer = WRITERS["npy"]

    def full(target, array, geometry, progress):
        if target.location.name == "out_provenance.npy":
            raise OSError(28, "No space left on device")
        writer(target, array, geometry, progress)

    monkeypatch.setitem(WRITERS, "npy", full)
    before = sorted([*names(files), "config.toml"])
    pipeline(ALL, "-q", code=1)
    assert capsys.readouterr().err == "lpa3d: error: cannot write out_provenance.npy: No space left on device\n"
    assert names(files) == before


def test_outputs_are_replaced_if_asked_for(files, capsys):
    pipeline(ALL, "-q")
    first = Path("out_conflicts.csv").read_bytes()
    pipeline(ALL, "-q", code=2)
    pipeline(ALL, "-q", "--overwrite")
    assert Path("out_conflicts.csv").read_bytes() == first
    assert not list(files.glob(".lpa3d*"))


STUB = "import time, lpa3d\ndef stitch(slices, **_):\n    {}\n    return slices.astype('uint32')\nlpa3d.stitch = stitch"


def test_interruption_leaves_nothing(files):
    Path("config.toml").write_text(ALL)
    before = names(files)
    code = STUB.format("print('half', flush=True); time.sleep(600)")
    assert interrupted(code, ["pipeline", "config.toml", "-q"], signal.SIGINT) == (130, "lpa3d: interrupted\n")
    assert names(files) == before


def test_quiet_in_a_process(files):
    Path("config.toml").write_text(f'[inputs]\nslices = "slices.tif"\n[stitch]\n{END}')
    done = run("pipeline", "config.toml", "-q", code=STUB.format("pass"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(io.read("out.npy"), sections())


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["pipeline", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  lpa3d pipeline --example > cell.toml\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_what_is_opened_without_numba(files):
    """The configuration is checked before the compiler is loaded."""
    code = "import sys, atexit\natexit.register(lambda: print('numba' in sys.modules))"
    Path("config.toml").write_text("[stich]\n")
    assert run("pipeline", "config.toml", code=code).stdout == "False\n"


def test_volumes_that_memory_cannot_hold_are_refused(files, monkeypatch, capsys):
    from lpa3d.tiled.driver import budget

    monkeypatch.setattr(budget, "available_memory", lambda: 10_000)
    Path("config.toml").write_text(ALL)
    message = (
        "config.toml: a pipeline works in memory, and volumes of 8 x 12 x 14 need at least 24.2 kB, where 10.0 kB are "
        "free; run its steps one by one on zarr files, which are worked on tile by tile: lpa3d stitch, lpa3d fuse,"
    )
    assert_refused_unread(["pipeline", "config.toml", "-q"], message, files, capsys, monkeypatch)
