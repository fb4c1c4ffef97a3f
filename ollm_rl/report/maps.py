"""Heat maps, all in one scale of shades.

Letters: R rows, C columns.
"""

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath
from matplotlib.ticker import MaxNLocator

from ollm_rl.report.canvas import MUTED, SERIES, WIDTH, canvas, svg

SHADES = 16  # of a map
SHOWN_FROM = 0.005  # share of the full shade; less is left empty: rounding and certainty leave so little everywhere
LEAST = 0.12  # opacity of the smallest value that is shown


def heat_map(
    values: Sequence[Sequence[float]],
    *,
    x: str,
    y: str,
    first: int,
    top: float,
    label: str,
    shown: Callable[[float], str],
) -> Markup:
    """Values from 0 to ``top``, (R, C), as shades, the first row at the top.

    NaN, and what is less than ``SHOWN_FROM`` of the full shade, is left empty.

    Args:
        values: Rows may differ in length.
        x: Name of the columns, which are numbered from 1.
        y: Name of the rows.
        first: Number of the first row.
        top: Value of the full shade.
        label: Text for screen readers.
        shown: Writes a value.
    """
    columns = max(map(len, values))
    grid = np.full((len(values), columns), np.nan)
    for row, row_values in zip(grid, values, strict=True):
        row[: len(row_values)] = row_values
    figure, axes = canvas(WIDTH, height=0.9 + min(2.6, 0.22 * len(values)))
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    paint = to_rgb(SERIES[0])
    colours = LinearSegmentedColormap.from_list("shades", [(*paint, LEAST), (*paint, 1.0)], N=SHADES)
    cell_rows, cell_columns = np.nonzero(np.nan_to_num(grid) >= SHOWN_FROM * top)
    shades = colours(np.minimum(grid[cell_rows, cell_columns] / top, 1.0))
    for shade in np.unique(shades, axis=0):
        same = (shades == shade).all(1)
        cells = zip(cell_rows[same], cell_columns[same], strict=True)
        squares = [_square(row + first, column + 1) for row, column in cells]
        # One path per shade keeps a page with several maps small.
        axes.add_patch(PathPatch(MplPath.make_compound_path(*squares), facecolor=tuple(shade), linewidth=0))
    axes.set_xlim(0.5, columns + 0.5)
    axes.set_ylim(first + len(values) - 0.5, first - 0.5)
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    spots = [
        (column + 1, row + first, f"{y} {row + first}, token {column + 1}: {shown(grid[row, column])}")
        for row, column in zip(cell_rows.tolist(), cell_columns.tolist(), strict=True)
    ]
    return svg(figure, label, spots)


def _square(row: int, column: int) -> MplPath:
    """A square of side 1 around a point."""
    left, right, top, bottom = column - 0.5, column + 0.5, row - 0.5, row + 0.5
    return MplPath([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], closed=True)
