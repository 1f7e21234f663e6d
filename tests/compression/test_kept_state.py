"""What compressors keep from step to step."""

from __future__ import annotations

import numpy as np
import pytest


def test_factors_of_another_rank_are_left_out() -> None:
    """They would keep that rank for ever, whatever the settings say."""
    from mpidl.compression.powersgd import PowerSGD

    factor = np.ones((5, 2), np.float32)
    for rank, kept in ((2, 1), (4, 0)):
        before, after = (PowerSGD(PowerSGD.Options(rank=count)) for count in (2, rank))
        before._right = {"bucket": [factor]}
        state = before.state()
        after.load_state(state)
        assert len(after._right) == kept and len(list(state.names())) == 1 - kept


@pytest.mark.parametrize("name", ["topk", "int8"])
def test_residuals_without_error_feedback_are_left_out(name: str) -> None:
    """They would come back when it is switched on again."""
    from mpidl.compression import create

    before, after = create(name), create(name, error_feedback=False)
    before.residuals.of("bucket", (5,), np.zeros(5, np.float32))[...] = 1
    state = before.state()
    after.load_state(state)
    assert list(state.names()) == ["residual:bucket"] and not list(after.state().own)
