"""What the published tools do differently, by their names."""

from collections.abc import Mapping
from typing import NamedTuple


class Conventions(NamedTuple):
    """One tool's choices, as the metrics take them.

    Figures are comparable only where these agree. The kernel of KID is the same in all tools, the
    polynomial one of degree 3.

    Attributes:
      resize: the name of the way to the feature network's resolution, in `evaluate.resize`.
      ddof: of the covariance: 1 divides by N - 1, 0 by N.
      kid_subsets: how many subsets KID is the mean of.
      kid_size: examples in each.
      kid_seed: of their draws; clean-fid and NVIDIA's draw from NumPy's global state.
      splits: of the inception score.
      shuffle_seed: of the permutation before they are split; None for none.
      logits_bias: whether the score's logits have the last layer's bias.
      k: which neighbour a ball reaches to.
      strict: whether a ball is without its surface (`<`) or with it (`<=`).
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
"""By the tool's name. What a tool does not define is as in the papers: pytorch-fid has the Frechet
distance alone, clean-fid that and KID; prdc begins with features."""
