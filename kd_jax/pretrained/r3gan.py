"""R3GAN's networks, whose layers are named `Model.MainLayers.N.Layers.M`.

The authors compute some stages in bfloat16 (`FP16Stages`), which is not a property of the weights;
here the computation dtype is that of the whole network, float32.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kd_jax.core.network import Network
from kd_jax.core.types import Array
from kd_jax.models import r3gan
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader, check_variables

_STAGE = "Model.MainLayers."


def is_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `generator`."""
    return {f"{_STAGE}0.Layers.0.Basis", "Model.AggregationLayer.Layer.weight"} <= set(names)


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `discriminator`."""
    return {
        f"{_STAGE}0.Layers.0.LinearLayer1.Layer.weight",
        "Model.ExtractionLayer.Layer.weight",
    } <= (set(names))


def generator(tensors: StateDict) -> Converted:
    """`kd_jax.models.r3gan.generator`.

    Args:
      tensors: its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = _StageReader(tensors, "an R3GAN generator")
    start = f"{_STAGE}0.Layers.0"
    basis = reader.take(f"{start}.Basis", 3)
    reader.put("start/basis", basis.transpose(1, 2, 0))
    inputs = reader.linear("start/linear", f"{start}.LinearLayer")
    classes = embedding = 0
    if "Model.EmbeddingLayer.weight" in reader.tensors:
        classes = reader.linear("embed", "Model.EmbeddingLayer")
        embedding = reader.width
    reader.width = len(basis)
    for index in range(reader.count(_STAGE)):
        if index:
            reader.resample(f"up_{index}", f"{_STAGE}{index}.Layers.0")
        reader.stage(index, first=1)
    reader.conv("image", "Model.AggregationLayer.Layer")
    config = {
        **reader.config(),
        "latent": inputs - embedding,
        "channels": reader.width,
        "classes": classes,
        "embedding": embedding,
    }
    inputs_ = [jax.ShapeDtypeStruct((1, config["latent"]), jnp.float32)]
    return reader.convert(r3gan.generator(**config), config, inputs_)


