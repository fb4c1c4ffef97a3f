"""Attention of one new token per row on a CPU, in which each row reads only its own live part of the cache.

Both products of attention are weighted sums of rows of a table, and ``embedding_bag`` computes sums of different
numbers of rows in one call. A head's output sums its tokens' values, weighted by their probabilities. A head's scores
of C tokens sum one row of C numbers per feature, weighted by the query. So keys are stored by feature within a chunk,
and chunk after chunk, because memory is read fastest in its order.

Letters: B rows, D head size, C tokens of a chunk, L length of the cache that a step reads, N live chunks of all heads.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

CHUNK = 32  # C


class Bags(NamedTuple):
    """Which rows of the cache each sum reads, as ``embedding_bag`` takes them.

    Attributes:
        chunks: Live chunks of all rows' heads, numbered without gaps for dead ones, (N,).
        heads: The head of each, counted over all rows, (N,).
        key_rows: Rows of the keys' table, one per live chunk and feature, (N * D,).
        key_offsets: Where the rows of each chunk begin, live or not, and the end of the last.
        value_rows: Rows of the values' table, one per token of a live chunk, (N * C,).
        value_offsets: Where the rows of each head begin, and the end of the last.
    """

    chunks: torch.Tensor
    heads: torch.Tensor
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
            key: The rows' keys in the cache, (B, heads, L / C, C, D), each chunk stored by feature.
            value: The rows' values in the cache, (B, heads, L, value size).
            mask: Mask added to the scores, (B, 1, 1, L).
            scale: Factor of the scores.
        """
        rows, heads, _, size = query.shape
        value_size, bags = value.shape[3], self._of(heads, size)
        weights = query.reshape(-1, size).index_select(0, bags.heads)
        keys = key.as_strided((rows * heads * size * self._width // CHUNK, CHUNK), (CHUNK, 1))
        values = value.as_strided((rows * heads * self._width, value_size), (value_size, 1))
        scores = _sums(keys, bags.key_rows, bags.key_offsets, weights)
        scores = torch.add(mask, scores.view(rows, heads, 1, self._length), alpha=scale)
        weights = scores.softmax(-1).view(-1, CHUNK).index_select(0, bags.chunks)
        sums = _sums(values, bags.value_rows, bags.value_offsets, weights)
        return sums.view(rows, 1, heads, value_size)

    def _of(self, heads: int, size: int) -> Bags:
        """The bags for layers with this number of heads and size of keys."""
        if (heads, size) not in self._bags:
            self._bags[heads, size] = self._make(heads, size)
        return self._bags[heads, size]

    def _make(self, heads: int, size: int) -> Bags:
        used, room = self._length // CHUNK, self._width // CHUNK  # chunks of a head that the step reads, and has
        live = torch.arange(used) < self._counts[:, None, None].expand(-1, heads, 1)
        chunks = live.view(-1).nonzero()[:, 0]
        of_head = chunks // used
        places = chunks + of_head * (room - used)  # among the chunks of the cache
        value_rows = _rows(places, CHUNK)
        key_rows = value_rows if size == CHUNK else _rows(places, size)
        ends = F.pad(live.view(-1).cumsum(0, dtype=torch.int32), (1, 0))  # chunks before each, and all
        return Bags(chunks, of_head, key_rows, ends * size, value_rows, ends[::used] * CHUNK)


def _rows(places: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of chunks that have ``count`` of them, (N,) -> (N * count,)."""
    # Of 32 bits: half as much to read for each row.
    return ((places.int() * count)[:, None] + torch.arange(count, dtype=torch.int32)).view(-1)


def _sums(table: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each bag's rows."""
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights.view(-1), include_last_offset=True
    )
