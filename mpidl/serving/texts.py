"""The texts that a rank writes with a model: they join and leave between the steps."""

from __future__ import annotations

import time

from mpidl.errors import ConfigError
from mpidl.generation import Engine, Request, Sampling
from mpidl.generation.decoder import CacheKind
from mpidl.generation.engine import BLOCK
from mpidl.inference.predict import Predictor
from mpidl.serving.messages import Start, Step, Stepped

SECONDS = 5e-3  # of a step, at least one pass: other models of the rank wait as long


class Texts:
    """What a rank writes with one model.

    Args:
        predictor: A language model.
        cache_tokens: See `ModelSettings`.
        cache: See `ModelSettings`.

    Attributes:
        context: Tokens of the longest text.

    Raises:
        ConfigError: The model writes no texts, or the cache cannot hold one.
    """

    def __init__(
        self, predictor: Predictor, cache_tokens: int = 0, cache: CacheKind = "float"
    ) -> None:
        self._model = predictor.model
        self._cache: CacheKind = cache
        self._blocks = -(-cache_tokens // BLOCK)
        self.reset()
        self.context = self._engine.length

    def reset(self) -> None:
        """Forget all texts."""
        self._engine = Engine(self._model, blocks=self._blocks, cache=self._cache)
        self._texts: dict[int, int] = {}  # number in the engine -> of the text
        self._numbers: dict[int, int] = {}  # and back

    def _start(self, start: Start) -> None:
        sampling = Sampling(start.temperature, start.top_k, start.top_p, start.seed)
        request = Request(start.prompt, start.max_tokens, sampling, written=start.written)
        number = self._engine.submit(request)
        self._texts[number], self._numbers[start.text] = start.text, number

    def _forget(self, text: int) -> int | None:
        number = self._numbers.pop(text, None)
        if number is not None:
            del self._texts[number]
        return number

    def step(self, step: Step) -> Stepped:
        """Go on with all texts for `SECONDS`.

        Args:
            step: Who joins and leaves before.

        Raises:
            MpidlError: A pass has failed; all texts are forgotten.
        """
        until = time.perf_counter() + SECONDS
        passes = self._engine.passes
        written: dict[int, list[int]] = {}
        ended: list[tuple[int, str]] = []
        try:
            for text in step.cancel:
                number = self._forget(text)
                if number is not None:
                    self._engine.cancel(number)
            for start in step.start:
                self._start(start)
            while self._engine.busy:
                tokens, finished = self._engine.step()
                for number, token in tokens:
                    written.setdefault(self._texts[number], []).append(token)
                for each in finished:
                    text = self._texts[each.number]
                    self._forget(text)
                    ended.append((text, each.reason))
                if time.perf_counter() >= until:
                    break
        except Exception:
            self.reset()
            raise
        return Stepped(
            tuple((text, tuple(tokens)) for text, tokens in written.items()),
            tuple(ended),
            self._engine.passes - passes,
        )


def open_texts(predictor: Predictor, cache_tokens: int, cache: CacheKind) -> Texts | None:
    """The texts of a model; None: it writes none.

    Raises:
        ConfigError: The cache is too small.
    """
    if not predictor.task.gives_tokens:
        return None
    try:
        return Texts(predictor, cache_tokens, cache)
    except ConfigError as error:
        if error.where == "blocks":
            raise
        return None  # a model of tokens that computes nothing one after another
