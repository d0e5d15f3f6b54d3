"""The playground: a page at `/` that chats with the model and moves its dial. The folder `playground` has its files."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "playground"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no text becomes HTML, the model's least of all
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # an updated server brings its own page
}


def _files() -> dict[str, Path]:
    """The page's files by their paths at the server."""
    found = {f"/playground/{file.name}": file for file in sorted(_FOLDER.iterdir()) if file.suffix in _TYPES}
    return {"/": found.pop("/playground/index.html"), **found}


FILES = _files()
"""Files by path. They need no key: the page asks for it."""


def routes() -> list[Route]:
    """Routes of the page and its files."""
    return [Route(path, _file) for path in FILES]


async def _file(request: Request) -> Response:
    file = FILES[request.scope["route"].path]
    return FileResponse(file, headers=HEADERS, media_type=_TYPES[file.suffix])
