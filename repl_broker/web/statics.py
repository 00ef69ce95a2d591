"""Folders of static files, served below a path: the dashboard, the demo's pages.

Files are read whole, so they should be small. Nothing outside the folder is
reached, whatever the path says, and nothing whose name begins with a dot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from quart import Response, request
from werkzeug.exceptions import NotFound

from repl_broker.web.answers import empty_answer
from repl_broker.web.base import base_here
from repl_broker.web.guard import Guard, Right

__all__ = ["StaticFiles"]

# The system's own table differs from machine to machine.
CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ts": "application/typescript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}


class StaticFiles:
    """One folder below one path, such as ``/chat``."""

    def __init__(self, path: str, folder: Path, headers: Mapping[str, str] | None = None) -> None:
        assert path.startswith("/"), "a path begins with a slash"
        assert not path.endswith("/"), "a path does not end with one"
        self._path = path
        self._folder = folder.resolve()
        self._headers = dict(headers or {})  # of each file's answer

    def register(self, guard: Guard) -> None:
        """Add the routes; what is in the folder is for everyone."""
        for rule, view in (
            (self._path, self.redirect),
            (f"{self._path}/", self.index),
            (f"{self._path}/<path:name>", self.file),
        ):
            guard.route("GET", rule, Right.OPEN, view)

    async def redirect(self) -> Response:
        """Relative links of the page need the slash."""
        query = request.query_string
        where = f"{base_here()}{self._path}/" + (
            f"?{query.decode('ascii', 'replace')}" if query else ""
        )
        return empty_answer(308, {"Location": where})

    async def index(self) -> Response:
        return await self.file("index.html")

    async def file(self, name: str) -> Response:
        """The file, or 304 if the client has it: it asks each time (``no-cache``)."""
        found = await trio.to_thread.run_sync(self._read, name)
        if found is None:
            raise NotFound
        data, content_type = found
        response = Response(data, content_type=content_type)
        response.headers["Cache-Control"] = "no-cache"
        response.headers.update(self._headers)
        response.set_etag(hashlib.blake2b(data, digest_size=16).hexdigest())
        return await response.make_conditional(request)

    def _read(self, name: str) -> tuple[bytes, str] | None:
        """The file's data and type; None if there is no such file to be had."""
        parts = name.split("/")
        if "\0" in name or any(not part or part.startswith(".") for part in parts):
            return None
        path = self._folder.joinpath(*parts).resolve()
        if not path.is_relative_to(self._folder):
            return None
        try:
            data = path.read_bytes()
        except OSError:  # not there, a folder, a name that is too long
            return None
        return data, CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")
