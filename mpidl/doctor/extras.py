"""Optional packages."""

from __future__ import annotations

from importlib.util import find_spec

from mpidl.doctor.finding import Finding
from mpidl.extras import EXTRAS


def check_extras() -> list[Finding]:
    """Which optional packages are installed."""
    missing = {package: extra for package, extra in EXTRAS.items() if find_spec(package) is None}
    if not missing:
        return [Finding("optional packages", f"all of {', '.join(EXTRAS)}")]
    advice = f"to gain them: pip install 'mpidl[{','.join(missing.values())}]'"
    return [Finding("optional packages", f"without {', '.join(missing)}", "note", advice)]
