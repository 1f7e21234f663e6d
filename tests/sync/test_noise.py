"""The estimate of the gradient noise scale, on gradients whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from mpidl.sync.synchronous.allreduce.noise import NoiseScale


@pytest.mark.parametrize(("sigma", "ranks", "each"), [(1.0, 2, 8), (4.0, 4, 16), (0.2, 3, 4)])
def test_it_finds_the_ratio_of_noise_to_gradient(sigma: float, ranks: int, each: int) -> None:
    rng, size = np.random.default_rng(0), 50
    truth = rng.standard_normal(size)
    wanted = sigma**2 * size / (truth @ truth)
    noise = NoiseScale(each, each * ranks, decay=0.999)
    for _ in range(4000):
        gradients = truth + rng.standard_normal((ranks, size)) * sigma / np.sqrt(each)
        noise.add(
            float((gradients**2).sum(axis=1).mean()), float((gradients.mean(axis=0) ** 2).sum())
        )
    assert noise.value == pytest.approx(wanted, rel=0.15)
    assert noise.report()["suggested_global_batch"] == max(1, round(noise.value or 0))


def test_one_rank_has_no_estimate() -> None:
    noise = NoiseScale(8, 8)
    noise.add(1.0, 1.0)
    assert noise.value is None and noise.report() == {}
