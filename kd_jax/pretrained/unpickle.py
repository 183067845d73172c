"""Pickles read as data, by a machine that can run nothing.

A pickle is a program: Python's unpickler imports whatever the file names and calls it. This
machine is not that unpickler, nor does it use it. It knows the opcodes that put numbers, text and
bytes into lists, tuples, dicts and sets; it looks the names that a file refers to up in a table,
and calls nothing but the functions of that table, which are this package's. It imports nothing and
reads no attribute by name: what the table lacks is refused by its name.

What a file can cost is bounded too. Every opcode takes constant time and memory, or as much as the
bytes that it consumes; a function that makes more than it was given charges it to the file's
`Budget`; and a tree that is too deep, that holds itself, or that would be huge if written out (a
list of the same list twice, thirty times over) is not handed on.
"""

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

MAX_OPERATIONS = 1_000_000
"""Opcodes of one file, those of the pickles inside it included. A snapshot has some 50 000."""
MAX_ITEMS = 1_000_000
"""Items of one file's tree, each counted as often as it appears."""
MAX_DEPTH = 128
"""Containers within each other."""
MAX_TEXT = 16 << 20
"""Bytes of one string."""
MAX_NAME = 512
"""Bytes of a module's name, or of a name in it."""
MAX_KEY = 4096
"""Characters of a dict's key."""
MAX_INTEGER = 16
"""Bytes of one integer."""
MAX_ARGUMENTS = 16
"""Arguments of one call."""
ITEM = 128
"""Bytes that an item of a dict or a set takes, about."""


class UnsafeFileError(ValueError):
    """A file that asks for what is not plain data, or for more than its size allows."""


class Budget:
    """What one file may still cost.

    Args:
      size: the file's, in bytes. What is made of it may be four times that, and 16 MiB.
    """

    def __init__(self, size: int):
        self.operations = MAX_OPERATIONS
        self.bytes = 4 * size + (16 << 20)

    def charge(self, size: int) -> None:
        """Takes bytes off the budget.

        Raises:
          UnsafeFileError: that many are not left.
        """
        self.bytes -= size
        if self.bytes < 0:
            raise UnsafeFileError("claims several times the data that it holds")


Function: TypeAlias = Callable[[tuple, Budget], Any]
"""`(arguments, budget) -> value`, or NotImplemented for arguments that it does not take."""
Constructors: TypeAlias = Mapping[tuple[str, str], Any]
"""What a file may refer to, by module and name: a `Constructor`, or a plain value."""


@dataclass(frozen=True, eq=False)
class Constructor:
    """A name that a file may refer to, and what is made in its place.

    Attributes:
      name: module and name, for errors.
      call: what calling it makes, if it may be called.
      new: what an instance of it is, if it may have instances.
    """

    name: str
    call: Function | None = None
    new: Function | None = None


@dataclass(eq=False)
class Hollow:
    """What has been announced but is made only when its state is known.

    Attributes:
      name: module and name, for errors.
      finish: `(state, budget) -> value`, or NotImplemented.
      places: where in the memo it is, so that the value takes its place there.
    """

    name: str
    finish: Callable[[Any, Budget], Any]
    places: list[int] = field(default_factory=list)


class Attributes(dict):
    """An object of which only the attributes are kept."""


