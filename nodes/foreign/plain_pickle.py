"""What a torch pickle describes, read without running it: its instructions build plain values, and call nothing."""
from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from .opened import Refused
from .shapes import MOST_LETTERS, check_shape, known_dtypes

MOST_INSTRUCTIONS = 300_000  # about 7 000 tensors; each may make 100 bytes of memory out of one
_DTYPES = known_dtypes({name: name for name in (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "bool", "complex64", "complex128")})
_STORAGES: Mapping[str, torch.dtype] = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8}
_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"  # of Textual Inversion and ViCo
_RUNS_CODE = ("is a pickle that holds more than plain tensors and could run code when opened, so it was not opened; "
              "get it as .safetensors, or convert it where you trust it")
_OTHER_TENSORS = ("holds sparse, quantised or nested tensors, or some without numbers; save plain tensors as "
                  ".safetensors")


@dataclass(frozen=True)
class Stored:
    """A tensor by where its numbers lie. storage: key of its bytes. offset, stride: in numbers of this dtype."""

    storage: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Storage:
    """Bytes that tensors share. count: numbers of this dtype."""

    key: str
    dtype: torch.dtype
    count: int


def read_plain(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """What the next pickle of the stream describes, and the storages of its tensors by key.

    It is made of dicts, lists, tuples, texts, numbers, None, and `Stored` for tensors.

    Containers may hold themselves. Raises Refused if it asks for anything else, other errors if it is damaged.
    """
    machine = _Machine()
    for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if number == MOST_INSTRUCTIONS:
            raise Refused("is a pickle of too many parts; save it again as .safetensors")
        if instruction.name == "STOP":
            break
        machine.follow(instruction.name, argument)
    return machine.stack.pop(), machine.storages


@dataclass(frozen=True)
class _Global:
    """The name of a class or function; nothing is imported."""

    name: str


class _Machine:
    """The stack, the marks in it, the remembered values and the storages."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _MAKE:
            self.stack.append(_MAKE[name](argument))
        elif name in _ACT:
            _ACT[name](self)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise Refused(_RUNS_CODE)

    def marked(self) -> list[Any]:
        """Takes what lies above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        """Takes the last `count` values."""
        if count > len(self.stack):
            raise ValueError("the pickle takes more than it has made")
        items = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return items

    def add(self, items: list[Any]) -> None:
        """Adds to the list that is last on the stack."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("the pickle adds to what is no list")
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        """Sets keys and values of the dict that is last on the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("the pickle sets a key of what is no dict")
        _put(target, zip(items[::2], items[1::2], strict=True))

    def refer(self) -> None:
        """To a storage by what is last on the stack, or in the old format to a class with its source."""
        reference = self.stack.pop()
        if reference[0] == "module":
            return self.stack.append(reference[1])
        storage = _storage(reference)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("a storage is of two kinds")
        self.stack.append(storage)

    def build(self) -> None:
        """Attributes of the value before: only a ParameterDict's parameters matter."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], _ParameterDict):
            self.stack[-1].update(state["_parameters"])

    def remember(self) -> None:
        """Under the next free number."""
        self.memo[len(self.memo)] = self.stack[-1]

    def make_dict(self) -> None:
        """Of what lies above the last mark."""
        items = self.marked()
        self.stack.append({})
        self.set(items)


class _ParameterDict(dict):
    """Stands for torch.nn.ParameterDict."""


def _put(target: dict, pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        if not isinstance(key, (str, int, float, bytes)):  # nested tuples as keys can overflow the stack
            raise ValueError("the pickle has a key that is neither text nor number")
        if isinstance(key, (str, bytes)) and len(key) > MOST_LETTERS:
            raise ValueError("the pickle has a key that is too long for a name")
        if key in target:
            raise ValueError("the pickle names a thing twice")
        target[key] = value


def _named(text: str) -> _Global:
    module, name = text.split(" ")
    return _global(module, name)


def _global(module: Any, name: Any) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the pickle names a function by what is no text")
    full = f"{module}.{name}"
    if full.startswith("torch._utils._rebuild_") and full not in _CALLS:
        raise Refused(_OTHER_TENSORS)
    known = (full in _CALLS or module in ("torch", "torch.storage") and _storage_dtype(name)
             or module == "torch" and name in _DTYPES
             or full in ("torch.Tensor", "torch.nn.parameter.Parameter"))
    if not known:
        raise Refused(_RUNS_CODE)
    return _Global(full)


def _storage_dtype(name: str) -> torch.dtype | None:
    return _STORAGES.get(name.removesuffix("Storage")) if name.endswith("Storage") else None


def _call(function: Any, arguments: Any) -> Any:
    """What the function of that name would give. Raises ValueError if none is known, or not for such arguments."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple) or function.name not in _CALLS:
        raise ValueError("the pickle calls what is no function")
    return _CALLS[function.name](*arguments)


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *more: Any) -> Stored:
    dtype = storage.dtype
    if len(more) > 2 and isinstance(more[2], _Global):
        dtype = _DTYPES[more[2].name.removeprefix("torch.")]
    check_shape(size)
    if len(stride) != len(size) or any(type(number) is not int or number < 0 for number in (offset, *stride)):
        raise ValueError("a tensor lies at an impossible place")
    return Stored(storage.key, dtype, offset, tuple(size), tuple(stride))


