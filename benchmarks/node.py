"""Our server, as it is measured: its defaults, but for how many connections it takes."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["connections_max", "single_node"]

CONNECTIONS_MAX = 19_400  # some more than the generator opens
OTHER_FILES = 500  # of a server: its store, its log, and room to spare


def connections_max() -> int:
    """How many connections a server may take here: files that may be open, less its own."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return max(1, min(CONNECTIONS_MAX, most - OTHER_FILES))


def single_node(
    port: int, folder: Path, sections: Mapping[str, Mapping[str, int | str]] | None = None
) -> list[str]:
    """The command. ``sections`` are keys to configure beside the connections."""
    chosen: dict[str, Mapping[str, int | str]] = {**(sections or {})}
    chosen["limits"] = {"connections": connections_max(), **chosen.get("limits", {})}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "node.toml"
    file.write_text(_as_toml(chosen))
    command = [sys.executable, "-m", "repl_broker", "serve", "--config", str(file)]
    command += ["--http", f"127.0.0.1:{port}", "--data-dir", str(folder / "data")]
    return [*command, "--log-level", "warning"]


def _as_toml(sections: Mapping[str, Mapping[str, int | str]]) -> str:
    lines: list[str] = []
    for section, keys in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join([*lines, ""])
