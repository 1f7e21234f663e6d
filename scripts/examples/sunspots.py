"""Windows of the yearly number of sunspots, 1700 to 2008, and the year that follows each.

    python scripts/examples/sunspots.py FOLDER

`train.npz` in the folder has the years to be predicted before 1921, `test.npz` the years from 1921
on (the division of Tong and Lim, 1980): `series` (n, 24, 1) and `target` (n, 1), float32. Windows
of the first test years reach back into the training years; no year is a target in both.
sunspots.csv is in the public domain: NOAA's National Geophysical Data Center, as in statsmodels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_suffix(".csv")
WINDOW, FIRST_TEST = 24, 1921


def make() -> dict[str, dict[str, Any]]:
    """The arrays of train and test."""
    years, counts = np.loadtxt(SOURCE, delimiter=",", skiprows=1).T
    windows = np.lib.stride_tricks.sliding_window_view(counts, WINDOW + 1).astype(np.float32)
    late = years[WINDOW:] >= FIRST_TEST
    return {
        part: {"series": windows[chosen][:, :-1, None], "target": windows[chosen][:, -1:]}
        for part, chosen in (("train", ~late), ("test", late))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for part, arrays in make().items():
        np.savez(args.folder / f"{part}.npz", **arrays)


if __name__ == "__main__":
    main()
