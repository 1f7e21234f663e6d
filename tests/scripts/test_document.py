"""Tables in documents say what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "document", raising=False)
    import document

    return document


def test_the_pages_are_up_to_date(document: Any) -> None:
    for page in document.PAGES:
        text = page.read_text()
        assert "<!-- begin" in text and document.update(text) == text, "run scripts/document.py"


def test_a_page_that_is_not_is_found(document: Any) -> None:
    text = document.PAGE.read_text()
    old = text.replace("| `lr` | 0.05 |", "| `lr` | 0.06 |")
    assert old != text and document.update(old) == text
    assert document.update(re.sub(r"<!-- begin .*", "", text, flags=re.DOTALL)) != text


def test_every_loss_and_environment_variable_is_on_it(document: Any) -> None:
    from mpidl.nn import LOSSES
    from mpidl.settings import VARIABLES

    text = document.PAGE.read_text()
    for name in [*(f'"{loss}"' for loss in LOSSES), *(f"`{one.name}`" for one in VARIABLES)]:
        assert name in text
