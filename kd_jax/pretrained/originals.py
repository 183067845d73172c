"""State dicts under the names of the programs that published an architecture.

A student then goes back into the program that its teacher came from: PyTorch's DCGAN example,
Real-ESRGAN's and CycleGAN's programs.
"""

import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.types import Variables
from kd_jax.models import dcgan as dcgan_models, realesrgan as esrgan_models
from kd_jax.models.translation import ResNetGenerator
from kd_jax.pretrained import dcgan, realesrgan, translation
from kd_jax.pretrained.convert import Converted, Layout, invert


def original(
    network: Network, variables: Variables, classes: int = 0
) -> tuple[dict[str, np.ndarray], Converted]:
    """The state dict of a generator in the layout of its original program.

    Args:
      network: the generator.
      variables: its variables.
      classes: the number of classes of its labels.

    Returns:
      The tensors by name, float32, and the network that `kd_jax.pretrained` reads from them.

    Raises:
      ValueError: there is no original layout for this network.
    """
    layout: Layout
    match module := network.module:
        case dcgan_models.Generator():
            layout = dcgan.generator_layout(variables, classes)
        case esrgan_models.RRDBNet():
            layout = realesrgan.rrdb_layout(module, variables)
        case esrgan_models.SRVGGNet():
            layout = realesrgan.srvgg_layout(module, variables)
        case ResNetGenerator():
            layout = translation.resnet_layout(module, variables)
        case _:
            raise ValueError(
                f"no original layout of {type(module).__name__} is known; those of DCGAN, RRDBNet, "
                "SRVGGNet and CycleGAN's ResNet are"
            )
    tensors = invert(layout, variables)
    return tensors, layout.convert(tensors)
