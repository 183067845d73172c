"""Weight files of every kind, written here as their own libraries lay them out, and read back.

The writers pickle, with Python's own pickler, small classes that carry the names of PyTorch's and
NVIDIA's; what they are read as is compared with the arrays that were written.
"""

import argparse
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from unittest.mock import patch

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.pretrained import stand_ins
from kd_jax.pretrained.containers import read
from kd_jax.pretrained.stand_ins import Persistent, TFNetwork
from kd_jax.pretrained.unpickle import UnsafeFileError

# --------------------------------------------------------------------------- writers

_MODULES: dict[str, types.ModuleType] = {}


def named(module, name, base=object):
    """A class of that name, which pickles refer to as if that module were there."""
    kind = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        _MODULES.setdefault(path := ".".join(parts[:end]), types.ModuleType(path))
    setattr(_MODULES[module], name, kind)
    return kind


KINDS = {
    "Bool": np.dtype(bool),
    "Char": np.dtype("i1"),
    "Short": np.dtype("i2"),
    "Int": np.dtype("i4"),
    "Long": np.dtype("i8"),
    "Byte": np.dtype("u1"),
    "Half": np.dtype("f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Float": np.dtype("f4"),
    "Double": np.dtype("f8"),
    "ComplexFloat": np.dtype("c8"),
    "ComplexDouble": np.dtype("c16"),
}
STORAGE = {dtype: named("torch", f"{name}Storage") for name, dtype in KINDS.items()}
UNTYPED = named("torch.storage", "UntypedStorage")
TENSOR = named("torch._utils", "_rebuild_tensor_v2")
TENSOR_V1 = named("torch._utils", "_rebuild_tensor")
TENSOR_V3 = named("torch._utils", "_rebuild_tensor_v3")
PARAMETER = named("torch._utils", "_rebuild_parameter")
PARAMETER_WITH_STATE = named("torch._utils", "_rebuild_parameter_with_state")
WITH_TYPE = named("torch._tensor", "_rebuild_from_type_v2")
PARAMETER_CLASS = named("torch.nn.parameter", "Parameter")
LOAD = named("torch.storage", "_load_from_bytes")
SIZE, DEVICE = named("torch", "Size"), named("torch", "device")
FLOAT32, UINT16 = named("torch", "float32"), named("torch", "uint16")
PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
EASY_DICT = named("dnnlib.util", "EasyDict", dict)
NETWORK = named("dnnlib.tflib.network", "Network")


class Call:
    """What pickles as the call of a name."""

    def __init__(self, name, *arguments):
        self.parts = name, arguments

    def __reduce__(self):
        return self.parts


class Stored:
    """A storage, of an array's elements or of bytes."""

    def __init__(self, values, kind=None):
        self.kind = kind or STORAGE[values.dtype]
        self.values = values.reshape(-1)

    def __reduce__(self):
        return LOAD, (legacy(self),)


def tensor(values, stored=None, offset=0, strides=None, rebuild=TENSOR):
    """What pickles as PyTorch's tensors do; of a storage of its own unless one is given."""
    values = np.asarray(values)
    strides = strides or np.empty(values.shape, "u1").strides
    stored = stored or Stored(values)
    return Call(rebuild, stored, offset, values.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    """Leaves storages out of the pickle, and keeps them."""

    storages: list

    def persistent_id(self, value):
        if not isinstance(value, Stored):
            return None
        if value not in self.storages:
            self.storages.append(value)
        key = str(self.storages.index(value))
        return "storage", value.kind, key, "cpu", value.values.size, *self.view


def _pickled(value, protocol, view=()):
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.storages, pickler.view = [], view
    with patch.dict(sys.modules, _MODULES):
        pickler.dump(value)
    return file.getvalue(), pickler.storages


def plain(value, protocol=4):
    """A bare pickle."""
    with patch.dict(sys.modules, _MODULES):
        return pickle.dumps(value, protocol)


def legacy(value, protocol=2, little=True):
    """What `torch.save` wrote before PyTorch 1.6."""
    body, storages = _pickled(value, protocol, view=(None,))
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    keys = [str(index) for index in range(len(storages))]
    parts = [*(pickle.dumps(part, protocol) for part in head), body, pickle.dumps(keys, protocol)]
    for stored in storages:
        values = stored.values if little else stored.values.byteswap()
        parts += [struct.pack("<q", values.size), values.tobytes()]
    return b"".join(parts)


def zipped(files, **options):
    """A zip archive of `{name: bytes}`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def torch_zip(value, protocol=2, little=True, **options):
    """What `torch.save` writes."""
    body, storages = _pickled(value, protocol)
    arrays = [s.values if little else s.values.byteswap() for s in storages]
    files = {
        "net/data.pkl": body,
        "net/byteorder": b"little" if little else b"big",
        **{f"net/data/{index}": array.tobytes() for index, array in enumerate(arrays)},
        "net/version": b"3\n",
        "net/.data/serialization_id": b"0123",
    }
    return zipped(files, **options)


def safetensors(header, body=b""):
    """A safetensors file of that header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


def module(name, parameters=(), buffers=(), modules=(), **attributes):
    """A module of an NVIDIA snapshot, whose source ends Python if it is run."""
    state = {
        "training": False,
        "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict(buffers),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(modules),
        "_init_args": (),
        "_init_kwargs": EASY_DICT(),
        **attributes,
    }
    source = "import os\nos._exit(7)\n"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    return Call(PERSISTENT, meta)


def network(name, variables, components=(), **kwargs):
    """A network of a TensorFlow snapshot, whose source ends Python if it is run."""
    made = NETWORK()
    made.__dict__.update(
        version=4,
        name=name,
        static_kwargs=EASY_DICT(kwargs),
        components=EASY_DICT(components),
        build_module_src="import os\nos._exit(7)\n",
        build_func_name="G_main",
        variables=list(variables.items()),
    )
    return made


WRITERS = {
    "snapshot of protocol 2": lambda value: plain(value, 2),
    "snapshot of protocol 3": lambda value: plain(value, 3),
    "snapshot of protocol 4": lambda value: plain(value, 4),
    "snapshot of protocol 5": lambda value: plain(value, 5),
    "archive": torch_zip,
    "archive of protocol 4": lambda value: torch_zip(value, 4),
    "deflated archive": lambda value: torch_zip(value, compression=zipfile.ZIP_DEFLATED),
    "legacy file": legacy,
    "legacy file of protocol 4": lambda value: legacy(value, 4),
    "big-endian archive": lambda value: torch_zip(value, little=False),
    "big-endian legacy file": lambda value: legacy(value, little=False),
}


@pytest.fixture
def reads(tmp_path):
    """Reads bytes as a file of no telling name."""

    def reads(content):
        path = tmp_path / "weights"
        path.write_bytes(content)
        return read(path)

    return reads


@pytest.fixture(params=WRITERS)
def through(request, reads):
    """Writes a value in every way, and reads it."""
    return lambda value: reads(WRITERS[request.param](value))


RNG = np.random.default_rng(0)


def numbers(dtype, shape=(2, 3)):
    return (RNG.standard_normal(shape) * 50).astype(dtype)


def same(found, expected):
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
    assert found.dtype.isnative
    assert not found.flags.writeable


# --------------------------------------------------------------------------- tensors


def test_every_dtype(through):
    arrays = {name: numbers(dtype) for name, dtype in KINDS.items()}
    found = through(OrderedDict({name: tensor(array) for name, array in arrays.items()}))
    assert list(found) == list(KINDS)
    for name, array in arrays.items():
        same(found[name], array)


def test_views_of_storages(through):
    base = numbers("f4", 48)
    shared = Stored(base)
    one = numbers("f4", ())
    found = through(
        {
            "channels last": tensor(base[:24].reshape(1, 2, 3, 4), shared, 0, (24, 1, 8, 2)),
            "transposed": tensor(np.empty((3, 2)), shared, 5, (1, 3)),
            "every other": tensor(np.empty(4), shared, 40, (2,)),
            "of one element": tensor(one),
            "empty": tensor(np.empty((0, 3), "f4")),
            "empty of a part": tensor(np.empty((2, 0)), shared, 48, (1, 1)),
        }
    )
    # Element [0, c, h, w] is at 24*0 + c + 8h + 2w; for NumPy, rows of pixels of two channels.
    same(found["channels last"], base[:24].reshape(1, 3, 4, 2).transpose(0, 3, 1, 2))
    same(found["transposed"], base[5:11].reshape(2, 3).T)
    same(found["every other"], base[40:47:2])
    same(found["of one element"], one)
    same(found["empty"], np.empty((0, 3), "f4"))
    same(found["empty of a part"], np.empty((2, 0), "f4"))


def test_the_forms_of_a_tensor(through):
    value, kind = numbers("f4", (2,)), KINDS["Float"]
    whole = (Stored(value), 0, (2,), (1,))
    found = through(
        {
            "parameter": Call(PARAMETER, tensor(value), True, OrderedDict()),
            "stateful": Call(PARAMETER_WITH_STATE, tensor(value), True, OrderedDict(), {"tag": 1}),
            "constructed": Call(PARAMETER_CLASS, tensor(value), True),
            "first version": Call(TENSOR_V1, *whole),
            "with metadata": Call(TENSOR, *whole, False, OrderedDict(), {}),
            "with attributes": Call(
                WITH_TYPE, TENSOR, PARAMETER_CLASS, (*whole, False, OrderedDict()), {"tag": 1}
            ),
        }
    )
    assert found.keys() == {
        *("parameter", "stateful", "constructed"),
        *("first version", "with metadata", "with attributes"),
    }
    for array in found.values():
        same(array, value.astype(kind))


@pytest.mark.parametrize("write", [plain, torch_zip, legacy])
def test_a_storage_without_a_dtype(reads, write):
    value = numbers("u2")
    stored = Stored(value.reshape(-1).view("u1"), UNTYPED)
    call = Call(TENSOR_V3, stored, 0, (2, 3), (3, 1), False, OrderedDict(), UINT16)
    same(reads(write([call]))[0], value)


def test_bytes_of_unknown_size_are_not_swapped(reads):
    stored = Stored(numbers("u1"), UNTYPED)
    call = Call(TENSOR_V3, stored, 0, (3,), (1,), False, OrderedDict(), UINT16)
    with pytest.raises(ValueError, match="without a dtype"):
        reads(torch_zip([call], little=False))


def test_one_tensor_twice_is_one_array(through):
    shared = tensor(numbers("f4"))
    found = through([shared, shared])
    assert found[0] is found[1]


def test_a_large_archive(reads):
    """Places and sizes that need not fit 32 bits stand in fields of their own (zip64)."""
    value = numbers("f4")
    small = torch_zip([tensor(value)])
    start, end = small.index(b"PK\x01\x02"), small.index(b"PK\x05\x06")
    directory, at, count = b"", start, 0
    while at < end:
        packed, size, named = struct.unpack_from("<IIH", small, at + 20)
        (place,) = struct.unpack_from("<I", small, at + 42)
        record, title = small[at : at + 46], small[at + 46 : at + 46 + named]
        full, extra = b"\xff" * 4, struct.pack("<HHQQQ", 1, 24, size, packed, place)
        directory += record[:20] + full * 2 + record[28:30] + struct.pack("<H", len(extra))
        directory += record[32:42] + full + title + extra
        at, count = at + 46 + named, count + 1
    head = (44, 45, 45, 0, 0, count, count, len(directory), start)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", *head)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(directory), 1)
    tail = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    same(reads(small[:start] + directory + record + locator + tail)[0], value)


# --------------------------------------------------------------------------- what else files hold


def test_a_training_checkpoint(through):
    """The shape of many repositories': networks, optimisers, options, counters."""
    weight, latent = numbers("f4", (3, 2)), numbers("f4", 4)
    moment = numbers("f4", (3, 2))
    state = OrderedDict({"conv.weight": tensor(weight)})
    state._metadata = OrderedDict({"": {"version": 1}})
    found = through(
        {
            "g": state,
            "g_ema": state,
            "g_optim": {
                "state": {0: {"step": 3, "exp_avg": tensor(moment)}},
                "param_groups": [{"lr": 0.002, "betas": (0.0, 0.99), "params": [0]}],
            },
            "args": argparse.Namespace(size=256, lr=0.002, augment=False, path=None),
            "latent_avg": tensor(latent),
            "size": Call(SIZE, (3, 2)),
            "device": Call(DEVICE, "cuda", 0),
            "dtype": FLOAT32,
            "seen": {1, 2},
            "bytes": b"\x00\xff",
            "nothing": b"",
            "counts": defaultdict(int, {"a": 1}),
            "iterations": 2**40,
        }
    )
    same(found["g"]["conv.weight"], weight)
    same(found["g_optim"]["state"][0]["exp_avg"], moment)
    same(found["latent_avg"], latent)
    assert found["g_optim"]["param_groups"] == [{"lr": 0.002, "betas": (0.0, 0.99), "params": [0]}]
    assert found["args"] == {"size": 256, "lr": 0.002, "augment": False, "path": None}
    assert found["size"] == (3, 2)
    assert found["device"] == "cuda:0"
    assert found["dtype"] == np.float32
    assert found["seen"] == {1, 2}
    assert bytes(found["bytes"]) == b"\x00\xff"
    assert bytes(found["nothing"]) == b""
    assert found["counts"] == {"a": 1}
    assert found["iterations"] == 2**40


@pytest.mark.parametrize("dtype", ["?", "i1", "<i4", ">i8", "u2", "<f2", ">f4", "f8", ">c8"])
def test_numpy(through, dtype):
    array = numbers(dtype, (2, 3, 4))
    found = through(
        {
            "array": array,
            "by column": np.asfortranarray(array),
            "number": array[0, 0, 0],
            "empty": array[:0],
            "dtype": array.dtype,
        }
    )
    native = array.astype(array.dtype.newbyteorder("="))
    same(found["array"], native)
    same(found["by column"], native)
    same(found["empty"], native[:0])
    assert found["number"] == array[0, 0, 0]
    assert found["number"].dtype == native.dtype
    assert found["dtype"] == array.dtype


def test_an_older_numpy(reads):
    array = numbers("f4")
    pickled = plain([array, array[0, 0]], 2)
    assert b"numpy._core.multiarray" in pickled
    found = reads(pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    same(found[0], array)
    assert found[1] == array[0, 0]


def test_python_2s_text(reads):
    """`str` had opcodes of its own."""
    found = reads(b"\x80\x02}(U\x01aK\x01T\x02\x00\x00\x00bcK\x02u.")
    assert found == {"a": 1, "bc": 2}


def test_an_object_of_the_oldest_protocols(reads):
    made = b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR"
    assert reads(b"\x80\x02" + made + b"}U\x01aK\x05sb.") == {"a": 5}


# --------------------------------------------------------------------------- snapshots


def _generator():
    weight, bias, average = numbers("f4", (3, 2)), numbers("f4", 3), numbers("f4", 4)
    constant = numbers("f4", (2, 4, 4))
    conv = module(
        "SynthesisLayer",
        {"weight": Call(PARAMETER, tensor(weight), False, OrderedDict()), "bias": None},
        {"noise": tensor(bias), "filter": None},
        conv_clamp=256,
        up=2,
    )
    block = module(
        "SynthesisBlock",
        {"const": Call(PARAMETER, tensor(constant), False, OrderedDict())},
        modules={"conv1": conv, "skip": None},
        architecture="skip",
    )
    synthesis = module("SynthesisNetwork", modules={"b4": block})
    mapping = module(
        "MappingNetwork",
        (),
        {"w_avg": tensor(average), "gone": tensor(bias)},
        num_layers=np.int64(2),
    )
    mapping.parts[1][0]["state"]["_non_persistent_buffers_set"] = {"gone"}
    generator = module(
        "Generator",
        modules={"synthesis": synthesis, "mapping": mapping},
        z_dim=512,
        _init_kwargs=EASY_DICT(z_dim=512, synthesis_kwargs=EASY_DICT(conv_clamp=256)),
    )
    expected = {
        "synthesis.b4.const": constant,
        "synthesis.b4.conv1.weight": weight,
        "synthesis.b4.conv1.noise": bias,
        "mapping.w_avg": average,
    }
    return generator, expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_snapshot(reads, protocol):
    generator, expected = _generator()
    written = {"G_ema": generator, "D": None, "training_set_kwargs": {"resolution": 32}}
    found = reads(plain(written, protocol))
    assert found.keys() == {"G_ema", "D", "training_set_kwargs"}
    module = found["G_ema"]
    assert isinstance(module, Persistent)
    assert module.class_name == "Generator"
    arrays = stand_ins.state_dict(module)
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        same(arrays[name], array)
    assert stand_ins.attribute(module, "z_dim") == 512
    assert stand_ins.attribute(module, "synthesis.b4.architecture") == "skip"
    assert stand_ins.attribute(module, "synthesis.b4.conv1.conv_clamp") == 256
    assert stand_ins.submodule(module, "mapping").class_name == "MappingNetwork"
    assert stand_ins.submodule(module, "") is module
    assert stand_ins.init_kwargs(module) == {"z_dim": 512, "synthesis_kwargs": {"conv_clamp": 256}}


def test_a_snapshot_s_source_is_dropped(reads):
    found = reads(plain(_generator()[0]))
    assert "os._exit" not in repr(found)
    assert set(vars(found)) == {"state", "class_name"}


def test_what_a_module_lacks(reads):
    module = reads(plain(_generator()[0]))
    with pytest.raises(ValueError, match=r"no module synthesis\.b8\.conv1: .*b4"):
        stand_ins.submodule(module, "synthesis.b8.conv1")
    with pytest.raises(ValueError, match=r"no attribute synthesis\.b4\.up"):
        stand_ins.attribute(module, "synthesis.b4.up")
    with pytest.raises(ValueError, match="no _init_kwargs"):
        stand_ins.init_kwargs(Persistent({}, "Generator"))


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({}, "no _parameters"),
        ({"_parameters": {}, "_buffers": {}, "_modules": []}, "no _modules"),
        (
            {"_parameters": {"a": 1}, "_buffers": {}, "_modules": {}},
            "a of .* is of type int, no tensor",
        ),
        (
            {"_parameters": {}, "_buffers": {}, "_modules": {"b": {}}},
            "module b of .* is of type dict",
        ),
    ],
)
def test_a_module_that_is_none(state, error):
    with pytest.raises(ValueError, match=error):
        stand_ins.state_dict(Persistent(state, "Generator"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_tensorflow_snapshot(reads, protocol):
    average, weight, kernel = numbers("f4", 4), numbers("f4", (4, 4)), numbers("f4", (3, 3, 2, 2))
    strength = np.float32(0.25)
    mapping = network("mapping", {"Dense0/weight": weight})
    synthesis = network("synthesis", {"4x4/Conv/weight": kernel, "4x4/Conv/strength": strength})
    generator = network(
        "Gs",
        {"dlatent_avg": average},
        {"mapping": mapping, "synthesis": synthesis},
        resolution=4,
    )
    found = reads(plain((generator, network("D", {}), generator), protocol))
    assert isinstance(found, tuple)
    assert all(isinstance(net, TFNetwork) for net in found)
    assert found[0] is found[2]
    arrays = stand_ins.variables(found[0])
    expected = {
        "dlatent_avg": average,
        "mapping/Dense0/weight": weight,
        "synthesis/4x4/Conv/weight": kernel,
        "synthesis/4x4/Conv/strength": np.asarray(strength),
    }
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert stand_ins.static_kwargs(found[0]) == {"resolution": 4}
    assert "build_module_src" not in found[0].state
    assert found[0].state["build_func_name"] == "G_main"


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({}, "no list of variables"),
        ({"variables": [("a", 1)]}, "not a name and an array"),
        ({"variables": []}, "no components"),
        ({"variables": [], "components": {"mapping": {}}}, "component mapping .* not a network"),
    ],
)
def test_a_network_that_is_none(state, error):
    with pytest.raises(ValueError, match=error):
        stand_ins.variables(TFNetwork(state))


@pytest.mark.parametrize(
    ("name", "tensors"), [("sg2_tiny", 140), ("sg3_tiny", 116), ("sg2_tf_legacy_tiny", 116)]
)
def test_the_original_writers_snapshots(golden, name, tensors):
    """Every tensor as the original code read it from the same file."""
    path = golden / "pkl" / f"{name}.pkl"
    if not path.exists():
        pytest.skip(f"no snapshot at {path}")
    expected = np.load(golden / f"pkl_{name}.npz")
    found = read(path)
    if isinstance(found, tuple):
        networks = zip(("G", "D", "Gs"), found, strict=True)
        arrays = {
            f"tf/{key}/{name}": array
            for key, network in networks
            for name, array in stand_ins.variables(network).items()
        }
        wanted = [key for key in expected if key.startswith("tf/")]
    else:
        arrays = {
            f"sd/{key}.{name}": array
            for key in ("G", "D", "G_ema")
            for name, array in stand_ins.state_dict(found[key]).items()
        }
        wanted = [key for key in expected if key.startswith("sd/")]
    assert set(arrays) == set(wanted)
    assert len(wanted) == tensors
    for key in wanted:
        assert arrays[key].dtype == expected[key].dtype
        assert arrays[key].shape == expected[key].shape
        assert arrays[key].tobytes() == expected[key].tobytes()


# --------------------------------------------------------------------------- safetensors


def test_safetensors(reads):
    arrays = {
        "F32": numbers("f4"),
        "F16": numbers("f2", 3),
        "BF16": numbers(jnp.bfloat16, (1, 2)),
        "F64": numbers("f8", ()),
        "I64": numbers("i8", 2),
        "BOOL": numbers("?", 5),
        "U8": numbers("u1", (0, 2)),
        "F8_E4M3": numbers(jnp.float8_e4m3fn, 2),
    }
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        end = len(body) + array.nbytes
        offsets = [len(body), end]
        header[name] = {"dtype": name, "shape": list(array.shape), "data_offsets": offsets}
        body += array.tobytes()
    order = ["__metadata__", *reversed(arrays)]  # the header's order is not the data's
    found = reads(safetensors({name: header[name] for name in order}, body))
    assert list(found) == list(reversed(arrays))
    for name, array in arrays.items():
        same(found[name], array)


def test_safetensors_of_nothing(reads):
    assert reads(safetensors({})) == {}


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "begins with b'.x89HDF"),
        (zipped({"arr_0.npy": b"\x93NUMPY"}), "no single data.pkl"),
        (plain({}) + b"\n", "1 bytes follow"),
    ],
)
def test_other_files(reads, content, error):
    with pytest.raises(ValueError, match=f"weights: .*{error}"):
        reads(content)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"net\.pkl: cannot be read: No such file"):
        read(tmp_path / "net.pkl")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(ValueError, match="is not a regular file"):
        read("/dev/zero")
    (tmp_path / "two\nlines").write_bytes(b"")
    with pytest.raises(ValueError, match=r"two\\nlines': is empty"):
        read(tmp_path / "two\nlines")


