"""Show what data hold: fields, values, class balance, missing values, layout, and a picture.

DATA is a folder made by 'mpidl shard' or 'mpidl index', an HDF5 or NetCDF-4 file, or what
'mpidl shard' takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpidl.cli.arguments import add_source_options, source_options

if TYPE_CHECKING:
    from mpidl.data.look import Part

NAME = "look"
HELP = "what data hold: fields, values, class balance, NaN; a picture of samples"
SAMPLES = 1000
COLUMNS = 6  # samples in a picture
BARS = 20  # classes that have a bar
WIDTH = 40  # of the longest bar
TEXT = 40  # characters of a name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "data", type=Path, nargs="+", help="a data set, or raw files or a folder (mpidl shard)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help="look at N evenly spaced samples, 0: at all (default: %(default)s)",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw some samples, as in samples.png"
    )
    add_source_options(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Look; needs no MPI launcher."""
    from mpidl.comm.launcher import rank
    from mpidl.data.apart import run_apart
    from mpidl.errors import ConfigError, notice
    from mpidl.observe.plot import check_plot

    if args.samples < 0:
        raise ConfigError("is negative", where="--samples", remedy="choose 0 for all samples")
    if args.picture is not None:
        check_plot(args.picture)
    found = run_apart(lambda: examine(args), ", ".join(map(str, args.data)))
    if rank() == 0:
        for note in found["notes"]:
            notice(plain(note, 1000))
        if not args.json:
            for report in found["parts"]:
                print_report(report)
            if found["picture"]:
                print(f"picture of samples: {found['picture']}")
    return found


def examine(args: argparse.Namespace) -> dict[str, Any]:
    """What the data hold; draws the picture."""
    from mpidl.data.look import scan
    from mpidl.data.views import open_parts

    notes: list[str] = []
    parts = open_parts(args.data, notes.append, **source_options(args))
    reports = []
    for part in parts:
        fields, scanned = scan(part, args.samples, notes.append)
        files = {"files": dict(part.files)} if part.files else {}
        reports.append({"samples": part.samples, "scanned": scanned, "fields": fields, **files})
    drawn = args.picture is not None and draw(
        parts, args.picture, ", ".join(map(str, args.data)), notes
    )
    picture = str(args.picture) if drawn else None
    return {"data": [str(path) for path in args.data], "parts": reports, "picture": picture} | {
        "notes": notes
    }


def draw(parts: list[Part], path: Path, title: str, notes: list[str]) -> bool:
    """Draw samples of the part with the most bytes; whether they could be read."""
    from mpidl.data.look import SCAN_BYTES
    from mpidl.errors import MpidlError
    from mpidl.observe.samples import plot_samples

    part = max(parts, key=lambda part: part.sample_bytes)
    count = max(1, min(COLUMNS, part.samples, SCAN_BYTES // part.sample_bytes))
    starts = [index * part.samples // count for index in range(count)]
    try:
        arrays = part.read([(start, start + 1) for start in starts])
    except MpidlError as error:
        notes.append(f"no picture: {error}")
        return False
    shown = ", ".join(f"{start:,}" for start in starts)
    plot_samples(part.fields, arrays, path, f"{title}: samples {shown}")
    return True


def print_report(report: dict[str, Any]) -> None:
    """Print what a part of the data holds."""
    print(f"{report['samples']:,} samples{describe_files(report.get('files', {}))}")
    if report["scanned"] < report["samples"]:
        print(f"values of {report['scanned']:,} evenly spaced samples (--samples 0 looks at all):")
    for name, field in report["fields"].items():
        shape = str(field["shape"]) if field["shape"] else ""
        print(f"  {plain(name)}: {field['dtype']}{shape}, {field['role']}")
        print(f"    {describe_values(field)}")
        if field["layout"]:
            print(f"    in the file: {field['layout']}")
        if field["slow"]:
            print(f"    slow to read: {field['slow']}")
        for line in bars(field.get("classes", {})):
            print(f"    {line}")


def describe_files(files: dict[str, int]) -> str:
    """How the samples are divided: " in 4 file(s), 250 to 251 in each"."""
    if not files:
        return ""
    low, high = min(files.values()), max(files.values())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f" in {len(files):,} file(s), {each} in each"


def describe_values(field: dict[str, Any]) -> str:
    """The range of a field's values, and what is no value."""
    if field["min"] is None:
        text = "no finite values"
    else:
        numbers = ((key, field[key]) for key in ("min", "mean", "std", "max"))
        text = ", ".join(
            f"{key} {'beyond float64' if value is None else format(value, '.6g')}"
            for key, value in numbers
        )
    counts = {"NaN": field["nan"], "infinities": field["infinite"]}
    bad = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    return f"{text}; {' and '.join(bad) or 'no NaN'}"


def bars(classes: dict[str, dict[str, Any]]) -> list[str]:
    """Lines with a bar for each of the largest classes, in the order of their numbers."""
    if not classes:
        return []
    total = sum(entry["count"] for entry in classes.values())
    largest = sorted(classes, key=lambda key: -classes[key]["count"])[:BARS]
    labels = {
        key: plain(f"{key} {classes[key]['name'] or ''}".strip(), TEXT)
        for key in classes
        if key in set(largest)
    }
    width = max(map(len, labels.values()))
    most = classes[largest[0]]["count"]
    lines = [
        f"{label:<{width}} {'#' * round(WIDTH * classes[key]['count'] / most):<{WIDTH}} "
        f"{classes[key]['count']:,} ({100 * classes[key]['count'] / total:.1f} %)"
        for key, label in labels.items()
    ]
    rest = len(classes) - len(labels)
    if rest:
        count = total - sum(classes[key]["count"] for key in labels)
        lines.append(f"{rest:,} other classes: {count:,} ({100 * count / total:.1f} %)")
    return lines


def plain(text: str, most: int = TEXT) -> str:
    """A text of others without what a terminal would obey, and short."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."
