"""A restricted unpickler that reads pickles as data and cannot execute code.

A pickle is a program: Python's unpickler imports any name in the file and calls it. This
implementation neither is that unpickler nor uses it. It supports the opcodes that put numbers, text
and bytes into lists, tuples, dicts and sets. Names that a file refers to are looked up in a table
of this package's own functions, and nothing else is called. It imports nothing and reads no
attribute by name: a name that is not in the table is refused, and the error names it.

The cost of a file is bounded, too. Every opcode takes constant time and memory, or time and memory
proportional to the bytes that it consumes. A function whose result is larger than its arguments
charges the size to the file's `Budget`. A tree that is too deep, that contains itself, or that
would be huge if written out (a list of the same list twice, nested thirty times) is refused.
"""

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

MAX_OPERATIONS = 1_000_000
"""Maximum opcodes of a file, including the pickles inside it. A snapshot has some 50 000."""
MAX_ITEMS = 1_000_000
"""Maximum items of a file's tree, each counted as often as it appears."""
MAX_DEPTH = 128
"""Maximum nesting of containers."""
MAX_TEXT = 16 << 20
"""Maximum bytes of a string."""
MAX_NAME = 512
"""Maximum bytes of a module's name, or of a name in it."""
MAX_KEY = 4096
"""Maximum characters of a dict's key."""
MAX_INTEGER = 16
"""Maximum bytes of an integer."""
MAX_ARGUMENTS = 16
"""Maximum arguments of a call."""
ITEM = 128
"""Approximate bytes that an item of a dict or a set takes."""


class UnsafeFileError(ValueError):
    """A file has something other than plain data, or needs more memory than its size allows."""


class Budget:
    """The operations and bytes that reading one file may still take.

    Args:
      size: the file's size in bytes. The values read from it may take four times that, plus 16 MiB.
    """

    def __init__(self, size: int):
        self.operations = MAX_OPERATIONS
        self.bytes = 4 * size + (16 << 20)

    def charge(self, size: int) -> None:
        """Takes bytes off the budget.

        Raises:
          UnsafeFileError: fewer bytes are left.
        """
        self.bytes -= size
        if self.bytes < 0:
            raise UnsafeFileError("needs more memory than four times its size plus 16 MiB")


Function: TypeAlias = Callable[[tuple, Budget], Any]
"""`(arguments, budget) -> value`, or NotImplemented for arguments that it does not accept."""
Constructors: TypeAlias = Mapping[tuple[str, str], Any]
"""The names that a file may refer to, by module and name: a `Constructor` or a plain value."""


@dataclass(frozen=True, eq=False)
class Constructor:
    """A name that a file may refer to, and the functions that stand in for it.

    Attributes:
      name: module and name, for error messages.
      call: the function that replaces calling it, or None if it may not be called.
      new: the function that replaces creating an instance, or None if it may have no instances.
    """

    name: str
    call: Function | None = None
    new: Function | None = None


@dataclass(eq=False)
class PendingObject:
    """An object that is created only when its state is known.

    Attributes:
      name: module and name, for error messages.
      finish: `(state, budget) -> value`, or NotImplemented.
      places: its indices in the memo, where the value replaces it.
    """

    name: str
    finish: Callable[[Any, Budget], Any]
    places: list[int] = field(default_factory=list)


class Attributes(dict):
    """An object reduced to its attributes."""


@dataclass(frozen=True, eq=False)
class OpaqueObject:
    """An object reduced to its state.

    Attributes:
      state: its attributes.
    """

    state: dict = field(repr=False)


