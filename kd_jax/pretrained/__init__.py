"""Published weights as networks: read as plain data, nothing executed, no PyTorch needed.

`load` gives a network and its variables, `parts` what there is in a file. From the command line,

    python -m kd_jax.pretrained ffhq.pkl --out DIR

says what a file is, and writes samples and a checkpoint.
"""

from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.published import Loaded, Part, load, parts
from kd_jax.pretrained.unpickle import UnsafeFileError

__all__ = ["Converted", "Loaded", "Part", "UnsafeFileError", "load", "parts"]
