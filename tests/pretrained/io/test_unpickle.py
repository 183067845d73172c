"""The restricted unpickler: hand-written opcodes and their values, and what is refused."""

import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest

from kd_jax.pretrained.io import unpickle
from kd_jax.pretrained.io.allowed_types import OBJECTS
from kd_jax.pretrained.io.unpickle import Budget, Constructor, UnsafeFileError, check_plain, load


def unpickle_all(pickled, constructors=OBJECTS, budget=None, **options):
    """The value of a pickle, which must be read to its end."""
    data = memoryview(pickled)
    value, end = load(data, 0, constructors, budget or Budget(len(data)), **options)
    assert end == len(data)
    return value


VALUES = [
    *(None, True, False, 0, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63 - 1, -(2**63)),
    *(0.0, -0.1, 1e300, float("inf"), "", "text", "é 漢 \U0001f600", "x" * 300),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], [1, [2, [3]]], {}, {"a": 1}),
    *({"a": {"b": (1, None)}, 2: [], 0.5: 1, None: 2}, {1, 2}, set()),
    *(OrderedDict(b=1, a=2), [np.float64(2.5), np.int32(7)]),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_values_match_pythons_unpickler(value, protocol):
    restored = unpickle_all(pickle.dumps(value, protocol))
    assert restored == value
    assert type(restored) is type(value)


def test_frozen_sets():
    assert unpickle_all(pickle.dumps(frozenset({"a", "b"}), 4)) == {"a", "b"}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70000])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bytes(size, protocol):
    value = bytes(i % 251 for i in range(size))
    assert bytes(unpickle_all(pickle.dumps(value, protocol))) == value


def test_bytes_are_views_of_the_file():
    pickled = bytearray(pickle.dumps(b"weights" * 100, 4))
    view = unpickle_all(pickled)
    pickled[-3] ^= 0xFF  # the last byte of the value, before MEMOIZE and STOP
    assert view[-1] == ord("s") ^ 0xFF


def test_consecutive_pickles():
    data = memoryview(pickle.dumps(1, 2) + pickle.dumps("two", 4))
    one, at = load(data, 0, {}, Budget(len(data)))
    two, end = load(data, at, {}, Budget(len(data)))
    assert (one, two, end) == (1, "two", len(data))


def test_memo():
    shared = ["x"]
    items = unpickle_all(pickle.dumps([shared, shared, (shared,)], 4))
    assert items[0] is items[1] is items[2][0]
    far = b"\xff\xff\xff\xff"  # an index without predecessors
    assert unpickle_all(b"\x80\x02]r" + far + b"j" + far + b"a.")


def test_a_finished_array_replaces_its_memo_entry():
    """Arrays are memoized before their contents are read."""
    array = np.arange(4)
    items = unpickle_all(pickle.dumps([array, array, array.dtype, array.dtype], 4))
    assert items[0] is items[1]
    np.testing.assert_array_equal(items[0], array)
    assert items[2] is items[3] is not None


def test_names_match_exactly():
    """Module and name must match; attributes of a listed name are refused."""
    table = {("a.b", "c"): Constructor("a.b.c", call=lambda arguments, budget: ("made", arguments))}
    assert unpickle_all(b"\x80\x02ca.b\nc\nK\x01\x85R.", table) == ("made", (1,))
    assert unpickle_all(b"\x80\x04\x8c\x03a.b\x8c\x01c\x93)R.", table) == ("made", ())
    for module, name in [(b"a", b"b.c"), (b"a.b", b"c.d"), (b"a.b", b"C"), (b"", b"a.b.c")]:
        with pytest.raises(UnsafeFileError, match="refers to"):
            unpickle_all(b"\x80\x02c" + module + b"\n" + name + b"\n)R.", table)


def test_only_functions_of_the_table_are_called():
    def call(arguments, budget):
        return NotImplemented

    table = {
        ("a", "plain"): Constructor("a.plain"),
        ("a", "call"): Constructor("a.call", call),
        ("a", "value"): np.dtype("f4"),
    }
    for body, error in [
        (b"ca\nplain\n)R.", "calls the name a.plain"),
        (b"ca\nplain\n)\x81.", "calls the name a.plain"),
        (b"ca\ncall\n)\x81.", "calls the name a.call"),
        (b"ca\ncall\n)R.", "calls a.call with arguments that it does not accept"),
        (b"ca\ncall\n]R.", "calls a.call with a list"),
        (b"ca\ncall\n(" + b"N" * 17 + b"tR.", "calls a.call with a tuple"),
        (b"ca\nvalue\n)R.", "calls a "),
        (b"X\x05\x00\x00\x00print)R.", "calls a str"),
        (b"ca\nplain\n}b.", "sets the state of the name a.plain"),
        (b"}}b.", "sets the state of a dict"),
    ]:
        with pytest.raises(UnsafeFileError, match=error):
            unpickle_all(b"\x80\x02" + body, table)


def test_a_bare_name_is_not_data():
    tree = unpickle_all(b"\x80\x02}X\x01\x00\x00\x00accollections\nOrderedDict\ns.")
    with pytest.raises(UnsafeFileError, match=r"the name collections\.OrderedDict"):
        check_plain(tree)


def test_persistent_ids():
    assert unpickle_all(b"\x80\x02K\x05Q.", persistent=lambda value: value + 1) == 6
    with pytest.raises(UnsafeFileError, match="persistent id"):
        unpickle_all(b"\x80\x02K\x05Q.")


SUPPORTED = set(unpickle._HANDLERS) | {ord(".")}


