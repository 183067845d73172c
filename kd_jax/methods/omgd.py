"""OMGD (Ren et al. 2021)."""

from collections.abc import Callable, Sequence

from kd_jax import losses
from kd_jax.core.network import tap_pairs
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array
from kd_jax.methods._common import Strength, TapNames, add, extract
from kd_jax.methods.taps import on_taps


def omgd(
    layers: Sequence[str],
    taps: TapNames = (),
    *,
    structure: Strength = 10.0,
    style: Strength = 1e4,
    content: Strength = 10.0,
    smoothness: Strength = 1e-5,
    channels: Strength = 1.0,
) -> PerNetwork:
    """Structure, style, content and smoothness of the teacher's image; no adversarial loss.

    Ren et al. 2021 (OMGD), sections 3.2 and 3.3. Use with `kd_jax.online_distillation` of teachers
    with their own adversarial losses, `for_teacher(name, omgd(...).generator)` for each, and no
    discriminator for the student.

    Args:
      layers: the extractor's taps; style and content are summed over them.
      taps: names, or `{student's: teacher's}`, of connected features whose channel means are
        compared; none by default.
      structure: the weight of 1 - SSIM.
      style: the weight of the Gram matrices.
      content: the weight of the L1 of features.
      smoothness: the weight of the total variation, a sum.
      channels: the weight of the channel means; ours.
    """
    tap_pairs(layers)

    def over_layers(loss: Callable[[Array, Array], Array]) -> Callable[[Forward], Array]:
        def term(f: Forward) -> Array:
            ours, theirs = extract(f, layers)
            return add([loss(ours[name], theirs[name]) for name in layers])

        return term

    terms = {
        "structure": Term(
            lambda f: losses.image.structural(f.student.output, f.teacher.output), structure
        ),
        "style": Term(over_layers(losses.image.style), style),
        "content": Term(over_layers(losses.feature.l1), content),
        "smoothness": Term(lambda f: losses.image.total_variation(f.student.output), smoothness),
    }
    if taps:
        means = on_taps(losses.feature.channel_means, taps, connect=True)
        terms["channels"] = Term(means, channels)
    return PerNetwork(terms, {})
