"""What `mpidl bench` compares."""

from __future__ import annotations

import pytest

from mpidl.errors import ConfigError
from mpidl.performance.bench import check_names, message_sizes


def test_sizes_grow_to_the_largest() -> None:
    assert list(message_sizes(4, 64, 4)) == [4, 16, 64]
    assert list(message_sizes(4, 63, 4)) == [4, 16]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    check_names(["auto", "ring", "native"])
    with pytest.raises(ConfigError, match="did you mean 'ring'"):
        check_names(["rnig"])
