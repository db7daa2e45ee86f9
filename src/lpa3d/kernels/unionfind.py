"""Union-find whose roots are the smallest index of their set.

So the order of unions does not matter, ``parents[i] <= i`` holds throughout, and one forward scan numbers the sets.
"""

from ._bits import leaf
from ._jit import jit


@leaf
def unite_sets(parents, a, b):
    """Unite the sets of `a` and `b`; the smaller root becomes the root of both.

    Rem's algorithm: climb from both sides at once, always from the larger parent, and hang each node that is left
    onto the other side's parent. It needs no ranks, does not recurse, and m unions of n nodes take
    O(m log n) (Tarjan and van Leeuwen 1984, doi 10.1145/62.2160).
    """
    parent_a, parent_b = parents[a], parents[b]
    while parent_a != parent_b:
        if parent_a < parent_b:
            parents[b] = parent_a
            if parent_b == b:
                return
            b = parent_b
            parent_b = parents[b]
        else:
            parents[a] = parent_b
            if parent_a == a:
                return
            a = parent_a
            parent_a = parents[a]


@jit
def rank_sets(parents, count, first):
    """Replace each of the first `count` parents by ``first`` + the rank of its set's root; return how many sets.

    A forward scan in place: a parent stands before its child, so it is a rank already when the child is reached.
    """
    sets = 0
    for i in range(count):
        parent = parents[i]
        if parent == i:
            parents[i] = first + sets
            sets += 1
        else:
            parents[i] = parents[parent]
    return sets
