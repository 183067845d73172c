"""The README's examples run as written, and its commands and links exist."""

import re
from pathlib import Path

import jax
import numpy as np

import kd_jax as kd

ROOT = Path(__file__).parents[1]


def test_the_examples_run_as_written():
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    teacher = kd.models.dcgan.generator(32, width=64)
    scope = {
        "images": images,
        "teacher_variables": teacher.init(jax.random.key(1), np.zeros((4, 64), np.float32)),
    }
    exec(compile(first, "README.md", "exec"), scope)
    assert int(scope["state"].step) == 1
    assert np.isfinite(scope["metrics"]["g/pixel"])
    assert len(first.splitlines()) <= 30

    exec(compile(second, "README.md", "exec"), scope)
    connectors = scope["state"].generator.variables["params"]["connectors"]
    assert connectors["8x8"]["kernel"].shape == (16, 128)
    kernel = scope["state"].generator.variables["params"]["Dense_0"]["kernel"]
    assert np.isin(kernel, scope["teacher_variables"]["params"]["Dense_0"]["kernel"]).all()
    step = jax.eval_shape(
        kd.make_train_step(scope["setup"]),
        scope["state"],
        kd.Teacher(scope["teacher_variables"]),
        {"image": images},
    )
    assert {"g/features", "g/reconstruction/weight"} <= set(step[1])


def test_targets_modules_and_links_of_the_readme_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", readme, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m (experiments[\w.]+)", readme)):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link
