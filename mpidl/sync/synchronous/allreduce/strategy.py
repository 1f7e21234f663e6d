"""The strategy: gradients are summed over all ranks by an all-reduce in every step (MPI-SGD)."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mpidl.collectives import all_reduce
from mpidl.collectives.algorithms import ALL_REDUCE
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.compression import Compressor
from mpidl.compression.choice import CompressionChoice
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.optim import RunState
from mpidl.options import MebiBytes, OneOf, Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.allreduce.exchange import BucketExchange, choose_overlap, split_state
from mpidl.sync.synchronous.allreduce.masked import MaskedSum
from mpidl.sync.synchronous.allreduce.noise import NoiseMeter
from mpidl.sync.synchronous.buckets import Bucket, BucketDispatcher, BucketTuner, bucket_bytes, cut
from mpidl.sync.synchronous.strategy import SynchronousStrategy, Update

TUNED = tuple(1 << power for power in (19, 20, 21, 22, 23, 24, 25))  # bytes


class AllReduce(SynchronousStrategy):
    """Sums gradients and scalars over the ranks.

    Ranks divide their gradients by the samples of the global batch, so the sum is the mean. It
    travels in one message after backward, or in buckets that leave while backward still runs:
    handed to a communication thread where MPI allows several threads ("thread"), else exchanged
    between layers ("layers"). A compressor may stand between bucket and collective.

    Attributes:
        overlap: "thread", "layers" or "off", chosen.
        compressor: Of the gradients, or None.
        dispatcher: Sends buckets in order.
        tuner: Of the bucket size, or None.
        meter: Of the gradient noise, or None.
    """

    class Options(Section, frozen=True):
        """Options of allreduce.

        Attributes:
            algorithm: All-reduce algorithm; "auto": one that makes results independent of the
                number of ranks where there is one (see train.micro_batches), else by size and
                placement.
            overlap: Gradients leave during backward: handed to a thread, exchanged between
                layers, or "off"; "auto": a thread between nodes and with GPUs.
            bucket_mib: Size of a bucket in MiB; 0: 4 MiB.
            tune_buckets: Try several sizes during the first steps.
            compression: How buckets are compressed.
            guard: "on": compare what the ranks do before each exchange; "auto": where it is free,
                and before native rounds.
            noise_scale: Measure the gradient noise, to suggest a batch size.
            masked: Sum gradients under masks that cancel, so that no message shows those of a rank
                (secure aggregation).
        """

        EXCLUSIVE: ClassVar[tuple[str, ...]] = (
            "compression",
            "tune_buckets",
            "noise_scale",
            "masked",
        )

        algorithm: Annotated[str, OneOf(ALL_REDUCE, "auto")] = "auto"
        overlap: Literal["auto", "thread", "layers", "off"] = "auto"
        bucket_mib: MebiBytes = 0.0
        tune_buckets: bool = False
        compression: CompressionChoice = CompressionChoice()
        guard: Literal["auto", "on", "off"] = "auto"
        noise_scale: bool = False
        masked: bool = False

    options: Options

    @classmethod
    def check(cls, options: Any, run: RunInfo) -> None:
        """Also refuse what would show what masks hide."""
        super().check(options, run)
        other = "noise_scale" if options.noise_scale else "compression"
        if options.masked and (options.noise_scale or options.compression.name != "none"):
            raise ConfigError(
                f"sums under masks do not go with {other}",
                where="sync.masked",
                remedy=f"leave out {other}, or masked",
            )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        options: Section | None = None,
        run: RunInfo | None = None,
    ) -> None:
        super().__init__(parameters, context, options, run)
        chosen = self.options
        if chosen.guard != "auto":
            self.group.guard = chosen.guard
        on_host = parameters.ops.xp is np
        self.overlap = choose_overlap(chosen.overlap, self.group, context, on_host)
        self.overlaps = self.overlap != "off" and context.size > 1
        self.compressor: Compressor | None = chosen.compression.create(self.run.seed)
        if chosen.masked and context.size > 1:
            self.compressor = MaskedSum(self.group)
        self.exchange = BucketExchange(
            parameters,
            self.group,
            algorithm=chosen.algorithm,
            exact=self.run.exact,
            compressor=self.compressor,
            threaded=self.overlap == "thread" and context.size > 1,
        )
        measures = chosen.noise_scale and context.size > 1
        self.meter = NoiseMeter(parameters, self.group.size) if measures else None
        tunes = chosen.tune_buckets and self.overlap != "off"
        self.tuner = BucketTuner(TUNED) if tunes else None
        # nothing leaves early, so gradients and scalars can travel in one message
        self._single = self.compressor is None and self.overlap == "off"
        self._cut(self.tuner.current if self.tuner else bucket_bytes(chosen.bucket_mib))
        self._started = time.monotonic()

    def _cut(self, nbytes: int) -> None:
        """Cut the gradients into buckets of about `nbytes`."""
        if self.overlap == "off":
            length = len(self.parameters.message) if self._single else self.parameters.length
            buckets = [Bucket(0, length, "all gradients")]
        else:
            buckets = cut(self.parameters, nbytes)
        self.dispatcher = BucketDispatcher(buckets, self._send)

    # --- a step ---
    def on_gradients_ready(self, start: int, stop: int) -> None:
        if self.overlap != "off":
            self.dispatcher.ready(start)

    def _send(self, bucket: Bucket) -> None:
        if self.meter is not None:
            self.meter.add_own(self.parameters.gradients[bucket.start : bucket.stop])
            if self._single:  # the scalars are in this message
                self.meter.write_own()
        self.exchange.begin(bucket)

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        scalars.write(self.parameters)
        self.dispatcher.flush()
        self.exchange.finish()
        if not self._single:
            self._sum_scalars()
        if self.tuner is not None:
            self._tune(self.tuner)
        sums = StepScalars.read(self.parameters)
        if self.meter is not None and not sums.failed:
            self.meter.measure(sums)
        if not sums.failed and math.isfinite(sums.loss):
            update()
        return sums

    def _sum_scalars(self) -> None:
        if self.meter is not None:
            self.meter.write_own()
        all_reduce(
            self.parameters.spare,
            comm=self.group,
            algorithm=self.options.algorithm,
            exact=self.run.exact,
            name="scalars",
        )

    def _tune(self, tuner: BucketTuner) -> None:
        now = time.monotonic()
        slowest = self.context.comm.allreduce(now - self._started, op=mpi.load().MAX)
        undecided = tuner.best is None
        if tuner.record(slowest):
            self._cut(tuner.current)
        if undecided and tuner.best is not None and self.compressor is not None:
            # else each rank would keep a residual of the whole model for each size
            state = self.compressor.state()
            split_state(state, self._bucket_names())
            self.compressor.load_state(state)
        self._started = time.monotonic()

    def _bucket_names(self) -> set[str]:
        return {bucket.name for bucket in self.dispatcher.buckets}

    # --- checkpoints ---
    def state(self) -> RunState:
        """Also that of the compressor, and the measured gradient noise."""
        state = super().state()
        if self.compressor is not None:
            state.add("compression", self.compressor.state())
        if self.meter is not None:
            state.add("noise", self.meter.state())
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        if self.compressor is not None:
            saved = state.take_section("compression")
            unused = split_state(saved, self._bucket_names())  # other bucket sizes now
            self.compressor.load_state(saved)
            state.add("compression", unused)
            state.add("compression", saved)  # what it has left, under settings of its own
        if self.meter is not None:
            self.meter.load_state(state.take_section("noise"))

    def report(self) -> dict[str, Any]:
        return super().report() | (self.meter.report() if self.meter is not None else {})

    def report_sent(self) -> int:
        return self.sent + self.exchange.sent
