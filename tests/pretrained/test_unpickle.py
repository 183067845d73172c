"""The machine that reads pickles: what each operation makes, by hand, and what it will not do."""

import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest

from kd_jax.pretrained import unpickle
from kd_jax.pretrained.stand_ins import OBJECTS
from kd_jax.pretrained.unpickle import Budget, Constructor, UnsafeFileError, checked, load


def run(pickled, constructors=OBJECTS, budget=None, **options):
    """The value of a pickle, and that it was read to its end."""
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
def test_as_python_reads_it(value, protocol):
    found = run(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


def test_frozen_sets():
    assert run(pickle.dumps(frozenset({"a", "b"}), 4)) == {"a", "b"}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70000])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bytes(size, protocol):
    value = bytes(i % 251 for i in range(size))
    assert bytes(run(pickle.dumps(value, protocol))) == value


def test_bytes_are_views_of_the_file():
    pickled = bytearray(pickle.dumps(b"weights" * 100, 4))
    found = run(pickled)
    pickled[-3] ^= 0xFF  # the last byte, before what memoizes it and the end
    assert found[-1] == ord("s") ^ 0xFF


def test_consecutive_pickles():
    data = memoryview(pickle.dumps(1, 2) + pickle.dumps("two", 4))
    one, at = load(data, 0, {}, Budget(len(data)))
    two, end = load(data, at, {}, Budget(len(data)))
    assert (one, two, end) == (1, "two", len(data))


def test_the_memo():
    shared = ["x"]
    found = run(pickle.dumps([shared, shared, (shared,)], 4))
    assert found[0] is found[1] is found[2][0]
    far = b"\xff\xff\xff\xff"  # a place that is not there before
    assert run(b"\x80\x02]r" + far + b"j" + far + b"a.")


def test_an_array_takes_its_place_in_the_memo():
    """It is remembered before its numbers are there."""
    array = np.arange(4)
    found = run(pickle.dumps([array, array, array.dtype, array.dtype], 4))
    assert found[0] is found[1]
    np.testing.assert_array_equal(found[0], array)
    assert found[2] is found[3] is not None


def test_names():
    """By the exact module and name, however they are written; and nothing below them."""
    table = {("a.b", "c"): Constructor("a.b.c", call=lambda arguments, budget: ("made", arguments))}
    assert run(b"\x80\x02ca.b\nc\nK\x01\x85R.", table) == ("made", (1,))
    assert run(b"\x80\x04\x8c\x03a.b\x8c\x01c\x93)R.", table) == ("made", ())
    for module, name in [(b"a", b"b.c"), (b"a.b", b"c.d"), (b"a.b", b"C"), (b"", b"a.b.c")]:
        with pytest.raises(UnsafeFileError, match="refers to"):
            run(b"\x80\x02c" + module + b"\n" + name + b"\n)R.", table)


def test_only_what_the_table_allows_is_called():
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
        (b"ca\ncall\n)R.", "calls a.call with arguments that it does not take"),
        (b"ca\ncall\n]R.", "calls a.call with a list"),
        (b"ca\ncall\n(" + b"N" * 17 + b"tR.", "calls a.call with a tuple"),
        (b"ca\nvalue\n)R.", "calls a "),
        (b"X\x05\x00\x00\x00print)R.", "calls a str"),
        (b"ca\nplain\n}b.", "gives the name a.plain a state"),
        (b"}}b.", "gives a dict a state"),
    ]:
        with pytest.raises(UnsafeFileError, match=error):
            run(b"\x80\x02" + body, table)


def test_a_name_alone_is_not_data():
    found = run(b"\x80\x02}X\x01\x00\x00\x00accollections\nOrderedDict\ns.")
    with pytest.raises(UnsafeFileError, match=r"the name collections\.OrderedDict"):
        checked(found)


def test_persistent_ids():
    assert run(b"\x80\x02K\x05Q.", persistent=lambda value: value + 1) == 6
    with pytest.raises(UnsafeFileError, match="persistent id where there can be none"):
        run(b"\x80\x02K\x05Q.")


READ = set(unpickle._HANDLERS) | {ord(".")}


@pytest.mark.parametrize(
    "opcode", [op for op in pickletools.opcodes if ord(op.code) not in READ], ids=lambda op: op.name
)
def test_the_other_operations(opcode):
    with pytest.raises(UnsafeFileError, match=f"the pickle operation {opcode.name}, which"):
        run(b"\x80\x02" + opcode.code.encode("latin-1") + bytes(20) + b".")


