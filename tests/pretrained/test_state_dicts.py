"""State dicts in wrappers: which networks a file holds, and which of them are averages."""

import itertools
import pickle

import jax
import numpy as np
import pytest

import kd_jax as kd
from kd_jax import pretrained
from kd_jax.cli import inspect
from kd_jax.evaluate.generator import open_generator
from kd_jax.pretrained.state_dicts import is_averaged, state_dicts


def dcgan(seed=0, width=2, latent=3):
    """The tensors of PyTorch's example generator, for 16x16 pixels."""
    rng = np.random.default_rng(seed)
    sizes = [latent, 2 * width, width, 1]
    tensors = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        tensors[f"main.{3 * i}.weight"] = rng.normal(size=(inputs, outputs, 4, 4)).astype("f4")
        if i < len(sizes) - 2:
            for name, value in (
                ("weight", 1),
                ("bias", 0),
                ("running_mean", 0),
                ("running_var", 1),
            ):
                tensors[f"main.{3 * i + 1}.{name}"] = np.full(outputs, value, np.float32)
            tensors[f"main.{3 * i + 1}.num_batches_tracked"] = np.array(1)
    return tensors


def prefixed(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def save(path, tree):
    """A pickle of plain dicts and arrays, which the reader treats like a file of `torch.save`."""
    path.write_bytes(pickle.dumps(tree, protocol=4))
    return path


RAW, AVERAGED = dcgan(0), dcgan(1)
COUNTER = np.array(9)
WRAPPED = {
    "plain": AVERAGED,
    "compiled": prefixed("_orig_mod.", AVERAGED),
    "parallel and compiled": prefixed("module._orig_mod.", AVERAGED),
    "AveragedModel": {"n_averaged": COUNTER, **prefixed("module.", AVERAGED)},
    "shadow": {"decay": 0.999, "num_updates": 7, "shadow": AVERAGED},
    "ema_pytorch": {"initted": COUNTER > 0, "step": COUNTER, **prefixed("ema_model.", AVERAGED)},
    "nested": {"state_dict": {"model_state_dict": AVERAGED}, "epoch": 3},
    "counters": {**AVERAGED, "step": COUNTER},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_average_is_found_in_every_wrapper(tmp_path, wrapper):
    alone = kd.load(save(tmp_path / "alone.pkl", AVERAGED)).variables
    for tree in (WRAPPED[wrapper], {"g": RAW, "g_ema": WRAPPED[wrapper], "iteration": 5}):
        model = kd.load(save(tmp_path / "g.pkl", tree))
        jax.tree.map(np.testing.assert_array_equal, model.variables, alone)


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"params": RAW, "params_ema": AVERAGED}, ["params", "params_ema"]),
        ({"netG": RAW, "netG_ema": AVERAGED}, ["netG", "netG_ema"]),
        (
            {**prefixed("online_model.", RAW), **prefixed("ema_model.", AVERAGED), "step": COUNTER},
            ["online_model", "ema_model"],
        ),
        (
            {"state_dict": {**prefixed("netG.", RAW), **prefixed("netG_ema.", AVERAGED)}},
            ["netG", "netG_ema"],
        ),
        (
            {
                "state_dict": {**prefixed("g.", RAW), "loss.weight": np.ones(3, "f4")},
                "g_ema": AVERAGED,
            },
            ["g", "g_ema"],
        ),
    ],
    ids=["BasicSR", "suffix", "one flat dict", "Lightning", "beside a loss"],
)
def test_parts_have_the_names_of_their_wrappers(tmp_path, tree, names):
    path = save(tmp_path / "g.pkl", tree)
    assert list(pretrained.parts(path)) == names
    alone = kd.load(save(tmp_path / "alone.pkl", AVERAGED)).variables
    jax.tree.map(np.testing.assert_array_equal, kd.load(path).variables, alone)
    raw = kd.load(save(tmp_path / "raw.pkl", RAW)).variables
    jax.tree.map(np.testing.assert_array_equal, kd.load(path, names[0]).variables, raw)


@pytest.mark.parametrize(
    "average",
    [
        {"shadow_params": list(AVERAGED.values())},
        prefixed("renamed_", AVERAGED),
        {"x": AVERAGED["main.0.weight"]},
    ],
    ids=["a list", "other names", "one tensor"],
)  # fmt: skip
def test_the_raw_network_does_not_stand_for_an_unreadable_average(tmp_path, average):
    path = save(tmp_path / "g.pkl", {"g": RAW, "g_ema": average})
    with pytest.raises(ValueError, match="g_ema, by its name the averaged weights"):
        kd.load(path)
    raw = kd.load(save(tmp_path / "raw.pkl", RAW)).variables
    jax.tree.map(np.testing.assert_array_equal, kd.load(path, "g").variables, raw)


def test_several_averages_are_not_chosen_from(tmp_path):
    path = save(tmp_path / "g.pkl", {"netG_A_ema": RAW, "netG_B_ema": AVERAGED})
    with pytest.raises(ValueError, match="netG_A_ema, netG_B_ema"):
        kd.load(path)


@pytest.mark.parametrize(
    ("name", "averaged"),
    [
        ("G_ema", True), ("Gs", True), ("generator_smooth", True), ("g_running", True),
        ("generatorEMA", True), ("ema_model", True), ("params_ema", True), ("swa.model", True),
        ("g", False), ("G", False), ("schema", False), ("optimizer_ema", False), ("gemma", False),
    ],
)  # fmt: skip
def test_names_of_averages(name, averaged):
    assert is_averaged(name) == averaged


