"""Malicious files, which try to execute code or waste memory: each is refused by a one-line error.

They are written by hand, opcode by opcode, and read in a separate process. There, Python's audit
hook records every import, execution, command and opened file; memory is limited to 1 GiB; and the
command that the files try to run would create a file.
"""

import copyreg
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_containers import (
    TENSOR,
    TENSOR_V3,
    UINT16,
    Call,
    Storage,
    legacy,
    module,
    plain,
    safetensors,
    tensor,
    torch_zip,
    zip_archive,
)

from kd_jax.pretrained.io import archive, containers
from kd_jax.pretrained.io.containers import read

SECONDS = 5
MEMORY = 1 << 30
CANARY = "canary"
COMMAND = f"touch {CANARY}"

# --------------------------------------------------------------------------- pickles by hand

END, MARK, EMPTY, REDUCE, NEW, BUILD = b".", b"(", b")", b"R", b"\x81", b"b"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(dotted):
    """A GLOBAL of the module before the last dot and the name after it."""
    return b"c" + b"\n".join(part.encode() for part in dotted.rsplit(".", 1)) + b"\n"


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


def blob(value):
    return b"B" + struct.pack("<I", len(value)) + value


def items(*values):
    """A tuple of the values that these push."""
    return MARK + b"".join(values) + b"t"


def call(dotted, *arguments):
    return name(dotted) + items(*arguments) + REDUCE


def file(body):
    return b"\x80\x04" + body + END


def entry(value):
    """A file with a value in place of a tensor of a state dict."""
    return file(b"}" + text("weight") + value + b"s")


RUN = items(text(COMMAND))
SYSTEM = name("posix.system")
ATTACK = SYSTEM + RUN + REDUCE


def opcode_routes():
    """The command, via every opcode that can refer to a name or create an object."""
    line = COMMAND.encode()
    return {
        "GLOBAL": file(ATTACK),
        "GLOBAL os": file(name("os.system") + RUN + REDUCE),
        "GLOBAL nt": file(name("nt.system") + RUN + REDUCE),
        "STACK_GLOBAL": file(stack_global("posix", "system") + RUN + REDUCE),
        "STACK_GLOBAL of parts": file(stack_global("os", "path.os.system") + RUN + REDUCE),
        "STACK_GLOBAL of numbers": file(b"K\x01K\x02\x93" + RUN + REDUCE),
        "STACK_GLOBAL of an empty module": file(stack_global("", "eval") + RUN + REDUCE),
        "INST": file(MARK + text(COMMAND) + b"iposix\nsystem\n"),
        "OBJ": file(MARK + SYSTEM + text(COMMAND) + b"o"),
        "NEWOBJ": file(name("subprocess.Popen") + items(text(COMMAND)) + NEW),
        "NEWOBJ_EX": file(name("subprocess.Popen") + RUN + b"}" + b"\x92"),
        "NEWOBJ_EX of the known": file(name("argparse.Namespace") + EMPTY + b"}" + b"\x92"),
        "REDUCE twice": file(call("builtins.getattr", name("os.system"), text("__call__"))),
        "BUILD": file(SYSTEM + b"}" + text("__setstate__") + SYSTEM + b"s" + BUILD),
        "BUILD of a known name": file(
            name("collections.OrderedDict") + b"}" + text("__reduce__") + text("x") + b"s" + BUILD
        ),
        "BUILD of a number": file(b"K\x01}" + BUILD),
        "BUILD with slots": file(
            name("argparse.Namespace") + EMPTY + NEW + items(b"N", b"}" + text("a") + b"Ns") + BUILD
        ),
        "BUILD that names": file(
            name("argparse.Namespace")
            + EMPTY
            + NEW
            + (b"}" + text("__class__") + SYSTEM + b"s" + BUILD)
        ),
        "EXT1": file(b"\x82\xf0" + RUN + REDUCE),
        "EXT2": file(b"\x83\xf0\x00" + RUN + REDUCE),
        "EXT4": file(b"\x84\xf0\x00\x00\x00" + RUN + REDUCE),
        "PERSID": file(b"Pposix.system\n"),
        "BINPERSID": file(items(text("storage"), SYSTEM, text("0"), text("cpu"), b"K\x01") + b"Q"),
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05\x97\x98.",
        "protocol 0": b"cposix\nsystem\n(S'" + line + b"'\ntR.",
        "protocol 0 with a header": b"\x80\x02cposix\nsystem\n(S'" + line + b"'\ntR.",
        "protocol 1": b"cposix\nsystem\n(U" + bytes([len(line)]) + line + b"tR.",
        "a second pickle": file(b"}") + file(ATTACK),
        "before the end": file(ATTACK + b"0}"),
        "in a list": file(b"]" + ATTACK + b"a"),
        "in a dict's key": file(b"}" + ATTACK + b"Ns"),
        "in a set": file(b"\x8f(" + ATTACK + b"\x90"),
        "in a tuple": file(items(b"N", ATTACK)),
        "from the memo": file(SYSTEM + b"\x940" + b"h\x00" + RUN + REDUCE),
        "a name alone": entry(SYSTEM),
        "a known name alone": entry(name("torch._utils._rebuild_tensor_v2")),
    }


