"""The pages' own files: scripts, styles, icon. They are read once, and their address names their content."""

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pisync_receiver.errors import Problem
from pisync_receiver.http.auth import Access
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Answer
from pisync_receiver.http.routing import Response, Route

FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOREVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")
_COMMON: Final = (_FOREVER, (b"vary", b"accept-encoding"), (b"x-content-type-options", b"nosniff"))


class Statics:
    """Every file, plain and compressed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._addresses: dict[str, str] = {}
        self._plain: dict[str, Answer] = {}
        self._gzipped: dict[str, Answer] = {}
        for file in _files(folder):
            content = file.read_bytes()
            name = f"{file.stem}.{hashlib.sha256(content).hexdigest()[:12]}{file.suffix}"
            kind = _TYPES[file.suffix]
            self._addresses[file.name] = f"/static/{name}"
            self._plain[name] = Answer(body=content, content_type=kind, headers=_COMMON)
            self._gzipped[name] = Answer(
                body=gzip.compress(content, 9, mtime=0),
                content_type=kind,
                headers=(*_COMMON, (b"content-encoding", b"gzip")),
            )

    def address(self, name: str) -> str:
        """Return the address of a file, such as `app.css`."""
        return self._addresses[name]

    def route(self) -> Route:
        """Return the row that answers all files."""
        return Route(
            method="GET",
            path="/static/{file}",
            access=Access.PUBLIC,
            handler=self._answer,
            summary="A file of the pages.",
            responses={200: Response(summary="OK", media=tuple(_TYPES.values()))},
        )

    async def _answer(self, request: Request) -> Answer:
        accepted = request.headers.get(b"accept-encoding", b"")
        files = self._gzipped if b"gzip" in accepted else self._plain
        if (answer := files.get(request.path["file"])) is None:
            raise Problem(404, "not_found", "no such file; reload the page")
        return answer


def _files(folder: Path) -> Iterable[Path]:
    return (file for file in sorted(folder.iterdir()) if file.suffix in _TYPES)
