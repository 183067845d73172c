"""BigGAN, BigGAN-deep and TinyGAN: images, scores, activations, and buffers after one step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kd_jax.models import resnet, tinygan
from kd_jax.models.layers import norm
from kd_jax.pretrained import biggan
from parity.golden import Family, File, Outputs


def weights(file: File, prefix: str = "sd/") -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): file.arrays[k] for k in file if k.startswith(prefix)}


def settings(file: File, network: str) -> dict[str, object]:
    """Options that the weights do not determine."""
    kwargs = file.config["kwargs"]
    return {
        "spectral_epsilon": kwargs.get("SN_eps", 1e-12),
        "iterations": kwargs.get(f"num_{network}_SV_itrs", 1),
    }


def brock_g(file: File) -> Outputs:
    kwargs = file.config["kwargs"]
    depth = {"depth": kwargs["G_depth"]} if "G_depth" in kwargs else {}
    converted = biggan.brock_generator(
        weights(file), norm_epsilon=kwargs.get("BN_eps", 1e-5), **settings(file, "G")
    )
    assert depth.items() <= converted.config.items()
    z, y = file["in/z"], file["in/y"].astype(np.int32)
    outputs = _outputs(file, converted, z, y)
    # Blocks are lists of layers: a block and attention, if any.
    for key in file:
        if match := re.fullmatch(r"out/act_(\d+)_(\d+)", key):
            name = "attention" if match[2] == "1" else "block"
            outputs[key] = outputs[f"{name}_{match[1]}"][: len(file.arrays[key])]
    return outputs


def brock_d(file: File) -> Outputs:
    kwargs = file.config["kwargs"]
    converted = biggan.brock_discriminator(weights(file), **settings(file, "D"))
    assert converted.config["size"] == kwargs["resolution"]
    depth = converted.config.get("depth", 1)
    assert depth == kwargs.get("D_depth", 1)
    outputs = _outputs(file, converted, file["in/img"], file["in/y"].astype(np.int32))
    for name in ("out/eval", "out/train"):
        outputs[name] = outputs[name][:, None]
    for key in file:
        if match := re.fullmatch(r"out/act_(\d+)_(\d+)", key):
            stage, layer = int(match[1]), int(match[2])
            last = stage * depth + min(layer, depth - 1)
            name = f"attention_{last}" if layer == depth else f"block_{last}"
            outputs[key] = outputs[name][: len(file.arrays[key])]
    return outputs


def _outputs(file: File, converted, *inputs) -> dict[str, object]:
    """`out/eval`, `out/train`, its buffers, and the taps of the former by their names."""
    apply = jax.jit(converted.network.apply, static_argnames="train")
    output, taps, _ = apply(converted.variables, *inputs)
    trained, _, variables = apply(converted.variables, *inputs, train=True)
    buffers = _buffers(file, variables)
    return {"out/eval": output, "out/train": trained, **taps, **buffers}


def _buffers(file: File, variables) -> Outputs:
    """The buffers by their original names, by tracing each entry through the conversion."""
    names = [k.removeprefix("out/train_buf/") for k in file if k.startswith("out/train_buf/")]
    tensors = weights(file)
    generates = biggan.is_brock_generator(tensors)
    read = biggan.brock_generator if generates else biggan.brock_discriminator
    # Consecutive numbers as entries show where the conversion puts each original entry.
    sizes = np.cumsum([0] + [tensors[name].size for name in names])
    marked = dict(tensors)
    for name, start in zip(names, sizes, strict=False):
        numbers = np.arange(start, start + tensors[name].size, dtype=np.float32)
        marked[name] = numbers.reshape(tensors[name].shape)
    places = traverse_util.flatten_dict(read(marked).variables, sep="/")
    values = np.full(sizes[-1], np.nan, np.float32)
    for path, leaf in traverse_util.flatten_dict(variables, sep="/").items():
        if not path.startswith("params/"):
            values[np.asarray(places[path], int).ravel()] = np.asarray(leaf).ravel()
    outputs = {}
    for name, start in zip(names, sizes, strict=False):
        entries = values[start : start + tensors[name].size].reshape(tensors[name].shape)
        counts = name.endswith(
            "accumulation_counter"
        )  # sums of statistics, which kd_jax does not keep
        outputs[f"out/train_buf/{name}"] = tensors[name] if counts else entries
    return outputs


def huggingface(file: File) -> Outputs:
    kwargs = file.config["kwargs"]
    converted = biggan.huggingface_generator(
        weights(file),
        doublings=[layer[0] for layer in kwargs["layers"]],
        norm_epsilon=kwargs["eps"],
    )
    labels = file["in/class_label"].argmax(axis=1)
    np.testing.assert_array_equal(np.eye(kwargs["num_classes"])[labels], file["in/class_label"])
    apply = converted.network.apply  # under jit, every truncation would be compiled separately
    position = kwargs["attention_layer_position"]
    outputs, taps = {}, {}
    for key in file:
        if match := re.fullmatch(r"out/img_trunc([\d.]+)", key):
            outputs[key], taps[match[1]], _ = apply(
                converted.variables, file["in/z"], labels, truncation=float(match[1])
            )
    for key in file:
        if match := re.fullmatch(r"out/act([\d.]+)_layer(\d+)", key):
            layer = int(match[2])
            name = f"block_{layer - (layer > position)}"
            if layer == position:
                name = f"attention_{layer - 1}"
            outputs[key] = taps[match[1]][name][: len(file.arrays[key])]
    return outputs


def tinygan_nets(file: File) -> Outputs:
    tensors = weights(file)
    converted = biggan.tinygan_discriminator(
        {k.removeprefix("D."): v for k, v in tensors.items() if k.startswith("D.")},
        size=file["in/img"].shape[1],
    )
    scores, taps, _ = converted.network.apply(
        converted.variables, file["in/img"], file["in/label"].astype(np.int32)
    )
    outputs = {"out/d_logits": scores[:, None]}
    for key in file:
        if match := re.fullmatch(r"out/d_h(\d+)", key):
            side = resnet.side(file[key])
            outputs[key] = taps[side]
            if int(match[1]) % 2 == 0:  # before the activation, whose slope is 0.01
                outputs[key] = jnp.where(taps[side] > 0, taps[side], taps[side] / 0.01)
    outputs["out/gblock"] = _gblock(file)
    return outputs


def _gblock(file: File):
    tensors = weights(file, "sd/gblock.")

    def conv(name):
        kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
        return {"kernel": kernel, "bias": tensors[f"{name}.bias"]}

    params, stats = {"shortcut": conv("c_sc")}, {}
    for number, name in ((1, "cbn0"), (2, "cbn1")):
        gain, bias = np.split(tensors[f"{name}.embed.weight"].T, 2, axis=1)
        one, zero = np.split(tensors[f"{name}.embed.bias"], 2)
        params[f"norm{number}"] = {
            "gain": {"kernel": gain, "bias": one - 1},
            "bias": {"kernel": bias, "bias": zero},
        }
        params[f"conv{number}"] = {
            "depthwise": tensors[f"dw_conv{number}.weight"][:, 0].transpose(1, 2, 0),
            "depthwise_bias": tensors[f"dw_conv{number}.bias"],
            "pointwise": conv(f"pw_conv{number}"),
        }
        statistics = {part: tensors[f"{name}.bn.running_{part}"] for part in ("mean", "var")}
        stats[f"norm{number}"] = {"norm": statistics}

    def normalisation(name):
        def plain(**options):
            return norm.BatchNorm(train=False, **options)

        return norm.ConditionalNorm(plain, tinygan.Dense, name=name)

    block = tinygan.GeneratorBlock(params["shortcut"]["kernel"].shape[-1], normalisation)
    return block.apply({"params": params, "batch_stats": stats}, file["in/h"], file["in/y"])


def images(name: str) -> float:
    """Tolerance for generators: images and buffers 1e-5; activations, which are unbounded, 1e-4."""
    return 1e-4 if "act" in name else 1e-5


def scores(name: str) -> float:
    """Tolerance for discriminators: buffers 1e-5; scores and activations, long sums, 1e-4."""
    return 1e-5 if "train_buf" in name else 1e-4


FAMILIES = {
    "biggan_brock_g": Family(brock_g, images),
    "biggan_brock_d": Family(brock_d, scores),
    "biggan_deep_brock_g": Family(brock_g, images, slow=True),
    "biggan_deep_brock_d": Family(brock_d, scores, slow=True),
    "biggan_deep_hf": Family(huggingface, images, slow=True),
    "tinygan_nets": Family(tinygan_nets, lambda name: 1e-5, slow=True),
}