def names_refused():
    """Names that execute code or give access to it, called with the command."""
    dotted = [
        *(
            "builtins.eval",
            "builtins.exec",
            "builtins.compile",
            "builtins.open",
            "builtins.getattr",
        ),
        *("builtins.__import__", "builtins.breakpoint", "builtins.map", "builtins.apply"),
        *("__builtin__.eval", "__builtin__.apply", "builtins.object.__reduce_ex__"),
        *("subprocess.Popen", "subprocess.check_output", "pty.spawn", "os.execl", "os.popen"),
        *("runpy._run_code", "code.interact", "timeit.timeit", "pdb.run", "cProfile.run"),
        *("importlib.import_module", "pkgutil.resolve_name", "ctypes.CDLL", "types.CodeType"),
        *("operator.attrgetter", "operator.methodcaller", "functools.partial", "functools.reduce"),
        *("pickle.loads", "marshal.loads", "shelve.open", "dill.loads", "joblib.load"),
        *("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg.add_extension", "copyreg.pickle"),
        *("_codecs.decode", "_codecs.register", "_codecs.lookup", "codecs.encode"),
        *("collections.namedtuple", "collections._iskeyword", "argparse.FileType"),
        *("numpy.load", "numpy.memmap", "numpy.fromfile", "numpy.genfromtxt", "numpy.vectorize"),
        *("numpy.f2py.capi_maps.getinit", "numpy.testing._private.utils.runstring"),
        *("numpy.core.multiarray.frombuffer", "numpy.ndarray.__reduce__", "numpy.ndarray.tofile"),
        *("numpy.ctypeslib.load_library", "numpy.distutils.exec_command.exec_command"),
        *("torch.load", "torch.hub.load", "torch.jit._script.script", "torch.ops.load_library"),
        *(
            "torch._utils._rebuild_parameter.__globals__",
            "torch._utils._rebuild_parameter.__code__",
        ),
        *("torch.storage._load_from_bytes.__globals__", "torch.utils.cpp_extension.load_inline"),
        *("torch._utils._rebuild_wrapper_subclass", "torch._utils._rebuild_sparse_tensor"),
        *("torch.serialization.load", "torch.fx._symbolic_trace.symbolic_trace"),
        *("torch.nn.modules.linear.Linear", "torch_utils.custom_ops.get_plugin"),
        *("torch_utils.persistence._src_to_module", "torch_utils.persistence.import_hook"),
        *("dnnlib.util.call_func_by_name", "dnnlib.util.open_url", "dnnlib.tflib.tfutil.run"),
        *("kd_jax.pretrained.io.unpickle._Machine", "kd_jax.pretrained.io.unpickle.Constructor"),
        *("jax._src.lib.xla_client.load", "webbrowser.open", "urllib.request.urlopen"),
        *("sys.modules", "posixpath.os.system", "pathlib.PosixPath", "shutil.rmtree"),
    ]
    return {f"the name {each}": file(name(each) + RUN + REDUCE) for each in dotted}


