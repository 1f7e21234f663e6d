"""Blocks of the cache: none is lost, none is given to two that differ."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from mpidl.generation.blocks import ROOT, BlockPool

BLOCK = 3


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 12))
def test_sequences_share_what_is_the_same_and_nothing_else(data: st.DataObject, count: int) -> None:
    """A model of the pool: what every block holds, as sequences that come and go see it."""
    pool = BlockPool(count, BLOCK)
    held: dict[int, tuple[int, ...]] = {}  # block -> all tokens up to its end
    live: list[tuple[list[int], list[int]]] = []  # (tokens, blocks)
    for _ in range(data.draw(st.integers(1, 30))):
        if live and data.draw(st.booleans()):
            _, blocks = live.pop(data.draw(st.integers(0, len(live) - 1)))
            for number in blocks:
                pool.give_back(number)
        else:
            tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4 * BLOCK))
            blocks = pool.find(tokens)
            for index, number in enumerate(blocks):
                assert held[number] == tuple(tokens[: (index + 1) * BLOCK])
            assert len(blocks) * BLOCK < len(tokens)
            used = {number for _, own in live for number in own} | set(blocks)
            while len(blocks) * BLOCK < len(tokens):
                fresh = pool.take()
                if fresh is None:
                    assert len(used) == count
                    break
                assert fresh not in used
                used.add(fresh)
                held.pop(fresh, None)
                blocks.append(fresh)
            for index in range(min(len(blocks), len(tokens) // BLOCK)):
                end = (index + 1) * BLOCK
                held[blocks[index]] = tuple(tokens[:end])
                before = blocks[index - 1] if index else ROOT
                pool.learn(blocks[index], before, tokens[end - BLOCK : end])
            live.append((tokens, blocks))
        assert pool.free == count - len({number for _, own in live for number in own})


def test_a_block_is_known_until_its_memory_is_needed() -> None:
    pool = BlockPool(2, BLOCK)
    first = pool.take()
    assert first is not None
    pool.learn(first, ROOT, (1, 2, 3))
    pool.give_back(first)
    assert pool.find([1, 2, 3, 4]) == [first] and pool.find([1, 2, 3]) == []
    pool.give_back(first)
    assert {pool.take(), pool.take()} == {0, 1} and pool.take() is None
    assert pool.find([1, 2, 3, 4]) == []


def test_what_stood_behind_a_block_that_holds_something_else_is_not_found() -> None:
    pool = BlockPool(2, BLOCK)
    a, b = pool.take(), pool.take()
    assert a is not None and b is not None
    pool.learn(a, ROOT, (1, 1, 1))
    pool.learn(b, a, (2, 2, 2))
    pool.give_back(a)
    pool.give_back(b)
    assert pool.take() == a
    pool.learn(a, ROOT, (3, 3, 3))
    assert pool.find([3, 3, 3, 2, 2, 2, 0]) == [a]


def test_what_stands_behind_another_beginning_is_not_the_same() -> None:
    pool = BlockPool(4, BLOCK)
    a, b = pool.take(), pool.take()
    assert a is not None and b is not None
    pool.learn(a, ROOT, (1, 1, 1))
    pool.learn(b, a, (2, 2, 2))
    assert pool.find([2, 2, 2, 0]) == [] and pool.find([1, 1, 1, 2, 2, 2, 0]) == [a, b]