def test_a_file_too_long(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(plain([1, 2]))
    size = path.stat().st_size
    assert read(path, max_bytes=size) == [1, 2]
    with pytest.raises(ValueError, match=f"has {size} bytes; {size - 1} are read"):
        read(path, max_bytes=size - 1)


def _files():
    value = {"a": tensor(numbers("f4", 40)), "b": [tensor(numbers("f2", (3, 2))), "text"]}
    generator = network("G", {"x": numbers("f4", (4, 4))}, {"mapping": network("mapping", {})})
    body = numbers("f4", 30).tobytes()
    header = {"a": {"dtype": "F32", "shape": [30], "data_offsets": [0, 120]}}
    return {
        **{name: write(value) for name, write in WRITERS.items()},
        "NVIDIA snapshot": plain({"G_ema": _generator()[0]}),
        "TensorFlow snapshot": plain((generator, generator, generator)),
        "safetensors": safetensors(header, body),
    }


@pytest.mark.parametrize(("name", "content"), _files().items(), ids=_files())
def test_truncated(reads, name, content):
    reads(content)
    for percent in range(100):
        with pytest.raises(ValueError, match=r"weights: ") as caught:
            reads(content[: len(content) * percent // 100])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content"), _files().items(), ids=_files())
def test_damaged(reads, name, content):
    """Whatever a byte turns into, there is a value or one line."""
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            reads(bytes(damaged))
        except ValueError as error:
            assert type(error) in (ValueError, UnsafeFileError)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