DTYPE_STATE = (b"K\x03", text("<"), b"N", b"N", b"N", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\xff")


def dtype(kind="f4", *state):
    state = state or (*DTYPE_STATE, b"K\x00")
    return call("numpy.dtype", text(kind), b"\x89", b"\x88") + items(*state) + BUILD


def array(shape, data, kind=None, by_column=b"\x89"):
    pending = call(
        "numpy._core.multiarray._reconstruct", name("numpy.ndarray"), b"K\x00\x85", b"C\x01b"
    )
    return pending + items(b"K\x01", shape, kind or dtype(), by_column, data) + BUILD


NEGATIVE, HUGE = b"J\xff\xff\xff\xff", b"\x8a\x08" + bytes(7) + b"\x40"
LARGE = b"\x8a\x06" + bytes(5) + b"\x02"  # 2^41
FOUR = b"C\x10" + bytes(16)


def numpy_routes():
    objects = b"](" + ATTACK + b"e"
    return {
        "an array of objects": file(array(b"K\x01\x85", objects, dtype("O8"))),
        "an array of a list": file(array(b"K\x01\x85", objects)),
        "an array without a dtype": file(array(b"K\x01\x85", FOUR, b"N")),
        "an array of a class": file(array(b"K\x01\x85", FOUR, SYSTEM)),
        "an array of another class": file(
            call("numpy._core.multiarray._reconstruct", SYSTEM, b"K\x00\x85", b"C\x01b")
        ),
        "an array of the wrong class": file(
            call(
                "numpy._core.multiarray._reconstruct",
                name("collections.OrderedDict"),
                b"K\x00\x85",
                b"C\x01b",
            )
        ),
        "an array that is not finished": file(
            call(
                "numpy._core.multiarray._reconstruct",
                name("numpy.ndarray"),
                b"K\x00\x85",
                b"C\x01b",
            )
        ),
        "an array made of itself": file(
            call("numpy.ndarray", items(b"K\x04"), dtype(), FOUR),
        ),
        "an array of too few bytes": file(array(b"K\x05\x85", FOUR)),
        "an array of too many bytes": file(array(b"K\x03\x85", FOUR)),
        "an array of negative size": file(array(NEGATIVE + b"\x85", FOUR)),
        "an array of two negative sizes": file(array(NEGATIVE + b"J\xfc\xff\xff\xff\x86", FOUR)),
        "an array of overflowing size": file(array(HUGE + HUGE + b"\x86", FOUR)),
        "an array of wrapping size": file(array(HUGE + b"K\x04\x86", b"C\x00")),
        "an empty array of huge size": file(array(LARGE + b"K\x00\x86", b"C\x00")),
        "an array of many axes": file(array(items(*[b"K\x01"] * 33), b"C\x04" + bytes(4))),
        "an array of sizes that are none": file(array(text("4") + b"\x85", FOUR)),
        "a buffer of objects": file(
            call("numpy._core.numeric._frombuffer", FOUR, dtype("O8"), b"K\x02\x85", text("C"))
        ),
        "a buffer of another order": file(
            call("numpy._core.numeric._frombuffer", FOUR, dtype(), b"K\x04\x85", text("A"))
        ),
        "a scalar of an object": file(
            call("numpy._core.multiarray.scalar", dtype("O8"), b"C\x08" + bytes(8))
        ),
        "a scalar that is an object": file(call("numpy._core.multiarray.scalar", dtype(), ATTACK)),
        "a scalar of too few bytes": file(
            call("numpy._core.multiarray.scalar", dtype("f8"), b"C\x04" + bytes(4))
        ),
        "a dtype of objects": file(dtype("O")),
        "a dtype of bytes": file(dtype("V1000000000")),
        "a dtype of text": file(dtype("U1000000000")),
        "a dtype of fields": file(dtype("f4,O")),
        "a dtype of a name": file(call("numpy.dtype", SYSTEM)),
        "a dtype that is not finished": file(call("numpy.dtype", text("f4"))),
        "a dtype that turns into fields": file(
            dtype(
                "f4",
                *(b"K\x03", text("|"), b"N", text("a") + b"\x85"),
                *(
                    b"}" + text("a") + items(dtype("O8"), b"K\x00") + b"s",
                    b"K\x08",
                    b"K\x01",
                    b"K\x1b",
                ),
            )
        ),
        "a dtype that turns into a subarray": file(
            dtype(
                "f4",
                b"K\x03",
                text("|"),
                items(dtype(), HUGE + b"\x85"),
                *DTYPE_STATE[3:],
                b"K\x00",
            )
        ),
        "a dtype with metadata": file(dtype("f4", *DTYPE_STATE, b"K\x00", b"}")),
        "a dtype of another order": file(
            dtype("f4", b"K\x03", text("O"), *DTYPE_STATE[2:], b"K\x00")
        ),
    }


def helper_routes():
    return {
        "copyreg of a name": file(
            call("copyreg._reconstructor", SYSTEM, name("builtins.object"), b"N")
        ),
        "copyreg of another base": file(
            call("copyreg._reconstructor", name("argparse.Namespace"), name("builtins.dict"), b"N")
        ),
        "copyreg with a state": file(
            call(
                "copyreg._reconstructor", name("argparse.Namespace"), name("builtins.object"), b"}"
            )
        ),
        "a codec": file(call("_codecs.encode", text("x"), text("rot13"))),
        "a codec that inflates": file(call("_codecs.encode", blob(b"x"), text("zlib_codec"))),
        "a codec of numbers": file(call("_codecs.encode", b"K\x01", text("latin1"))),
        "bytes that are text": file(call("_codecs.encode", text("漢"), text("latin1"))),
        "a dict of lists": file(call("collections.OrderedDict", b"](K\x01K\x02e")),
        "a dict of unhashable keys": file(call("collections.OrderedDict", b"]" + b"]N\x86a")),
        "a set of lists": file(call("builtins.set", b"](]]e")),
        "an object with arguments": file(name("argparse.Namespace") + items(text("a")) + NEW),
        "a module without a state": file(
            call("torch_utils.persistence._reconstruct_persistent_obj", b"}")
        ),
        "a module of a name": file(
            call("torch_utils.persistence._reconstruct_persistent_obj", SYSTEM)
        ),
        "a module whose state runs": file(
            call(
                "torch_utils.persistence._reconstruct_persistent_obj",
                b"}(" + text("class_name") + text("G") + text("state") + ATTACK + b"u",
            )
        ),
        "a network with arguments": file(
            name("dnnlib.tflib.network.Network") + items(text("G")) + NEW
        ),
        "a network without a state": file(name("dnnlib.tflib.network.Network") + EMPTY + NEW),
        "a network of a list": file(
            name("dnnlib.tflib.network.Network") + EMPTY + NEW + b"]" + BUILD
        ),
        "a network that is called": file(call("dnnlib.tflib.network.Network", text("G"))),
    }


# --------------------------------------------------------------------------- tensors and storages

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
FLOATS = np.arange(4, dtype="f4")


def pid(key="0", count=4, kind="torch.FloatStorage", word="storage", *view):
    size = b"\x8a\x10" + count.to_bytes(16, "little", signed=True)
    return items(text(word), name(kind), text(key), text("cpu"), size, *view) + b"Q"


def old(body=None, keys=("0",), raw=None, **parts):
    """A PyTorch file from before 1.6, any part of which can be replaced."""
    head = {"magic": MAGIC, "protocol": PROTOCOL, "system": SYSTEM_INFO}
    pickles = [parts.get(part, pickle.dumps(value, 2)) for part, value in head.items()]
    keys = parts.get("list", pickle.dumps(list(keys), 2))
    raw = struct.pack("<q", 4) + FLOATS.tobytes() if raw is None else raw
    return b"".join(pickles) + (file(pid()) if body is None else body) + keys + raw


def from_bytes(inner):
    """A pickle of a tensor whose storage is in these bytes."""
    return file(rebuild_tensor(call("torch.storage._load_from_bytes", blob(inner))))


def rebuild_tensor(storage, offset=b"K\x00", size=b"K\x04\x85", stride=b"K\x01\x85"):
    return call("torch._utils._rebuild_tensor_v2", storage, offset, size, stride, b"\x89", b"}")


def storage_routes():
    good = old()
    bad = {
        "magic": old(magic=file(ATTACK)),
        "protocol": old(protocol=file(ATTACK)),
        "system": old(system=file(ATTACK)),
        "object": old(file(ATTACK)),
        "object of a known name": old(file(call("collections.OrderedDict"))),
        "object that nests": old(file(call("torch.storage._load_from_bytes", blob(good)))),
        "object that nests a tensor": old(from_bytes(good)),
        "keys": old(list=file(ATTACK)),
        "class": old(file(pid(kind="posix.system"))),
        "class of another kind": old(file(pid(kind="torch.Size"))),
        "word": old(file(pid("0", 4, "torch.FloatStorage", "module"))),
        "claim": old(file(pid(count=2**60))),
        "negative claim": old(file(pid(count=-4))),
        "claim of another size": old(file(pid(count=3))),
        "size in the file": old(raw=struct.pack("<q", 2**62) + FLOATS.tobytes()),
        "negative size in the file": old(raw=struct.pack("<q", -1) + FLOATS.tobytes()),
        "too few bytes": old(raw=struct.pack("<q", 4) + bytes(15)),
        "too many bytes": old(raw=struct.pack("<q", 4) + bytes(17)),
        "no keys": old(keys=(), raw=b""),
        "a key twice": old(keys=("0", "0"), raw=(struct.pack("<q", 4) + FLOATS.tobytes()) * 2),
        "another key": old(keys=("1",)),
        "keys that are numbers": old(keys=(0,)),
        "system of a list": old(system=pickle.dumps([], 2)),
        "another protocol": old(protocol=pickle.dumps(1000, 2)),
        "a number's id": old(file(b"K\x00Q")),
    }
    outside = [(NEGATIVE, b"K\x01"), (b"K\x03", b"K\x02"), (b"K\x00", HUGE), (HUGE, b"K\x01")]
    for index, place in enumerate(outside):
        view = items(text("1"), *place)
        bad[f"part {index} outside"] = old(file(pid("0", 4, "torch.FloatStorage", "storage", view)))
    only_inside = {"an archive": torch_zip({"a": tensor(FLOATS)}), "a bare pickle": plain({"a": 1})}
    return {
        **{f"a PyTorch file's {key}": value for key, value in bad.items()},
        **{f"a storage's {key}": from_bytes(value) for key, value in (bad | only_inside).items()},
        "a storage of nothing": from_bytes(b""),
        "a storage alone": file(call("torch.storage._load_from_bytes", blob(good))),
        "a storage alone in a file": good,
        "a storage of a tensor's bytes": file(rebuild_tensor(b"C\x10" + bytes(16))),
        "a storage of a name": file(call("torch.storage._load_from_bytes", SYSTEM)),
        "two storages of one key": old(
            file(
                items(
                    rebuild_tensor(pid()), rebuild_tensor(pid(count=2, kind="torch.DoubleStorage"))
                )
            )
        ),
        "_load_from_bytes in an archive": torch_archive(from_bytes(good)),
        "an id in a bare pickle": file(rebuild_tensor(pid())),
    }


def tensor_routes():
    """Tensors outside the bounds of their storage of four elements."""
    cases = {
        "of five elements": (b"K\x00", b"K\x05\x85", b"K\x01\x85"),
        "that begins too late": (b"K\x01", b"K\x04\x85", b"K\x01\x85"),
        "that begins after the end": (b"K\x05", b"K\x01\x85", b"K\x01\x85"),
        "that begins far away": (HUGE, b"K\x01\x85", b"K\x01\x85"),
        "that begins before": (NEGATIVE, b"K\x01\x85", b"K\x01\x85"),
        "of negative size": (b"K\x00", NEGATIVE + b"\x85", b"K\x01\x85"),
        "of two negative sizes": (b"K\x00", NEGATIVE + NEGATIVE + b"\x86", b"K\x01K\x01\x86"),
        "of a huge size": (b"K\x00", HUGE + b"\x85", b"K\x01\x85"),
        "of a wrapping size": (b"K\x00", HUGE + b"K\x04\x86", b"K\x01K\x01\x86"),
        "of a huge size that repeats": (b"K\x00", HUGE + b"\x85", b"K\x00\x85"),
        "of elements that repeat": (b"K\x00", b"K\x05\x85", b"K\x00\x85"),
        "of rows that overlap": (b"K\x00", b"K\x03K\x02\x86", b"K\x01K\x01\x86"),
        "of long strides": (b"K\x00", b"K\x02\x85", b"K\x04\x85"),
        "of huge strides": (b"K\x00", b"K\x02\x85", HUGE + b"\x85"),
        "of wrapping strides": (b"K\x00", b"K\x02K\x02\x86", HUGE + HUGE + b"\x86"),
        "of negative strides": (b"K\x03", b"K\x04\x85", NEGATIVE + b"\x85"),
        "of strides that cancel": (b"K\x00", b"K\x02K\x02\x86", b"K\x03" + NEGATIVE + b"\x86"),
        "of more strides": (b"K\x00", b"K\x04\x85", b"K\x01K\x01\x86"),
        "of fewer strides": (b"K\x00", b"K\x02K\x02\x86", b"K\x01\x85"),
        "of many axes": (b"K\x00", items(*[b"K\x01"] * 33), items(*[b"K\x01"] * 33)),
        "of a size that is true": (b"K\x00", b"\x88\x85", b"K\x01\x85"),
        "of a size in text": (b"K\x00", text("4") + b"\x85", b"K\x01\x85"),
        "of a size in a list": (b"K\x00", b"]K\x04a", b"K\x01\x85"),
        "of a broken offset": (b"G" + struct.pack(">d", 0.5), b"K\x01\x85", b"K\x01\x85"),
        "that is empty and huge": (b"K\x00", b"K\x00" + LARGE + b"\x86", b"K\x01K\x01\x86"),
    }
    routes = {}
    for case, parts in cases.items():
        inner = call("torch.storage._load_from_bytes", blob(old()))
        routes[f"a tensor {case}"] = file(rebuild_tensor(inner, *parts))
        routes[f"an archive's tensor {case}"] = torch_archive(file(rebuild_tensor(pid(), *parts)))
        routes[f"an old file's tensor {case}"] = old(file(rebuild_tensor(pid(), *parts)))
    whole = (Storage(FLOATS), 0, (4,), (1,), False, {})
    return routes | {
        "a tensor without a storage": file(rebuild_tensor(b"N")),
        "a tensor of more arguments": plain(Call(TENSOR, *whole, 1, 2)),
        "a tensor of fewer arguments": plain(Call(TENSOR, *whole[:3])),
        "a tensor of too wide a dtype": plain(
            Call(TENSOR_V3, Storage(FLOATS), 0, (9,), (1,), False, {}, UINT16)
        ),
        "a tensor of no dtype": plain(
            Call(TENSOR_V3, Storage(FLOATS), 0, (4,), (1,), False, {}, "f4")
        ),
        "a parameter of text": file(call("torch._utils._rebuild_parameter", text("x"), b"\x89")),
        "a tensor's class that runs": file(
            call("torch._tensor._rebuild_from_type_v2", SYSTEM, name("torch.Tensor"), RUN, b"}")
        ),
        "a tensor's class within itself": file(
            call(
                "torch._tensor._rebuild_from_type_v2",
                *(name("torch._tensor._rebuild_from_type_v2"), name("torch.Tensor"), RUN, b"}"),
            )
        ),
        "a size of text": file(call("torch.Size", text("x"))),
        "a device of a name": file(call("torch.device", SYSTEM)),
    }


# --------------------------------------------------------------------------- archives


def torch_archive(body, **files):
    """A PyTorch archive with this pickle."""
    return zip_archive(
        {
            "net/data.pkl": body,
            "net/byteorder": files.pop("byteorder", b"little"),
            "net/data/0": files.pop("storage", FLOATS.tobytes()),
            **files,
        }
    )


GOOD = file(rebuild_tensor(pid()))


def with_entry(title, content=b"x", **attributes):
    """A PyTorch archive with one more entry."""
    buffer = io.BytesIO(torch_archive(GOOD))
    info = zipfile.ZipInfo("placeholder")
    for key, value in attributes.items():
        setattr(info, key, value)
    with zipfile.ZipFile(buffer, "a") as archive:
        info.filename = title
        archive.writestr(info, content)
    return buffer.getvalue()


def patch_record(data, place, value, signature=b"PK\x01\x02", which=0):
    """An archive with other bytes at an offset in a record, counted from its signature."""
    at = -1
    for _ in range(which + 1):
        at = data.index(signature, at + 1)
    return data[: at + place] + value + data[at + place + len(value) :]


def with_duplicate(title, content):
    with pytest.warns(UserWarning, match="Duplicate name"):
        return with_entry(title, content)


def overlapping_entries():
    """An entry within another one's bytes (Fifield 2019, "A better zip bomb")."""
    inner = zip_archive({"net/data/2": bytes(100)})
    start, end = inner.index(b"PK\x01\x02"), inner.index(b"PK\x05\x06")
    outer = torch_archive(GOOD, **{"net/data/1": inner[:start]})
    place = struct.pack("<I", outer.index(inner[:start]))
    more = inner[start : start + 42] + place + inner[start + 46 : end]
    begin, stop = outer.index(b"PK\x01\x02"), outer.index(b"PK\x05\x06")
    size = stop - begin + len(more)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 5, 5, size, begin, 0)
    return outer[:stop] + more + tail


