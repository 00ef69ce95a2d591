"""Calls of the kernel that fail, or end the process: a disk's faults, without a faulty disk.

A seccomp filter cannot be taken off again, so this is for processes that a test
starts. It needs no rights.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from typing import Final

__all__ = ["MACHINE_IS_KNOWN", "fail", "kill_at_sync", "kill_at_write"]

_CALLS: Final = {
    "x86_64": {"pwrite64": 18, "fsync": 74, "fdatasync": 75},
    "aarch64": {"pwrite64": 68, "fsync": 82, "fdatasync": 83},
}
MACHINE_IS_KNOWN: Final = platform.system() == "Linux" and platform.machine() in _CALLS

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_KILL, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _FOURTH_ARGUMENT = 0, 40  # where they are in struct seccomp_data, low half first

_Instruction = tuple[int, int, int, int]  # what, how many to skip if so, and if not, operand


def fail(error: int, *calls: str) -> None:
    """From now on these calls do nothing, and return ``error``."""
    for call in calls:
        _install(_unless(call, 1), (_RETURN, 0, 0, _ERRNO | error))


def kill_at_sync() -> None:
    """From now on whoever waits for the disk dies."""
    for call in ("fsync", "fdatasync"):
        _install(_unless(call, 1), (_RETURN, 0, 0, _KILL))


def kill_at_write(offset: int) -> None:
    """From now on who writes at ``offset`` of a file or behind it dies before."""
    _install(
        _unless("pwrite64", 3),
        (_LOAD, 0, 0, _FOURTH_ARGUMENT),
        (_IF_AT_LEAST, 0, 1, offset),
        (_RETURN, 0, 0, _KILL),
    )


def _unless(call: str, skip: int) -> _Instruction:
    return (_IF_EQUAL, 0, skip, _CALLS[platform.machine()][call])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _install(*instructions: _Instruction) -> None:
    lines = ((_LOAD, 0, 0, _NUMBER), *instructions, (_RETURN, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = _Program(len(lines), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "no seccomp filter can be set")