def discriminator(tensors: StateDict) -> Converted:
    """`kd_jax.models.r3gan.discriminator`.

    Args:
      tensors: its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = _StageReader(tensors, "an R3GAN discriminator")
    channels = reader.conv("image", "Model.ExtractionLayer.Layer")
    stages = reader.count(_STAGE)
    for index in range(stages):
        if index:
            blocks = reader.blocks[-1]
            reader.resample(f"down_{index}", f"{_STAGE}{index - 1}.Layers.{blocks}")
        reader.stage(index, first=0)
    end = f"{_STAGE}{stages - 1}.Layers.{reader.blocks[-1]}"
    basis = reader.take(f"{end}.Basis.weight", 4)
    reader.put("basis", basis[:, 0].transpose(1, 2, 0))
    reader.linear("score", f"{end}.LinearLayer")
    classes = embedding = 0
    if "Model.EmbeddingLayer.weight" in reader.tensors:
        classes = reader.linear("embed", "Model.EmbeddingLayer")
        embedding = reader.width
    config = {**reader.config(), "classes": classes, "embedding": embedding}
    size = r3gan.SMALLEST << (stages - 1)
    images = [jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)]
    return reader.convert(r3gan.discriminator(**config), config, images)


class _StageReader:
    """Converts layers in the order of their execution.

    Args:
      tensors: the state dict.
      what: the expected network, for error messages.

    Attributes:
      width: the number of channels after the last layer.
      blocks: the number of blocks of each stage so far.
    """

    def __init__(self, tensors: StateDict, what: str):
        self.reader, self.what, self.tensors = StateDictReader(tensors, what), what, tensors
        self.variables: dict[str, Array] = {}
        self.width = 0
        self.blocks: list[int] = []
        self.stages: list[dict[str, int]] = []
        self.filters: list[np.ndarray] = []

    def count(self, prefix: str) -> int:
        """The number of `prefix0.`, `prefix1.`, ... that have tensors."""
        count = 0
        while any(name.startswith(f"{prefix}{count}.") for name in self.tensors):
            count += 1
        return count

    def take(self, name: str, rank: int) -> np.ndarray:
        """A tensor with this number of axes, none of length 0."""
        shape = self.reader.shape(name)
        if len(shape) != rank or 0 in shape:
            raise ValueError(f"{self.what}: {name} has shape {shape}, not {rank} axes")
        return self.reader.take(name)

    def put(self, path: str, value: Any) -> None:
        """Adds a parameter."""
        self.variables[f"params/{path}"] = jnp.asarray(value)

    def linear(self, ours: str, theirs: str) -> int:
        """Reads a linear layer, and returns the number of its inputs."""
        weight = self.take(f"{theirs}.weight", 2)
        self.put(f"{ours}/kernel", weight.T)
        self.width = weight.shape[0]
        return int(weight.shape[1])

    def conv(self, ours: str, theirs: str) -> int:
        """Reads a convolution, and returns the number of its inputs."""
        weight = self.take(f"{theirs}.weight", 4)
        self.put(f"{ours}/kernel", weight.transpose(2, 3, 1, 0))
        self.width = weight.shape[0]
        return int(weight.shape[1])

    def resample(self, ours: str, theirs: str) -> None:
        """Reads a filter, and the convolution beside it if there is one."""
        self.filters.append(np.asarray(self.take(f"{theirs}.Resampler.Kernel", 2)))
        if f"{theirs}.LinearLayer.Layer.weight" in self.tensors:
            self.conv(f"{ours}/conv", f"{theirs}.LinearLayer.Layer")

    def stage(self, index: int, first: int) -> None:
        """Reads the blocks of a stage, whose layers are numbered from `first`."""
        prefix, width = f"{_STAGE}{index}.Layers.", self.width
        blocks = 0
        while f"{prefix}{first + blocks}.LinearLayer1.Layer.weight" in self.tensors:
            ours, theirs = f"stage_{index}/block_{blocks}", f"{prefix}{first + blocks}"
            self.conv(f"{ours}/expand", f"{theirs}.LinearLayer1.Layer")
            hidden = self.width
            self.put(f"{ours}/expand/bias", self.take(f"{theirs}.NonLinearity1.Bias", 1))
            within = self.conv(f"{ours}/grouped", f"{theirs}.LinearLayer2.Layer")
            self.put(f"{ours}/grouped/bias", self.take(f"{theirs}.NonLinearity2.Bias", 1))
            self.conv(f"{ours}/reduce", f"{theirs}.LinearLayer3.Layer")
            if hidden % within:
                raise ValueError(
                    f"{self.what}: {theirs}.LinearLayer2.Layer.weight has {within} inputs, which "
                    f"do not divide {hidden} channels"
                )
            if not blocks:
                kernel = self.reader.shape(f"{theirs}.LinearLayer2.Layer.weight")[2]
                stage = {"hidden": hidden, "groups": hidden // within, "kernel": kernel}
            blocks += 1
        if not blocks:
            raise ValueError(
                f"not {self.what}: {prefix}{first}.LinearLayer1.Layer.weight is missing"
            )
        self.blocks.append(blocks)
        self.stages.append({"width": width, **stage})
        self.width = width

    def config(self) -> dict[str, Any]:
        """The arguments of the factories that describe the stages."""
        filters = [f for f in self.filters if not np.array_equal(f, self.filters[0])]
        if filters:
            raise ValueError(f"{self.what} has filters that differ from one another")
        return {
            **{key: [stage[key] for stage in self.stages] for key in ("width", "groups", "hidden")},
            "blocks": self.blocks,
            "kernel": self.stages[0]["kernel"],
            **({"resample_filter": self.filters[0].tolist()} if self.filters else {}),
        }

    def convert(
        self, network: Network, config: dict[str, Any], inputs: list[jax.ShapeDtypeStruct]
    ) -> Converted:
        """The network with all variables read so far."""
        self.reader.check_all_read()
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        if config["classes"]:
            inputs = [*inputs, jax.ShapeDtypeStruct((1,), jnp.int32)]
        return check_variables(self.what, Converted(network, variables, config), *inputs)
