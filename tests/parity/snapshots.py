"""NVIDIA's snapshots, read from `pkl/` beside the files with their expected contents."""

import numpy as np

from kd_jax import pretrained
from kd_jax.pretrained.io import allowed_types, containers
from parity.golden import FOLDER, Family, File, Outputs
from parity.stylegan2 import labels


def tensors(tree) -> dict[str, np.ndarray]:
    """Every tensor of a snapshot, by its name in the golden files."""
    if isinstance(tree, tuple):
        return {
            f"tf/{name}/{key}": value
            for name, network in zip(("G", "D", "Gs"), tree, strict=True)
            for key, value in allowed_types.variables(network).items()
        }
    return {
        f"sd/{name}.{key}": value
        for name, module in tree.items()
        if isinstance(module, allowed_types.Persistent)
        for key, value in allowed_types.state_dict(module).items()
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
    discriminator = parts["D"].convert()
    condition = labels(file.arrays.get("in/d_c", np.zeros((0, 0))))
    scores = discriminator.network.apply(discriminator.variables, file["in/d_img"], *condition)[0]
    outputs["out/d_logits"] = scores[:, None]
    if "out/G_w" in file:
        other = pretrained.load(path, "G")
        outputs["out/G_w"] = other.network.mapping(other.variables, *inputs)
    return outputs


FAMILIES = {"pkl": Family(snapshot, slow=True)}
