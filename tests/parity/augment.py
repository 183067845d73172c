"""Augmentations: the files contain every draw of DiffAugment, and a quantile for ADA."""

import jax
import jax.numpy as jnp

from kd_jax.augment import Settings, ada, diff
from parity.golden import Family, File, Outputs


def augment_by_name(images, name: str, draws: list):
    """Applies the augmentation of that name, which pops its draws from the head of the list.

    The original draws are uniform in [0, 1) for colors; a shift is towards a pixel's source.
    """
    if name == "brightness":
        return diff.brightness(images, draws.pop(0) - 0.5)
    if name == "saturation":
        return diff.saturation(images, 2 * draws.pop(0))
    if name == "contrast":
        return diff.contrast(images, draws.pop(0) + 0.5)
    pair = jnp.stack([draws.pop(0), draws.pop(0)], axis=1)
    return diff.translate(images, -pair) if name == "translation" else diff.cut_out(images, pair)


GROUPS = {"color": ("brightness", "saturation", "contrast")}


def diffaugment(file: File) -> Outputs:
    outputs = {}
    for key in [name for name in file if name.startswith("out/") and not name.endswith("_vjp")]:
        name = key.removeprefix("out/")
        drawn = name if f"in/{name}/draw0" in file.arrays else name.partition("_")[0]
        draws = [draw.reshape(-1) for draw in file.numbered(f"in/{drawn}/draw")]
        parts = name.removeprefix("rand_").removeprefix("policy_").split(",")

        def augment(images, parts=parts, draws=draws):
            left = list(draws)
            for part in (one for name in parts for one in GROUPS.get(name, (name,))):
                images = augment_by_name(images, part, left)
            assert not left, "unused draws"
            return images

        outputs[key], vjp = jax.vjp(augment, jnp.asarray(file["in/x"]))
        outputs[f"{key}_vjp"] = vjp(jnp.asarray(file["in/ct"]))[0]
    return outputs


def quantile(shape: tuple[int, ...], q: float) -> ada.Draws:
    """The original's draws: all gates open, no rotation after stretching, and `erfinv` for normal
    draws, whose quantile is sqrt(2) times that.
    """
    draws = ada.draw(jax.random.key(0), shape)
    normal = jax.tree.map(lambda x: jnp.full_like(x, jax.lax.erf_inv(2 * q - 1.0)), draws.normal)
    return draws._replace(
        gates=jax.tree.map(jnp.zeros_like, draws.gates),
        uniform={
            **jax.tree.map(lambda x: jnp.full_like(x, q), draws.uniform),
            "rotate_after": jnp.full(shape[:1], 0.5),
        },
        normal={**normal, "noise": jnp.full(shape[:1], jax.lax.erf_inv(q))},
    )


def pipeline(file: File) -> Outputs:
    settings, images = Settings(**file.config["kwargs"]), jnp.asarray(file["in/x"])
    draws = quantile(images.shape, file.config["debug_percentile"])
    return {"out/y": ada.augment(draws, images, 1.0, settings)}


FAMILIES = {
    "diffaugment": Family(diffaugment, lambda name: 1e-6),
    "ada": Family(pipeline, slow=True),
}
