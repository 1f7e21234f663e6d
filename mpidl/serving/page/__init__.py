"""The page at /ui: files of this folder, which ask the server for what they show."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
FILES = {
    "": ("index.html", b"text/html; charset=utf-8"),
    "app.js": ("app.js", b"text/javascript; charset=utf-8"),
    "metrics.js": ("metrics.js", b"text/javascript; charset=utf-8"),
    "texts.js": ("texts.js", b"text/javascript; charset=utf-8"),
    "style.css": ("style.css", b"text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", b"image/svg+xml"),
}
# Nothing but this server's files runs, no other site may show the page in a frame
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


def read_file(name: str) -> tuple[bytes, bytes] | None:
    """Content and Content-Type of a file of the page; None where there is no such file.

    Args:
        name: Behind /ui/; only names of `FILES` are ever opened.
    """
    if name not in FILES:
        return None
    file, kind = FILES[name]
    return (FOLDER / file).read_bytes(), kind
