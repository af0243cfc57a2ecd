"""A look at every instruction of a pickle before anything unpickles it.

Unpicklers that run no code can still be made to allocate without bounds or to overflow the C stack, which ends the
process without an exception.
"""

from __future__ import annotations

import pickletools
from typing import IO, TYPE_CHECKING, Any

from zooplatform.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["next_pickle"]

_MAX_PICKLE = 1 << 30
# Python hashes nested tuples by recursion in C without a limit.
_MAX_DEPTH = 200
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# They change the object below them and leave it; such objects are not hashed through what they hold.
_CHANGES = ("BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")


def next_pickle(file: IO[bytes], size: int, path: Path) -> bytes:
    """The bytes of the pickle at the file's position; the position is behind it afterwards.

    Raises:
        SourceError: it uses the extension registry, memo numbers out of range, deeply nested tuples, or is larger than
            1 GB.
        ValueError: it is no complete pickle.
        LookupError: it takes more from the stack than there is.
    """
    start = file.tell()
    depths = _Depths()
    for opcode, argument, position in pickletools.genops(_Limited(file, size)):  # type: ignore[arg-type]
        if opcode.name.startswith("EXT"):
            raise SourceError(path, "refused: it uses the extension registry of pickle.")
        if opcode.name in _PUTS and not 0 <= int(argument or 0) <= (position or 0):
            # The unpickler would allocate that many slots.
            raise SourceError(path, "refused: a memo number is out of range.")
        if depths.step(opcode, argument) > _MAX_DEPTH:
            raise SourceError(path, f"refused: tuples are nested more than {_MAX_DEPTH} deep.")
    end = file.tell()
    if end - start > _MAX_PICKLE:
        raise SourceError(path, "its pickle is larger than 1 GB.")
    file.seek(start)
    return file.read(end - start)


class _Depths:
    """How deep immutable objects are nested, by following the unpickler's stack and memo."""

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Follow one instruction; returns the depth of the object on top."""
        name, stack = opcode.name, self._stack
        if name == "MARK":
            self._marks.append(len(stack))
            return 0
        if name in _PUTS or name == "MEMOIZE":
            key = len(self._memo) if name == "MEMOIZE" else int(argument)
            self._memo[key] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[int(argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _TUPLES:
            self._push(self._pop(_TUPLES[name]))
        elif pickletools.markobject in opcode.stack_before:
            taken = stack[(at := self._marks.pop()) :]
            del stack[at:]
            if name in _CHANGES:
                stack[-1] = 0
            elif opcode.stack_after:
                self._push(taken)
        elif name == "POP":
            # It also takes a mark that lies on top.
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        else:
            taken = self._pop(len(opcode.stack_before))
            if name in _CHANGES:
                stack.append(0)
            elif opcode.stack_after:
                self._push(taken)
        return stack[-1] if stack else 0

    def _pop(self, count: int) -> list[int]:
        if count > len(self._stack):
            raise LookupError("the pickle takes more from its stack than there is")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _push(self, taken: list[int]) -> None:
        self._stack.append(1 + max(taken, default=-1))


class _Limited:
    """Reads that never ask for more than the file has: a pickle may claim strings of any length."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file, self._end = file, end

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        return self._file.readline(1 << 20)

    def tell(self) -> int:
        return self._file.tell()
