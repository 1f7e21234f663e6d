"""Texts with a cache, of many requests at once, are those without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpidl.backend.numpy_ops import NumpyOps
from mpidl.errors import ConfigError
from mpidl.generation import Engine, Finished, Request, Sampling
from mpidl.generation.engine import BLOCK, generate
from mpidl.models.transformer import gpt
from mpidl.nn import LSTM, Dense, Embedding, Model, SelfAttention

LENGTH, VOCABULARY = 72, 41
GREEDY = Sampling(temperature=0)


def model(**options: Any) -> Model:
    layers = gpt((LENGTH,), VOCABULARY, **{"width": 32, "depth": 2, "heads": 4} | options)
    made = Model(layers, (LENGTH,), NumpyOps(1))
    rng = np.random.default_rng(0)
    made.parameters.values[...] = 0.3 * rng.standard_normal(made.parameters.values.shape)
    for name in ("weight", "positions"):  # texts that do not repeat one token for ever
        made.parameters.value(f"embedding1.{name}")[...] *= 8
    return made


MODEL = model()


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCABULARY, n).tolist() for n in rng.integers(1, longest, count)]


def plain(of: Model, prompt: list[int], count: int) -> list[int]:
    """The most probable tokens, by whole passes."""
    tokens = list(prompt)
    for _ in range(count):
        x = np.zeros((1, LENGTH), np.int64)
        x[0, : len(tokens)] = tokens
        y, _ = of.forward(x)
        tokens.append(int(np.asarray(y)[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"recompute": True, "dropout": 0.1}, {"heads": 1}])
def test_greedy_texts_are_those_of_whole_passes(options: dict[str, Any]) -> None:
    own = model(**options)
    asked = prompts(4)
    found = generate(own, [Request(prompt, 20, GREEDY) for prompt in asked])
    assert [list(each.tokens) for each in found] == [plain(own, p, 20) for p in asked]
    assert {each.reason for each in found} == {"length"}
    assert len({each.tokens for each in found}) == 4


def drawn(engine: Engine, asked: list[list[int]]) -> list[tuple[int, ...]]:
    for seed, prompt in enumerate(asked):
        engine.submit(Request(prompt, 25, Sampling(seed=seed, top_p=0.95)))
    return [each.tokens for each in sorted(engine.run(), key=lambda each: each.number)]


def test_a_text_does_not_depend_on_what_is_written_beside_it() -> None:
    asked = prompts(21)  # more than fit into one pass
    together = drawn(Engine(MODEL), asked)
    for index, prompt in enumerate(asked):
        request = Request(prompt, 25, Sampling(seed=index, top_p=0.95))
        assert generate(MODEL, [request])[0].tokens == together[index]


def test_a_full_cache_makes_sequences_wait_but_changes_nothing() -> None:
    asked = prompts(12)
    roomy, narrow = Engine(MODEL), Engine(MODEL, blocks=8)
    assert drawn(narrow, asked) == drawn(roomy, asked)
    assert narrow.preempted > 0 and roomy.preempted == 0
    assert narrow.pool.free == 8


def test_a_known_beginning_is_not_computed_again() -> None:
    start = prompts(1, 41)[0] * 40
    engine = Engine(MODEL)
    texts = []
    for last in (1, 2, 1):
        before = engine.passes
        engine.submit(Request([*start[: 3 * BLOCK], last], 2, GREEDY))
        texts.append([each.tokens for each in engine.run()])
        texts.append(engine.passes - before)
    assert texts[1] == 4 + 1 and texts[3] == texts[5] == 1 + 1
    assert texts[0] == texts[4]
    alone = Request([*start[: 3 * BLOCK], 2], 2, GREEDY)
    assert texts[2] == [generate(MODEL, [alone])[0].tokens]


def test_a_text_ends_where_it_must() -> None:
    prompt = prompts(1)[0]
    whole = generate(MODEL, [Request(prompt, 500, GREEDY)])[0]
    assert whole.reason == "length" and len(prompt) + len(whole.tokens) == LENGTH + 1
    stop = whole.tokens[5]
    short = generate(MODEL, [Request(prompt, 500, GREEDY, frozenset({stop}))])[0]
    assert short == Finished(0, whole.tokens[: whole.tokens.index(stop)], "stop")
    full = generate(MODEL, [Request([1] * LENGTH, 9, GREEDY)])[0]
    assert len(full.tokens) == 1


def test_requests_join_and_leave_between_tokens() -> None:
    asked = prompts(3)
    engine = Engine(MODEL)
    first = engine.submit(Request(asked[0], 30, GREEDY))
    got: dict[int, list[int]] = {}
    second = third = -1
    while engine.busy:
        for number, token in engine.step()[0]:
            got.setdefault(number, []).append(token)
        if len(got.get(first, ())) == 5 and second < 0:
            second = engine.submit(Request(asked[1], 10, GREEDY))
            third = engine.submit(Request(asked[2], 30, GREEDY))
        if len(got.get(third, ())) == 3:
            engine.cancel(third)
    assert got[first] == plain(MODEL, asked[0], 30) and got[second] == plain(MODEL, asked[1], 10)
    assert got[third] == plain(MODEL, asked[2], 3)
    assert engine.pool.free == engine.pool.count


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request([], 3), "0 token"),
        (Request([1] * (LENGTH + 1), 3), "the context of the model"),
        (Request([1, VOCABULARY], 3), "is none of the 41"),
        (Request([-1], 3), "token -1"),
        (Request([1], 0), "0 to be written"),
    ],
)
def test_requests_that_cannot_be_served(request_: Request, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Engine(MODEL).submit(request_)
    assert words in str(caught.value)


def test_models_that_cannot_generate() -> None:
    table = Embedding(VOCABULARY, 8)
    for layers, words in (
        ([table, LSTM(8, sequences=True), Dense(VOCABULARY)], "lstm"),
        ([table, SelfAttention(2), Dense(VOCABULARY)], "sees later tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            Engine(Model(layers, (LENGTH,), NumpyOps(1)))
    with pytest.raises(ConfigError, match="cannot hold one sequence"):
        Engine(MODEL, blocks=4)


@pytest.mark.peer
def test_greedy_tokens_are_those_of_transformers() -> None:
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    values = {name: np.array(MODEL.parameters.value(name)) for name in MODEL.parameters.slots}
    names = {"embedding1.weight": "wte.weight", "embedding1.positions": "wpe.weight",
             "layer_norm1.weight": "ln_f.weight", "layer_norm1.bias": "ln_f.bias"}  # fmt: skip
    for block in range(2):
        for part, (body, norm) in enumerate((("attn", "ln_1"), ("mlp", "ln_2"))):
            ours, own = f"residual{2 * block + part + 1}.body.", f"h.{block}."
            names |= {f"{ours}layer_norm1.{w}": f"{own}{norm}.{w}" for w in ("weight", "bias")}
            pairs = (
                (("self_attention1.qkv", "c_attn"), ("self_attention1.out", "c_proj"))
                if body == "attn"
                else (("dense1", "c_fc"), ("dense2", "c_proj"))
            )
            for mine, other in pairs:
                names |= {
                    f"{ours}{mine}.{w}": f"{own}{body}.{other}.{w}" for w in ("weight", "bias")
                }
    state = theirs.state_dict()
    with torch.no_grad():
        for mine, other in names.items():
            state[f"transformer.{other}"].copy_(torch.from_numpy(values.pop(mine)))
        (head,) = values.values()
        state["lm_head.weight"].copy_(torch.from_numpy(head.T.copy()))
    for prompt in prompts(5, 30):
        given = torch.tensor([prompt])
        found = theirs.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=30, do_sample=False
        )
        ours_ = generate(MODEL, [Request(prompt, 30, GREEDY)])[0].tokens
        assert found[0, len(prompt) :].tolist() == list(ours_)
