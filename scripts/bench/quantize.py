"""float32 beside int8 and 16 bits: python scripts/bench/quantize.py RUN [--data FOLDER]

RUN is a trained classifier or language model. Every contender takes the same stored samples and
gives logits, on one thread; in each round, one after the other:
  float32, int8 dynamic, int8 weight_only, float16, bfloat16
             the run, and what `mpidl quantize` makes of it with these settings
  onnxruntime, ... int8 dynamic, ... int8 static
             the exported run in onnxruntime; quantized by `quantize_dynamic`, and by
             `quantize_static` (QDQ, calibrated on samples of the training data; classifiers)
Printed: accuracy or perplexity on the first --samples test samples, samples per second of batches
of --batch (medians), and the ratio to the float32 of the same program. Of language models also
perplexity and tokens per second of eight texts at once, with keys and values in float32 and int8.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mpidl.comm.context import Context, init
from mpidl.data.manifest import Arrays
from mpidl.data.reader import Reader
from mpidl.generation.measure import Contender, perplexity, tokens_per_second
from mpidl.inference.export import choose_exporter
from mpidl.inference.export.tasks import RAW
from mpidl.inference.predict import Predictor
from mpidl.inference.quantize import Recipe, quantize

SMALLER = {
    "int8 dynamic": Recipe("dynamic", "float32", fold=True, prune=0.0),
    "int8 weight_only": Recipe("weight_only", "float32", fold=True, prune=0.0),
    "float16": Recipe("none", "float16", fold=True, prune=0.0),
    "bfloat16": Recipe("none", "bfloat16", fold=True, prune=0.0),
}
CALIBRATION, WINDOWS = 256, 32
Logits = Callable[[Arrays], Any]


def ours(run: Path, folder: Path, context: Context) -> dict[str, Predictor]:
    """The run, and the models made of it."""
    found = {"float32": Predictor(run, context, backend="numpy")}
    for name, recipe in SMALLER.items():
        path = folder / f"{name.replace(' ', '-')}.h5"
        quantize(Predictor(run, context, backend="numpy"), recipe, path, context)
        found[name] = Predictor(path, context, backend="numpy")
    return found


def peers(predictor: Predictor, folder: Path) -> dict[str, Logits]:
    """The exported run in onnxruntime, as it is and quantized; nothing where it is missing."""
    try:
        import onnxruntime
        from onnxruntime.quantization import quant_pre_process, quantize_dynamic
    except ImportError:
        return {}
    choose_exporter(folder / "run.onnx").write(predictor)
    files = {"onnxruntime float32": folder / "run.onnx"}
    shaped = folder / "shaped.onnx"
    quant_pre_process(str(files["onnxruntime float32"]), str(shaped), skip_symbolic_shape=True)
    files["onnxruntime int8 dynamic"] = folder / "dynamic.onnx"
    quantize_dynamic(str(shaped), str(files["onnxruntime int8 dynamic"]))
    if not predictor.task.gives_tokens:
        files["onnxruntime int8 static"] = folder / "static.onnx"
        calibrate(predictor, shaped, files["onnxruntime int8 static"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    found: dict[str, Logits] = {}
    for name, path in files.items():
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        found[name] = lambda arrays, session=session: session.run([RAW], feed(predictor, arrays))[0]
    return found


def feed(predictor: Predictor, arrays: Arrays) -> dict[str, Any]:
    """The inputs of the exported program."""
    names = [field.name for field in predictor.spec.features]
    return dict(zip(names, predictor.task.features(arrays), strict=True))


def calibrate(predictor: Predictor, source: Path, out: Path) -> None:
    """Static quantization of an exported program, with samples of the training data."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    with closing(Reader(predictor.config.data.folders[0], driver="posix")) as reader:
        arrays = reader.read([(0, CALIBRATION)])
    batches = [
        feed(predictor, {name: array[low : low + 32] for name, array in arrays.items()})
        for low in range(0, CALIBRATION, 32)
    ]

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return batches.pop() if batches else None

    quantize_static(
        str(source), str(out), Samples(), quant_format=QuantFormat.QDQ, per_channel=True
    )


def quality(predictor: Predictor, logits: Logits, arrays: Arrays, batch: int) -> float:
    """Accuracy of a classifier, perplexity of a language model."""
    targets = predictor.task.targets(arrays)
    total = 0.0
    for low in range(0, len(targets), batch):
        part = {name: array[low : low + batch] for name, array in arrays.items()}
        found, wanted = np.array(logits(part), np.float64), targets[low : low + batch]
        if not predictor.task.gives_tokens:
            total += float((found.argmax(axis=-1) == wanted.reshape(len(wanted))).sum())
            continue
        norms = np.log(np.exp(found - found.max(axis=-1, keepdims=True)).sum(axis=-1))
        taken = np.take_along_axis(found, wanted[..., None], axis=-1)[..., 0]
        total += float((norms + found.max(axis=-1) - taken).sum())
    return (
        float(np.exp(total / targets.size)) if predictor.task.gives_tokens else total / len(targets)
    )


def measure(contenders: dict[str, Logits], arrays: Arrays, rounds: int) -> dict[str, float]:
    """Samples per second, medians over rounds in which the contenders take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    count = len(next(iter(arrays.values())))
    for round_ in range(rounds + 2):
        for name, logits in contenders.items():
            begin = time.perf_counter()
            logits(arrays)
            if round_ > 1:
                times[name].append(time.perf_counter() - begin)
    return {name: count / statistics.median(own) for name, own in times.items()}


def texts(models: dict[str, Predictor], windows: Any) -> None:
    """Print what it means for texts, written token after token."""
    ways: dict[str, Contender] = {
        "float32": (models["float32"].model, "float"),
        "float32, int8 cache": (models["float32"].model, "int8"),
        "int8 dynamic": (models["int8 dynamic"].model, "float"),
        "int8 dynamic, int8 cache": (models["int8 dynamic"].model, "int8"),
    }
    rates = dict(zip(ways, tokens_per_second(list(ways.values()), windows[0, :4]), strict=True))
    exact = perplexity(*ways["float32"][:1], windows)
    print("\ntexts                      perplexity  change    tokens/s  ratio")
    for name, (model, cache) in ways.items():
        found = perplexity(model, windows, cache)
        ratio = rates[name] / rates["float32"]
        change = 100 * (found / exact - 1)
        print(f"{name:<26} {found:10.4f} {change:+6.2f} % {rates[name]:10,.0f} {ratio:6.2f}")


def compare(run: Path, data: str | None, args: argparse.Namespace, folder: Path) -> None:
    models = ours(run, folder, init())
    first = models["float32"]
    with closing(Reader(data or first.config.data.test or "", driver="posix")) as reader:
        arrays = reader.read([(0, min(args.samples, len(reader)))])
    contenders: dict[str, Logits] = {name: model.outputs for name, model in models.items()}
    contenders |= peers(first, folder)
    part = {name: array[: args.batch] for name, array in arrays.items()}
    rates = measure(contenders, part, args.rounds)
    word = "perplexity" if first.task.gives_tokens else "accuracy"
    print(f"{'':<26} {word:>10}   samples/s  ratio")
    for name, logits in contenders.items():
        base = "onnxruntime float32" if name.startswith("onnx") else "float32"
        found = quality(first, logits, arrays, args.batch)
        print(f"{name:<26} {found:10.4f} {rates[name]:11,.0f} {rates[name] / rates[base]:6.2f}")
    if first.task.gives_tokens:
        texts(models, arrays[first.spec.features[0].name][:WINDOWS].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="a data set (default: the test data of the run)")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        compare(args.run, args.data, args, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