@pytest.mark.parametrize(
    "opcode",
    [op for op in pickletools.opcodes if ord(op.code) not in SUPPORTED],
    ids=lambda op: op.name,
)
def test_other_opcodes_are_refused(opcode):
    with pytest.raises(UnsafeFileError, match=f"opcode {opcode.name}, which"):
        unpickle_all(b"\x80\x02" + opcode.code.encode("latin-1") + bytes(20) + b".")


def test_opcodes_that_could_execute_code_are_unsupported():
    left_out = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"}
    names = {op.name for op in pickletools.opcodes if ord(op.code) in SUPPORTED}
    assert not names & left_out


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "is truncated"),
        (b"K", "is truncated"),
        (b"X\x05\x00\x00\x00abc", "is truncated: 5 bytes are needed, 3 are left"),
        (b"\x95\xff\x00\x00\x00\x00\x00\x00\x00N.", "is truncated: 255 bytes"),
        (b".", "empty stack"),
        (b"\x85.", "empty stack"),
        (b"(K\x01K\x02.", "more than one value"),
        (b"K\x01K\x02.", "more than one value"),
        (b"t.", "no mark"),
        (b"(}K\x01u.", "no mark|fills"),
        (b"}(K\x01u.", "a key without a value"),
        (b"h\x07.", "no entry 7"),
        (b"\x8c\x01\xff.", "not UTF-8"),
        (b"\x80\x06N.", "protocol 6; 2 to 5"),
        (b"(K\x01K\x02K\x03e.", "fills nothing as if it were a list"),
        (b")K\x01a.", "fills a tuple as if it were a list"),
        (b"](K\x01\x90.", "fills a list as if it were a set"),
        (b"]K\x01K\x02s.", "fills a list as if it were a dict"),
        (b"K\x01K\x02\x93.", "a name that is not a string"),
        (b"}]Ns.", "has a list as a key"),
        (b"})Ns.", "has a tuple as a key"),
        (b"csys", "is truncated"),
        (b"c" + b"x" * 513 + b"\n", "a name of more than 512 bytes"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"Ns.", "has an int as a key"),
        (b"\x8f((t\x90.", "has a tuple as a key"),
        (b"\x8a\x11" + b"\x01" * 17 + b".", "an integer of 17 bytes"),
    ],
)
def test_damaged_pickles(body, error):
    with pytest.raises(ValueError, match=error) as caught:
        unpickle_all(b"\x80\x04" + body)
    assert "\n" not in str(caught.value)


def test_names_in_errors_are_one_printable_line():
    name = b"os\\n\x1b[31m" + "é".encode() + b"x" * 4000
    with pytest.raises(UnsafeFileError) as caught:
        unpickle_all(b"\x80\x04\x8c\x02a\nX" + len(name).to_bytes(4, "little") + name + b"\x93.")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 200


def test_opcodes_of_a_file_are_counted(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OPERATIONS", 20)
    nine = b"\x80\x02]NaNaNa."
    budget = Budget(1000)
    assert unpickle_all(nine, budget=budget) == unpickle_all(nine, budget=budget) == [None] * 3
    with pytest.raises(UnsafeFileError, match="more than 20 pickle opcodes"):
        unpickle_all(nine, budget=budget)


def test_the_longest_string():
    size = unpickle.MAX_TEXT
    text = b"\x80\x02X" + size.to_bytes(4, "little") + b"a" * size + b"."
    assert unpickle_all(text) == "a" * size
    with pytest.raises(UnsafeFileError, match=f"a string of {size + 1} bytes; the limit is {size}"):
        unpickle_all(b"\x80\x02X" + (size + 1).to_bytes(4, "little") + b"a" * (size + 1) + b".")


def test_the_longest_key():
    key = "k" * unpickle.MAX_KEY
    assert unpickle_all(pickle.dumps({key: 1}, 4)) == {key: 1}
    with pytest.raises(UnsafeFileError, match="has a str as a key"):
        unpickle_all(pickle.dumps({key + "k": 1}, 4))


def test_a_budget_is_four_times_the_file_and_16_mebibytes():
    budget = Budget(100)
    budget.charge(400)
    budget.charge(16 << 20)
    with pytest.raises(UnsafeFileError, match="four times its size"):
        budget.charge(1)


def nest(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_the_depth_of_a_tree():
    assert check_plain(nest(unpickle.MAX_DEPTH))
    with pytest.raises(UnsafeFileError, match=f"more than {unpickle.MAX_DEPTH} deep"):
        check_plain(nest(unpickle.MAX_DEPTH + 1))


def test_repeated_items_of_a_tree_count_each_time():
    shared = [0] * 1000
    assert check_plain([shared] * 999)  # 999 references and 999 000 items
    with pytest.raises(UnsafeFileError, match=f"more than {unpickle.MAX_ITEMS} items"):
        check_plain([shared] * 1000)
    laughs = "ha"
    for _ in range(100):
        laughs = (laughs, laughs)
    with pytest.raises(UnsafeFileError, match=f"more than {unpickle.MAX_ITEMS} items"):
        check_plain(laughs)


def test_a_tree_that_contains_itself():
    loop: list = []
    loop.append({"a": (loop,)})
    with pytest.raises(UnsafeFileError, match="contains itself"):
        check_plain(loop)


@pytest.mark.parametrize("value", [object(), print, type, [1, {"a": (object(),)}], {1: range(3)}])
def test_a_tree_of_other_objects(value):
    with pytest.raises(UnsafeFileError, match="not plain data"):
        check_plain(value)
