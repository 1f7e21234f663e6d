"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: The subject.
        value: What is there.
        state: "note": something is lost; "problem": jobs cannot run.
        advice: What to do, empty if nothing.
    """

    name: str
    value: str
    state: State = "ok"
    advice: str = ""
