"""Resampling, activations and modulated convolutions."""

import jax
import numpy as np

from kd_jax import ops
from kd_jax.models import stylegan3
from parity.golden import Family, File, Outputs, oihw


def pads(padding):
    """The padding `n`, `[x, y]` or `[left, right, top, bottom]` in kd_jax's form."""
    if isinstance(padding, int):
        return padding
    if len(padding) == 2:
        return (padding[1], padding[1]), (padding[0], padding[0])
    return (padding[2], padding[3]), (padding[0], padding[1])


def factor(factors):
    return factors if isinstance(factors, int) else (factors[1], factors[0])


def resampling(file: File, case: dict, fn, **options):
    name = case["f"]
    taps = None if name == "none" else file.arrays[f"in/{name}"]
    gain, flip = case.get("gain", 1), case.get("flip_filter", False)
    options |= {"padding": pads(case.get("padding", 0)), "flip": flip, "gain": gain}
    return lambda x: fn(x, taps, **options)


def kernel(file: File, case: dict, default: bool = True):
    weight = oihw(file[f"in/{case['w']}"])
    return weight if case.get("flip_weight", default) else weight[::-1, ::-1]


def outputs(file: File) -> Outputs:
    x, results = file["in/x"], {}
    for case in file.config["cases"]:
        op, key = case["op"], case["key"]
        factors = {k: factor(case[k]) for k in ("up", "down") if k in case}
        if op == "upfirdn2d":
            fn = resampling(file, case, ops.upfirdn2d, **factors)
            y, vjp = jax.vjp(fn, x)
            results[f"out/{key}"] = y
            results["out/" + key.replace("upfirdn2d", "upfirdn2d_vjp")] = vjp(file[f"in/ct/{key}"])[
                0
            ]
        elif op in ("filter2d", "upsample2d", "downsample2d"):
            results[f"out/{key}"] = resampling(file, case, getattr(ops, op), **factors)(x)
        elif op == "setup_filter":
            options = {k: case[k] for k in ("normalize", "gain", "separable") if k in case}
            flip = case.get("flip_filter", False)
            results[f"out/{key}"] = ops.resampling_filter(case["arg"], flip=flip, **options)
        elif op == "bias_act":
            results[f"out/{key}"] = bias_act(file, case)
        elif op == "filtered_lrelu":
            fu, fd, b = (
                None if case.get(k) is None else file.arrays[f"in/{case[k]}"]
                for k in ("fu", "fd", "b")
            )
            options = {k: case[k] for k in ("gain", "slope", "clamp") if k in case}
            results[f"out/{key}"] = ops.filtered_lrelu(
                file["in/xf"],
                fu,
                fd,
                b,
                padding=pads(case.get("padding", 0)),
                flip=case.get("flip_filter", False),
                **options,
                **factors,
            )
        elif op == "conv2d_resample":
            taps = file.arrays[f"in/{case['f']}"]
            results[f"out/{key}"] = ops.conv_resample(
                file["in/xc"],
                kernel(file, case),
                taps[::-1, ::-1] if case.get("flip_filter", False) else taps,
                padding=pads(case.get("padding", 0)),
                groups=case.get("groups", 1),
                **factors,
            )
        elif op == "sg2.modulated_conv2d":
            y = ops.modulated_conv(
                file["in/xc"],
                kernel(file, case),
                file["in/styles"],
                None if case.get("resample_filter") is None else file.arrays["in/fa"],
                demodulate=case.get("demodulate", True),
                padding=pads(case.get("padding", 0)),
                fused=case.get("fused_modconv", True),
                **factors,
            )
            noise = case.get("noise")
            results[f"out/{key}"] = y if noise is None else y + file[f"in/{noise}"]
        elif op == "sg3.modulated_conv2d":
            padding = case.get("padding", 0)  # of height and width here
            padding = [padding] * 2 if isinstance(padding, int) else padding
            results[f"out/{key}"] = ops.modulated_conv(
                file["in/xc"],
                kernel(file, case),
                file["in/styles"],
                demodulate=case.get("demodulate", True),
                normalize=True,
                input_gain=case.get("input_gain", 1.0),
                padding=[(p, p) for p in padding],
            )
        elif op == "design_lowpass_filter":
            options = {k: case[k] for k in ("numtaps", "cutoff", "width", "fs")}
            options["radial"] = case.get("radial", False)
            results[f"out/{key}"] = stylegan3.lowpass_filter(**options)
        else:
            raise ValueError(f"no case for the op {op}")
    return results


def bias_act(file: File, case: dict):
    activation = ops.ACTIVATIONS[case["act"]]
    if case["act"] == "lrelu" and "alpha" in case:
        activation = ops.leaky_relu(case["alpha"])
    x = file.arrays["in/xb"]
    bias = None if case["b"] is None else file.arrays[f"in/{case['b']}"]
    # The original supports a bias along any axis, kd_jax along the last.
    axis = case.get("dim", 1)
    y = ops.bias_act(
        np.moveaxis(x, axis, -1), bias, activation, gain=case.get("gain"), clamp=case.get("clamp")
    )
    return np.moveaxis(np.asarray(y), -1, axis).transpose(0, 2, 3, 1)


FAMILIES = {"ops": Family(outputs, lambda name: 1e-5, slow=True)}
