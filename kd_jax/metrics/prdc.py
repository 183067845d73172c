"""Nearest neighbours in feature space: precision, recall, density, coverage.

All distances are Euclidean and exact. A matrix product in single precision, tile by tile, decides
all comparisons that its rounding error cannot change; the few remaining pairs are computed as
`sqrt(sum((x - y)^2))` in double precision. Equal examples therefore have distance 0, and examples
on the surface of a ball are detected exactly, so that `<` and `<=` differ.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kd_jax.metrics import common

_TILE_BYTES = 2**27  # of a tile of distances
_MAX_ROWS, _COLUMNS = 2048, 4096
_PAIR_BYTES = 2**25  # of pair differences in double precision
_SPARE = 64  # candidates beyond k that are compared by exact distances
_ROUNDED_ROWS = 256  # queries per block with more candidates than that

Features = np.ndarray[Any, Any]


class Neighbours(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
      distances: `[N, k]` float64.
      indices: int64 `[N, k]`, of references; equal distances are ordered by index.
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


class Neighbourhoods(NamedTuple):
    """The overlap of two sets.

    Attributes:
      precision: the share of generated examples in the ball of any real one, in [0, 1].
      recall: the share of real examples in the ball of any generated one, in [0, 1].
      density: the mean number of real balls that contain a generated example, divided by k; 1 for
        equal distributions, not bounded by 1.
      coverage: the share of real examples with a generated one in their ball, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(
    generated: ArrayLike, real: ArrayLike, k: int = 5, *, strict: bool = True
) -> Neighbourhoods:
    """Precision, recall, density and coverage, by balls of k-nearest-neighbour radius.

    Improved precision and recall are those of Kynkaanniemi et al. 2019, eq. 1 and 2 (k = 3 and `<=`
    in the paper); density and coverage those of Naeem et al. 2020, eq. 2 and 3 (k = 5 and `<`).
    All depend on the numbers of examples: report them. Memory beyond the features is bounded.

    Args:
      generated: features `[N, D]`.
      real: features `[M, D]`.
      k: the radius of a ball is the distance of its example to the k-th nearest other example.
      strict: whether a ball excludes its surface, as in the prdc package; torch-fidelity and
        NVIDIA's code include it.

    Raises:
      ValueError: a set has fewer than k + 1 examples, the feature lengths differ, or a feature is
        not finite.
    """
    x, y = common.two_sets(generated, real)
    for name, features in (("generated", x), ("real", y)):
        if not 0 < k < len(features):
            raise ValueError(
                f"k={k} with {len(features)} {name} examples; 1 to {len(features) - 1} is needed"
            )
    x_radii, y_radii = (nearest(f, f, k + 1).distances[:, k] for f in (x, y))
    containing = np.zeros(len(x), np.int64)
    recalled, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for block in _blocks(x, y):
        inside = _inside(block, x, y, y_radii[None, :], strict)
        containing[block.rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= _inside(block, x, y, x_radii[block.rows, None], strict).any(axis=0)
    return Neighbourhoods(
        float((containing > 0).mean()),
        float(recalled.mean()),
        float(containing.sum() / (k * len(x))),
        float(covered.mean()),
    )


def nearest(queries: ArrayLike, references: ArrayLike, k: int) -> Neighbours:
    """The k nearest references of each query. Memory beyond the features is bounded.

    A query that is among the references is its own nearest neighbour, at distance 0.

    Where single precision cannot distinguish more than k + 64 candidates (a generator with mode
    collapse), distances come from a matrix product in double precision: they are 0 below its
    rounding error, and the order of equal distances is arbitrary.

    Args:
      queries: features `[N, D]`.
      references: features `[M, D]`, M >= k.
      k: the number of neighbours.

    Raises:
      ValueError: there are fewer than k references, the feature lengths differ, or a feature is not
        finite.
    """
    x, y = common.two_sets(queries, references, names=("queries", "references"))
    if not 0 < k <= len(y):
        raise ValueError(f"k={k} with {len(y)} references; 1 to {len(y)} is needed")
    neighbours = Neighbours(np.empty((len(x), k)), np.empty((len(x), k), np.int64))
    for block in _blocks(x, y):
        farthest = np.partition(block.squares, k - 1, axis=1)[:, k - 1]
        candidates = block.squares <= (farthest + 2 * block.error)[:, None]
        ambiguous = candidates.sum(axis=1) > k + _SPARE
        candidates[ambiguous] = False
        row, column = np.nonzero(candidates)
        distance = _distances(x[block.rows], y, row, column)
        order = np.lexsort((distance, row))  # stable: equal distances stay in index order
        first = np.searchsorted(row, np.flatnonzero(~ambiguous))
        best = order[first[:, None] + np.arange(k)[None, :]]
        rows = np.arange(len(x))[block.rows]
        neighbours.distances[rows[~ambiguous]] = distance[best]
        neighbours.indices[rows[~ambiguous]] = column[best]
        for start in range(0, int(ambiguous.sum()), _ROUNDED_ROWS):
            subset = rows[ambiguous][start : start + _ROUNDED_ROWS]
            neighbours.distances[subset], neighbours.indices[subset] = _nearest_by_product(
                x[subset], y, block.centre, k
            )
    return neighbours


class _Block(NamedTuple):
    rows: slice  # of the queries
    squares: NDArray[np.float32]  # [rows, references]: squared distances; overwritten by the next
    error: np.float32  # the maximum rounding error of the squares
    centre: NDArray[np.floating]  # [D]: the mean subtracted from both sets


def _blocks(queries: Features, references: Features) -> Iterator[_Block]:
    """All squared distances, `|x|^2 + |y|^2 - 2 x.y`, a block of queries at a time.

    The references' mean is subtracted from both sets, so that norms and rounding errors are those
    of the deviations. It is repeated for each block, to avoid a copy of the references.
    """
    centre = references.mean(axis=0, dtype=np.float64).astype(references.dtype)
    norms = np.concatenate([_norms(c) for _, c in _centred_blocks(references, centre)])
    count = max(1, min(_MAX_ROWS, _TILE_BYTES // (4 * len(references))))
    # Each of the D products and sums of an inner product rounds by at most eps / 2 of |x||y|; the
    # other half and the 16 bound the rounding of the centring, the norms and the final sums.
    rounding = (references.shape[1] + 16) * np.finfo(np.float32).eps
    memory = np.empty((min(count, len(queries)), len(references)), np.float32)
    for start in range(0, len(queries), count):
        rows = slice(start, min(start + count, len(queries)))
        block = (queries[rows] - centre).astype(np.float32, copy=False)
        own = _norms(block)
        block *= -2
        squares = memory[: len(block)]
        for columns, part in _centred_blocks(references, centre):
            np.matmul(block, part.T, out=squares[:, columns])
        squares += own[:, None]
        squares += norms[None, :]
        yield _Block(rows, squares, (own.max() + norms.max()) * np.float32(rounding), centre)


def _centred_blocks(x: Features, centre: Features) -> Iterator[tuple[slice, NDArray[np.float32]]]:
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
    """Whether each query of a block is in the ball of each reference; `radii` broadcasts."""
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
    """The distances of the pairs `(x_i, y_j)`, independent of the pair's position and batch."""
    distances = np.empty(len(i))
    count = max(1, _PAIR_BYTES // (8 * x.shape[1]))
    for start in range(0, len(i), count):
        pairs = slice(start, start + count)
        difference = x[i[pairs]].astype(np.float64)
        difference -= y[j[pairs]]
        np.square(difference, out=difference)
        distances[pairs] = np.sqrt(difference.sum(axis=1))
    return distances


def _nearest_by_product(
    queries: Features, references: Features, centre: Features, k: int
) -> Neighbours:
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
