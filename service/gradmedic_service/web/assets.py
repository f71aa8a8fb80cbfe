"""Scripts, styles and pictures of the pages, served from memory.

Every address contains a digest of all files together, so that the content of an address never changes and browsers
cache it for ever. A new version has new addresses; scripts import each other by relative paths. The files are few and
small, and are compressed once, at the start.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gradmedic_service.web.conditions import find_pictures

STATIC_PATH = "/static"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
CACHE_FOR_EVER = "public, max-age=31536000, immutable"
DIGEST_LENGTH = 12
PICTURES_PREFIX = "conditions/"
"""Beginning of the paths of the pictures of conditions."""


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    compressed: bytes | None
    """The content with gzip; None for a picture, which is compressed already."""
    media_type: str


class Assets:
    """The files of `static/` and the pictures of conditions in memory."""

    def __init__(self) -> None:
        found = _list_files(files("gradmedic_service.web") / "static")
        found += _list_files(find_pictures(), PICTURES_PREFIX)
        self._files = {path: _read_file(file) for path, file in sorted(found)}
        digest = hashlib.sha256()
        for path, file in self._files.items():
            digest.update(f"{path}\0{len(file.content)}\0".encode() + file.content)
        self.version = digest.hexdigest()[:DIGEST_LENGTH]

    def url(self, path: str) -> str:
        """Return the address of a file. Raises KeyError if there is none."""
        if path not in self._files:
            raise KeyError(path)
        return f"{STATIC_PATH}/{self.version}/{path}"

    def answer(self, request: Request, version: str, path: str) -> Response:
        """Return a file of this version. Raises HTTPException 404 for another version or an unknown file."""
        file = self._files.get(path) if version == self.version else None
        if file is None:
            raise HTTPException(404)
        headers = {"Cache-Control": CACHE_FOR_EVER, "Vary": "Accept-Encoding"}
        if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(file.compressed, media_type=file.media_type, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)


def _list_files(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    """Return path and file of every script, style and image below a folder."""
    files: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            files += _list_files(entry, f"{path}/")
        elif PurePosixPath(path).suffix in MEDIA_TYPES:
            files.append((path, entry))
    return files


def _read_file(file: Traversable) -> _File:
    content, suffix = file.read_bytes(), PurePosixPath(file.name).suffix
    compressed = None if suffix == ".png" else gzip.compress(content, mtime=0)
    return _File(content, compressed, MEDIA_TYPES[suffix])