def zip_routes():
    good = torch_archive(GOOD)
    big = b"\xff\xff\xff\x7f"
    titles = [
        "../x",
        "net/../../x",
        "/etc/x",
        "net//x",
        "net\\..\\x",
        "C:/x",
        "net/.",
        "a\x01b",
        "..",
    ]
    return {
        "an archive that runs": torch_archive(file(ATTACK)),
        "an archive that runs by INST": torch_archive(
            file(MARK + text(COMMAND) + b"iposix\nsystem\n")
        ),
        "an archive that runs by an id": torch_archive(file(ATTACK + b"Q")),
        "an archive with a class's id": torch_archive(file(pid(kind="posix.system"))),
        "an archive with a module's id": torch_archive(
            file(pid("0", 4, "torch.FloatStorage", "module"))
        ),
        "an archive with a view's id": torch_archive(
            file(
                rebuild_tensor(
                    pid(
                        "0",
                        4,
                        "torch.FloatStorage",
                        "storage",
                        items(text("1"), b"K\x00", b"K\x01"),
                    )
                )
            )
        ),
        "an archive with a path for a key": torch_archive(file(rebuild_tensor(pid("../data.pkl")))),
        "an archive with no such storage": torch_archive(file(rebuild_tensor(pid("7")))),
        "an archive that claims": torch_archive(file(rebuild_tensor(pid(count=2**60)))),
        "an archive that claims less": torch_archive(file(rebuild_tensor(pid(count=3)))),
        "an archive that claims less than nothing": torch_archive(
            file(rebuild_tensor(pid(count=-1)))
        ),
        "an archive of one storage in two dtypes": torch_archive(
            file(
                items(
                    rebuild_tensor(pid()), rebuild_tensor(pid(count=2, kind="torch.DoubleStorage"))
                )
            )
        ),
        "an archive of a longer pickle": torch_archive(GOOD + b"x"),
        "an archive of no pickle": torch_archive(b""),
        "an archive of another order": torch_archive(GOOD, byteorder=b"middle"),
        "an archive of two roots": torch_archive(GOOD, **{"other/data.pkl": GOOD}),
        "an archive of a program": torch_archive(GOOD, **{"net/constants.pkl": file(ATTACK)}),
        "an archive of another kind": zip_archive({"weights.npy": bytes(100)}),
        "an empty archive": zip_archive({}),
        **{f"an entry named {title!r}": with_entry(title) for title in titles},
        "an entry twice": with_duplicate("net/data.pkl", GOOD),
        "a storage twice": with_duplicate("net/data/0", FLOATS.tobytes()),
        "an encrypted entry": patch_record(good, 8, b"\x01\x00"),
        "an entry encrypted where it stands": patch_record(good, 6, b"\x01\x00", b"PK\x03\x04"),
        "a link": with_entry("net/link", b"/etc/passwd", external_attr=0o120777 << 16),
        "a device": with_entry("net/device", b"", external_attr=0o060777 << 16),
        "an entry packed in another way": with_entry("net/x", bytes(99), compress_type=14),
        "entries that overlap": overlapping_entries(),
        "an entry that begins after the end": patch_record(good, 42, big),
        "an entry that begins elsewhere": patch_record(good, 42, b"\x01\x00\x00\x00"),
        "an entry of another name": patch_record(good, 30, b"not/data.pkl", b"PK\x03\x04"),
        "an entry longer than it is": patch_record(good, 24, big),
        "an entry longer than the file": patch_record(patch_record(good, 24, big), 20, big),
        "a stored entry that inflates": patch_record(good, 24, b"\x00\x00\x00\x01"),
        "a directory of more entries": patch_record(good, 8, b"\x09\x00\x09\x00", b"PK\x05\x06"),
        "a directory of fewer entries": patch_record(
            with_entry("net/version"), 8, b"\x03\x00\x03\x00", b"PK\x05\x06"
        ),
        "a directory that begins elsewhere": patch_record(good, 16, bytes(4), b"PK\x05\x06"),
        "a directory longer than the file": patch_record(good, 12, big, b"PK\x05\x06"),
        "an archive of two disks": patch_record(good, 4, b"\x01", b"PK\x05\x06"),
        "an archive with something after it": good + b"x",
        "an archive with something before it": b"PK" + good,
    }