def load(
    data: memoryview,
    start: int,
    constructors: Constructors,
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """The value of the pickle that starts at `start`, and the offset of its end.

    Bytes are views of `data`, not copies. The value may still contain unfinished objects, which
    `check_plain` refuses.

    Args:
      data: the bytes of the file.
      start: the offset of the pickle's first byte.
      constructors: the names that it may refer to.
      budget: the file's budget.
      persistent: maps a persistent id to its value; by default no persistent ids are allowed.

    Raises:
      UnsafeFileError: it refers to a name that is not in `constructors`, or exceeds a limit.
      ValueError: it is damaged or truncated.
    """
    machine = _Machine(data, start, constructors, budget, persistent)
    return machine.run(), machine.position


def check_plain(root: Any) -> Any:
    """Checks that a tree is plain data of limited size, and returns it.

    Raises:
      UnsafeFileError: something in it is not plain data; it is deeper than `MAX_DEPTH`, contains
        itself, or has more than `MAX_ITEMS` items, each counted as often as it appears.
    """
    measures: dict[int, tuple[int, int]] = {}  # items and depth, of finished containers
    children: dict[int, list[Any]] = {}  # inner containers of each visited container
    left = [root] if _is_container(root) else []
    while left:
        value = left[-1]
        if id(value) in measures:
            left.pop()
        elif id(value) not in children:
            children[id(value)] = [item for item in _items(value) if _is_container(item)]
            for item in children[id(value)]:
                if id(item) in children and id(item) not in measures:
                    raise UnsafeFileError("contains a container that contains itself")
            left.extend(children[id(value)])
        else:
            below = [measures[id(item)] for item in children[id(value)]]
            items = len(_items(value)) + sum(items for items, _ in below)
            depth = 1 + max((depth for _, depth in below), default=0)
            if items > MAX_ITEMS:
                raise UnsafeFileError(f"contains more than {MAX_ITEMS} items, repetitions included")
            if depth > MAX_DEPTH:
                raise UnsafeFileError(f"nests containers more than {MAX_DEPTH} deep")
            measures[id(value)] = items, depth
    return root


def check_key(value: Any) -> Any:
    """Checks that a value may be a dict's key or a set's item, and returns it.

    Such values are hashed in constant time.

    Raises:
      UnsafeFileError: it is not a short string, a number of at most 64 bits or None.
    """
    kind = type(value)
    if (
        (kind is str and len(value) <= MAX_KEY)
        or (kind is int and value.bit_length() <= 64)
        or kind in (bool, float, type(None))
    ):
        return value
    raise UnsafeFileError(f"has {_describe(value)} as a key, not a short string or a number")


def printable(text: str) -> str:
    """Text from a file, shortened and escaped to one printable line, for error messages."""
    short = text if len(text) <= 100 else f"{text[:100]}..."
    return short if short.isascii() and short.isprintable() else ascii(short)


_LEAVES = (str, int, float, bool, type(None), bytes, memoryview)
_LISTS = (list, tuple, set, frozenset)
_DICTS = (dict, OrderedDict, Attributes)


def _is_container(value: Any) -> bool:
    """Whether a value is a container; an UnsafeFileError if it is neither that nor plain data."""
    if type(value) in _LEAVES or isinstance(value, (np.ndarray, np.generic, np.dtype)):
        return False
    if type(value) in _LISTS or type(value) in _DICTS or isinstance(value, OpaqueObject):
        return True
    raise UnsafeFileError(f"contains {_describe(value)}, which is not plain data")


def _items(container: Any) -> Collection[Any]:
    """The items of a container, without keys, which are plain."""
    if isinstance(container, OpaqueObject):
        return (container.state,)
    return container.values() if type(container) in _DICTS else container


def _describe(value: Any) -> str:
    if isinstance(value, Constructor):
        return f"the name {value.name}"
    if isinstance(value, PendingObject):
        return f"an unfinished {value.name}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


class _Machine:
    """The state of reading one pickle: the stack, the stacks below each mark, and the memo."""

    def __init__(
        self,
        data: memoryview,
        start: int,
        constructors: Constructors,
        budget: Budget,
        persistent: Callable[[Any], Any] | None,
    ):
        self.data = data
        self.position = start
        self.constructors = constructors
        self.budget = budget
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            self.budget.operations -= 1
            if self.budget.operations < 0:
                raise UnsafeFileError(f"has more than {MAX_OPERATIONS} pickle opcodes")
            code = self.take(1)[0]
            if code == _STOP:
                break
            handler = _HANDLERS.get(code)
            if handler is None:
                raise UnsafeFileError(
                    f"has the pickle opcode {_name(code)}, which is not supported"
                )
            handler(self)
        value = self.pop()
        if self.stack or self.marks:
            raise ValueError("is damaged: a pickle ends with more than one value")
        return value

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        left = len(self.data) - self.position
        if size > left:
            raise ValueError(f"is truncated: {size} bytes are needed, {left} are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, size: int) -> str:
        if size > MAX_TEXT:
            raise UnsafeFileError(f"has a string of {size} bytes; the limit is {MAX_TEXT}")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise ValueError("is damaged: a string is not UTF-8") from None

    def line(self) -> str:
        """The text up to the next newline: a name."""
        beginning = bytes(self.data[self.position : self.position + MAX_NAME + 1])
        size = beginning.find(b"\n")
        if size < 0 and len(beginning) > MAX_NAME:
            raise UnsafeFileError(f"has a name of more than {MAX_NAME} bytes")
        name = self.text(size if size >= 0 else len(beginning))
        self.take(1)
        return name

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("is damaged: a pickle pops from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("is damaged: a pickle has no mark to pop to")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kinds: tuple[type, ...]) -> Any:
        """The container on top of the stack."""
        if not self.stack or type(self.stack[-1]) not in kinds:
            top = _describe(self.stack[-1]) if self.stack else "nothing"
            raise UnsafeFileError(f"fills {top} as if it were a {kinds[0].__name__}")
        return self.stack[-1]

    def remember(self, place: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[place] = value
        if type(value) is PendingObject:
            value.places.append(place)

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise ValueError(f"is damaged: a pickle has no entry {place} in its memo")
        self.push(self.memo[place])

    def refer(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnsafeFileError("refers to a name that is not a string")
        constructor = self.constructors.get((module, name))
        if constructor is None:
            raise UnsafeFileError(
                f"refers to {printable(f'{module}.{name}')}, which is not plain data (save "
                "model.state_dict())"
            )
        self.push(constructor)

    def make(self, what: Any, function: Function | None, arguments: Any) -> None:
        """Pushes the result of a function of the table. No other code calls such functions."""
        if function is None:
            raise UnsafeFileError(f"calls {_describe(what)}")
        if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
            raise UnsafeFileError(f"calls {what.name} with {_describe(arguments)}")
        value = function(arguments, self.budget)
        if value is NotImplemented:
            raise UnsafeFileError(f"calls {what.name} with arguments that it does not accept")
        self.push(value)


_Handler: TypeAlias = Callable[[_Machine], None]


def _push(value: Any) -> _Handler:
    return lambda machine: machine.push(value)


def _push_new(kind: type) -> _Handler:
    return lambda machine: machine.push(kind())


def _integer(size: int, signed: bool = False) -> _Handler:
    return lambda machine: machine.push(machine.integer(size, signed))


def _text(size: int) -> _Handler:
    """Pushes a string that follows its length, an integer of `size` bytes."""
    return lambda machine: machine.push(machine.text(machine.integer(size)))


def _bytes(size: int) -> _Handler:
    """Pushes bytes that follow their length, an integer of `size` bytes."""
    return lambda machine: machine.push(machine.take(machine.integer(size)))


def _tuple(count: int) -> _Handler:
    def handler(machine: _Machine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return handler


def _recall(size: int) -> _Handler:
    return lambda machine: machine.recall(machine.integer(size))


def _remember(size: int) -> _Handler:
    return lambda machine: machine.remember(machine.integer(size))


def _protocol(machine: _Machine) -> None:
    version = machine.integer(1)
    if version > 5:
        raise ValueError(f"is a pickle of protocol {version}; 2 to 5 are supported")


def _frame(machine: _Machine) -> None:
    size, left = machine.integer(8), len(machine.data) - machine.position
    if size > left:
        raise ValueError(f"is truncated: {size} bytes are needed, {left} are left")


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _long(machine: _Machine) -> None:
    size = machine.integer(1)
    if size > MAX_INTEGER:
        raise UnsafeFileError(f"has an integer of {size} bytes; the limit is {MAX_INTEGER}")
    machine.push(machine.integer(size, signed=True))


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _tuple_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push(tuple(items))


def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.top((list,)).append(item)


def _append_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.top((list,)).extend(items)


def _add_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.top((set,)).update(map(check_key, items))


def _frozenset_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push(frozenset(map(check_key, items)))


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(_DICTS)[check_key(key)] = value


def _set_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    if len(items) % 2:
        raise ValueError("is damaged: a dict has a key without a value")
    machine.top(_DICTS).update(zip(map(check_key, items[::2]), items[1::2], strict=True))


def _memoize(machine: _Machine) -> None:
    machine.remember(len(machine.memo))


def _global(machine: _Machine) -> None:
    module = machine.line()
    machine.refer(module, machine.line())


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.refer(module, name)


def _reduce(machine: _Machine) -> None:
    arguments, what = machine.pop(), machine.pop()
    machine.make(what, what.call if type(what) is Constructor else None, arguments)


def _new(machine: _Machine) -> None:
    arguments, what = machine.pop(), machine.pop()
    machine.make(what, what.new if type(what) is Constructor else None, arguments)


def _build(machine: _Machine) -> None:
    state, value = machine.pop(), machine.pop()
    if type(value) is PendingObject:
        built = value.finish(state, machine.budget)
        if built is NotImplemented:
            raise UnsafeFileError(f"sets a state of {_describe(value)} that it does not accept")
        for place in value.places:
            machine.memo[place] = built
        value.places.clear()
        machine.push(built)
    elif type(value) is Attributes and type(state) is dict:
        machine.budget.charge(ITEM * len(state))
        value.update(state)
        machine.push(value)
    elif type(value) is OrderedDict and type(state) is dict:
        machine.push(value)  # PyTorch sets the module versions of a state dict as its attribute
    else:
        raise UnsafeFileError(f"sets the state of {_describe(value)}")


def _persistent(machine: _Machine) -> None:
    if machine.persistent is None:
        raise UnsafeFileError("has a persistent id where none is allowed")
    machine.push(machine.persistent(machine.pop()))


_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_STOP = _CODES["STOP"]
# The opcodes of weight files. Left out are the decimal numbers of protocols 0 and 1, extension
# codes, out-of-band buffers and the older opcodes that create objects.
_HANDLERS: dict[int, _Handler] = {
    _CODES[name]: handler
    for name, handler in {
        "PROTO": _protocol,
        "FRAME": _frame,
        "MARK": _mark,
        "NONE": _push(None),
        "NEWTRUE": _push(True),
        "NEWFALSE": _push(False),
        "BININT": _integer(4, signed=True),
        "BININT1": _integer(1),
        "BININT2": _integer(2),
        "LONG1": _long,
        "BINFLOAT": _float,
        "SHORT_BINUNICODE": _text(1),
        "BINUNICODE": _text(4),
        "SHORT_BINSTRING": _text(1),  # Python 2's str
        "BINSTRING": _text(4),
        "SHORT_BINBYTES": _bytes(1),
        "BINBYTES": _bytes(4),
        "BINBYTES8": _bytes(8),
        "BYTEARRAY8": _bytes(8),
        "EMPTY_TUPLE": _push(()),
        "TUPLE1": _tuple(1),
        "TUPLE2": _tuple(2),
        "TUPLE3": _tuple(3),
        "TUPLE": _tuple_to_mark,
        "EMPTY_LIST": _push_new(list),
        "APPEND": _append,
        "APPENDS": _append_to_mark,
        "EMPTY_SET": _push_new(set),
        "ADDITEMS": _add_to_mark,
        "FROZENSET": _frozenset_to_mark,
        "EMPTY_DICT": _push_new(dict),
        "SETITEM": _set_item,
        "SETITEMS": _set_to_mark,
        "MEMOIZE": _memoize,
        "BINPUT": _remember(1),
        "LONG_BINPUT": _remember(4),
        "BINGET": _recall(1),
        "LONG_BINGET": _recall(4),
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "REDUCE": _reduce,
        "NEWOBJ": _new,
        "BUILD": _build,
        "BINPERSID": _persistent,
    }.items()
}


def _name(code: int) -> str:
    """An opcode's name, for error messages."""
    names = [name for name, known in _CODES.items() if known == code]
    return names[0] if names else f"0x{code:02x}"
