"""Weight files of every format, written here in the layout of their libraries, and read back.

The writers use Python's pickler on small classes with the names of PyTorch's and NVIDIA's classes.
The values that are read are compared with the arrays that were written.
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

from kd_jax.pretrained.io import allowed_types
from kd_jax.pretrained.io.allowed_types import Persistent, TFNetwork
from kd_jax.pretrained.io.containers import read
from kd_jax.pretrained.io.unpickle import UnsafeFileError

# --------------------------------------------------------------------------- writers

_MODULES: dict[str, types.ModuleType] = {}


def define_class(module, name, base=object):
    """A class of that name, which pickles refer to as if the module existed."""
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
STORAGE = {dtype: define_class("torch", f"{name}Storage") for name, dtype in KINDS.items()}
UNTYPED = define_class("torch.storage", "UntypedStorage")
TENSOR = define_class("torch._utils", "_rebuild_tensor_v2")
TENSOR_V1 = define_class("torch._utils", "_rebuild_tensor")
TENSOR_V3 = define_class("torch._utils", "_rebuild_tensor_v3")
PARAMETER = define_class("torch._utils", "_rebuild_parameter")
PARAMETER_WITH_STATE = define_class("torch._utils", "_rebuild_parameter_with_state")
WITH_TYPE = define_class("torch._tensor", "_rebuild_from_type_v2")
PARAMETER_CLASS = define_class("torch.nn.parameter", "Parameter")
LOAD = define_class("torch.storage", "_load_from_bytes")
SIZE, DEVICE = define_class("torch", "Size"), define_class("torch", "device")
FLOAT32, UINT16 = define_class("torch", "float32"), define_class("torch", "uint16")
PERSISTENT = define_class("torch_utils.persistence", "_reconstruct_persistent_obj")
EASY_DICT = define_class("dnnlib.util", "EasyDict", dict)
NETWORK = define_class("dnnlib.tflib.network", "Network")


class Call:
    """Pickles as a call of a name."""

    def __init__(self, name, *arguments):
        self.parts = name, arguments

    def __reduce__(self):
        return self.parts


class Storage:
    """A storage of the elements of an array, or of bytes."""

    def __init__(self, values, kind=None):
        self.kind = kind or STORAGE[values.dtype]
        self.values = values.reshape(-1)

    def __reduce__(self):
        return LOAD, (legacy(self),)


def tensor(values, stored=None, offset=0, strides=None, rebuild=TENSOR):
    """Pickles as a PyTorch tensor, with its own storage by default."""
    values = np.asarray(values)
    strides = strides or np.empty(values.shape, "u1").strides
    stored = stored or Storage(values)
    return Call(rebuild, stored, offset, values.shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    """Collects storages instead of pickling them."""

    storages: list

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        key = str(self.storages.index(value))
        return "storage", value.kind, key, "cpu", value.values.size, *self.view


def _pickle_with_storages(value, protocol, view=()):
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
    """A file of `torch.save` before PyTorch 1.6."""
    body, storages = _pickle_with_storages(value, protocol, view=(None,))
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    keys = [str(index) for index in range(len(storages))]
    parts = [*(pickle.dumps(part, protocol) for part in head), body, pickle.dumps(keys, protocol)]
    for stored in storages:
        values = stored.values if little else stored.values.byteswap()
        parts += [struct.pack("<q", values.size), values.tobytes()]
    return b"".join(parts)


def zip_archive(files, **options):
    """A zip archive of `{name: bytes}`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def torch_zip(value, protocol=2, little=True, **options):
    """A file of `torch.save`."""
    body, storages = _pickle_with_storages(value, protocol)
    arrays = [s.values if little else s.values.byteswap() for s in storages]
    files = {
        "net/data.pkl": body,
        "net/byteorder": b"little" if little else b"big",
        **{f"net/data/{index}": array.tobytes() for index, array in enumerate(arrays)},
        "net/version": b"3\n",
        "net/.data/serialization_id": b"0123",
    }
    return zip_archive(files, **options)


