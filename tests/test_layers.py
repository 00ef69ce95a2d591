"""Imports run strictly down DESIGN section 7's list, and the pure modules stay pure.

Read from the source, so that an import inside a function counts like any other.
Only ``if TYPE_CHECKING:`` does not count: nothing is imported there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import repl_broker

ROOT = Path(repl_broker.__file__).parent

# From the top down. Modules of one line do not import each other; a name that
# ends in ".*" is a package, whose own modules may.
LAYERS = (
    ("__main__",),
    ("cli.*",),
    ("daemon",),
    ("service",),
    ("web.*",),
    ("traces",),
    ("otel",),
    ("node",),
    ("cluster", "broker", "cluster_secret"),
    ("readiness",),
    ("draining",),
    ("fanout",),
    ("subscription",),
    ("members", "room", "idle", "clocks"),
    ("replica",),
    ("sending",),
    ("snapshots", "proposals", "upkeep", "chronicle"),
    ("taking",),
    ("history",),
    ("hub",),
    ("backup", "aside"),
    ("founding",),
    ("soundness",),
    ("state",),
    ("capture",),
    ("transport",),
    ("disk",),
    ("storage", "writer"),
    ("wire", "sse", "wal", "journal", "stalled", "forgotten", "parts"),
    ("command", "remembered", "senders"),
    ("access",),
    ("tokens", "origins"),
    ("jwks", "hosts"),
    (
        *("logs", "certificates", "admission", "seats", "loop_turns", "handshake"),
        *("notices", "reached"),
    ),
    ("systemd", "reload", "doubts"),
    ("trace", "histogram", "turnstile"),
    ("memory",),
    ("config",),
    ("segments", "levels", "payers"),
    ("scan",),
    ("timeline", "checks"),
    ("message", "names", "routes", "secret_lines"),
    ("filters",),
    ("files", "masking", "outlet", "audit"),
    (
        *("errors", "order", "floor", "pace", "patience", "expiry", "untracked", "agreement"),
        "changes",
    ),
    ("raft.*",),
    ("__init__",),
)

PURE = (
    *("state", "filters", "names", "routes", "wire", "sse", "command", "message", "errors"),
    *(
        "stalled",
        "remembered",
        "senders",
        "levels",
        "masking",
        "handshake",
        "scan",
        "untracked",
        "capture",
        "segments",
        "timeline",
        "floor",
        "order",
        "patience",
        "pace",
        "payers",
        "changes",
        "expiry",
        "agreement",
        "secret_lines",
        "raft.*",
    ),
)
IMPURE_IMPORTS = {
    *("trio", "asyncio", "threading", "multiprocessing", "subprocess", "signal", "select"),
    *("time", "random", "secrets", "uuid", "os", "io", "pathlib", "socket", "ssl", "sqlite3"),
    *("logging", "importlib"),
}


def module_name(path: Path) -> str:
    """``web.app`` for repl_broker/web/app.py; a package goes by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def entry_of(module: str, entries: tuple[str, ...]) -> str | None:
    """The one of ``entries`` that ``module`` belongs to."""
    for entry in entries:
        package = entry.removesuffix(".*")
        if module == package or (entry != package and module.startswith(package + ".")):
            return entry
    return None


def layer_of(module: str) -> int | None:
    """0 is the top."""
    return next((n for n, names in enumerate(LAYERS) if entry_of(module, names)), None)


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that ``source`` imports when it runs."""
    package = ["repl_broker", *module.split(".")]
    if module == "__init__" or not is_package:
        package.pop()
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield node.lineno, name
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except what only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and name of each module of repl_broker that ``module`` imports."""
    path = MODULES[module]
    for line, name in imports(path.read_text(), module, path.name == "__init__.py"):
        if name == "repl_broker":
            yield line, "__init__"
        elif name.startswith("repl_broker.") and name.removeprefix("repl_broker.") in MODULES:
            yield line, name.removeprefix("repl_broker.")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_place_in_the_list(module: str) -> None:
    assert layer_of(module) is not None, (
        f"repl_broker.{module} has no layer. Decide what it may import and what may import it, "
        "and add it to LAYERS in tests/test_layers.py (and to PURE, if it does no I/O)."
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_strictly_down_the_list(module: str) -> None:
    here = layer_of(module)
    if here is None:
        pytest.skip("has no layer, as another test says")
    own = entry_of(module, LAYERS[here])
    for line, imported in own_imports(module):
        there = layer_of(imported)
        if there is None or (there == here and entry_of(imported, LAYERS[there]) == own):
            continue
        assert here < there, (
            f"{MODULES[module]}:{line} imports repl_broker.{imported}, which is not below "
            f"repl_broker.{module}. Move what is needed down, or hand it in from above."
        )


@pytest.mark.parametrize("module", [m for m in MODULES if entry_of(m, PURE)])
def test_pure_modules_import_nothing_that_does_io_or_reads_a_clock(module: str) -> None:
    path = MODULES[module]
    for line, name in imports(path.read_text(), module, path.name == "__init__.py"):
        assert name.split(".")[0] not in IMPURE_IMPORTS, (
            f"{path}:{line} imports {name}. This module computes the same on every node: time, "
            "chance and I/O come to it as arguments (DESIGN section 7)."
        )
    for line, imported in own_imports(module):
        assert imported == "__init__" or entry_of(imported, PURE), (
            f"{path}:{line} imports repl_broker.{imported}, which is not pure."
        )


def test_every_pure_module_has_a_layer() -> None:
    assert {name for name in PURE if not any(name in names for names in LAYERS)} == set()


# --- the reader itself ------------------------------------------------------------------


def test_imports_inside_functions_count() -> None:
    source = "def f():\n    async def g():\n        from repl_broker import hub\n"
    assert list(imports(source, "state")) == [(3, "repl_broker"), (3, "repl_broker.hub")]


def test_imports_for_type_checkers_do_not_count_but_their_else_does() -> None:
    source = "if typing.TYPE_CHECKING:\n    import trio\nelse:\n    import time\n"
    assert list(imports(source, "state")) == [(4, "time")]


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("from . import hub", "state", False, "repl_broker.hub"),
        ("from .hub import Hub", "state", False, "repl_broker.hub.Hub"),
        ("from .. import state", "web.app", False, "repl_broker.state"),
        ("from . import app", "web", True, "repl_broker.web.app"),
        ("from . import hub", "__init__", True, "repl_broker.hub"),
        ("import repl_broker.hub as h", "state", False, "repl_broker.hub"),
    ],
)
def test_relative_imports_are_resolved(
    source: str, module: str, is_package: bool, expected: str
) -> None:
    assert [name for _, name in imports(source, module, is_package)][-1] == expected