def test_no_operation_is_read_that_could_run_something():
    left_out = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER"}
    names = {op.name for op in pickletools.opcodes if ord(op.code) in READ}
    assert not names & left_out


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "ends too early"),
        (b"K", "ends too early"),
        (b"X\x05\x00\x00\x00abc", "ends too early: 5 bytes are wanted where 3 are left"),
        (b"\x95\xff\x00\x00\x00\x00\x00\x00\x00N.", "ends too early: 255 bytes"),
        (b".", "takes what is not there"),
        (b"\x85.", "takes what is not there"),
        (b"(K\x01K\x02.", "more than one value"),
        (b"K\x01K\x02.", "more than one value"),
        (b"t.", "no mark"),
        (b"(}K\x01u.", "no mark|fills"),
        (b"}(K\x01u.", "a key without a value"),
        (b"h\x07.", "nothing at place 7"),
        (b"\x8c\x01\xff.", "not UTF-8"),
        (b"\x80\x06N.", "protocol 6; 2 to 5 are read"),
        (b"(K\x01K\x02K\x03e.", "fills nothing as if it were a list"),
        (b")K\x01a.", "fills a tuple as if it were a list"),
        (b"](K\x01\x90.", "fills a list as if it were a set"),
        (b"]K\x01K\x02s.", "fills a list as if it were a dict"),
        (b"K\x01K\x02\x93.", "a name that is not text"),
        (b"}]Ns.", "has a list for a key"),
        (b"})Ns.", "has a tuple for a key"),
        (b"csys", "ends too early"),
        (b"c" + b"x" * 513 + b"\n", "a name of more than 512 bytes"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"Ns.", "has an int for a key"),
        (b"\x8f((t\x90.", "has a tuple for a key"),
        (b"\x8a\x11" + b"\x01" * 17 + b".", "an integer of 17 bytes"),
    ],
)
def test_what_is_damaged(body, error):
    with pytest.raises(ValueError, match=error) as caught:
        run(b"\x80\x04" + body)
    assert "\n" not in str(caught.value)


def test_what_a_file_is_called_is_shown_on_one_line():
    name = b"os\\n\x1b[31m" + "é".encode() + b"x" * 4000
    with pytest.raises(UnsafeFileError) as caught:
        run(b"\x80\x04\x8c\x02a\nX" + len(name).to_bytes(4, "little") + name + b"\x93.")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 200


def test_the_operations_of_a_file_are_counted(monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OPERATIONS", 20)
    nine = b"\x80\x02]NaNaNa."
    budget = Budget(1000)
    assert run(nine, budget=budget) == run(nine, budget=budget) == [None] * 3
    with pytest.raises(UnsafeFileError, match="more than 20 pickle operations"):
        run(nine, budget=budget)


def test_the_longest_text():
    size = unpickle.MAX_TEXT
    text = b"\x80\x02X" + size.to_bytes(4, "little") + b"a" * size + b"."
    assert run(text) == "a" * size
    with pytest.raises(UnsafeFileError, match=f"a text of {size + 1} bytes; {size} are read"):
        run(b"\x80\x02X" + (size + 1).to_bytes(4, "little") + b"a" * (size + 1) + b".")


def test_the_longest_key():
    key = "k" * unpickle.MAX_KEY
    assert run(pickle.dumps({key: 1}, 4)) == {key: 1}
    with pytest.raises(UnsafeFileError, match="has a str for a key"):
        run(pickle.dumps({key + "k": 1}, 4))


def test_a_budget_is_four_times_the_file_and_16_mebibytes():
    budget = Budget(100)
    budget.charge(400)
    budget.charge(16 << 20)
    with pytest.raises(UnsafeFileError, match="several times"):
        budget.charge(1)


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_tree_s_depth():
    assert checked(nested(unpickle.MAX_DEPTH))
    with pytest.raises(UnsafeFileError, match="containers within each other"):
        checked(nested(unpickle.MAX_DEPTH + 1))


def test_a_tree_s_size_is_as_written_out():
    shared = [0] * 1000
    assert checked([shared] * 999)  # 999 references and 999 000 items
    with pytest.raises(UnsafeFileError, match="items, written out"):
        checked([shared] * 1000)
    laughs = "ha"
    for _ in range(100):
        laughs = (laughs, laughs)
    with pytest.raises(UnsafeFileError, match="items, written out"):
        checked(laughs)


def test_a_tree_that_holds_itself():
    loop: list = []
    loop.append({"a": (loop,)})
    with pytest.raises(UnsafeFileError, match="holds itself"):
        checked(loop)


@pytest.mark.parametrize("value", [object(), print, type, [1, {"a": (object(),)}], {1: range(3)}])
def test_a_tree_of_something_else(value):
    with pytest.raises(UnsafeFileError, match="not plain data"):
        checked(value)
