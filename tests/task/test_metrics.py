"""Metrics: equal to scikit-learn's, and to the last digits however a data set is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidl.nn import LossResult
from mpidl.task import FieldSpec, InputSpec, Scored, TargetSpec, Task
from mpidl.task.classification import Classification
from mpidl.task.language_model import LanguageModel
from mpidl.task.multilabel import Multilabel
from mpidl.task.regression import Regression
from mpidl.task.segmentation import Segmentation

X = (FieldSpec("x", (4,)),)


def classification(classes: int, top_k: int = 0) -> Task:
    spec = InputSpec("classification", X, TargetSpec((FieldSpec("y", ()),), classes))
    return Classification(Classification.Options(top_k=top_k), spec)


def losses(count: int, positions: int = 1, correct: Any = None) -> LossResult:
    rng = np.random.default_rng(count)
    rows = rng.random(count * positions).astype(np.float32)
    return LossResult(np.empty(0), count, rows, positions, correct)


def evaluate(task: Task, cuts: list[int], outputs: Any, arrays: Any, result: Any) -> Any:
    """The evaluation of batches between `cuts`, each added to sums of its own."""
    total = np.zeros(task.sums)
    for low, high in zip([0, *cuts], [*cuts, len(outputs)], strict=True):
        part = {name: array[low:high] for name, array in arrays.items()}
        rows = slice(low * result.elements_per_sample, high * result.elements_per_sample)
        mask = None if result.correct_mask is None else result.correct_mask[rows]
        own = LossResult(
            np.empty(0), high - low, result.losses[rows], result.elements_per_sample, mask
        )
        sums = np.zeros(task.sums)
        if high > low:
            task.add(sums, task.scored(outputs[low:high], own, part))
        total += sums
    return task.evaluation(total)


def case(kind: str, count: int, seed: int) -> tuple[Task, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    if kind == "classification":
        outputs = rng.standard_normal((count, 5)).astype(np.float32)
        y = rng.integers(0, 5, count)
        hit = (outputs.argmax(axis=1) == y).astype(np.uint8)
        return classification(5, 2), outputs, {"y": y}, losses(count, 1, hit)
    if kind == "segmentation":
        spec = InputSpec(kind, X, TargetSpec((FieldSpec("y", (6, 7)),), 3))
        outputs = rng.standard_normal((count, 6, 7, 3)).astype(np.float32)
        y = rng.integers(0, 4, (count, 6, 7)).astype(np.uint8)
        y[y == 3] = 255
        return (
            Segmentation(Segmentation.Options(ignore=255), spec),
            outputs,
            {"y": y},
            losses(count),
        )
    if kind == "multilabel":
        spec = InputSpec(kind, X, TargetSpec((FieldSpec("y", (4,)),), shape=(4,)))
        outputs = rng.standard_normal((count, 4)).astype(np.float32)
        y = rng.integers(0, 2, (count, 4)).astype(np.uint8)
        return Multilabel(Multilabel.Options(), spec), outputs, {"y": y}, losses(count)
    if kind == "language_model":
        spec = InputSpec(kind, (FieldSpec("t", (9,)),), TargetSpec((), 256))
        outputs = rng.standard_normal((count, 8, 256)).astype(np.float32)
        arrays = {"t": rng.integers(0, 256, (count, 9)).astype(np.uint16)}
        return LanguageModel(LanguageModel.Options(), spec), outputs, arrays, losses(count, 8)
    fields = (FieldSpec("a", (3,), (1.0, 2.0, 1e6), (1.0, 3.0, 2.0)),)
    spec = InputSpec("regression", X, TargetSpec(fields, shape=(3,)))
    outputs = rng.standard_normal((count, 3)).astype(np.float32)
    arrays = {"a": rng.standard_normal((count, 3)) * (1, 3, 2) + (1, 2, 1e6)}
    return Regression(Regression.Options(), spec), outputs, arrays, losses(count)


KINDS = ["classification", "segmentation", "multilabel", "language_model", "regression"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(2, 23))
def test_no_cut_of_the_data_changes_a_metric(kind: str, data: Any, count: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=5)))
    made = case(kind, count, data.draw(st.integers(0, 99)))
    whole = evaluate(made[0], [], *made[1:])
    parts = evaluate(made[0], cuts, *made[1:])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12) and parts.samples == count
    assert parts.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        assert parts.metrics[name] == pytest.approx(value, rel=1e-10, nan_ok=True), name


def test_classification_is_as_in_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    task, outputs, arrays, result = case("classification", 400, 1)
    found = evaluate(task, [100, 150], outputs, arrays, result)
    y, predicted = arrays["y"], outputs.argmax(axis=1)
    assert found.metrics["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted), rel=1e-12)
    assert found.metrics["top_2"] == pytest.approx(
        sk.top_k_accuracy_score(y, outputs, k=2), rel=1e-12
    )
    assert found.metrics["macro_f1"] == pytest.approx(
        sk.f1_score(y, predicted, average="macro"), rel=1e-12
    )
    assert found.details["confusion_matrix"] == sk.confusion_matrix(y, predicted).tolist()
    np.testing.assert_allclose(
        found.details["recall"], sk.recall_score(y, predicted, average=None), rtol=1e-12
    )


def test_segmentation_is_as_in_scikit_learn_without_ignored_pixels() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    task, outputs, arrays, result = case("segmentation", 20, 2)
    found = evaluate(task, [7], outputs, arrays, result)
    known = arrays["y"] != 255
    y, predicted = arrays["y"][known], outputs.argmax(axis=-1)[known]
    iou = sk.jaccard_score(y, predicted, average=None)
    np.testing.assert_allclose(found.details["iou"], iou, rtol=1e-12)
    assert found.metrics["mean_iou"] == pytest.approx(iou.mean(), rel=1e-12)
    assert found.metrics["pixel_accuracy"] == pytest.approx((y == predicted).mean(), rel=1e-12)


def test_multilabel_is_as_in_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    task, outputs, arrays, result = case("multilabel", 300, 3)
    found = evaluate(task, [11, 200], outputs, arrays, result).metrics
    y, predicted = arrays["y"], (outputs > 0).astype(int)
    for average in ("macro", "micro"):
        wanted = sk.f1_score(y, predicted, average=average)
        assert found[f"{average}_f1"] == pytest.approx(wanted, rel=1e-12)
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(y, predicted), rel=1e-12)


def test_regression_is_as_in_scikit_learn_in_the_units_of_the_data() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    task, outputs, arrays, result = case("regression", 300, 4)
    found = evaluate(task, [11, 200], outputs, arrays, result).metrics
    predicted = outputs.astype(np.float64) * (1, 3, 2) + (1, 2, 1e6)
    y = arrays["a"]
    assert found["r2"] == pytest.approx(sk.r2_score(y, predicted), rel=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, predicted), rel=1e-12)
    assert found["rmse"] ** 2 == pytest.approx(sk.mean_squared_error(y, predicted), rel=1e-12)
    for channel in range(3):
        own = sk.r2_score(y[:, channel], predicted[:, channel])
        assert found[f"r2[{channel}]"] == pytest.approx(own, rel=1e-8)
    ratio = np.linalg.norm(predicted - y, axis=1) / np.linalg.norm(y, axis=1)
    assert found["relative_l2"] == pytest.approx(ratio.mean(), rel=1e-12)


def test_bits_of_a_byte_count_the_bytes_that_tokens_cover() -> None:
    task, outputs, arrays, result = case("language_model", 10, 5)
    mean = float(result.losses.sum(dtype=np.float64)) / 80
    found = evaluate(task, [3], outputs, arrays, result).metrics
    assert found["perplexity"] == pytest.approx(np.exp(mean))
    assert found["bits_per_byte"] == pytest.approx(mean / np.log(2))  # tokens are bytes
    longer = arrays | {"bytes": np.full(10, 32, np.uint32)}  # tokens of four bytes
    found = evaluate(task, [3], outputs, longer, result).metrics
    assert found["bits_per_byte"] == pytest.approx(mean / np.log(2) / 4)


def test_a_batch_is_scored_in_float64() -> None:
    task, outputs, arrays, result = case("regression", 6, 6)
    scored = task.scored(outputs, result, arrays)
    assert isinstance(scored, Scored) and scored.outputs.dtype == np.float64
    assert scored.targets.dtype == np.float64