def zip_bombs():
    count = 16 << 20
    large = file(rebuild_tensor(pid(count=count), size=b"J" + struct.pack("<i", count) + b"\x85"))
    files = {"net/data.pkl": large, "net/data/0": bytes(4 * count)}
    zeros = zip_archive(files, compression=zipfile.ZIP_DEFLATED)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflater.compress(bytes(1 << 24)) + deflater.flush(zlib.Z_FULL_FLUSH)
    gigabytes = zip_archive({"net/data.pkl": GOOD, "net/data/0": block * 128 + deflater.flush()})
    lying = patch_record(gigabytes, 8, b"\x08", b"PK\x03\x04", which=1)
    lying = patch_record(
        patch_record(lying, 10, b"\x08", which=1), 24, struct.pack("<I", 16), which=1
    )
    small = zip_archive({"net/data.pkl": GOOD}, compression=zipfile.ZIP_DEFLATED)
    many = {f"net/{index}": b"" for index in range(archive.MAX_ENTRIES)}
    return {
        "a zip bomb": zeros,
        "a zip bomb that lies": lying,
        "a zip bomb in the pickle": zip_archive(
            {"net/data.pkl": bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED
        ),
        "a zip of many entries": torch_archive(GOOD, **many),
        "a zip entry that is not deflated": patch_record(
            small, 30 + len("net/data.pkl"), b"\xff" * 8, b"PK\x03\x04"
        ),
    }


# --------------------------------------------------------------------------- safetensors


def claim(begin=0, end=16, shape=(4,), dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def safetensors_routes():
    body = FLOATS.tobytes()
    headers = {
        "that overlap": {"a": claim(0, 16), "b": claim(8, 16, (2,))},
        "of the same bytes": {"a": claim(), "b": claim()},
        "with a hole between": {"a": claim(0, 8, (2,)), "b": claim(12, 16, (1,))},
        "with a hole before": {"a": claim(8, 16, (2,))},
        "with a hole after": {"a": claim(0, 8, (2,))},
        "out of range": {"a": claim(0, 20, (5,))},
        "far out of range": {"a": claim(0, 2**62, (2**60,))},
        "of another size": {"a": claim(shape=(3,))},
        "of a wrapping size": {"a": claim(shape=(2**62, 4))},
        "of a negative size": {"a": claim(shape=(-4,))},
        "of two negative sizes": {"a": claim(shape=(-2, -2))},
        "of negative offsets": {"a": claim(-16, 0)},
        "of turned offsets": {"a": claim(16, 0)},
        "of three offsets": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
        "of broken sizes": {"a": claim(shape=(4.0,))},
        "of a size that is true": {"a": claim(shape=(4, True))},
        "of sizes in text": {"a": claim(shape=("4",))},
        "of many axes": {"a": claim(shape=(4, *[1] * 32))},
        "that are empty and huge": {"a": claim(), "b": claim(16, 16, (0, 2**41))},
        "of objects": {"a": claim(dtype="O")},
        "of an unknown dtype": {"a": claim(dtype="posix.system")},
        "with more to say": {"a": claim(code=COMMAND)},
        "that are none": {"a": [0, 16]},
        "without a shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    }
    size = containers.MAX_HEADER
    return {f"tensors {case}": safetensors(header, body) for case, header in headers.items()} | {
        "a header longer than the file": struct.pack("<Q", 1000) + b'{"a": 1}',
        "a header of any length": struct.pack("<Q", 2**39) + b'{"a": 1}',
        "a header of more than is read": safetensors(b"{" + b" " * size + b"}"),
        "a header of a list": struct.pack("<Q", 9) + b"{}, [] []" + body,
        "a header that is not text": safetensors(b"{\xff\xfe}"),
        "a header with a name twice": safetensors(
            b'{"a": %s, "a": %s}' % ((json.dumps(claim()).encode(),) * 2), body
        ),
        "a header of depth": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "a header of lists": safetensors(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
        "a header of empty lists": safetensors(b'{"a":[' + b"[]," * (size // 12) + b"1]}"),
        "a header of empty dicts": safetensors(b'{"a":[' + b"{}," * (size // 12) + b"1]}"),
        "a header of a long number": safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "a header of no number": safetensors(b'{"a":NaN}'),
    }


# --------------------------------------------------------------------------- bombs


def memo_get(place):
    """The value at an index of the memo."""
    return b"j" + struct.pack("<I", place)


def billion_laughs(holding):
    """Each value contains the one before it twice: after sixty levels, 2^60 copies of the first."""
    body = b"K\x01\x94" + b"".join(holding(memo_get(place)) + b"\x94" for place in range(60))
    return MARK + body + b"t"


def repeat_call(dotted, *arguments, count=200_000):
    """A list of repeated calls with the same arguments."""
    first = name(dotted) + items(*arguments) + b"\x94" + REDUCE
    return file(b"](" + first + (name(dotted) + memo_get(0) + REDUCE) * count + b"e")


def nested_modules(depth):
    state = b"}" + text("type") + text("class") + b"s" + text("class_name") + text("G") + b"s"
    before = name("torch_utils.persistence._reconstruct_persistent_obj") + state
    return (before + text("state") + b"}" + text("m")) * depth + b"N" + b"ss\x85R" * depth


def bombs():
    deep, many = 30_000, 1_100_000
    mebibyte = np.zeros(1 << 20, "u1")
    tensors = [tensor(mebibyte, shared) for shared in [Storage(mebibyte)] for _ in range(100)]
    pairs = billion_laughs(lambda last: last + last + b"\x86")
    itself = call(
        "torch_utils.persistence._reconstruct_persistent_obj",
        b"}(" + text("type") + text("class") + text("class_name") + text("G"),
    )
    namespace = name("argparse.Namespace") + EMPTY + NEW
    attributes = b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(60_000))
    return {
        "laughs of tuples": file(billion_laughs(lambda last: MARK + last + last + b"t")),
        "laughs of pairs": file(pairs),
        "laughs of lists": file(billion_laughs(lambda last: b"](" + last + last + b"e")),
        "laughs of dicts": file(
            billion_laughs(lambda last: b"}(N" + last + b"K\x01" + last + b"u")
        ),
        "laughs by DUP": file(b"]" + b"2\x86" * 100),
        "laughs for a key": file(b"}" + pairs + b"Ns"),
        "laughs in a set": file(b"\x8f(" + pairs + b"\x90"),
        "laughs in an archive": torch_archive(file(pairs)),
        "laughs in an old file": old(file(pairs), keys=(), raw=b""),
        "deep tuples": file(EMPTY + b"\x85" * deep),
        "deep lists": file(b"]" * deep + b"a" * (deep - 1)),
        "deep dicts": file(b"}N" * deep + b"N" + b"s" * deep),
        "deep marks": file(MARK * deep + b"t" * deep),
        "deep modules": file(nested_modules(200)),
        "a list in itself": file(b"]\x94h\x00a"),
        "a dict in itself": file(b"}\x94Nh\x00s"),
        "a list in its tuple": file(b"]\x94h\x00\x85a"),
        "a module in itself": file(
            b"}\x94" + text("m") + itself[:-2] + text("state") + b"h\x00ut" + REDUCE + b"s"
        ),
        "too many dicts": file(b"](" + b"}" * many + b"e"),
        "too many sets": file(b"](" + b"\x8f" * many + b"e"),
        "too many marks": file(MARK * many),
        "too many calls": repeat_call("collections.OrderedDict", count=many // 3),
        "LONG4": file(b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)),
        "LONG1": file(b"\x8a\xff" + b"\x7f" * 255),
        "LONG in text": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
        "INT in text": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
        "FLOAT in text": b"\x80\x02F" + b"9" * 1_000_000 + b"\n.",
        "STRING in text": b"\x80\x02S'" + b"\\x41" * 1_000_000 + b"'\n.",
        "BINBYTES that are not there": file(b"B\xff\xff\xff\xff"),
        "BINBYTES8 that are not there": file(b"\x8e" + struct.pack("<Q", 2**40) + b"x"),
        "BINBYTES8 of all there is": file(b"\x8e" + b"\xff" * 8),
        "BYTEARRAY8 that are not there": file(b"\x96" + struct.pack("<Q", 2**40) + b"x"),
        "BINUNICODE that is not there": file(b"X\xff\xff\xff\x7f"),
        "BINUNICODE8 that is not there": file(b"\x8d" + struct.pack("<Q", 2**40) + b"x"),
        "BINSTRING of negative length": file(b"T\xff\xff\xff\xff"),
        "FRAME that is not there": file(b"\x95" + struct.pack("<Q", 2**62) + b"N"),
        "a long text": file(text("x" * (17 << 20))),
        "a long name": file(b"c" + b"x" * 1_000_000 + b"\nsystem\n"),
        "a long name on the stack": file(stack_global("x" * 1_000_000, "y" * 1_000_000)),
        "a long key": file(b"}" + text("x" * 100_000) + b"Ns"),
        "a large number for a key": file(b"}\x8a\x10" + b"\x7f" * 16 + b"Ns"),
        "a storage read again": repeat_call("torch.storage._load_from_bytes", blob(old())),
        "a text encoded again": repeat_call(
            "_codecs.encode", text("x" * 1_000_000), text("latin1"), count=1000
        ),
        "a list made a set again": repeat_call("builtins.set", b"](" + b"N" * 100_000 + b"e"),
        "pairs made a dict again": repeat_call(
            "collections.OrderedDict", b"](" + b"NN\x86" * 100_000 + b"e"
        ),
        "long arguments again": repeat_call("collections.OrderedDict", b"N" * 100_000),
        "attributes given again": file(
            (b"](" + namespace + b"}(" + attributes + b"u\x94" + BUILD)
            + (namespace + memo_get(0) + BUILD) * 20_000
            + b"e"
        ),
        "bytes as an array again": repeat_call(
            "numpy._core.numeric._frombuffer",
            *(blob(bytes(1 << 20)), dtype("u1"), b"J\x00\x00\x10\x00\x85", text("C")),
            count=1000,
        ),
        "a storage as many tensors": plain(tensors),
        "a storage as many of an archive's": torch_zip(tensors),
        "a storage as many of an old file's": legacy(tensors),
    }


def corpus():
    """Every file, by a description of its defect."""
    return {
        **opcode_routes(),
        **names_refused(),
        **numpy_routes(),
        **helper_routes(),
        **storage_routes(),
        **tensor_routes(),
        **zip_routes(),
        **zip_bombs(),
        **safetensors_routes(),
        **bombs(),
    }


# --------------------------------------------------------------------------- the tests


def read_all(folder):
    """Reads every file in a folder, and prints the outcome of each as a line of JSON."""
    copyreg.add_extension("posix", "system", 0xF0)
    events: list[str] = []
    current = None

    def audit(event, arguments):
        if not current or event == "builtins.id":
            return
        if event != "open" or str(arguments[0]) != current:
            events.append(f"{event} {arguments[:2]}"[:200])

    sys.addaudithook(audit)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for path in sorted(folder.glob("*.pkl")):
        events.clear()
        current = str(path)
        start = time.process_time()
        try:
            kind, message = "read", repr(read(path))[:1000]
        except BaseException as error:
            kind, message = type(error).__name__, str(error)
        seconds = time.process_time() - start
        current = None
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = {"kind": kind, "message": message, "events": events[:], "seconds": seconds}
        print(json.dumps({"file": path.stem, "resident": resident, **outcome}), flush=True)


FILES = {} if __name__ == "__main__" else corpus()
BENIGN = {
    "a snapshot": plain({"G_ema": module("Generator", {"weight": tensor(FLOATS)}, z_dim=4)}),
    "an archive": torch_archive(GOOD),
    "an old file": old(file(rebuild_tensor(pid()))),
    "a storage in a snapshot": from_bytes(old()),
    "arrays": file(array(b"K\x04\x85", FOUR)),
    "a part of a storage": old(
        file(
            rebuild_tensor(
                pid("0", 4, "torch.FloatStorage", "storage", items(text("1"), b"K\x01", b"K\x02")),
                *(b"K\x00", b"K\x02\x85", b"K\x01\x85"),
            )
        )
    ),
    "one more entry": with_entry("net/x"),
    "safetensors": safetensors({"a": claim()}, FLOATS.tobytes()),
    "modules in modules": file(nested_modules(30)),
    "the same call twice": repeat_call("builtins.set", b"](Ne", count=1),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of reading each file, and the folder of the files."""
    folder = tmp_path_factory.mktemp("malicious")
    cases = {**FILES, **BENIGN}
    stems = {f"{index:04}": key for index, key in enumerate(cases)}
    for stem, key in stems.items():
        (folder / f"{stem}.pkl").write_bytes(cases[key])
    process = subprocess.run(
        [sys.executable, __file__, folder], cwd=folder, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, process.stderr
    return {stems[line["file"]]: line for line in lines}, folder


def test_there_are_many_files():
    assert len(FILES) >= 300
    assert len(set(FILES.values())) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_refused(outcomes, name):
    outcome = outcomes[0][name]
    assert outcome["kind"] in ("ValueError", "UnsafeFileError"), outcome["message"]
    assert outcome["message"].isprintable()
    assert outcome["message"].startswith(str(outcomes[1]))
    assert len(outcome["message"]) < len(str(outcomes[1])) + 300
    assert outcome["events"] == []
    assert outcome["seconds"] < SECONDS


@pytest.mark.parametrize("name", BENIGN)
def test_benign_files_are_read(outcomes, name):
    """The same constructs without a defect are read, so the others are refused for their defect."""
    outcome = outcomes[0][name]
    assert outcome["kind"] == "read", outcome["message"]
    assert outcome["events"] == []


def test_nothing_is_executed_or_written(outcomes):
    by_name, folder = outcomes
    assert {path.suffix for path in folder.iterdir()} == {".pkl"}
    assert len(list(folder.iterdir())) == len(by_name) == len(FILES) + len(BENIGN)


@pytest.mark.parametrize("name", names_refused())
def test_refused_names_are_in_the_error(outcomes, name):
    assert f"refers to {name.removeprefix('the name ')}, which" in outcomes[0][name]["message"]


LIVE = [
    *("GLOBAL", "GLOBAL os", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"),
    *("protocol 0", "protocol 1", "in a list", "in a dict's key", "in a set", "from the memo"),
    *("an array of objects", "a scalar that is an object", "the name os.popen"),
]


@pytest.mark.parametrize("name", LIVE)
def test_the_files_are_dangerous(tmp_path, name):
    """Python's own unpickler, in a separate process, executes the command."""
    (tmp_path / "net.pkl").write_bytes(FILES[name])
    script = (
        "import copyreg, pickle; copyreg.add_extension('posix', 'system', 0xF0)\n"
        "value = pickle.load(open('net.pkl', 'rb'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert (tmp_path / CANARY).exists()


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
