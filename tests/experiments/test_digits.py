"""The digits experiment, from data to a report: resuming after a kill, and refusing bad input."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from reports import read_figures, read_report

from experiments import digits, harness, runner
from kd_jax.cli import evaluate as command
from kd_jax.core import architecture, files
from kd_jax.core.setup import Teacher
from kd_jax.models import dcgan
from kd_jax.train import checkpoint, training
from kd_jax.train.checkpoint import CheckpointError
from kd_jax.train.logs import read_jsonl
from kd_jax.train.loop import NonFiniteError

ROOT = Path(__file__).parents[2]
ARMS = ("from_scratch", "distilled")


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny():
    config = digits.get_config("tiny")
    del config.regimes.all
    return config.lock()


execute = partial(harness.execute, digits.EXPERIMENT)


def run(workdir, *flags, **kwargs):
    args = [sys.executable, "-m", "experiments.digits", "--preset=tiny", f"--workdir={workdir}"]
    return subprocess.run(
        [*args, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs
    )


def test_data_to_report(tmp_path, capsys, monkeypatch):
    config = digits.get_config("tiny")
    execute(config, tmp_path)
    printed = capsys.readouterr().out
    students = [f"{regime}/{arm}" for regime in ("all", "scarce") for arm in ARMS]
    figures, report = read_figures(tmp_path), read_report(tmp_path)
    assert list(figures) == ["teacher", *students]
    assert [figures[name]["images"]["value"] for name in figures] == [1797, 1797, 1797, 90, 90]
    assert "20 samples against the 1,797 real images" in report["tables"][0]["about"]
    assert report["protocol"]["extractor"].startswith("digits-classifier-")
    assert report["protocol"]["draws"] == 3
    for name, own in figures.items():
        assert own["frechet"]["deviation"] >= 0, name
        assert 0 <= own["accuracy"]["value"] <= 1
    parameters = {name: own["parameters"]["value"] for name, own in figures.items()}
    assert parameters["teacher"] > parameters["all/distilled"] == parameters["all/from_scratch"]
    assert report["configuration"]["student"]["width"] == config.student.width
    lines = printed.splitlines()
    assert lines[0] == "preparing data and networks"
    assert any("seed0/teacher: step 2/4" in line and "images/s" in line for line in lines)
    assert any("for all trainings" in line for line in lines)
    assert f"written: {tmp_path / 'report.html'}" in lines
    page = (tmp_path / "report.md").read_text()
    assert str(tmp_path) not in page
    nearest = [f"nearest_{name.replace('/', '_')}.png" for name in students]
    for picture in ("examples.png", "curves.png", *nearest):
        assert f"({picture})" in page
        with Image.open(tmp_path / picture) as opened:
            assert opened.width > 100
    rows = read_jsonl(tmp_path / "seed0/teacher/metrics.jsonl")
    assert [row["step"] for row in rows if "g/total" in row] == [2, 4]
    assert [row["step"] for row in rows if "quality/frechet" in row] == [2, 4]
    # The cosine schedule by hand, after 1 and 3 of 4 steps, from 1e-3 to a tenth of it.
    rates = [row["g/learning_rate"] for row in rows if "g/total" in row]
    expected = [1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * step / 4)) / 2) for step in (1, 3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert all(abs(row["wall_time"] - time.time()) < 3600 for row in rows)
    samples = tmp_path / "seed0/scarce/distilled/samples"
    assert sorted(file.name for file in samples.iterdir()) == [
        f"{step:06d}.png" for step in (0, 2, 4)
    ]
    assert list((tmp_path / "seed0/teacher").glob("events.out.tfevents.*"))

    # `best/` holds the best evaluated generator, and its architecture.
    _, best = checkpoint.load_generator(tmp_path / "seed0/teacher/best")
    assert best["value"] == min(r["quality/frechet"] for r in rows if "quality/frechet" in r)
    loaded, variables = checkpoint.load_network(tmp_path / "seed0/scarce/distilled/best")
    assert loaded.classes == 10
    z, labels = np.zeros((1, config.latent), np.float32), np.zeros(1, np.int32)
    assert loaded.network.apply(variables, z, labels)[0].shape == (1, 16, 16, 1)

    # A second run finds all trainings finished and evaluated, and reports the same results.
    def fails(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(runner, "train", fails)
    execute(config, tmp_path)
    again = read_figures(tmp_path)
    for name, own in figures.items():
        assert again[name]["frechet"] == own["frechet"]

    # The command measures the same distances, in all digits.
    out = tmp_path / "evaluation"
    command.main(
        [f"{tmp_path / 'seed0/all/distilled'}", "--data=digits", "--samples=20", f"--out={out}"]
    )
    ((name, own),) = read_figures(out).items()
    assert name == "all/distilled"
    assert own["frechet"]["value"] == figures["all/distilled"]["frechet"]["value"]
    assert own["frechet"]["deviation"] == figures["all/distilled"]["frechet"]["deviation"]


@pytest.mark.slow
def test_diagnostics_warn_once_and_are_logged(tmp_path, capsys):
    config = digits.get_config("tiny")
    del config.regimes.all
    config.diagnostics = True
    config.regimes.scarce.distilled.pixel = 1e6
    execute(config.lock(), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning:" in line]
    (line,) = (line for line in lines if "g/pixel" in line)
    assert "g/pixel outweighs g/adversarial" in line
    assert line.startswith(f"{tmp_path.name}/seed0/scarce/distilled: step 2") or "scarce" in line
    rows = read_jsonl(tmp_path / "seed0/scarce/distilled/metrics.jsonl")
    probed = [row for row in rows if "health/image_gradient/pixel" in row]
    assert [row["step"] for row in probed] == [2, 4]
    ratio = (
        probed[0]["health/image_gradient/pixel"] / probed[0]["health/image_gradient/adversarial"]
    )
    assert ratio > 1e4
    assert probed[0]["health/teacher/fingerprint"] == probed[1]["health/teacher/fingerprint"]


def test_resuming_with_another_teacher_is_refused(tmp_path):
    config = tiny()
    comparison = digits.build(config)
    task = digits.make_task(config)
    plans, _ = runner.plan(config, comparison)
    teachers = [
        task.teacher.generator.init(jax.random.key(seed), np.zeros((1, 8)), np.zeros(1, np.int32))
        for seed in (0, 1)
    ]

    def train(teacher):
        return training.train(
            tmp_path / "run",
            plans["scarce/distilled"]._replace(teacher=Teacher(teacher)),
            comparison.teacher.batches(0),
            seed=0,
            configuration={},
            quality=lambda variables: {},
            schedule=training.Schedule(2, 4, 4),
        )

    first = train(teachers[0])
    again = train(teachers[0])
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert first.discriminator is not None
    with pytest.raises(CheckpointError, match="configuration: teacher's fingerprint is"):
        train(teachers[1])


CLASSES = 10


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("result.json", lambda content: content.replace(b"7.25", b"7.24")),
        ("result.json", lambda content: content[:-20]),
        ("result.json", lambda content: b"{}"),
        ("shown.npy", lambda content: content[:-1] + b"\x01"),
        ("shown.npy", None),
        ("metrics.jsonl", lambda content: content.replace(b"1", b"2")),
    ],
    ids=["a digit", "cut", "empty", "a byte", "lost", "metrics"],
)
def test_a_damaged_result_is_named_and_evaluated_again(tmp_path, capsys, name, change):
    config = tiny()
    run = runner.Run(config, digits.build(config), tmp_path)
    training = run.comparison.teacher
    folder = run.folder(training, 0)
    folder.mkdir(parents=True)
    np.save(folder / "shown.npy", np.zeros((2, 16, 16, 1), np.uint8))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    figure = runner.Figure(7.25, values=(7.25,))._asdict()
    content = {
        "settings": run._result_settings(training),
        "metrics": {"frechet": figure},
        "changes": [],
        "files": {file: files.file_sha256(folder / file) for file in runner.RESULT_FILES},
    }
    files.write_json(folder / "result.json", content)
    assert run._read(training, 0).metrics["frechet"].value == 7.25
    if change is None:
        (folder / name).unlink()
    else:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(change(before))
        assert (folder / name).read_bytes() != before
    assert run._read(training, 0) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert not (folder / "result.json").exists()


def save_teacher(folder, latent=8, classes=CLASSES, channels=1, seed=0):
    """A teacher of another run: a described generator with random variables."""
    network = dcgan.generator(16, 8, channels=channels, classes=classes)
    inputs = [np.zeros((1, latent), np.float32), np.zeros(1, np.int32)][: 2 if classes else 1]
    variables = jax.jit(network.init)(jax.random.key(seed), *inputs)
    likes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    description = architecture.describe(network, *likes)
    checkpoint.save_generator(folder / "checkpoint", variables, {}, description)
    return variables


def test_a_teacher_of_another_run_is_distilled(tmp_path):
    variables = save_teacher(tmp_path / "teacher")
    config = tiny()
    with config.unlocked():
        config.teacher.path = str(tmp_path / "teacher")
    comparison = digits.build(config)
    plans, _ = runner.plan(config, comparison)
    assert set(plans) == {f"scarce/{arm}" for arm in ARMS}
    teacher = plans["scarce/distilled"].teacher.generator
    jax.tree.map(np.testing.assert_array_equal, teacher, variables)

    # A result is valid for these variables, not for this path.
    settings = runner.Run(config, comparison, tmp_path)._result_settings(comparison.teacher)
    shutil.rmtree(tmp_path / "teacher")
    save_teacher(tmp_path / "teacher", seed=1)
    other = digits.build(config)
    assert runner.Run(config, other, tmp_path)._result_settings(other.teacher) != settings


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"latent": 7}, ("latents [7] and labels of 10 classes", "latents [8] and labels of 10")),
        ({"classes": 3}, ("labels of 3 classes", "labels of 10 classes")),
        ({"classes": 0}, ("latents [8] -> ", "labels of 10 classes")),
        ({"channels": 3}, ("16x16x3", "16x16x1")),
        (None, ("nowhere",)),
    ],
    ids=str,
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, options, parts):
    path = tmp_path / ("nowhere" if options is None else "teacher")
    if options is not None:
        save_teacher(path, **options)
    config = tiny()
    with config.unlocked():
        config.teacher.path = str(path)
    with pytest.raises(harness.UsageError) as error:
        harness.execute(digits.EXPERIMENT, config, tmp_path / "run")
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loaded_teacher_gives_the_student_of_its_own_run(tmp_path):
    config = tiny()
    execute(config, tmp_path / "first")
    with config.unlocked():
        config.teacher.path = str(tmp_path / "first/seed0/teacher")
    execute(config, tmp_path / "second")
    for student in ("scarce/distilled",):
        one, other = (
            checkpoint.load_generator(tmp_path / run / "seed0" / student / "checkpoints")[0]
            for run in ("first", "second")
        )
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not (tmp_path / "second/seed0/teacher/checkpoints").exists()
    first, second = (read_figures(tmp_path / run)["teacher"] for run in ("first", "second"))
    assert first["frechet"] == second["frechet"]


def arrays(folder):
    """The dtype and bytes of every leaf of every last checkpoint below a folder."""
    leaves = {}
    for path in sorted(folder.glob("seed*/**/checkpoints/4/*")):
        if path.name in ("generator", "training"):
            tree = ocp.StandardCheckpointer().restore(path.absolute())
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    leaf = jax.random.key_data(leaf)
                name = f"{path.relative_to(folder)}{jax.tree_util.keystr(key)}"
                leaves[name] = (np.asarray(leaf).dtype, np.asarray(leaf).tobytes())
    return leaves


def logged(path):
    """The lines of a metrics file without the times, in all digits."""
    return [json.dumps(row | {"wall_time": 0}) for row in read_jsonl(path)]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_exactly(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    assert run(unbroken).returncode == 0

    def saved(folder):
        pattern = "checkpoints/*/manifest.json"
        return [*folder.glob(f"seed0/teacher/{pattern}"), *folder.glob(f"seed0/*/*/{pattern}")]

    checkpoints = saved(unbroken)
    kills = 0
    for count in sorted(random.sample(range(1, len(checkpoints)), 2)):
        args = [sys.executable, "-m", "experiments.digits", "--preset=tiny", f"--workdir={killed}"]
        with subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if len(saved(killed)) >= count:
                    time.sleep(random.uniform(0, 0.5))
                    process.send_signal(signal.SIGKILL)
                    kills += process.wait() == -signal.SIGKILL
                    break
                time.sleep(0.01)
    assert kills
    again = run(killed)
    assert again.returncode == 0, again.stderr
    expected = arrays(unbroken)
    assert len(expected) > 100
    assert arrays(killed) == expected
    metrics = sorted(p.relative_to(unbroken) for p in unbroken.glob("**/metrics.jsonl"))
    assert len(metrics) == 5
    for path in metrics:
        assert logged(killed / path) == logged(unbroken / path)


@pytest.mark.parametrize(
    ("model", "initialization", "width", "message"),
    [
        ("dcgan", "size", 2, "'size' is not one of magnitude, norm_scale, or empty"),
        ("mlp", "norm_scale", 2, "'norm_scale': group 'hidden0' has no normalisation layer"),
        ("dcgan", "magnitude", 9, "'magnitude': group '4x4' cannot have 18 of its 16 channels"),
    ],
)
def test_impossible_initializations_give_one_line(tmp_path, model, initialization, width, message):
    config = digits.get_config("tiny")
    del config.regimes.all
    config.model, config.student.width = model, width
    config.regimes.scarce.distilled.initialization = initialization
    setting = "config.regimes.scarce.distilled.initialization"
    with pytest.raises(harness.UsageError, match=f"{setting}={message}"):
        execute(config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_distilled_student_inherits_the_teachers_channels():
    config = tiny()
    task = digits.make_task(config)
    batch = runner.example_batch(config, task.source)
    inputs = task.inputs(jax.random.key(0), batch)
    teacher = jax.jit(task.teacher.generator.init)(jax.random.key(1), *inputs.generator)
    distilled = digits.student_plan(config, task, "scarce", "distilled", Teacher(teacher))
    state = jax.jit(distilled.init)(jax.random.key(0), batch)
    for variables in (state.generator.variables, state.ema):
        kernel = variables["params"]["Dense_0"]["kernel"]
        assert kernel.shape == (16, 64)
        assert np.isin(kernel, teacher["params"]["Dense_0"]["kernel"]).all()
    from_scratch = digits.student_plan(config, task, "scarce", "from_scratch", Teacher(teacher))
    state = jax.jit(from_scratch.init)(jax.random.key(0), batch)
    kernel = state.generator.variables["params"]["Dense_0"]["kernel"]
    assert not np.isin(kernel, teacher["params"]["Dense_0"]["kernel"]).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.student.widht=3"],
            "--config.student.widht: no 'widht' here; did you mean width?",
        ),
        (["--config.student.width=wide"], "config.student.width"),
        (["--preset=huge"], "preset"),
        (["--config.data.size=20"], "a DCGAN's size is one of 16, 32, 64, 128, 256, not 20"),
        (["--config.mesh.data=3"], "3 devices"),
        (["leftover"], "leftover"),
    ],
)
def test_bad_flags_give_one_line(tmp_path, flags, message):
    result = run(tmp_path / "new", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    files = list(tmp_path.glob("new/*"))
    assert not files, files


def image(path, size=(16, 16), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def folders(tmp_path, case):
    for name in ("a", "b"):
        image(tmp_path / name / "1.png")
    if case == "no image":
        (tmp_path / "a/2.png").write_text("hello")
    if case == "other size":
        image(tmp_path / "a/2.png", (8, 8))
    if case == "other channels":
        image(tmp_path / "a/2.png", mode="RGB")


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("no image", ["a/2.png"]),
        ("other size", ["a/2.png", "8x8", "16x16"]),
        ("other channels", ["a/2.png", "RGB", "grey"]),
    ],
)
def test_bad_images_are_named(tmp_path, case, parts):
    folders(tmp_path, case)
    config = tiny()
    config.data.source = f"folder:{tmp_path}"
    with pytest.raises(harness.UsageError) as error:
        execute(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("make", [False, True])
def test_missing_and_empty_folders_are_named(tmp_path, make):
    folder = tmp_path / "photos"
    if make:
        folder.mkdir()
    config = tiny()
    config.data.source = f"folder:{folder}"
    with pytest.raises(harness.UsageError, match="photos"):
        execute(config, tmp_path / "run")


def test_a_batch_that_is_not_divisible_is_refused(tmp_path):
    config = tiny()
    config.mesh.data, config.batch_size = 8, 12
    with pytest.raises(harness.UsageError, match=r"batch size 12 .* 8 devices; .* 8, 16"):
        execute(config, tmp_path)


def test_another_configuration_is_refused(tmp_path):
    config = tiny()
    harness.check_workdir(tmp_path, config, resume=True)
    with config.unlocked():
        config.student.width = 3
    with pytest.raises(harness.UsageError, match=r"student.width is 2 there, 3 here"):
        harness.check_workdir(tmp_path, config, resume=True)
    with pytest.raises(harness.UsageError, match="holds a run"):
        harness.check_workdir(tmp_path, tiny(), resume=False)


def test_an_interrupted_check_workdir_can_be_repeated(tmp_path):
    partial = tmp_path / "config.json.12.partial"
    partial.write_text("{")
    harness.check_workdir(tmp_path, digits.get_config("tiny"), True)
    assert json.loads((tmp_path / "config.json").read_text())["latent"] == 8


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(
            harness.UsageError, match=r"\.lock cannot be locked \(Operation not supported\)"
        ),
        files.file_lock(tmp_path),
    ):
        pass


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(harness.UsageError, match="holds other files"):
        harness.check_workdir(tmp_path, tiny(), resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_nan_error_names_step_and_term_and_checkpoints_stay_finite(tmp_path):
    config = tiny()
    config.teacher.g_rate = 1e38
    with pytest.raises(NonFiniteError) as error:
        execute(config, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert "seed0/teacher: step " in message
    assert any(name in message for name in ("g/", "d/"))
    for folder in tmp_path.glob("seed0/teacher/checkpoints/*"):
        tree = ocp.StandardCheckpointer().restore((folder / "generator").absolute())
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_and_the_previous_one_restored(tmp_path, capsys):
    config = tiny()
    execute(config, tmp_path)
    before = arrays(tmp_path)
    victim = max(
        (p for p in tmp_path.glob("seed0/teacher/checkpoints/4/generator/**/*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    os.truncate(victim, victim.stat().st_size // 2)
    for result in tmp_path.rglob("result.json"):  # otherwise no checkpoint is read again
        result.unlink()
    capsys.readouterr()
    execute(config, tmp_path)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if str(victim) in line]
    assert "set aside, and step 2 taken" in line
    assert "at step 2 of 4" in printed
    assert len(list(tmp_path.glob("seed0/teacher/checkpoints/4.damaged"))) == 1
    assert arrays(tmp_path) == before


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    execute(tiny(), tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert "scarce/distilled: 4 steps of" in printed
    assert "GFLOP" in printed
    assert "MiB" in printed
    assert "Total: 6,401" in printed  # the teacher's generator
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mlp_with_a_mesh_and_bfloat16(tmp_path):
    config = tiny()
    config.model, config.dtype = "mlp", "bfloat16"
    config.mesh.data, config.mesh.model = 4, 2
    config.data.size = 28
    execute(config, tmp_path)
    assert (tmp_path / "report.md").exists()


@pytest.mark.slow
def test_a_signal_during_compilation_stops_the_run(tmp_path):
    """JAX compiles in a thread of its own, which the end of the interpreter must not wait for."""
    args = [sys.executable, "-m", "experiments.stylegan2", f"--workdir={tmp_path / 'run'}"]
    args += ["--config.evaluate.features=none", "--config.run.tensorboard=False"]
    # Neither the program in the cache nor the tests' fast compilation.
    environment = {**os.environ, "KD_JAX_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": ""}
    with subprocess.Popen(
        args, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if "compiling the step" in line:
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=120)
    assert process.returncode == harness.EXIT_CODES["stopped"], error
    assert error.strip().splitlines() == ["stopped (SIGINT): the same command resumes"]
    assert not any((tmp_path / "run/seed0/teacher/checkpoints").iterdir())
