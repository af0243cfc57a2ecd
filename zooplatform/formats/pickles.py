"""What a pickle of weights says, learned without building any of it.

`torch.load(weights_only=True)` runs no foreign code, but it allocates what the pickle asks for, follows views that
claim more than the file holds, and says little about what it refuses. So a pickle is first read here: every call in it
makes an inert record, memory is charged against the length of the pickle, and nothing is imported by name.
"""

from __future__ import annotations

import collections
import pickle
import struct
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from zooplatform.errors import SourceError
from zooplatform.formats.limits import shown
from zooplatform.formats.pickle_names import (
    LIKE_A_DTYPE,
    MARKERS,
    NUMPY_SCALARS,
    STORAGE_DTYPES,
    Global,
)
from zooplatform.formats.planned import (
    PlannedStorage,
    PlannedTensor,
    obstacle,
    only_tensor,
    planned_view,
)

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

__all__ = ["RESAVE", "read_pickle"]

RESAVE = (
    "Where you trust it, load it in its own environment and save the weights alone with "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)
# What the calls of a pickle may build, as a multiple of its length; genuine checkpoints stay below one.
_BUDGET = 16
_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class _Inert(pickle._Unpickler):
    """Reads one pickle from `stream`; the opcodes are those that torch writes and its restricted unpickler takes."""

    # What the base class keeps while it loads.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD),
            *(pickle.NEWOBJ, pickle.BINPERSID, pickle.APPEND, pickle.APPENDS, pickle.SETITEM),
            *(pickle.SETITEMS, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.EMPTY_SET),
            *(pickle.NONE, pickle.NEWFALSE, pickle.NEWTRUE, pickle.BININT, pickle.BININT1),
            *(pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
            *(pickle.SHORT_BINSTRING, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT),
            pickle.LONG_BINPUT,
        )
    }

    def __init__(self, stream: _Bounded, subject: object, budget: int) -> None:
        # Text of Python 2 pickles; torch reads it as UTF-8 too.
        super().__init__(stream, encoding="utf-8")
        self._subject = subject
        self._left = budget
        self.storages: dict[str, PlannedStorage] = {}
        self._calls = self._make_calls()

    # Names

    def find_class(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        known = self._calls.get(full)
        if known is not None:
            return Global(full, known)
        if full in MARKERS:
            return Global(full)
        if name in STORAGE_DTYPES and module in ("torch", "torch.storage", "torch.cuda"):
            return Global(full)
        if full == "builtins.bytearray" or full.startswith("__builtin__.bytearray"):
            self._refuse("It holds a bytearray, which no weights need.", RESAVE)
        if full.startswith(NUMPY_SCALARS):
            self._refuse(
                f"It holds a numpy value ({full}) beside its tensors, which only unrestricted unpickling can read.",
                RESAVE,
            )
        if module == "argparse" or module.startswith(("pathlib", "omegaconf", "easydict")):
            self._refuse(
                f"It holds the settings of its training as a Python object ({full}), which only unrestricted "
                "unpickling can read.",
                RESAVE,
            )
        if module.startswith("torch.") or module.startswith("__torch__"):
            self._refuse(
                f"It holds a Python object ({full}) in place of a state dict, which only unrestricted unpickling "
                "can read.",
                RESAVE,
            )
        if module == "torch" and LIKE_A_DTYPE.fullmatch(name):
            self._refuse(
                f"It holds tensors of dtype {full}, which a catalog does not store.",
                "Convert them to another dtype first, or leave them out.",
            )
        self._refuse(
            f"Its pickle names {shown(full)}: reading that would run code, and nothing was run.",
            "Do not load it elsewhere unless you trust its author. " + RESAVE,
        )

    def get_extension(self, code: int) -> NoReturn:
        self._refuse("Its pickle uses the copyreg extension registry.", RESAVE)

    def persistent_load(self, pid: Any) -> PlannedStorage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        kind, key, count = pid[1], pid[2], pid[4]
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError(
                "a storage that is a view of another, as torch 0.3 wrote it"
            )
        name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
        if name not in STORAGE_DTYPES or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("a storage of unknown type")
        if count < 0:
            raise pickle.UnpicklingError("a storage of negative size")
        storage = PlannedStorage(key, STORAGE_DTYPES[name], count)
        if self.storages.setdefault(key, storage).size_bytes != storage.size_bytes:
            raise pickle.UnpicklingError(f"two sizes for the storage {key[:40]}")
        return storage

    # Calls

    def _make_calls(self) -> dict[str, Callable[..., Any]]:
        utils = "torch._utils."
        return {
            "collections.OrderedDict": self._ordered,
            "collections.Counter": self._ordered,
            "torch.Size": self._sequence,
            "builtins.set": self._set,
            "__builtin__.set": self._set,
            "builtins.complex": lambda real=0.0, imag=0.0: complex(float(real), float(imag)),
            "__builtin__.complex": lambda real=0.0, imag=0.0: complex(float(real), float(imag)),
            "torch.device": lambda *args: ":".join(str(arg)[:16] for arg in args[:2]),
            "_codecs.encode": self._encode,
            "torch.serialization._get_layout": lambda name: "layout",
            utils + "_rebuild_tensor": lambda s, o, size, st: planned_view(
                s, o, size, st, None, self._subject
            ),
            utils + "_rebuild_tensor_v2": self._tensor_v2,
            utils + "_rebuild_tensor_v3": self._tensor_v3,
            utils + "_rebuild_parameter": lambda data, *rest: only_tensor(data),
            utils + "_rebuild_parameter_with_state": lambda data, *rest: only_tensor(data),
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            utils + "_rebuild_qtensor": obstacle(
                "is quantised by torch, with scales beside its values"
            ),
            utils + "_rebuild_sparse_tensor": obstacle("is sparse"),
            utils + "_rebuild_nested_tensor": obstacle("is a nested tensor"),
            utils + "_rebuild_meta_tensor_no_storage": obstacle(
                "is on the device meta: it has no values"
            ),
            utils + "_rebuild_wrapper_subclass": obstacle(
                "is of a tensor subclass without values of its own"
            ),
            utils + "_rebuild_device_tensor_from_numpy": obstacle(
                "is of a device that needs its own torch"
            ),
            utils + "_rebuild_device_tensor_from_cpu_tensor": obstacle(
                "is of a device that needs its own torch"
            ),
        }

    def _charge(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            self._refuse("Its pickle unfolds to far more than the file holds.", RESAVE)

    def _ordered(self, *args: Any) -> collections.OrderedDict[Any, Any]:
        if len(args) > 1 or (args and not isinstance(args[0], list | dict)):
            raise pickle.UnpicklingError("an OrderedDict of something else than pairs")
        self._charge(32 * len(args[0]) if args else 0)
        made: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        pairs = args[0].items() if args and isinstance(args[0], dict) else (args[0] if args else ())
        for key, value in pairs:
            made[_plain_key(key)] = value
        return made

    def _sequence(self, *args: Any) -> tuple[Any, ...]:
        if len(args) > 1 or (args and not isinstance(args[0], list | tuple)):
            raise pickle.UnpicklingError("a set or size of something else than a list")
        self._charge(8 * len(args[0]) if args else 0)
        return tuple(args[0]) if args else ()

    def _set(self, *args: Any) -> str:
        # A set has no order to name its members by: a mark that it was there.
        self._sequence(*args)
        return "set"

    def _encode(self, text: Any, codec: Any = None) -> bytes:
        # How protocol 2 writes bytes. Other codecs can be chained to grow without bound.
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("_codecs.encode with another codec than latin1")
        self._charge(len(text))
        return text.encode("latin1")

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> PlannedTensor:
        return planned_view(storage, offset, size, stride, None, self._subject)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        grad: Any,
        hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> PlannedTensor:
        return planned_view(storage, offset, size, stride, dtype, self._subject)

    def _from_type(self, func: Any, kind: Any, args: Any, state: Any) -> PlannedTensor:
        if not isinstance(func, Global) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("a tensor built by something that is no function of torch")
        return only_tensor(func(*args))

    def _refuse(self, reason: str, remedy: str) -> NoReturn:
        raise SourceError(self._subject, reason, remedy)

    # Opcodes that the base class would let do more than is needed

    def load_proto(self) -> None:
        version = self.read(1)[0]
        if version not in (2, 3):
            self._refuse(
                f"It was written with pickle protocol {version}, which torch's restricted unpickler does not read.",
                "Save it again with torch.save(state_dict, path), protocol 2.",
            )

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        # torch writes attributes for OrderedDict only (a state dict's _metadata), and they are not weights.
        if not isinstance(target, collections.OrderedDict | PlannedTensor) or not isinstance(
            state, dict | tuple
        ):
            raise pickle.UnpicklingError("attributes for an object that takes none")

    def load_newobj(self) -> None:
        args, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, Global) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("an object of something that is no class")
        self.append(made(*args))

    def load_reduce(self) -> None:
        args, func = self.stack.pop(), self.stack.pop()
        if not isinstance(func, Global) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("a call of something that is no function")
        self.append(func(*args))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._mapping()[_plain_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        mapping = self._mapping()
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[_plain_key(key)] = value

    def load_append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def _mapping(self) -> dict[Any, Any]:
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("items for something that is no dict")
        found: dict[Any, Any] = self.stack[-1]
        return found

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("items for something that is no list")
        found: list[Any] = self.stack[-1]
        return found

    for _code, _load in (
        (pickle.PROTO, load_proto),
        (pickle.BUILD, load_build),
        (pickle.NEWOBJ, load_newobj),
        (pickle.REDUCE, load_reduce),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
    ):
        dispatch[_code[0]] = _load
    del _code, _load


class _Bounded:
    """A stream that never gives, nor allocates for, more than it holds."""

    def __init__(self, raw: io.BufferedIOBase, end: int) -> None:
        self._raw, self._end = raw, end

    def read(self, size: int) -> bytes:
        left = self._end - self._raw.tell()
        if size > left:
            raise EOFError("it ends in the middle")
        return self._raw.read(size)

    def readline(self) -> bytes:
        return self._raw.readline(1024)


def read_pickle(
    stream: io.BufferedIOBase, end: int, subject: object
) -> tuple[Any, dict[str, PlannedStorage]]:
    """Read one pickle from the current position of `stream`, building nothing.

    Args:
        stream: a seekable stream of bytes.
        end: position behind which nothing belongs to the pickle.
        subject: what error texts call the file.

    Returns:
        dicts, lists, tuples and plain values as in the file, with `PlannedTensor` for tensors; and every storage that
        it names, by key.

    Raises:
        SourceError: it is no pickle of weights.
    """
    length = max(0, end - stream.tell())
    try:
        unpickler = _Inert(_Bounded(stream, end), subject, _BUDGET * length + 4096)
        return unpickler.load(), unpickler.storages
    except SourceError:
        raise
    except _ERRORS as exc:
        raise SourceError(
            subject,
            f"Its pickle is damaged or no torch checkpoint: {shown(str(exc) or type(exc).__name__, 200)}.",
            f"Copy or download it again. {RESAVE}",
        ) from exc


def _plain_key(key: Any) -> Any:
    """A key that dicts keep apart quickly: whole numbers beyond 64 bits can be chosen to collide."""
    if isinstance(key, str | bytes | float | bool) or key is None:
        return key
    if isinstance(key, int) and abs(key) < 1 << 63:
        return key
    if isinstance(key, tuple) and len(key) <= 8:
        return tuple(_plain_key(part) for part in key)
    raise pickle.UnpicklingError(f"a dict key of type {type(key).__name__}")
