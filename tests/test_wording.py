"""Messages are made of parts, and no text names a parameter of a verb: each front end words it."""

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import lpa3d
from lpa3d import cli
from lpa3d.arrays.text import format_bytes, list_some, parse_memory
from lpa3d.errors import Example, InputError, Keyword

VERBS = ("label", "stitch", "fuse", "propagate", "merge", "contacts", "evaluate", "estimate")
SOURCES = Path(lpa3d.__file__).parent
RAISED = re.compile(r"(Input|InputType|Device|Range|Library|Lpa3d|File|Tile|Scratch)Error|Lpa3dWarning|warn")
CODE = "lpa3d.evaluate(lpa3d.io.read(REFERENCE), lpa3d.io.read(PREDICTION), warping='3d')"
"""An example of code, whose keyword is Python's on the command line, too."""
OWN_WORDS = ("commands/wording.py", "commands/pipeline_file.py")
"""What words parameters as options, and what speaks of the keys of its file."""


def test_parts_read_as_python_and_survive_a_worker():
    error = InputError(Keyword("sweeps"), " is -1; pass ", Keyword("unseeded", "label"), ", not ", Keyword("sweeps"))
    assert str(error) == "sweeps is -1; pass unseeded='label', not sweeps"
    assert error.parameter == "sweeps"
    assert error.word(lambda keyword: keyword.name.upper()) == "SWEEPS is -1; pass UNSEEDED, not SWEEPS"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, str(again)) == (InputError, error.args, str(error))
    assert InputError("nothing").parameter is None
    assert str(Keyword("scratch", Example("FOLDER"))) == "scratch=FOLDER"


@pytest.mark.parametrize(
    ("command", "keyword", "text"),
    [
        ("label", Keyword("volume"), "IN"),
        ("label", Keyword("cost"), "--cost"),
        ("propagate", Keyword("volume"), "VOLUME"),
        ("propagate", Keyword("max_distance"), "--max-distance"),
        ("propagate", Keyword("unseeded", "label"), "--unseeded label"),
        ("propagate", Keyword("slice_axis", None), "--slice-axis none"),
        ("propagate", Keyword("return_confidence"), "--confidence"),
        ("propagate", Keyword("resume", False), "--no-resume"),
        ("propagate", Keyword("resume", "force"), "--force-resume"),
        ("propagate", Keyword("overwrite", True), "--overwrite"),
        ("propagate", Keyword("scratch", Example("FOLDER")), "--scratch FOLDER"),
        ("merge", Keyword("labels"), "IN"),
        ("merge", Keyword("min_contact", 0.5), "--min-contact 0.5"),
        ("fuse", Keyword("slice_classes", {7: 1, 8: 2}), "--slice-classes 7=1 8=2"),
        ("fuse", Keyword("priority", ("slices", "classes")), "--priority slices classes"),
        ("evaluate", Keyword("reference"), "REFERENCE"),
        ("evaluate", Keyword("classes"), "--classes"),
        ("evaluate", Keyword("classes[0]"), "REFERENCE_CLASSES"),
        ("evaluate", Keyword("classes[1]"), "PREDICTION_CLASSES"),
        ("evaluate", Keyword("ignore", -1), "--ignore -1"),
        ("evaluate", Keyword("iou_thresholds", (0.5, 1.0)), "--iou 0.5 1"),
        ("evaluate", Keyword("instances", None), "--instances none"),
        # A file has keys, which are the verbs' keywords; this one is an option of the command itself.
        ("pipeline", Keyword("unseeded", "label"), "unseeded='label'"),
        ("pipeline", Keyword("classes[0]"), "classes[0]"),
        ("pipeline", Keyword("overwrite", True), "--overwrite"),
    ],
)
def test_command_line_words_a_parameter_as_it_is_typed(command, keyword, text):
    needed = {"propagate": 3, "evaluate": 2, "label": 2, "merge": 2, "pipeline": 1}.get(command, 0)
    options = ["--volume", "v", "--seeds", "s"] if command == "fuse" else []
    assert cli._parser([command]).parse_args([command, *"abc"[:needed], *options]).word(keyword) == text


def walk_texts(node):
    """Yield all text below a node but for docstrings and the names and values of keywords."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if not docstring and getattr(getattr(node, "func", None), "id", "") != "Keyword":
        for child in ast.iter_child_nodes(node):
            yield from walk_texts(child)


def test_no_message_names_a_parameter_as_text():
    names = {key for verb in VERBS for key in inspect.signature(getattr(lpa3d, verb)).parameters} - {"args", "keywords"}
    one = "|".join(sorted(names, key=len, reverse=True))
    given = re.compile(rf"(?<![\w.-])({one})=(?!=)")
    long = re.compile(rf"\b({'|'.join(name for name in names if '_' in name)})\b")
    about = re.compile(rf"({one})(\[\d\])? (is|has|holds|names|needs|must|gives) ")
    found, calls = [], 0
    for file in sorted(SOURCES.rglob("*.py")):
        place = file.relative_to(SOURCES).as_posix()
        if place in OWN_WORDS:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = [(node, given.search(node.value)) for node in walk_texts(tree)]
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and RAISED.fullmatch(getattr(call.func, "id", "")):
                calls += 1
                texts += [(node, long.search(node.value)) for part in call.args for node in walk_texts(part)]
                texts += [(node, about.match(node.value)) for part in call.args[:1] for node in walk_texts(part)]
        found += [f"{place}:{node.lineno}: {node.value}" for node, wrong in texts if wrong and CODE not in node.value]
    assert not found
    # The loop sees what it is to see.
    assert given.search("pass unseeded='label'")
    assert long.search("lower max_distance")
    assert about.match("tile is 0; a side is needed")
    assert calls > 250


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (4e9, "4.0 GB"), (1.25e15, "1.2 PB"), (3e18, "3000.0 PB")],
)
def test_bytes_are_shown_and_read_in_the_same_units(size, text):
    assert format_bytes(size) == text
    if size >= 1:
        assert parse_memory(text) == pytest.approx(size, rel=0.05)


def test_lists_say_how_many_more_there_are():
    assert list_some([]) == ""
    assert list_some(range(5)) == "0, 1, 2, 3, 4"
    assert list_some(range(7)) == "0, 1, 2, 3, 4 and 2 more"
    assert list_some("abc", 1, show=str.upper) == "A and 2 more"
