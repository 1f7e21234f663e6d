"""How far the losses of 1, 2 and 4 ranks differ at the same global batch.

The largest relative difference over 100 steps of the sample CNN (needs the sample data: make data).

python scripts/bench/rank_agreement.py
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

RANKS = (1, 2, 4)
STEPS = 100


def curve(ranks: int, folder: Path) -> list[float]:
    """The losses of the first STEPS steps on `ranks` ranks."""
    settings = [
        f"train.max_steps={STEPS}",
        "train.log_every=1",
        f"train.output={folder}",
        "data.verify=false",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | dict(
        item.split("=", 1) for item in shlex.split(os.environ.get("MPI_ENV", ""))
    )
    command = [
        "mpirun",
        "-n",
        str(ranks),
        "mpidl",
        "train",
        "scripts/configs/fashion-cnn.toml",
        *options,
    ]
    subprocess.run(command, check=True, timeout=600, env=environment, capture_output=True)
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        curves = {ranks: curve(ranks, Path(name) / str(ranks)) for ranks in RANKS}
    for ranks in RANKS[1:]:
        gap = max(abs(a - b) / abs(a) for a, b in zip(curves[1], curves[ranks], strict=True))
        compared = f"{ranks} ranks compared with 1 over {STEPS} steps"
        print(f"{compared}: largest relative difference of the loss {gap:.2e}")


if __name__ == "__main__":
    main()
