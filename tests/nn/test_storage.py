"""Where parameters lie is the storage's business; layers and optimizers see no difference."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpidl.nn import CrossEntropy, Dense, FlatParameters, Model, ParameterSpec, WholeStorage
from mpidl.optim import SGD


def test_other_memory_takes_the_place_of_the_buffers(ops: Any, rng: np.random.Generator) -> None:
    x, y = ops.to_device(rng.standard_normal((6, 4)).astype(np.float32)), np.arange(6) % 3
    ends = []
    for moves in (False, True):
        model = Model([Dense(5, relu=True), Dense(3)], (4,), ops)
        parameters = model.parameters
        if moves:
            length = parameters.length
            values = ops.xp.zeros(2 * length, np.float32)[length:]
            message = ops.xp.zeros(length + parameters.spare.size, np.float32)
            parameters.use(WholeStorage(values, message))
            assert parameters.values is values and parameters.spare.base is message
        parameters.initialize(3)
        optimizer = SGD(parameters, ops)
        for _ in range(3):
            logits, backward = model.forward(x, train=True)
            backward(CrossEntropy(ops)(logits, ops.to_device(y), 6).gradient, None)
            optimizer.step(0.1)
        ends.append(ops.to_host(parameters.values).copy())
        assert not parameters.gathers_in_passes
    np.testing.assert_array_equal(*ends)


def test_a_shard_has_each_tensor_where_its_pieces_lie(ops: Any) -> None:
    shapes = {"a": (20,), "b": (5, 7), "c": (3,)}
    specs = [ParameterSpec(name, shape) for name, shape in shapes.items()]
    parameters = FlatParameters(specs, ops)
    parameters.values[...] = ops.xp.arange(parameters.length, dtype=np.float32)
    host = ops.to_host(parameters.values)
    pieces = [(0, 25), (40, 70), (80, parameters.length)]
    shard = parameters.make_shard(pieces)
    own = np.concatenate([host[start:stop] for start, stop in pieces])
    assert shard.length == own.size and list(shard.slots) == list(shapes)
    for name, slot in shard.slots.items():
        whole = parameters.slots[name]
        wanted = [
            element
            for start, stop in pieces
            for element in range(max(start, whole.start), min(stop, whole.stop))
        ]
        np.testing.assert_array_equal(own[slot.start : slot.stop], wanted)
    assert shard.slots["b"].stop - shard.slots["b"].start == 27  # 40 to 67 of 32 to 67
    assert parameters.make_shard([]).slots["a"].stop == 0
