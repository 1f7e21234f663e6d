"""The diabetes data of scikit-learn: ten numbers of 442 patients, and the disease a year later.

    python scripts/examples/diabetes.py diabetes.npz

The archive has `features` (442, 10) float32 in their own units, and `target` (442, 1) float32, a
measure of the progression of the disease (Efron et al., 2004). The targets are whole numbers, which
a table would make classes of.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    features, target = load_diabetes(return_X_y=True, scaled=False)
    np.savez(args.out, features=features.astype("f4"), target=target[:, None].astype("f4"))


if __name__ == "__main__":
    main()
