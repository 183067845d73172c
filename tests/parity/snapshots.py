"""NVIDIA's snapshots, read from `pkl/` beside the files that say what is in them."""

import numpy as np

from kd_jax import pretrained
from kd_jax.pretrained import containers, stand_ins
from parity.golden import FOLDER, Family, File, Outputs
from parity.stylegan2 import labels


def tensors(tree) -> dict[str, np.ndarray]:
    """Every tensor of a snapshot, as the files name them."""
    if isinstance(tree, tuple):
        return {
            f"tf/{name}/{key}": value
            for name, network in zip(("G", "D", "Gs"), tree, strict=True)
            for key, value in stand_ins.variables(network).items()
        }
    return {
        f"sd/{name}.{key}": value
        for name, module in tree.items()
        if isinstance(module, stand_ins.Persistent)
        for key, value in stand_ins.state_dict(module).items()
    }


def snapshot(file: File) -> Outputs:
    path = FOLDER / file.config["pkl"]
    read = tensors(containers.read(path))
    stored = {k: v for k, v in file.arrays.items() if k.startswith(("sd/", "tf/"))}
    compared = {k: v for k, v in stored.items() if k in read}
    assert compared, "no tensor of the file is in the snapshot"
    for name, value in compared.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
        assert read[name].dtype == value.dtype

    network, variables = pretrained.load(path)
    inputs = (file["in/z"], *labels(file.arrays.get("in/c", np.zeros((0, 0)))))
    styles = network.mapping(variables, *inputs, truncation=0.7)
    outputs: dict[str, object] = {"out/w_psi07": styles}
    outputs["out/img"] = network.synthesis(variables, styles)[0]
    parts = pretrained.parts(path)
    judge = parts["D"].convert()
    condition = labels(file.arrays.get("in/d_c", np.zeros((0, 0))))
    scores = judge.network.apply(judge.variables, file["in/d_img"], *condition)[0]
    outputs["out/d_logits"] = scores[:, None]
    if "out/G_w" in file:
        other = pretrained.load(path, "G")
        outputs["out/G_w"] = other.network.mapping(other.variables, *inputs)
    return outputs


FAMILIES = {"pkl": Family(snapshot, slow=True)}
