"""Synchronous data-parallel SGD: gradients are summed over all ranks by an all-reduce in every step (MPI-SGD).

One message after backward, or buckets that leave while backward still runs: handed to a communication thread where MPI allows
several threads ("thread"), else exchanged between layers ("layers"). A compressor may stand between bucket and collective.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np

from mpidl.collectives import Group, all_reduce, broadcast
from mpidl.collectives.api import NAMES
from mpidl.comm import mpi
from mpidl.comm.context import Context
from mpidl.comm.thread import CommunicationThread
from mpidl.comm.transport import host_view
from mpidl.compression.choice import CompressionChoice
from mpidl.errors import ConfigError
from mpidl.nn import FlatParameters
from mpidl.optim import RunState, squared_norm
from mpidl.options import MebiBytes, OneOf, Section
from mpidl.sync.strategy import RunInfo, StepScalars
from mpidl.sync.synchronous.buckets import Bucket, BucketDispatcher, BucketTuner, cut
from mpidl.sync.synchronous.noise import NoiseScale
from mpidl.sync.synchronous.strategy import SynchronousStrategy, Update

BUCKET = 4 << 20  # bytes
SQUARES = 5  # place among the spare elements
TUNED = tuple(1 << power for power in (19, 20, 21, 22, 23, 24, 25))


class Compression(Protocol):
    """What `mpidl.compression` makes: sums a bucket (n,) over the ranks in place, sending fewer bytes.

    on_device: takes a bucket on a GPU as it is, else a copy of it on the host.
    """

    on_device: bool

    def reduce(self, values: Any, group: Group, key: str, layout: Any) -> None:
        """Replace `values` by their sum over the ranks, nearly; key: the bucket's name in every step; layout: its tensors."""

    def state(self) -> RunState:
        """What later sums depend on: residuals, factors, counters."""

    def load_state(self, state: RunState) -> None:
        """Go on from `state`."""


