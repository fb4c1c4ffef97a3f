"""Which rows of a step are taken together: those of one prompt, whose beginning an attention kernel then reads once."""

from collections import defaultdict
from collections.abc import Sequence

from ollm_rl.row_cache import EncodedPrompt

ROWS = 4  # of a tile, at most: with more the device would have too few tiles to be busy


def tile_rows(prompts: Sequence[EncodedPrompt | None]) -> list[list[int]]:
    """Put rows into tiles.

    Args:
        prompts: What each of B rows holds at its beginning; None where nothing is known.

    Returns:
        B tiles, as many as there may be at most, each of 2 + ROWS numbers: a row that holds the beginning, the tokens
        of it that are read there, and the tile's rows; -1 in the place of a row that there is not.
    """
    rows_of: dict[EncodedPrompt | int, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        rows_of[row if prompt is None else prompt].append(row)
    tiles = []
    for beginning, rows in rows_of.items():
        shared = beginning.length if isinstance(beginning, EncodedPrompt) and len(rows) > 1 else 0
        for first in range(0, len(rows), ROWS):
            together = rows[first : first + ROWS]
            tiles.append([rows[0], shared, *together, *[-1] * (ROWS - len(together))])
    return tiles + [[-1] * (2 + ROWS)] * (len(prompts) - len(tiles))
