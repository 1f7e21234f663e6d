"""Continuous batching: sequences join and leave between tokens.

A pass has `ROWS` tokens: one each of the sequences that are being written, and what is left of the
prompts of those that have just come. Where the cache is full, the sequence that came last gives its
blocks back and is computed again later (Kwon et al., 2023).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpidl.errors import ConfigError
from mpidl.generation.blocks import ROOT, BlockPool
from mpidl.generation.decoder import (
    ROWS,
    Cache,
    CacheKind,
    Decoder,
    Rows,
    check_tokens,
    empty_rows,
)
from mpidl.generation.sampling import Sampling
from mpidl.nn import Model

BLOCK = 16  # tokens
Reason = Literal["length", "stop", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A text to go on with.

    Attributes:
        prompt: Tokens; at least one.
        max_tokens: Tokens to be written, at most; fewer where the context of the model ends.
        sampling: How they are chosen.
        stop: Tokens that end the text, which are not part of it.
        written: Tokens that were written before, by another engine: they count as if this one had.
    """

    prompt: Sequence[int]
    max_tokens: int = 100
    sampling: Sampling = field(default_factory=Sampling)
    stop: frozenset[int] = frozenset()
    written: Sequence[int] = ()


@dataclass(frozen=True)
class Finished:
    """A text that has ended.

    Attributes:
        number: Of the request.
        tokens: Those that were written.
        reason: "length": as many as were wanted, or as fit; "stop": a stop token came.
    """

    number: int
    tokens: tuple[int, ...]
    reason: Reason


