"""What docs/metrics.md states in figures, computed anew."""

import re
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from lpa3d.evaluation.conventions import CONVENTIONS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def page():
    if not PAGE.is_file():
        pytest.skip("docs/ is not part of this installation")
    return PAGE.read_text(encoding="utf-8")


def read_table(page, first_cell):
    """Return the cells of the table whose header begins with `first_cell`, backticks removed."""
    lines = page[re.search(rf"^\| *{re.escape(first_cell)} *\|", page, re.MULTILINE).start() :].split("\n")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_every_metric_and_convention_is_explained(page):
    e = lpa3d.evaluate(np.ones((2, 2), int), np.ones((2, 2), int), surfaces=True, warping="2d")
    assert [key for key in e if f"`{key}`" not in page] == []
    for name in CONVENTIONS:
        assert re.search(rf'[`"]{name}[`"]', page), name
        assert f'"{name}"' in lpa3d.evaluate.__doc__


def test_partition_example(page):
    match = re.search(r"Reference `([\d ]+)`, prediction `([\d ]+)`", page)
    sides = [np.array([list(map(int, match[k].split()))]) for k in (1, 2)]
    header, *rows = read_table(page[match.start() :], "Key")
    assert len(header) == 9
    for convention, *column in zip(header[1:], *[row[1:] for row in rows], strict=True):
        e = lpa3d.evaluate(*sides, convention=convention)
        assert [f"{e[row[0]]:.3f}" for row in rows] == column


def test_instance_example(page):
    sides = []
    for name in ("reference", "prediction"):
        match = re.search(rf"^    {name} +([\d ]+?)(?:  +scores ([\d. ]+))?$", page, re.MULTILINE)
        sides.append(np.array([list(map(int, match[1].split()))]))
    scores = dict(enumerate(map(float, match[2].split()), 1))
    at = page.index("### One example, four answers")
    header, *rows = read_table(page[at:], "convention")
    assert header == ["convention", "tp, fp, fn", "pq", "f1", "ap50", "map"]
    for names, counts, *values in rows:
        for name in re.findall(r'"(\w+)"', names):
            e = lpa3d.evaluate(*sides, convention=name, scores=scores)
            assert counts == f"{e['tp']}, {e['fp']}, {e['fn']}"
            for key, value in zip(header[2:], values, strict=True):
                assert e[key] == pytest.approx(float(value), abs=5e-5), (name, key)


def test_aggregated_example():
    e = lpa3d.evaluate(np.array([[1, 1, 1, 1, 2, 2, 3, 3]]), np.array([[1, 1, 1, 1, 1, 1, 0, 0]]))
    assert e["aji"] == pytest.approx(6 / 14)
    assert e["aji_plus"] == 0.4
