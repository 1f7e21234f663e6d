"""Prediction of a whole data set by all ranks: each takes chunks of samples as it gets free.

Nothing is gathered: what a rank has computed, it writes into the one file (`Store`). Batches are
cut at the same samples whoever computes them, so that the file is the same for any number of ranks,
and after an interruption.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mpidl
from mpidl.comm.context import Context
from mpidl.data.manifest import Arrays
from mpidl.errors import ConfigError
from mpidl.inference.outputs import Columns, Output, Passed, compute
from mpidl.inference.predict import Predictor
from mpidl.inference.samples import Samples
from mpidl.inference.shares import Shares, runs
from mpidl.inference.store import Layout, Notes, Store
from mpidl.models.summary import summarize
from mpidl.nn import Loss
from mpidl.task import Evaluation
from mpidl.train.signals import StopRequest

BATCH = 256  # samples of a pass
BATCH_BYTES = 128 << 20  # of inputs, activations and outputs of a pass, at most
CHUNK_BYTES = 16 << 20  # of inputs and outputs, at most, if a chunk is more than one pass
BATCHES = (4, 16)  # of a chunk, the more ...
CHUNKS = 64  # ... where there are more chunks than this, so that uneven ranks end together
SUM_BYTES = 1 << 30  # of the sums of all chunks, at most
AT_ONCE = 4  # chunks that a rank takes, at most ...
TAKEN_SECONDS = 0.1  # ... for so long: a signal is looked for between them
Progress = Callable[[int], None]  # told how many samples are done, by all ranks
# Given the layout, and the samples that an interrupted run has done
Begin = Callable[[Layout, int], Progress]


@dataclass(frozen=True)
class Result:
    """What became of a prediction.

    Attributes:
        samples: N.
        done: Chunks that are done, of `chunks`.
        chunks: All.
        evaluation: The metrics, where they were wanted and all is done.
    """

    samples: int
    done: int
    chunks: int
    evaluation: Evaluation | None = None

    @property
    def complete(self) -> bool:
        """Whether all samples are done."""
        return self.done == self.chunks


def batch_size(predictor: Predictor) -> int:
    """Samples of a pass: a power of two that depends on the model alone."""
    numbers = 4 * (math.prod(predictor.model.input_shape) + math.prod(predictor.shape))
    sample = numbers + sum(row.activation_bytes for row in summarize(predictor.model))
    size = BATCH
    while size > 1 and size * sample > BATCH_BYTES:
        size //= 2
    return size


def chunk_size(predictor: Predictor, samples: int) -> int:
    """Samples that a rank takes at once: it depends on the model and the data alone."""
    batch, (few, many) = batch_size(predictor), BATCHES
    numbers = math.prod(predictor.model.input_shape) + math.prod(predictor.shape)
    room = CHUNK_BYTES // (4 * numbers * batch)
    wanted = min(max(samples // (CHUNKS * batch), few), many)
    return batch * max(1, min(wanted, room))


def chunks_at_once(predictor: Predictor, chunk: int) -> int:
    """Chunks that a rank may hold together: no more than one large one takes."""
    numbers = math.prod(predictor.model.input_shape) + math.prod(predictor.shape)
    return max(1, min(AT_ONCE, CHUNK_BYTES // (4 * numbers * chunk)))


def layout_of(prediction: Prediction, samples: Samples, data: str) -> Layout:
    """What the file will hold, found out with one sample.

    Args:
        prediction: What is wanted.
        samples: The data.
        data: What identifies them, see `identify`.

    Raises:
        ConfigError: The metrics have too many sums.
    """
    predictor, outputs = prediction.predictor, prediction.outputs
    scored = prediction.loss is not None
    arrays = samples.read(0, 1)
    first = samples.ids(0, arrays) | compute(outputs, Passed(predictor, arrays))
    columns = {name: (array.shape[1:], array.dtype.str) for name, array in first.items()}
    about = {
        "backend": predictor.ops.name,
        "checkpoint": predictor.digest,
        "data": data,
        "outputs": [":".join(filter(None, (o.name, o.argument))) for o in outputs],
        "samples": len(samples),
        "metrics": scored,
        "version": mpidl.__version__,
    }
    spec, sums = predictor.spec, predictor.task.sums if scored else 0
    units = {samples.units.get(field.name, "") for field in spec.target.fields} - {""}
    notes = Notes(
        {"checkpoint": str(predictor.path), "task": spec.task},
        spec.target.class_names or (),
        {"value": ", ".join(sorted(units))} if units and "value" in columns else {},
    )
    layout = Layout(len(samples), chunk_size(predictor, len(samples)), columns, sums, about, notes)
    if layout.chunks * sums * 8 > SUM_BYTES:
        raise ConfigError(
            f"the metrics have {sums:,} numbers for each of {layout.chunks:,} chunks",
            where="--metrics",
            remedy="leave out --metrics, and use 'mpidl evaluate'",
        )
    return layout


class Prediction:
    """What is computed of samples, on this rank. Collective.

    Args:
        predictor: The model.
        outputs: What is wanted.
        loss: Of the run, for metrics; None: no metrics.
        context: The ranks.
    """

    def __init__(
        self,
        predictor: Predictor,
        outputs: Sequence[Output],
        loss: Loss | None,
        context: Context,
    ) -> None:
        self.predictor = predictor
        self.outputs = outputs
        self.loss = loss
        self.context = context
        self._shares: Shares | None = None
        self._batch = batch_size(predictor)

    def run(
        self,
        samples: Samples,
        store: Store,
        stop: StopRequest,
        progress: Progress,
    ) -> int:
        """Compute and write chunks until there are no more, or a signal arrives. Collective.

        Args:
            samples: The data.
            store: The file.
            stop: Says whether a signal has arrived.
            progress: Told how many samples of the data are done, by all ranks.

        Returns:
            Chunks that all ranks have done now.
        """
        shares = self._shares = self._shares or Shares(self.context)
        shares.open(len(store.pending))
        done, most = 0, 1
        limit = chunks_at_once(self.predictor, store.layout.chunk)

        def take() -> range:
            return shares.take(most)

        with (
            ThreadPoolExecutor(1, thread_name_prefix="mpidl-read") as pool,
            self.context.fail_together("predicting"),
        ):
            try:
                for numbers, arrays in _read_ahead(take, samples, store, pool):
                    if stop.stop_requested:
                        shares.stop()
                        break
                    begin = time.monotonic()
                    chunks = store.pending[numbers.start : numbers.stop]
                    columns, sums = self._chunks(arrays, len(chunks), store.layout.chunk)
                    ids = samples.ids(store.layout.rows(int(chunks[0]))[0], arrays)
                    store.write(chunks, ids | columns, sums)
                    done += len(chunks)
                    progress(store.done + store.layout.count(store.pending[: numbers.stop]))
                    seconds = (time.monotonic() - begin) / len(chunks)
                    most = min(limit, int(TAKEN_SECONDS / max(seconds, 1e-9)))
            except BaseException:
                shares.stop()  # the other ranks need not go on to the end
                raise
            finally:
                store.close()
        return sum(self.context.allgather_object(done))

    def _chunks(
        self, arrays: Arrays, count: int, chunk: int
    ) -> tuple[Columns, NDArray[np.float64] | None]:
        """Predictions of chunks, and what each adds to the metrics."""
        passed = Passed(self.predictor, arrays, self._batch)
        columns = compute(self.outputs, passed)
        if self.loss is None:
            return columns, None
        return columns, self._score(passed, self.loss, count, chunk)

    def _score(self, passed: Passed, loss: Loss, count: int, chunk: int) -> NDArray[np.float64]:
        """What each of `count` chunks adds to the metrics, (count, sums)."""
        task, inputs, ops = self.predictor.task, self.predictor.inputs, self.predictor.ops
        sums = np.zeros((count, task.sums))
        for rows, arrays in passed.batches():
            outputs = passed.outputs[rows]
            result = loss(ops.to_device(outputs), inputs.targets(arrays), 1)
            task.add(sums[rows.start // chunk], task.scored(outputs, result, arrays))
        return sums


def _read_ahead(
    take: Callable[[], range], samples: Samples, store: Store, pool: ThreadPoolExecutor
) -> Iterator[tuple[range, Arrays]]:
    """Runs of chunks that this rank takes, by their numbers among the pending ones.

    While one is computed, the next is read.
    """
    waiting: deque[range] = deque()

    def read_next() -> tuple[range, Future[Arrays]] | None:
        if not waiting:
            waiting.extend(runs(take(), store.pending))
        if not waiting:
            return None
        numbers = waiting.popleft()
        first, last = (int(store.pending[number]) for number in (numbers[0], numbers[-1]))
        low, high = store.layout.rows(first)[0], store.layout.rows(last)[1]
        return numbers, pool.submit(samples.read, low, high)

    ahead = read_next()
    while ahead is not None:
        numbers, future = ahead
        arrays = future.result()
        ahead = read_next()
        yield numbers, arrays


def predict(
    prediction: Prediction,
    samples: Samples,
    out: Path,
    layout: Layout,
    stop: StopRequest,
    *,
    restart: bool = False,
    overwrite: bool = False,
    begin: Begin = lambda layout, done: lambda count: None,
) -> Result:
    """Predict a whole data set into the HDF5 file `out`. Collective.

    SIGUSR1 and SIGTERM stop all ranks after the chunks at hand; the same call goes on later.

    Args:
        prediction: What is computed.
        samples: The data.
        out: The file; while it is incomplete, it has the suffix .partial.
        layout: Of `layout_of`.
        stop: Says whether a signal has arrived.
        restart: Leave what an interrupted run has written.
        overwrite: Replace a file of the final name.
        begin: Called before the first sample.

    Raises:
        DataError: Samples cannot be read, or the file cannot be written, or another one has its
            final name by now.
    """
    context = prediction.context
    store = Store(out, layout, context, restart=restart)
    before = layout.chunks - len(store.pending)
    progress = begin(layout, store.done)
    done = before + prediction.run(samples, store, stop, progress)
    if done < layout.chunks:
        return Result(layout.samples, done, layout.chunks)
    progress(layout.samples)
    evaluation = None
    if layout.sums:
        evaluation = prediction.predictor.task.evaluation(store.sums())
    context.on_root(lambda: store.finish(overwrite=overwrite), f"publishing {out}")
    return Result(layout.samples, done, layout.chunks, evaluation)
