"""Attention of one new token per row on a CPU, in which each row reads only its own live part of the cache.

Both products of attention are weighted sums of rows of a table, and ``embedding_bag`` computes sums of different
numbers of rows in one call. A head's output sums its tokens' values, weighted by their probabilities. A head's scores
of C tokens sum one row of C numbers per feature, weighted by the query. So keys are stored by feature within a chunk.

Memory is read fastest in its order, and each jump takes as long as reading some 10 KB. So a row's chunks lie one after
the other, each with those of all heads, and the live ones are read in one piece: values are summed per chunk first.

Letters: B rows, D head size, C tokens of a chunk, L length of the cache that a step reads, M chunks for which a slot
has room, N live chunks of all rows.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

CHUNK = 32  # C


class Bags(NamedTuple):
    """Which rows of the cache each sum reads, as ``embedding_bag`` takes them.

    Attributes:
        owners: The row of each live chunk, (N,).
        places: Number of each live chunk and head among all L / C chunks of all heads, by row, head and chunk,
            (N * heads,).
        key_rows: Rows of the keys' table, one per live chunk, head and feature, (N * heads * D,).
        key_offsets: Where the rows of each chunk and head begin, live or not, and the end of the last.
        value_rows: Rows of the values' table, one per live chunk, head and token, (N * heads * C,).
        value_offsets: As ``key_offsets``, of ``value_rows``.
    """

    owners: torch.Tensor
    places: torch.Tensor
    key_rows: torch.Tensor
    key_offsets: torch.Tensor
    value_rows: torch.Tensor
    value_offsets: torch.Tensor


class LiveChunks:
    """The chunks of the cache that hold tokens of a row; one object for all layers of a step.

    Args:
        positions: Positions of the rows' new tokens, (B,).
        length: L, a multiple of C.
        width: Number of tokens for which a slot of the cache has room, a multiple of C.

    Attributes:
        numbers: Chunk of each row's new token, (B,).
        offsets: Its place in the chunk, (B,).
    """

    def __init__(self, positions: torch.Tensor, length: int, width: int) -> None:
        # A released slot may lie beyond L. It is read up to there, and its result is not used.
        self.numbers, self.offsets = positions // CHUNK, positions % CHUNK
        self._counts = (self.numbers + 1).clamp(max=length // CHUNK)
        self._length, self._width = length, width
        self._bags: dict[tuple[int, int], Bags] = {}

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Scaled dot-product attention; arguments and result as for ``row_attention``, but for the keys and values.

        Args:
            query: (B, heads, 1, D).
            key: The rows' keys in the cache, (B, heads, L / C, C, D); in memory (B, M, heads, D, C).
            value: The rows' values in the cache, (B, heads, L / C, C, value size); in memory with C before that.
            mask: Mask added to the scores, (B, 1, 1, L).
            scale: Factor of the scores.
        """
        rows, heads, _, size = query.shape
        value_size, bags = value.shape[4], self._of(heads, size)
        used, tables = self._length // CHUNK, rows * heads * self._width
        weights = query.reshape(rows, -1).index_select(0, bags.owners)
        keys = key.as_strided((tables // CHUNK * size, CHUNK), (CHUNK, 1))
        values = value.as_strided((tables, value_size), (value_size, 1))
        by_chunk = _sums(keys, bags.key_rows, bags.key_offsets, weights).view(rows, used, heads, CHUNK)
        scores = mask.new_empty(rows, heads, used, CHUNK)
        torch.add(mask.view(rows, 1, used, CHUNK), by_chunk.transpose(1, 2), alpha=scale, out=scores)
        weights = scores.view(-1, self._length).softmax(-1).view(-1, CHUNK).index_select(0, bags.places)
        sums = _sums(values, bags.value_rows, bags.value_offsets, weights)
        return sums.view(rows, used, heads, value_size).sum(1, keepdim=True)

    def _of(self, heads: int, size: int) -> Bags:
        """The bags for layers with this number of heads and size of keys."""
        if (heads, size) not in self._bags:
            self._bags[heads, size] = self._make(heads, size)
        return self._bags[heads, size]

    def _make(self, heads: int, size: int) -> Bags:
        used, room = self._length // CHUNK, self._width // CHUNK  # chunks of a row that the step reads, and has
        live = torch.arange(used) < self._counts[:, None]
        chunks = live.view(-1).nonzero()[:, 0]
        owners = chunks // used
        places = _rows(chunks + owners * (used * (heads - 1)), torch.arange(heads) * used)
        in_cache = (chunks + owners * (room - used)).int() * heads
        value_rows = _rows(in_cache * CHUNK, torch.arange(heads * CHUNK, dtype=torch.int32))
        ends = F.pad(live[..., None].expand(-1, -1, heads).reshape(-1).cumsum(0, dtype=torch.int32), (1, 0))
        value_offsets = ends * CHUNK
        if size == CHUNK:
            return Bags(owners, places, value_rows, value_offsets, value_rows, value_offsets)
        key_rows = _rows(in_cache * size, torch.arange(heads * size, dtype=torch.int32))
        return Bags(owners, places, key_rows, ends * size, value_rows, value_offsets)


def _rows(first: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The rows of pieces that begin at ``first``, (N,), and have these numbers from there, (R,): (N * R,)."""
    return (first[:, None] + others).view(-1)


def _sums(table: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each bag's rows."""
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights.view(-1), include_last_offset=True
    )
