"""What Python's cyclic garbage collector need not look at.

A node that holds 100,000 topics has several objects for each, and the collector
stops everything while it looks through all of them. What cannot be part of a cycle,
because it refers only to numbers, bytes, names and settings, is as well off without: it goes,
as before, when nothing refers to it any more.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

__all__ = ["untrack"]


def _nothing(value: Any) -> None:
    pass


def _find() -> Any:
    if sys.implementation.name != "cpython":
        return _nothing
    function = ctypes.pythonapi.PyObject_GC_UnTrack  # part of the stable ABI
    function.argtypes = (ctypes.py_object,)
    function.restype = None
    return function


untrack: Final = _find()