@dataclass(frozen=True, eq=False)
class StandIn:
    """An object of which only the state is kept.

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
    """The value of the pickle that begins at `start`, and where it ends.

    Strings of bytes are views of `data`, without a copy. What is returned may still hold what is
    half made: `checked` tells.

    Args:
      data: bytes.
      start: the pickle's first byte.
      constructors: what it may refer to.
      budget: of the file.
      persistent: what its persistent ids stand for; by default it may have none.

    Raises:
      UnsafeFileError: it refers to what is not in `constructors`, or wants too much.
      ValueError: it is damaged, or ends too early.
    """
    machine = _Machine(data, start, constructors, budget, persistent)
    return machine.run(), machine.position


def checked(root: Any) -> Any:
    """`root`, after a look at everything in it.

    Raises:
      UnsafeFileError: something in it is not plain data; it is deeper than `MAX_DEPTH`, holds
        itself, or has more than `MAX_ITEMS` items when each is counted as often as it appears.
    """
    measures: dict[int, tuple[int, int]] = {}  # items and depth, of the containers that are done
    held: dict[int, list[Any]] = {}  # the containers in those that have been begun
    left = [root] if _is_container(root) else []
    while left:
        value = left[-1]
        if id(value) in measures:
            left.pop()
        elif id(value) not in held:
            held[id(value)] = [item for item in _items(value) if _is_container(item)]
            for item in held[id(value)]:
                if id(item) in held and id(item) not in measures:
                    raise UnsafeFileError("holds a container that holds itself")
            left.extend(held[id(value)])
        else:
            below = [measures[id(item)] for item in held[id(value)]]
            items = len(_items(value)) + sum(items for items, _ in below)
            depth = 1 + max((depth for _, depth in below), default=0)
            if items > MAX_ITEMS:
                raise UnsafeFileError(f"holds more than {MAX_ITEMS} items, written out")
            if depth > MAX_DEPTH:
                raise UnsafeFileError(f"holds more than {MAX_DEPTH} containers within each other")
            measures[id(value)] = items, depth
    return root


def checked_key(value: Any) -> Any:
    """`value`, if it may be a dict's key or a set's item: what is hashed in constant time.

    Raises:
      UnsafeFileError: it is not a short string, a number of 64 bits or None.
    """
    kind = type(value)
    if (
        (kind is str and len(value) <= MAX_KEY)
        or (kind is int and value.bit_length() <= 64)
        or kind in (bool, float, type(None))
    ):
        return value
    raise UnsafeFileError(f"has {_described(value)} for a key, not a short text or a number")


def shown(text: str) -> str:
    """Text of a file, for an error: short, of one line."""
    short = text if len(text) <= 100 else f"{text[:100]}..."
    return short if short.isascii() and short.isprintable() else ascii(short)


_LEAVES = (str, int, float, bool, type(None), bytes, memoryview)
_LISTS = (list, tuple, set, frozenset)
_DICTS = (dict, OrderedDict, Attributes)


def _is_container(value: Any) -> bool:
    """Whether a value holds others; a ValueError if it is neither a container nor plain data."""
    if type(value) in _LEAVES or isinstance(value, (np.ndarray, np.generic, np.dtype)):
        return False
    if type(value) in _LISTS or type(value) in _DICTS or isinstance(value, StandIn):
        return True
    raise UnsafeFileError(f"holds {_described(value)}, which is not plain data")


def _items(container: Any) -> Collection[Any]:
    """What a container holds, but for keys, which are plain."""
    if isinstance(container, StandIn):
        return (container.state,)
    return container.values() if type(container) in _DICTS else container


def _described(value: Any) -> str:
    if isinstance(value, Constructor):
        return f"the name {value.name}"
    if isinstance(value, Hollow):
        return f"an unfinished {value.name}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


class _Machine:
    """The state of one pickle's reading: what is on the stack, above each mark, and remembered."""

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
                raise UnsafeFileError(f"has more than {MAX_OPERATIONS} pickle operations")
            code = self.take(1)[0]
            if code == _STOP:
                break
            handler = _HANDLERS.get(code)
            if handler is None:
                raise UnsafeFileError(f"has the pickle operation {_name(code)}, which is not read")
            handler(self)
        value = self.pop()
        if self.stack or self.marks:
            raise ValueError("is damaged: a pickle ends with more than one value")
        return value

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        left = len(self.data) - self.position
        if size > left:
            raise ValueError(f"ends too early: {size} bytes are wanted where {left} are left")
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self, size: int) -> str:
        if size > MAX_TEXT:
            raise UnsafeFileError(f"has a text of {size} bytes; {MAX_TEXT} are read")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise ValueError("is damaged: a text is not UTF-8") from None

    def line(self) -> str:
        """The text up to the next end of line: a name."""
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
            raise ValueError("is damaged: a pickle takes what is not there")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("is damaged: a pickle has no mark where one is wanted")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kinds: tuple[type, ...]) -> Any:
        """The container that is being filled."""
        if not self.stack or type(self.stack[-1]) not in kinds:
            found = _described(self.stack[-1]) if self.stack else "nothing"
            raise UnsafeFileError(f"fills {found} as if it were a {kinds[0].__name__}")
        return self.stack[-1]

    def remember(self, place: int) -> None:
        value = self.pop()
        self.push(value)
        self.memo[place] = value
        if type(value) is Hollow:
            value.places.append(place)

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise ValueError(f"is damaged: a pickle has nothing at place {place} of its memo")
        self.push(self.memo[place])

    def refer(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnsafeFileError("refers to a name that is not text")
        found = self.constructors.get((module, name))
        if found is None:
            raise UnsafeFileError(f"refers to {shown(f'{module}.{name}')}, which is not plain data")
        self.push(found)

    def make(self, what: Any, function: Function | None, arguments: Any) -> None:
        """Pushes what a function of the table makes: nothing else calls what a file refers to."""
        if function is None:
            raise UnsafeFileError(f"calls {_described(what)}")
        if type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
            raise UnsafeFileError(f"calls {what.name} with {_described(arguments)}")
        value = function(arguments, self.budget)
        if value is NotImplemented:
            raise UnsafeFileError(f"calls {what.name} with arguments that it does not take")
        self.push(value)


_Handler: TypeAlias = Callable[[_Machine], None]


def _constant(value: Any) -> _Handler:
    return lambda machine: machine.push(value)


def _fresh(kind: type) -> _Handler:
    return lambda machine: machine.push(kind())


def _integer(size: int, signed: bool = False) -> _Handler:
    return lambda machine: machine.push(machine.integer(size, signed))


def _text(size: int) -> _Handler:
    """A string after its length, which has `size` bytes."""
    return lambda machine: machine.push(machine.text(machine.integer(size)))


def _bytes(size: int) -> _Handler:
    """Bytes after their length, which has `size` bytes."""
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
        raise ValueError(f"is a pickle of protocol {version}; 2 to 5 are read")


def _frame(machine: _Machine) -> None:
    size, left = machine.integer(8), len(machine.data) - machine.position
    if size > left:
        raise ValueError(f"ends too early: {size} bytes are wanted where {left} are left")


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _long(machine: _Machine) -> None:
    size = machine.integer(1)
    if size > MAX_INTEGER:
        raise UnsafeFileError(f"has an integer of {size} bytes; {MAX_INTEGER} are read")
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
    machine.top((set,)).update(map(checked_key, items))


def _frozen_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.push(frozenset(map(checked_key, items)))


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(_DICTS)[checked_key(key)] = value


def _set_to_mark(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    if len(items) % 2:
        raise ValueError("is damaged: a dict has a key without a value")
    machine.top(_DICTS).update(zip(map(checked_key, items[::2]), items[1::2], strict=True))


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
    if type(value) is Hollow:
        built = value.finish(state, machine.budget)
        if built is NotImplemented:
            raise UnsafeFileError(f"gives {_described(value)} a state that it does not take")
        for place in value.places:
            machine.memo[place] = built
        value.places.clear()
        machine.push(built)
    elif type(value) is Attributes and type(state) is dict:
        machine.budget.charge(ITEM * len(state))
        value.update(state)
        machine.push(value)
    elif type(value) is OrderedDict and type(state) is dict:
        machine.push(value)  # PyTorch hangs the versions of a state dict's modules on it
    else:
        raise UnsafeFileError(f"gives {_described(value)} a state")


def _persistent(machine: _Machine) -> None:
    if machine.persistent is None:
        raise UnsafeFileError("has a persistent id where there can be none")
    machine.push(machine.persistent(machine.pop()))


_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_STOP = _CODES["STOP"]
# What weight files are made of. Protocols 0 and 1's numbers in decimal text, extension codes,
# buffers from elsewhere and the older ways to make objects are left out.
_HANDLERS: dict[int, _Handler] = {
    _CODES[name]: handler
    for name, handler in {
        "PROTO": _protocol,
        "FRAME": _frame,
        "MARK": _mark,
        "NONE": _constant(None),
        "NEWTRUE": _constant(True),
        "NEWFALSE": _constant(False),
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
        "EMPTY_TUPLE": _constant(()),
        "TUPLE1": _tuple(1),
        "TUPLE2": _tuple(2),
        "TUPLE3": _tuple(3),
        "TUPLE": _tuple_to_mark,
        "EMPTY_LIST": _fresh(list),
        "APPEND": _append,
        "APPENDS": _append_to_mark,
        "EMPTY_SET": _fresh(set),
        "ADDITEMS": _add_to_mark,
        "FROZENSET": _frozen_to_mark,
        "EMPTY_DICT": _fresh(dict),
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
    """An opcode's name, for errors."""
    names = [name for name, known in _CODES.items() if known == code]
    return names[0] if names else f"0x{code:02x}"