def safetensors(header, body=b""):
    """A safetensors file with this header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


def module(name, parameters=(), buffers=(), modules=(), **attributes):
    """A module of an NVIDIA snapshot, whose source terminates Python if it is executed."""
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
    """A network of a TensorFlow snapshot, whose source terminates Python if it is executed."""
    pickled = NETWORK()
    pickled.__dict__.update(
        version=4,
        name=name,
        static_kwargs=EASY_DICT(kwargs),
        components=EASY_DICT(components),
        build_module_src="import os\nos._exit(7)\n",
        build_func_name="G_main",
        variables=list(variables.items()),
    )
    return pickled


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
    """Reads bytes from a file whose name has no extension."""

    def reads(content):
        path = tmp_path / "weights"
        path.write_bytes(content)
        return read(path)

    return reads


@pytest.fixture(params=WRITERS)
def through(request, reads):
    """Writes a value in each format and reads it."""
    return lambda value: reads(WRITERS[request.param](value))


RNG = np.random.default_rng(0)


def numbers(dtype, shape=(2, 3)):
    return (RNG.standard_normal(shape) * 50).astype(dtype)


def assert_same(array, expected):
    assert isinstance(array, np.ndarray)
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tobytes() == expected.tobytes()
    assert array.dtype.isnative
    assert not array.flags.writeable


# --------------------------------------------------------------------------- tensors


def test_every_dtype(through):
    arrays = {name: numbers(dtype) for name, dtype in KINDS.items()}
    tree = through(OrderedDict({name: tensor(array) for name, array in arrays.items()}))
    assert list(tree) == list(KINDS)
    for name, array in arrays.items():
        assert_same(tree[name], array)


def test_views_of_storages(through):
    base = numbers("f4", 48)
    shared = Storage(base)
    one = numbers("f4", ())
    tree = through(
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
    assert_same(tree["channels last"], base[:24].reshape(1, 3, 4, 2).transpose(0, 3, 1, 2))
    assert_same(tree["transposed"], base[5:11].reshape(2, 3).T)
    assert_same(tree["every other"], base[40:47:2])
    assert_same(tree["of one element"], one)
    assert_same(tree["empty"], np.empty((0, 3), "f4"))
    assert_same(tree["empty of a part"], np.empty((2, 0), "f4"))


def test_tensor_and_parameter_variants(through):
    value, kind = numbers("f4", (2,)), KINDS["Float"]
    whole = (Storage(value), 0, (2,), (1,))
    tree = through(
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
    assert tree.keys() == {
        *("parameter", "stateful", "constructed"),
        *("first version", "with metadata", "with attributes"),
    }
    for array in tree.values():
        assert_same(array, value.astype(kind))


@pytest.mark.parametrize("write", [plain, torch_zip, legacy])
def test_a_storage_without_a_dtype(reads, write):
    value = numbers("u2")
    stored = Storage(value.reshape(-1).view("u1"), UNTYPED)
    call = Call(TENSOR_V3, stored, 0, (2, 3), (3, 1), False, OrderedDict(), UINT16)
    assert_same(reads(write([call]))[0], value)


def test_bytes_of_unknown_size_are_not_swapped(reads):
    stored = Storage(numbers("u1"), UNTYPED)
    call = Call(TENSOR_V3, stored, 0, (3,), (1,), False, OrderedDict(), UINT16)
    with pytest.raises(ValueError, match="without a dtype"):
        reads(torch_zip([call], little=False))


def test_a_shared_tensor_is_one_array(through):
    shared = tensor(numbers("f4"))
    tree = through([shared, shared])
    assert tree[0] is tree[1]


def test_a_large_archive(reads):
    """Offsets and sizes in zip64 fields, for values that do not fit in 32 bits."""
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
    assert_same(reads(small[:start] + directory + record + locator + tail)[0], value)


# --------------------------------------------------------------------------- other contents


def test_a_training_checkpoint(through):
    """The usual contents: networks, optimisers, options, counters."""
    weight, latent = numbers("f4", (3, 2)), numbers("f4", 4)
    moment = numbers("f4", (3, 2))
    state = OrderedDict({"conv.weight": tensor(weight)})
    state._metadata = OrderedDict({"": {"version": 1}})
    tree = through(
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
    assert_same(tree["g"]["conv.weight"], weight)
    assert_same(tree["g_optim"]["state"][0]["exp_avg"], moment)
    assert_same(tree["latent_avg"], latent)
    assert tree["g_optim"]["param_groups"] == [{"lr": 0.002, "betas": (0.0, 0.99), "params": [0]}]
    assert tree["args"] == {"size": 256, "lr": 0.002, "augment": False, "path": None}
    assert tree["size"] == (3, 2)
    assert tree["device"] == "cuda:0"
    assert tree["dtype"] == np.float32
    assert tree["seen"] == {1, 2}
    assert bytes(tree["bytes"]) == b"\x00\xff"
    assert bytes(tree["nothing"]) == b""
    assert tree["counts"] == {"a": 1}
    assert tree["iterations"] == 2**40


@pytest.mark.parametrize("dtype", ["?", "i1", "<i4", ">i8", "u2", "<f2", ">f4", "f8", ">c8"])
def test_numpy(through, dtype):
    array = numbers(dtype, (2, 3, 4))
    tree = through(
        {
            "array": array,
            "by column": np.asfortranarray(array),
            "number": array[0, 0, 0],
            "empty": array[:0],
            "dtype": array.dtype,
        }
    )
    native = array.astype(array.dtype.newbyteorder("="))
    assert_same(tree["array"], native)
    assert_same(tree["by column"], native)
    assert_same(tree["empty"], native[:0])
    assert tree["number"] == array[0, 0, 0]
    assert tree["number"].dtype == native.dtype
    assert tree["dtype"] == array.dtype


def test_an_older_numpy(reads):
    array = numbers("f4")
    pickled = plain([array, array[0, 0]], 2)
    assert b"numpy._core.multiarray" in pickled
    tree = reads(pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert_same(tree[0], array)
    assert tree[1] == array[0, 0]


def test_strings_of_python_2(reads):
    """`str` had separate opcodes."""
    tree = reads(b"\x80\x02}(U\x01aK\x01T\x02\x00\x00\x00bcK\x02u.")
    assert tree == {"a": 1, "bc": 2}


def test_an_object_of_the_oldest_protocols(reads):
    namespace = b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR"
    assert reads(b"\x80\x02" + namespace + b"}U\x01aK\x05sb.") == {"a": 5}


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
    tree = reads(plain(written, protocol))
    assert tree.keys() == {"G_ema", "D", "training_set_kwargs"}
    module = tree["G_ema"]
    assert isinstance(module, Persistent)
    assert module.class_name == "Generator"
    arrays = allowed_types.state_dict(module)
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert_same(arrays[name], array)
    assert allowed_types.attribute(module, "z_dim") == 512
    assert allowed_types.attribute(module, "synthesis.b4.architecture") == "skip"
    assert allowed_types.attribute(module, "synthesis.b4.conv1.conv_clamp") == 256
    assert allowed_types.submodule(module, "mapping").class_name == "MappingNetwork"
    assert allowed_types.submodule(module, "") is module
    assert allowed_types.init_kwargs(module) == {
        "z_dim": 512,
        "synthesis_kwargs": {"conv_clamp": 256},
    }


def test_the_source_in_a_snapshot_is_dropped(reads):
    tree = reads(plain(_generator()[0]))
    assert "os._exit" not in repr(tree)
    assert set(vars(tree)) == {"state", "class_name"}


def test_missing_modules_and_attributes_are_named(reads):
    module = reads(plain(_generator()[0]))
    with pytest.raises(ValueError, match=r"no module synthesis\.b8\.conv1: .*b4"):
        allowed_types.submodule(module, "synthesis.b8.conv1")
    with pytest.raises(ValueError, match=r"no attribute synthesis\.b4\.up"):
        allowed_types.attribute(module, "synthesis.b4.up")
    with pytest.raises(ValueError, match="no _init_kwargs"):
        allowed_types.init_kwargs(Persistent({}, "Generator"))


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({}, "no _parameters"),
        ({"_parameters": {}, "_buffers": {}, "_modules": []}, "no _modules"),
        (
            {"_parameters": {"a": 1}, "_buffers": {}, "_modules": {}},
            "a of .* is of type int",
        ),
        (
            {"_parameters": {}, "_buffers": {}, "_modules": {"b": {}}},
            "module b of .* is of type dict",
        ),
    ],
)
def test_invalid_modules(state, error):
    with pytest.raises(ValueError, match=error):
        allowed_types.state_dict(Persistent(state, "Generator"))


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
    tree = reads(plain((generator, network("D", {}), generator), protocol))
    assert isinstance(tree, tuple)
    assert all(isinstance(net, TFNetwork) for net in tree)
    assert tree[0] is tree[2]
    arrays = allowed_types.variables(tree[0])
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
    assert allowed_types.static_kwargs(tree[0]) == {"resolution": 4}
    assert "build_module_src" not in tree[0].state
    assert tree[0].state["build_func_name"] == "G_main"


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({}, "no list of variables"),
        ({"variables": [("a", 1)]}, "not a name and an array"),
        ({"variables": []}, "no components"),
        ({"variables": [], "components": {"mapping": {}}}, "component mapping .* not a network"),
    ],
)
def test_invalid_networks(state, error):
    with pytest.raises(ValueError, match=error):
        allowed_types.variables(TFNetwork(state))


@pytest.mark.parametrize(
    ("name", "tensors"), [("sg2_tiny", 140), ("sg3_tiny", 116), ("sg2_tf_legacy_tiny", 116)]
)
def test_snapshots_of_the_original_writers(golden, name, tensors):
    """Every tensor equals the one that the original code read from the same file."""
    path = golden / "pkl" / f"{name}.pkl"
    if not path.exists():
        pytest.skip(f"no snapshot at {path}")
    expected = np.load(golden / f"pkl_{name}.npz")
    tree = read(path)
    if isinstance(tree, tuple):
        networks = zip(("G", "D", "Gs"), tree, strict=True)
        arrays = {
            f"tf/{key}/{name}": array
            for key, network in networks
            for name, array in allowed_types.variables(network).items()
        }
        compared = [key for key in expected if key.startswith("tf/")]
    else:
        arrays = {
            f"sd/{key}.{name}": array
            for key in ("G", "D", "G_ema")
            for name, array in allowed_types.state_dict(tree[key]).items()
        }
        compared = [key for key in expected if key.startswith("sd/")]
    assert set(arrays) == set(compared)
    assert len(compared) == tensors
    for key in compared:
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
    tree = reads(safetensors({name: header[name] for name in order}, body))
    assert list(tree) == list(reversed(arrays))
    for name, array in arrays.items():
        assert_same(tree[name], array)


def test_empty_safetensors(reads):
    assert reads(safetensors({})) == {}


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "starts with b'.x89HDF"),
        (zip_archive({"arr_0.npy": b"\x93NUMPY"}), "no single data.pkl"),
        (plain({}) + b"\n", "1 bytes follow"),
    ],
)
def test_other_files(reads, content, error):
    with pytest.raises(ValueError, match=f"weights: .*{error}"):
        reads(content)


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(ValueError, match=r"net\.pkl: cannot be read: No such file"):
        read(tmp_path / "net.pkl")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(ValueError, match="is not a regular file"):
        read("/dev/zero")
    (tmp_path / "two\nlines").write_bytes(b"")
    with pytest.raises(ValueError, match=r"two\\nlines': is empty"):
        read(tmp_path / "two\nlines")


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(plain([1, 2]))
    size = path.stat().st_size
    assert read(path, max_bytes=size) == [1, 2]
    with pytest.raises(ValueError, match=f"has {size} bytes; the limit is {size - 1}"):
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
    """For any changed bytes, reading gives a value or a one-line error."""
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