class AllReduce(SynchronousStrategy):
    """Sums gradients and scalars. Ranks scale their gradients by the global batch, so the sum is the mean.

    algorithm: see `mpidl.collectives.all_reduce`; exact: only those of fixed order. overlap: "thread", "layers", "off", or
    "auto": a thread where it can win, that is between nodes or with a GPU. bucket_bytes: 0 means 4 MiB; tune_buckets: try
    several sizes during the first steps. noise_scale: measure the gradient noise (mpidl.sync.synchronous.noise).
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
        """

        EXCLUSIVE: ClassVar[tuple[str, ...]] = ("compression", "tune_buckets", "noise_scale")

        algorithm: Annotated[str, OneOf(NAMES, "auto")] = "auto"
        overlap: Literal["auto", "thread", "layers", "off"] = "auto"
        bucket_mib: MebiBytes = 0.0
        tune_buckets: bool = False
        compression: CompressionChoice = CompressionChoice()
        guard: Literal["auto", "on", "off"] = "auto"
        noise_scale: bool = False

    @classmethod
    def create(
        cls, options: Options, parameters: FlatParameters, context: Context, run: RunInfo
    ) -> AllReduce:
        """The strategy with `options`. Collective."""
        return cls(
            parameters,
            context,
            algorithm=options.algorithm,
            exact=run.exact,
            overlap=options.overlap,
            bucket_bytes=int(options.bucket_mib * (1 << 20)),
            tune_buckets=options.tune_buckets,
            compression=options.compression.create(run.seed),
            guard=options.guard,
            noise_scale=options.noise_scale,
        )

    def __init__(
        self,
        parameters: FlatParameters,
        context: Context,
        *,
        algorithm: str = "auto",
        exact: bool = False,
        overlap: str = "auto",
        bucket_bytes: int = 0,
        tune_buckets: bool = False,
        compression: Compression | None = None,
        guard: str = "auto",
        noise_scale: bool = False,
    ) -> None:
        super().__init__(parameters)
        self.context, self.algorithm, self.exact = context, algorithm, exact
        self.compression = compression
        self.group = Group(context.comm, name="gradients")
        self.group.guard = guard if guard != "auto" else self.group.guard
        self.overlap = _choose_overlap(overlap, self.group, context, parameters.ops.xp is np)
        self.overlaps = self.overlap != "off" and context.size > 1
        self.worker = (
            CommunicationThread() if self.overlap == "thread" and context.size > 1 else None
        )
        self.tuner = BucketTuner(TUNED) if tune_buckets and self.overlap != "off" else None
        self._cut(self.tuner.current if self.tuner else bucket_bytes or BUCKET)
        self.noise: NoiseScale | None = None
        self._measures, self._squares = noise_scale and context.size > 1, 0.0
        self._started = time.monotonic()

    def _cut(self, nbytes: int) -> None:
        self.bucket_bytes = nbytes
        whole = self.compression is None and self.overlap == "off"
        length = len(self.parameters.message) if whole else self.parameters.length
        buckets = (
            [Bucket(0, length, "all gradients")]
            if self.overlap == "off"
            else cut(self.parameters, nbytes)
        )
        self.single = whole
        self.departures = BucketDispatcher(buckets, self._send)

    def start(self) -> None:
        """Rank 0's parameters reach every rank."""
        broadcast(self.parameters.values, comm=self.group, name="parameters")

    def on_gradients_ready(self, start: int, stop: int) -> None:
        if self.overlap != "off":
            self.departures.ready(start)

    def step(self, scalars: StepScalars, update: Update) -> StepScalars:
        sums = self._exchange_all(scalars)
        if not sums.failed and math.isfinite(sums.loss):
            update()
        return sums

    def _exchange_all(self, scalars: StepScalars) -> StepScalars:
        """Sum over the ranks what gradients have not left yet, and the scalars."""
        scalars.write(self.parameters)
        if self._measures and self.single:  # the scalars are in the same message
            self._squares = squared_norm(self.parameters, self.parameters.gradients)
            self._note_squares()
        self.departures.flush()
        if self.worker is not None:
            self.worker.drain()
        if self._measures and not self.single:
            self._note_squares()
        if not self.single:
            all_reduce(
                self.parameters.spare,
                comm=self.group,
                algorithm=self.algorithm,
                exact=self.exact,
                name="scalars",
            )
        if self.tuner is not None:
            self._tune()
        sums = StepScalars.read(self.parameters)
        if self._measures and not sums.failed:
            self._measure(sums)
        return sums

    def _note_squares(self) -> None:
        """This rank's squares to the scalars: of its own mean gradient, which is its share of the sum times the ranks."""
        own = np.array([self._squares * self.group.size], self.parameters.dtype)
        self.parameters.spare[SQUARES : SQUARES + 1] = self.parameters.ops.to_device(own)
        self._squares = 0.0

    def _measure(self, sums: StepScalars) -> None:
        if self.noise is None:
            self.noise = NoiseScale(sums.count / self.group.size, sums.count)
        if sums.count == self.noise.big:  # not of a last, smaller batch
            self.noise.small = sums.count / self.group.size  # a resumed run may have other ranks
            small = float(
                self.parameters.ops.to_host(self.parameters.spare[SQUARES : SQUARES + 1])[0]
            )
            self.noise.add(small, squared_norm(self.parameters, self.parameters.gradients))

    def report(self) -> dict[str, Any]:
        return super().report() | (self.noise.report() if self.noise else {})

    def _send(self, bucket: Bucket) -> None:
        if self._measures and not self.single:
            self._squares += squared_norm(
                self.parameters, self.parameters.gradients[bucket.start : bucket.stop]
            )
        if self.worker is None:
            self._exchange(bucket)
            return
        if self.parameters.ops.xp is not np:
            self.parameters.ops.synchronize()  # the thread reads what the stream of this one has written
        self.worker.submit(partial(self._exchange, bucket))

    def _exchange(self, bucket: Bucket) -> None:
        part = self.parameters.message[bucket.start : bucket.stop]
        self.sent += (
            2 * (self.group.size - 1) * part.nbytes // self.group.size
            if self.compression is None
            else 0
        )
        if self.compression is None:
            all_reduce(
                part, comm=self.group, algorithm=self.algorithm, exact=self.exact, name=bucket.name
            )
            return
        layout = bucket.layout(self.parameters)
        with host_view(part, aware=self.compression.on_device) as values:
            self.compression.reduce(values, self.group, bucket.name, layout)
            end = 0
            for start, stop, _ in [*layout, (len(values), len(values), ())]:
                values[end:start] = (
                    0  # between parameters; a compressor without a zero (sign) has filled it
                )
                end = stop

    def state(self) -> RunState:
        """Also that of the compressor, and the measured gradient noise."""
        state = super().state()
        if self.compression is not None:
            state.add("compression", self.compression.state())
        if self.noise is not None:
            state.add("noise", self.noise.state())
        return state

    def load_state(self, state: RunState) -> None:
        super().load_state(state)
        if self.compression is not None:
            saved, buckets = (
                state.take_section("compression"),
                {bucket.name for bucket in self.departures.buckets},
            )
            state.add(
                "compression", _of_other_buckets(saved, buckets)
            )  # not used: gradients are cut in other places now
            self.compression.load_state(saved)
            state.add("compression", saved)  # what it has left, under settings of its own
        noise = state.take_section("noise") if self._measures else RunState()
        if noise.shared:
            self.noise = NoiseScale(0.0, 0.0)
            self.noise.load_state(noise)

    def report_sent(self) -> int:
        return self.sent + int(getattr(self.compression, "sent", 0))

    def _tune(self) -> None:
        assert self.tuner is not None
        now = time.monotonic()
        slowest = self.context.comm.allreduce(now - self._started, op=mpi.load().MAX)
        undecided = self.tuner.best is None
        if self.tuner.record(slowest):
            self._cut(self.tuner.current)
        if undecided and self.tuner.best is not None and self.compression is not None:
            state = self.compression.state()  # without the residuals of the other sizes
            _of_other_buckets(state, {bucket.name for bucket in self.departures.buckets})
            self.compression.load_state(state)
        self._started = time.monotonic()


def _of_other_buckets(state: RunState, buckets: set[str]) -> RunState:
    """Take out of a compressor's state what belongs to buckets (the part behind the colon) that do not exist."""
    other = RunState()
    for target, source in ((other.shared, state.shared), (other.own, state.own)):
        for name in [
            name
            for name in source
            if ":" in name and name.split(":")[1].split(", part")[0] not in buckets
        ]:
            target[name] = source.pop(name)
    return other


def _choose_overlap(wanted: str, group: Group, context: Context, host: bool) -> str:
    if wanted == "auto":
        gains = group.node_count > 1 or not host
        wanted = ("thread" if context.threads_allowed else "layers") if gains else "off"
    if wanted == "thread" and not context.threads_allowed:
        raise ConfigError(
            "this MPI does not allow several threads",
            where="sync.overlap",
            remedy='use "layers", "off" or "auto"',
        )
    return wanted
