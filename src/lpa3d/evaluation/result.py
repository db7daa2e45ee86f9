"""What `evaluate` returns: metrics by name, for all classes and for each, with the pairs and the errors behind them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.overlap import Overlaps
from ..arrays.tables import Table, to_frame
from .differences import Differences, list_merges, list_missed, list_splits, list_spurious
from .metrics import PARTITION, SEMANTIC

__all__ = ["Evaluation", "Matches"]

GROUPS = {"semantic": SEMANTIC, "partition": PARTITION}
"""What `repr` puts under a heading of its own; all else is about instances."""

SHOWN_CLASSES = 12
"""Classes that `repr` shows."""


@dataclass(frozen=True, eq=False, repr=False)
class Matches(Table):
    """Pairs of a reference and a predicted instance that match one to one, sorted by reference id.

    Attributes
    ----------
    reference, prediction : (n,) int64
        The two ids.
    voxels : (n,) int64
        Voxels that they share.
    iou : (n,) float64
        Intersection over union, without ignored voxels.
    hausdorff, hd95, assd : (n,) float64 or None
        Surface distances in units of `spacing`, if they were asked for.

    See Also
    --------
    evaluate : makes it.
    """

    reference: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    voxels: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    hausdorff: npt.NDArray[np.float64] | None = None
    hd95: npt.NDArray[np.float64] | None = None
    assd: npt.NDArray[np.float64] | None = None

    TITLE = "matched pair"


class Evaluation(Mapping[str, float]):
    """Metrics by name, read-only; `evaluate` makes it.

    Attributes
    ----------
    per_class : Mapping of class to Evaluation
        Empty where there are no classes. The evaluation itself then holds the mean over the classes that are present,
        and the sum of tp, fp and fn.
    present : bool
        Whether the reference or the prediction has a voxel of the class that is not ignored.
    parameters : Mapping
        What it was made with: convention, connectivity, thresholds, and so on.
    pairs : Matches
        The matched pairs of instances at the first IoU threshold, of all classes.
    splits, merges, missed, spurious : Differences
        Which reference objects were cut, which predicted ones join several, which reference objects were not found, and
        which predicted ones are nowhere in the reference; the costliest first, of all classes.

    See Also
    --------
    evaluate : says what every metric means.

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d
    >>> e = lpa3d.evaluate(np.array([[1, 1, 2, 2, 0]]), np.array([[7, 7, 8, 9, 0]]))
    >>> e["pq"], e["tp"], e["fp"], e["fn"]
    (0.4, 1, 2, 1)
    >>> [(split.id, split.parts) for split in e.splits]
    [(2, (8, 9))]
    """

    def __init__(
        self,
        values: Mapping[str, float],
        *,
        parameters: Mapping[str, Any],
        pairs: Matches,
        overlaps: Overlaps,
        ndim: int,
        present: bool,
        per_class: Mapping[Any, Evaluation],
    ) -> None:
        self._values = dict(values)
        self._overlaps = overlaps
        self._ndim = ndim
        self.parameters = parameters
        self.pairs = pairs
        self.present = present
        self.per_class = per_class

    def __getitem__(self, key: str) -> float:
        try:
            return self._values[key]
        except KeyError:
            raise KeyError(f"{key}; there are {', '.join(self._values)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @cached_property
    def splits(self) -> Differences:
        """Reference objects that were cut, the costliest first."""
        return list_splits(self._overlaps, ndim=self._ndim)

    @cached_property
    def merges(self) -> Differences:
        """Predicted objects that join several of the reference, the costliest first."""
        return list_merges(self._overlaps, ndim=self._ndim)

    @cached_property
    def missed(self) -> Differences:
        """Reference objects that no prediction has found, the largest first."""
        return list_missed(self._overlaps, ndim=self._ndim)

    @cached_property
    def spurious(self) -> Differences:
        """Predicted objects that are nowhere in the reference, the largest first."""
        return list_spurious(self._overlaps, ndim=self._ndim)

    def to_dict(self) -> dict[str, Any]:
        """Return parameters, metrics, and metrics per class as built-in types, ready for `json.dumps`.

        Values that are not finite (conformity without a true positive, surface distances without a pair) are None.
        """

        def finite(values: Mapping[str, float]) -> dict[str, float | None]:
            return {key: value if math.isfinite(value) else None for key, value in values.items()}

        return {
            "parameters": dict(self.parameters),
            "metrics": finite(self),
            "per_class": {
                str(name): {"present": one.present, "metrics": finite(one)} for name, one in self.per_class.items()
            },
        }

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`: one row per class and "mean" (or "all" without classes), one column per metric.

        Classes that are not present have missing values (NaN).
        """
        rows: list[Mapping[str, float]] = [*(one if one.present else {} for one in self.per_class.values()), self]
        names = [*map(str, self.per_class), "mean" if self.per_class else "all"]
        return to_frame({key: [row.get(key, math.nan) for row in rows] for key in self}, index=names)

    def _cells(self, classes: Mapping[Any, Evaluation]) -> tuple[list[str], list[list[str] | str]]:
        """Return a header, and rows of cells, or of one heading, for the two reprs."""
        header = ["", "mean" if self.per_class else "", *map(str, classes)]
        names = {key: group for group, keys in GROUPS.items() for key in keys}
        rows: list[list[str] | str] = []
        heading = ""
        for key in self:
            group = names.get(key, "instances")
            if group != heading:
                heading = group
                rows.append(heading)
            # Counts are summed over classes.
            cells = [f"{'sum ' if self.per_class and isinstance(self[key], int) else ''}{_number(self[key])}"]
            cells += [_number(one[key]) if one.present else "-" for one in classes.values()]
            rows.append([key, *cells])
        return header, rows

    def _title(self) -> str:
        """Return the line above the table."""
        known = self.parameters
        parts = ["Evaluation"]
        if self.per_class:
            parts.append(f"{len(self.per_class)} class{'' if len(self.per_class) == 1 else 'es'}")
        if "pq" in self:
            parts.append(f"IoU {'>' if known['decisions']['strict'] else '>='} {known['iou_thresholds'][0]:g}")
        parts.append(f"convention {known['convention']}")
        if known["ignored"] is not None:
            parts.append(f"{known['ignored']:,} voxel{'' if known['ignored'] == 1 else 's'} ignored")
        return ", ".join(parts)

    def _first_classes(self) -> Mapping[Any, Evaluation]:
        """Return the classes that the two reprs have room for."""
        return dict(islice(self.per_class.items(), SHOWN_CLASSES))

    def _rest(self) -> str:
        """Return the line below a table that does not show every class, or nothing."""
        rest = len(self.per_class) - SHOWN_CLASSES
        return f"... {rest} more class{'' if rest == 1 else 'es'}: to_pandas() has all" if rest > 0 else ""

    def __repr__(self) -> str:
        return "\n".join(filter(None, [self._format(self._first_classes()), self._rest()]))

    def to_text(self, per_class: bool = True) -> str:
        """Return the table that `repr` shows, or of it the mean only.

        Parameters
        ----------
        per_class : bool, default True
            Whether each class has a column, beside the mean.

        Returns
        -------
        str
            Lines, without one at the end.
        """
        return self._format(self.per_class if per_class else {})

    def _format(self, per_class: Mapping[Any, Evaluation]) -> str:
        """Return the title and the table with a column for each of some classes."""
        header, rows = self._cells(per_class)
        table = [header, *(row for row in rows if not isinstance(row, str))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]

        def line(cells: Sequence[str]) -> str:
            texts = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
            return "  ".join(["  " + cells[0].ljust(widths[0]), *texts]).rstrip()

        lines = [self._title()]
        if any(header):
            lines.append(line(header))
        lines += [row if isinstance(row, str) else line(row) for row in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        header, rows = self._cells(self._first_classes())
        parts = [f"<p>{html.escape(self._title())}</p><table>"]
        if any(header):
            parts.append(f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>")
        for row in rows:
            if isinstance(row, str):
                parts.append(f'<tr><th colspan="{len(header)}" style="text-align:left">{row}</th></tr>')
            else:
                parts.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
        return "".join([*parts, "</table>", f"<p>{self._rest()}</p>" if self._rest() else ""])


def _number(value: float) -> str:
    """Return a count as it is, and four decimals of anything else."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