def _parameter(data: Stored, *_: Any) -> Stored:
    return data


def _with_type(function: _Global, _kind: Any, arguments: tuple, *_: Any) -> Any:
    if function.name == "torch._tensor._rebuild_from_type_v2":
        raise ValueError("the pickle calls itself")
    return _call(function, arguments)


def _dict(pairs: Iterable[tuple[Any, Any]] = ()) -> dict:
    made: dict = {}
    _put(made, pairs)
    return made


def _nothing(*_: Any) -> None:
    """For what stands beside tensors and is not looked at."""


def _storage(pid: tuple) -> Storage:
    """("storage", type, key, where it was, count), in the old format with None behind."""
    kind, storage, key, _, count, *view = pid
    dtype = _storage_dtype(storage.name.rpartition(".")[2])
    is_known = kind == "storage" and dtype is not None and isinstance(key, str) and not any(view)
    if not is_known or type(count) is not int or count < 0:
        raise ValueError("a storage is of an unknown kind")
    return Storage(key, dtype, count)


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor, "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter, "torch._tensor._rebuild_from_type_v2": _with_type,
    "collections.OrderedDict": _dict, _PARAMETER_DICT: lambda: _ParameterDict(),
    **dict.fromkeys(("torch.Size", "torch.device", "builtins.set", "__builtin__.set", "builtins.complex",
                     "__builtin__.complex", "builtins.bytearray", "__builtin__.bytearray", "collections.Counter",
                     "_codecs.encode", "torch.serialization._get_layout"), _nothing)}

_MAKE: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys((
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8", "BYTEARRAY8"), lambda value: value),
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False, "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {}, "EMPTY_SET": lambda _: [], "EMPTY_TUPLE": lambda _: (), "GLOBAL": _named}

_ACT: Mapping[str, Callable[[_Machine], object]] = {
    "MARK": lambda machine: machine.marks.append(len(machine.stack)),
    "POP": lambda machine: machine.last(1),
    "POP_MARK": lambda machine: machine.marked(),
    "LIST": lambda machine: machine.stack.append(machine.marked()),
    "DICT": lambda machine: machine.make_dict(),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine: machine.stack.append(tuple(machine.last(1))),
    "TUPLE2": lambda machine: machine.stack.append(tuple(machine.last(2))),
    "TUPLE3": lambda machine: machine.stack.append(tuple(machine.last(3))),
    "APPEND": lambda machine: machine.add(machine.last(1)),
    "APPENDS": lambda machine: machine.add(machine.marked()),
    "ADDITEMS": lambda machine: machine.add(machine.marked()),
    "SETITEM": lambda machine: machine.set(machine.last(2)),
    "SETITEMS": lambda machine: machine.set(machine.marked()),
    "STACK_GLOBAL": lambda machine: machine.stack.append(_global(*machine.last(2))),
    "REDUCE": lambda machine: machine.stack.append(_call(*machine.last(2))),
    "NEWOBJ": lambda machine: machine.stack.append(_call(*machine.last(2))),
    "BUILD": lambda machine: machine.build(),
    "BINPERSID": lambda machine: machine.refer(),
    "MEMOIZE": lambda machine: machine.remember()}
