"""Networks from published weight files, read as plain data: no code is executed, no PyTorch needed.

`load` returns a network and its variables; `parts` lists the networks in a file. The command

    kd-jax inspect ffhq.pkl --out DIR

describes a file, and writes samples and a checkpoint.
"""

from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.io.unpickle import UnsafeFileError
from kd_jax.pretrained.registry import Loaded, Part, load, parts

__all__ = ["Converted", "Loaded", "Part", "UnsafeFileError", "load", "parts"]