@dataclass(eq=False)
class _Sequence:
    """A request that is being served.

    Attributes:
        number: Of the request.
        request: What is wanted.
        tokens: Prompt and what was written.
        computed: Tokens whose keys and values are in the cache.
        blocks: Where they are.
    """

    number: int
    request: Request
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def written(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[len(self.request.prompt) :]


class Engine:
    """Generates texts for many requests at once.

    Args:
        model: A causal language model (gpt).
        blocks: Blocks of the cache; 0: for 16 sequences of full length.
        cache: See `Cache`.

    Raises:
        ConfigError: The model does not generate tokens, or the cache cannot hold one sequence.
    """

    def __init__(self, model: Model, *, blocks: int = 0, cache: CacheKind = "float") -> None:
        self.length = int(model.input_shape[0])
        columns = -(-self.length // BLOCK)
        blocks = blocks or 16 * columns
        if blocks < columns:
            raise ConfigError(
                f"a cache of {blocks} blocks cannot hold one sequence of {self.length} tokens",
                where="blocks",
                remedy=f"use at least {columns}",
            )
        self.vocabulary = int(model.output_shape[-1])
        self.pool = BlockPool(blocks, BLOCK)
        self._decoder = Decoder(model, Cache(model, blocks, BLOCK, cache))
        self._columns = columns
        self._trash = blocks * BLOCK
        self._numbers = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # in the order in which they came
        self.passes = 0
        self.preempted = 0

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> int:
        """Add a request; returns its number.

        Raises:
            ConfigError: It can never be served.
        """
        prompt = [int(token) for token in request.prompt]
        tokens = [*prompt, *(int(token) for token in request.written)]
        check_tokens(tokens, self.vocabulary)
        if not prompt or len(tokens) > self.length or request.max_tokens <= len(request.written):
            raise ConfigError(
                f"a prompt of {len(tokens)} token(s) and {request.max_tokens} to be written",
                where="prompt",
                remedy=f"give 1 to {self.length} tokens, the context of the model, and let at "
                "least one be written",
            )
        number = next(self._numbers)
        self._waiting.append(_Sequence(number, request, tokens))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request; its blocks are free again."""
        for sequence in [s for s in self._running if s.number == number]:
            self._release(sequence)
            self._running.remove(sequence)
        self._waiting = deque(s for s in self._waiting if s.number != number)

    def run(self) -> Iterator[Finished]:
        """Work until all requests are served."""
        while self.busy:
            yield from self.step()[1]

    def step(self) -> tuple[list[tuple[int, int]], list[Finished]]:
        """One pass.

        Returns:
            (number of the request, token) for each token that was written, and the requests that
            have ended.
        """
        self._admit()
        planned = self._plan()
        if not planned:
            return [], []
        logits = self._decoder.logits(self._rows(planned))
        self.passes += 1
        written: list[tuple[int, int]] = []
        ended: list[Finished] = []
        row = 0
        for sequence, count in planned:
            row += count
            self._advance(sequence, count)
            if sequence.computed < len(sequence.tokens):
                continue
            token = sequence.request.sampling.choose(logits[row - 1], len(sequence.written))
            reason = self._end(sequence, token)
            if reason != "stop":
                sequence.tokens.append(token)
                written.append((sequence.number, token))
            if reason is not None:
                self._release(sequence)
                self._running.remove(sequence)
                ended.append(Finished(sequence.number, tuple(sequence.written), reason))
        return written, ended

    def _end(self, sequence: _Sequence, token: int) -> Reason | None:
        """Why a sequence ends with this token; None: it goes on."""
        if token in sequence.request.stop:
            return "stop"
        written = len(sequence.written) + 1
        if written >= sequence.request.max_tokens or len(sequence.tokens) >= self.length:
            return "length"
        return None

    def _admit(self) -> None:
        """Let requests in for which there are rows and blocks."""
        while self._waiting and len(self._running) < ROWS:
            sequence = self._waiting[0]
            needed = -(-len(sequence.tokens) // BLOCK)
            if self._running and self.pool.free < needed:
                return
            self._waiting.popleft()
            sequence.blocks = self.pool.find(sequence.tokens)
            sequence.computed = len(sequence.blocks) * BLOCK
            self._running.append(sequence)

    def _plan(self) -> list[tuple[_Sequence, int]]:
        """Which sequences get how many rows: those that are being written first."""
        order = sorted(self._running, key=lambda s: len(s.tokens) - s.computed > 1)
        planned: list[tuple[_Sequence, int]] = []
        rows = ROWS
        for sequence in order:
            if sequence not in self._running:  # it has given its blocks to another one
                continue
            count = min(rows, len(sequence.tokens) - sequence.computed)
            if count and self._make_room(sequence, sequence.computed + count, planned):
                planned.append((sequence, count))
                rows -= count
        return planned

    def _make_room(
        self, sequence: _Sequence, tokens: int, planned: Sequence[tuple[_Sequence, int]]
    ) -> bool:
        """Blocks for the first `tokens` of a sequence; False: it has to wait for others."""
        busy = {id(other) for other, _ in planned}
        while len(sequence.blocks) * BLOCK < tokens:
            number = self.pool.take()
            if number is not None:
                sequence.blocks.append(number)
                continue
            last = self._running[-1]
            if last is sequence or id(last) in busy:
                return False  # an earlier one goes on, or takes the blocks of this one
            self._preempt(last)
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._release(sequence)
        self._running.remove(sequence)
        self._waiting.appendleft(sequence)
        self.preempted += 1

    def _release(self, sequence: _Sequence) -> None:
        for number in sequence.blocks:
            self.pool.give_back(number)
        sequence.blocks, sequence.computed = [], 0

    def _advance(self, sequence: _Sequence, count: int) -> None:
        """Note that rows are in the cache; full blocks can be found from now on."""
        before = sequence.computed
        sequence.computed += count
        for index in range(before // BLOCK, sequence.computed // BLOCK):
            previous = sequence.blocks[index - 1] if index else ROOT
            tokens = sequence.tokens[index * BLOCK : (index + 1) * BLOCK]
            self.pool.learn(sequence.blocks[index], previous, tokens)

    def _rows(self, planned: Sequence[tuple[_Sequence, int]]) -> Rows:
        host: dict[str, NDArray[Any]] = empty_rows(self._columns, self._trash)
        row = 0
        for owner, (sequence, count) in enumerate(planned):
            blocks = np.array(sequence.blocks, np.int64)
            host["table"][owner, : len(blocks)] = blocks
            at = np.arange(sequence.computed, sequence.computed + count)
            here = slice(row, row + count)
            host["tokens"][here] = sequence.tokens[sequence.computed : sequence.computed + count]
            host["positions"][here] = at
            host["slots"][here] = blocks[at // BLOCK] * BLOCK + at % BLOCK
            host["owner"][here] = owner
            host["visible"][here] = at + 1
            row += count
        ops = self._decoder.ops
        return Rows(**{name: ops.to_device(array) for name, array in host.items()})


def generate(
    model: Model, requests: Sequence[Request], *, blocks: int = 0, cache: CacheKind = "float"
) -> list[Finished]:
    """Texts for some requests, in their order.

    Args:
        model: See `Engine`.
        requests: What is wanted.
        blocks: See `Engine`.
        cache: See `Engine`.
    """
    engine = Engine(model, blocks=blocks, cache=cache)
    for request in requests:
        engine.submit(request)
    return sorted(engine.run(), key=lambda finished: finished.number)
