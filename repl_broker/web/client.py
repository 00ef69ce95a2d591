"""``/client.js``: the TypeScript client, built, for pages without a build step; and its types.

The files in javascript/ are made from clients/typescript/ by ``npm run build`` and
kept in the repository, so that neither a node nor its installation needs Node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quart import Response, request

from repl_broker.web.parameters import read_query
from repl_broker.web.statics import StaticFiles

__all__ = ["SCRIPT_TYPE", "TYPES_TYPE", "Client"]

FOLDER: Final = Path(__file__).parent / "javascript"
SCRIPT_TYPE: Final = "text/javascript; charset=utf-8"
TYPES_TYPE: Final = "application/typescript; charset=utf-8"


class Client:
    """``/client.js`` and ``/client.d.ts``, for pages of any origin: they are no secret."""

    def __init__(self) -> None:
        self._files = StaticFiles("/client", FOLDER)

    async def script(self) -> Response:
        """The module. A browser asks each time whether it has changed."""
        response = await self._file("client.js")
        response.headers["X-TypeScript-Types"] = "./client.d.ts"  # Deno reads it
        return response

    async def types(self) -> Response:
        """What an editor or a compiler wants to know of it."""
        return await self._file("client.d.ts")

    async def _file(self, name: str) -> Response:
        read_query(request.query_string, ())
        response = await self._files.file(name)
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response
