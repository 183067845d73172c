"""What is near what among features: precision and recall, density and coverage, copies.

All distances are Euclidean and exact: a matrix product in single precision, tile by tile, settles
what its rounding cannot change, and the few pairs that are left are computed as
`sqrt(sum((x - y)^2))` in double precision. So equal examples are at distance 0, and an example on a
ball's surface is known to be there, which decides between `<` and `<=`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.evaluate import common

_TILE_BYTES = 2**27  # of a tile of distances
_MAX_ROWS, _COLUMNS = 2048, 4096
_PAIR_BYTES = 2**25  # of differences in double precision
_SPARE = 64  # candidates beyond k that are told apart in double precision
_ROUNDED_ROWS = 256  # where there are more

Features = np.ndarray[Any, Any]


class Neighbours(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
      distances: `[N, k]` float64.
      indices: int64 `[N, k]`, of references; the smaller of two at the same distance comes first.
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


class Neighbourhoods(NamedTuple):
    """How two sets overlap.

    Attributes:
      precision: the part of the generated examples in the ball of any real one, in [0, 1].
      recall: the part of the real examples in the ball of any generated one, in [0, 1].
      density: how many real examples' balls a generated one is in, over k; 1 for equal
        distributions, and not bounded by it.
      coverage: the part of the real examples with a generated one in their ball, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(
    generated: ArrayLike, real: ArrayLike, k: int = 5, *, strict: bool = True
) -> Neighbourhoods:
    """Precision, recall, density and coverage, by balls that reach to the k-th nearest of a set.

    Improved precision and recall are those of Kynkaanniemi et al. 2019, eq. 1 and 2 (there k = 3
    and `<=`); density and coverage those of Naeem et al. 2020, eq. 2 and 3 (there k = 5 and `<`).
    All depend on the numbers of examples: state them. The memory beside the features is bounded.

    Args:
      generated: features `[N, D]`.
      real: features `[M, D]`.
      k: a ball's radius is the distance of the example to the k-th nearest of the others.
      strict: whether a ball is without its surface, as in the prdc package; torch-fidelity's and
        NVIDIA's are with it.

    Raises:
      ValueError: when a set has no k + 1 examples, the features differ in number, or one is not
        finite.
    """
    x, y = common.two_sets(generated, real)
    for name, features in (("generated", x), ("real", y)):
        if not 0 < k < len(features):
            raise ValueError(f"k={k} with {len(features)} {name} examples: 1 to one less is needed")
    own, theirs = (nearest(f, f, k + 1).distances[:, k] for f in (x, y))
    around = np.zeros(len(x), np.int64)
    recalled, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for block in _blocks(x, y):
        inside = _inside(block, x, y, theirs[None, :], strict)
        around[block.rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= _inside(block, x, y, own[block.rows, None], strict).any(axis=0)
    return Neighbourhoods(
        float((around > 0).mean()),
        float(recalled.mean()),
        float(around.sum() / (k * len(x))),
        float(covered.mean()),
    )


def nearest(queries: ArrayLike, references: ArrayLike, k: int) -> Neighbours:
    """The k nearest references of each query. The memory beside the features is bounded.

    A query that is among the references is its own nearest, at distance 0.

    Where more than k + 64 references are so near that single precision cannot tell them apart (a
    generator makes one image again and again), their distances are rounded in double precision,
    to 0 where they are below its rounding, and the order of equal ones is arbitrary.

    Args:
      queries: features `[N, D]`.
      references: features `[M, D]`, M >= k.
      k: how many.

    Raises:
      ValueError: when there are no k references, the features differ in number, or one is not
        finite.
    """
    x, y = common.two_sets(queries, references, names=("queries", "references"))
    if not 0 < k <= len(y):
        raise ValueError(f"k={k} with {len(y)} references: a number from 1 to that is needed")
    found = Neighbours(np.empty((len(x), k)), np.empty((len(x), k), np.int64))
    for block in _blocks(x, y):
        farthest = np.partition(block.squares, k - 1, axis=1)[:, k - 1]
        candidates = block.squares <= (farthest + 2 * block.error)[:, None]
        crowded = candidates.sum(axis=1) > k + _SPARE
        candidates[crowded] = False
        row, column = np.nonzero(candidates)
        distance = _distances(x[block.rows], y, row, column)
        order = np.lexsort((distance, row))  # stable: equal ones stay in their order
        first = np.searchsorted(row, np.flatnonzero(~crowded))
        best = order[first[:, None] + np.arange(k)[None, :]]
        rows = np.arange(len(x))[block.rows]
        found.distances[rows[~crowded]] = distance[best]
        found.indices[rows[~crowded]] = column[best]
        for start in range(0, int(crowded.sum()), _ROUNDED_ROWS):
            some = rows[crowded][start : start + _ROUNDED_ROWS]
            found.distances[some], found.indices[some] = _rounded(x[some], y, block.centre, k)
    return found


class _Block(NamedTuple):
    rows: slice  # of the queries
    squares: NDArray[np.float32]  # [rows, references]: squared distances, rounded; valid for a turn
    error: np.float32  # how far from the true ones they are at most
    centre: NDArray[np.floating]  # [D]: what was subtracted from both


def _blocks(queries: Features, references: Features) -> Iterator[_Block]:
    """All squared distances, `|x|^2 + |y|^2 - 2 x.y`, a block of queries at a time.

    The references' mean is subtracted from both, so that the norms, and with them the rounding,
    are those of the deviations. It is done anew for each block: a copy would be as large as the
    references.
    """
    centre = references.mean(axis=0, dtype=np.float64).astype(references.dtype)
    theirs = np.concatenate([_norms(c) for _, c in _centred(references, centre)])
    count = max(1, min(_MAX_ROWS, _TILE_BYTES // (4 * len(references))))
    # Each of the D products and sums of an inner product rounds by half of eps of |x||y| at most;
    # the other half and the 16 are for the centred features, the norms and the sums of the three.
    rounding = (references.shape[1] + 16) * np.finfo(np.float32).eps
    memory = np.empty((min(count, len(queries)), len(references)), np.float32)
    for start in range(0, len(queries), count):
        rows = slice(start, min(start + count, len(queries)))
        block = (queries[rows] - centre).astype(np.float32, copy=False)
        own = _norms(block)
        block *= -2
        squares = memory[: len(block)]
        for columns, part in _centred(references, centre):
            np.matmul(block, part.T, out=squares[:, columns])
        squares += own[:, None]
        squares += theirs[None, :]
        yield _Block(rows, squares, (own.max() + theirs.max()) * np.float32(rounding), centre)


def _centred(x: Features, centre: Features) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    for start in range(0, len(x), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        yield columns, (x[columns] - centre).astype(np.float32, copy=False)


def _norms(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.square(x, dtype=np.float64).sum(axis=1).astype(np.float32)


def _inside(
    block: _Block,
    queries: Features,
    references: Features,
    radii: NDArray[np.float64],
    strict: bool,
) -> NDArray[np.bool_]:
    """Which queries of a block, by rows, are in which references' balls; `radii` broadcasts."""
    squared = np.square(radii).astype(np.float32)
    inside = block.squares < squared - block.error
    row, column = np.nonzero(inside != (block.squares <= squared + block.error))
    distance = _distances(queries[block.rows], references, row, column)
    radius = np.broadcast_to(radii, inside.shape)[row, column]
    inside[row, column] = distance < radius if strict else distance <= radius
    return inside


def _distances(
    x: Features, y: Features, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Those of the pairs `(x_i, y_j)`: the same number for the same two examples, anywhere."""
    found = np.empty(len(i))
    count = max(1, _PAIR_BYTES // (8 * x.shape[1]))
    for start in range(0, len(i), count):
        pairs = slice(start, start + count)
        difference = x[i[pairs]].astype(np.float64)
        difference -= y[j[pairs]]
        np.square(difference, out=difference)
        found[pairs] = np.sqrt(difference.sum(axis=1))
    return found


def _rounded(queries: Features, references: Features, centre: Features, k: int) -> Neighbours:
    """`nearest` by a matrix product in double precision, for a few queries."""
    x = queries - centre.astype(np.float64)
    own = np.square(x).sum(axis=1)
    squares = np.empty((len(queries), len(references)))
    largest = 0.0
    for start in range(0, len(references), _COLUMNS):
        y = references[start : start + _COLUMNS] - centre.astype(np.float64)
        norms = np.square(y).sum(axis=1)
        largest = max(largest, norms.max())
        squares[:, start : start + _COLUMNS] = own[:, None] + norms[None, :] - 2 * (x @ y.T)
    rounding = (x.shape[1] + 16) * np.finfo(np.float64).eps
    squares[squares <= rounding * (own + largest)[:, None]] = 0.0
    indices = np.argpartition(squares, k - 1, axis=1)[:, :k]
    distances = np.sqrt(np.take_along_axis(squares, indices, axis=1))
    order = np.lexsort((indices, distances), axis=1)
    return Neighbours(
        np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)
    )
