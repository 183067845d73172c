"""The conventions of published evaluation tools, by tool name."""

from collections.abc import Mapping
from typing import NamedTuple


class Conventions(NamedTuple):
    """The settings of a tool, as arguments of the metrics.

    Values are comparable only between equal conventions. KID uses the same kernel in all tools, the
    polynomial of degree 3.

    Attributes:
      resize: the name of the resize to the feature network's resolution, in `evaluate.resize`.
      ddof: the covariance is divided by N - ddof: 1 or 0.
      kid_subsets: the number of subsets of KID.
      kid_size: the number of examples in each subset.
      kid_seed: the seed of the subsets; clean-fid and NVIDIA's tools use NumPy's global state.
      splits: the number of splits of the inception score.
      shuffle_seed: the seed of the permutation before splitting; None for no permutation.
      logits_bias: whether the score's logits include the last layer's bias.
      k: the radius of a ball is the distance to the k-th nearest neighbour.
      strict: whether a ball excludes its surface (`<`) or includes it (`<=`).
    """

    resize: str
    ddof: int = 1
    kid_subsets: int = 100
    kid_size: int = 1000
    kid_seed: int = 2020
    splits: int = 10
    shuffle_seed: int | None = None
    logits_bias: bool = False
    k: int = 3
    strict: bool = False


TOOLS: Mapping[str, Conventions] = {
    "torch-fidelity": Conventions("tf1-bilinear", shuffle_seed=2020),
    "pytorch-fid": Conventions("torch-bilinear"),
    "clean-fid": Conventions("pil-bicubic"),
    "nvlabs": Conventions("tf1-bilinear", ddof=0),
    "prdc": Conventions("tf1-bilinear", k=5, strict=True),
}
"""By tool name. Settings a tool does not define follow the papers: pytorch-fid has only the Frechet
distance, clean-fid also KID; prdc takes features as input."""
