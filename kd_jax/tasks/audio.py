"""Audio."""

from kd_jax import ops
from kd_jax.core.checks import batch_entry
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.types import Array, Batch


def bandwidth_extension(factor: int) -> MakeInputs:
    """Waveforms from decimated versions: generators take `[B, L / factor, C]`.

    The discriminator takes, after the waveform `[B, L, C]`, the interpolated input of the
    generator. The batch entry is `wave`.

    Args:
      factor: a divisor of the waveform length; see `kd_jax.ops.decimate`.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        del key
        waves = batch_entry(batch, "wave")
        low = ops.decimate(waves, factor)
        return Inputs((low,), (ops.interpolate(low, factor),), waves, batch)

    return make
