"""One-to-one matching of rows and columns of a sparse table, of the largest total gain."""

from heapq import heappop, heappush

import numpy as np

from ._jit import jit

_FAR = np.iinfo(np.int64).max


@jit
def match_rows(starts, columns, gains, width, mates):
    """Write to `mates` the pair that each row takes, -1 for none: each column once, with the largest sum of gains.

    Row i owns the pairs ``starts[i]`` to ``starts[i + 1]``, each with one of `width` columns and a gain above 0. All is
    in integers, so the answer is exact; no gain may exceed 2**60.

    The primal-dual method (Kuhn 1955) with shortest paths (Dijkstra): rows and columns have prices that add up to at
    least the gain of every pair, to exactly the gain of taken ones, and are 0 where nothing is taken. Rows enter in
    order. Each asks for a path along which takers change places at the least loss; it ends at a free column, or at a
    row that had better go without. Only prices below the loss of the best end yet are looked at, so a search stays
    near its row, and never leaves its group of connected pairs. Of equal ends the one found first holds, and a row that
    has its pair is not put out for an equal one.
    """
    row_prices = np.zeros(mates.size, np.int64)
    column_prices = np.zeros(width, np.int64)
    owners = np.full(width, -1, np.int64)
    # Of the search under way: loss and last pair of the best path to each column, and the row that pair belongs to.
    losses = np.full(width, _FAR, np.int64)
    pairs = np.empty(width, np.int64)
    origins = np.empty(width, np.int64)
    tree_rows = np.empty(mates.size, np.int64)
    row_losses = np.empty(mates.size, np.int64)
    seen = np.empty(width, np.int64)
    mates[:] = -1
    for row in range(mates.size):
        best = -1
        for k in range(starts[row], starts[row + 1]):
            row_prices[row] = max(row_prices[row], gains[k])
        for k in range(starts[row], starts[row + 1]):
            if best < 0 and gains[k] == row_prices[row] and owners[columns[k]] < 0:
                best = k
        if best >= 0:
            mates[row], owners[columns[best]] = best, row

    for start in range(mates.size):
        if mates[start] >= 0:
            continue
        bound, end_row, end_column = row_prices[start], start, np.int64(-1)
        front = [(np.int64(0), np.int64(-1))]
        rows = reached = 0
        while front:
            loss, column = heappop(front)
            if loss >= bound:
                break
            if column < 0:
                row = start
            elif loss > losses[column]:
                continue
            else:
                row = owners[column]
                if loss + row_prices[row] < bound:
                    bound, end_row, end_column = loss + row_prices[row], row, np.int64(-1)
            tree_rows[rows], row_losses[rows] = row, loss
            rows += 1
            for k in range(starts[row], starts[row + 1]):
                other = columns[k]
                there = loss + (row_prices[row] + column_prices[other] - gains[k])
                if there < bound and there < losses[other]:
                    if losses[other] == _FAR:
                        seen[reached] = other
                        reached += 1
                    losses[other], pairs[other], origins[other] = there, k, row
                    if owners[other] < 0:
                        bound, end_row, end_column = there, np.int64(-1), other
                    else:
                        heappush(front, (there, other))
        for i in range(rows):
            if row_losses[i] < bound:
                row_prices[tree_rows[i]] -= bound - row_losses[i]
        for i in range(reached):
            column = seen[i]
            if losses[column] < bound:
                column_prices[column] += bound - losses[column]
            losses[column] = _FAR
        if end_row == start:
            continue
        if end_row >= 0:
            end_column = columns[mates[end_row]]
            mates[end_row] = -1
        row = np.int64(-1)
        while row != start:
            row = origins[end_column]
            left = columns[mates[row]] if row != start else np.int64(-1)
            mates[row], owners[end_column] = pairs[end_column], row
            end_column = left