def test_wrappers_beyond_the_limit_are_not_searched():
    tree = {"a.weight": np.ones(2)}
    for _ in range(50):
        tree = {"state_dict": tree}
    assert state_dicts(tree, lambda tensors: "a.weight" in tensors) == {}


BAD = {
    "nan": np.full((3, 4, 4, 4), np.nan, np.float32),
    "beyond float32": np.full((3, 4, 4, 4), 1e300),
    "int64": np.ones((3, 4, 4, 4), np.int64),
    "bool": np.ones((3, 4, 4, 4), bool),
    "complex64": np.ones((3, 4, 4, 4), np.complex64),
    "0 axes": np.float32(1.0).reshape(()),
    "2 axes": np.ones((3, 4), np.float32),
}


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_are_no_weights_are_named(tmp_path, case):
    path = save(tmp_path / "g.pkl", {**dcgan(), "main.0.weight": BAD[case]})
    with pytest.raises(ValueError, match=r"main\.0\.weight") as error:
        kd.load(path)
    assert "\n" not in str(error.value)


def discriminator(size, final_stride):
    """A discriminator of PyTorch, built from its definition: torch-free sums over windows."""
    rng = np.random.default_rng(2)
    widths, tensors, before = (2, 3, 4), {}, 1
    for index, width in enumerate((*widths, 1)):
        name = "main.0" if index == 0 else f"main.{3 * index - 1}"
        tensors[f"{name}.weight"] = rng.normal(size=(width, before, 4, 4)).astype("f4")
        before = width
    for index, width in enumerate(widths[1:], 1):
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            tensors[f"main.{3 * index}.{name}"] = np.full(width, value, np.float32)
    images = rng.normal(size=(2, 1, size, size))
    x = images
    for index in range(4):
        name = "main.0" if index == 0 else f"main.{3 * index - 1}"
        stride, pad = (2, 1) if index < 3 or final_stride == 2 else (1, 0)
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (4, 4), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        x = np.einsum("bchwij,ocij->bohw", windows, tensors[f"{name}.weight"])
        if index < 3:
            x = x / np.sqrt(1 + 1e-5) if index else x
            x = np.where(x > 0, x, 0.2 * x)
    return tensors, images.transpose(0, 2, 3, 1), x.reshape(2)


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (28, 2), (31, 2), (16, 2)])
def test_the_size_of_a_discriminator_is_an_option(tmp_path, size, stride):
    tensors, images, scores = discriminator(size, stride)
    path = save(tmp_path / "d.pkl", tensors)
    model = kd.load(path, options={"size": size})
    assert "notes" not in model.info
    actual = model.network.apply(model.variables, images.astype("f4"))[0]
    np.testing.assert_allclose(actual, scores, rtol=1e-4, atol=1e-4 * np.abs(scores).max())


def test_what_a_file_does_not_tell_is_said(tmp_path):
    path = save(tmp_path / "d.pkl", discriminator(32, 1)[0])
    assert any("32x32" in note for note in kd.load(path).info["notes"])
    for size in (15, 33, 64):
        with pytest.raises(ValueError, match=f"size={size}"):
            kd.load(path, options={"size": size})
    with pytest.raises(ValueError, match="width=3"):
        kd.load(path, options={"width": 3})


def test_the_command_takes_options_and_prints_what_is_assumed(tmp_path, capsys):
    path = str(save(tmp_path / "d.pkl", discriminator(28, 2)[0]))
    inspect.main([path])
    assert "32x32" in capsys.readouterr().out
    inspect.main([path, "--option=size=28"])
    printed = capsys.readouterr().out
    assert "size: 28" in printed
    assert "note" not in printed


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--truncation=0.5"], "--truncation=0.5"),
        (["--truncation=0.5", "--out=new"], "--truncation=0.5"),
        (["--out=/proc/self/nope"], "/proc/self/nope"),
        (["--out=g.pkl"], "g.pkl"),
        (["--out=g.pkl/x"], "g.pkl/x"),
        (["--out=new", "--seed=18446744073709551616"], "18446744073709551616"),
        (["--out=new", "--seed=-1"], "--seed=-1"),
        (["--part=nothing"], "'nothing'"),
        (["--option=size"], "'size'"),
        (["--option=size=28", "--out=new"], "size=28"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_command_are_one_line(tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "g.pkl", dcgan())
    with pytest.raises(SystemExit) as stopped:
        inspect.main(["g.pkl", *flags])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "new").exists()


def test_a_part_of_a_file_is_evaluated(tmp_path):
    path = save(tmp_path / "g.pkl", {"params": RAW, "params_ema": AVERAGED})
    for part, tensors in (("params", RAW), ("params_ema", AVERAGED)):
        alone = kd.load(save(tmp_path / "alone.pkl", tensors)).variables
        subject = open_generator(f"{path}#{part}")
        jax.tree.map(np.testing.assert_array_equal, subject.variables, alone)
        assert subject.name == f"g.pkl#{part}"
        assert open_generator(f"mine={path}#{part}").name == "mine"
    hashed = save(tmp_path / "a#b.pkl", RAW)
    assert open_generator(str(hashed)).name == "a#b.pkl"
    with pytest.raises(ValueError, match="'nothing'; it has params, params_ema"):
        open_generator(f"{path}#nothing")
    two = save(tmp_path / "two.pkl", {"a": RAW, "b": AVERAGED})
    with pytest.raises(ValueError, match=r"a, b .*FILE#NAME"):
        open_generator(str(two))
