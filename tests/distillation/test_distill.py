"""`kd_jax.distill` and `kd-jax distill`: students of tiny teachers, answers on disk, bad input."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

import kd_jax as kd
from kd_jax.cli import distill as command
from kd_jax.core import cost
from kd_jax.core.checks import UsageError
from kd_jax.core.objective import Term
from kd_jax.core.setup import PerNetwork
from kd_jax.distillation import METHODS, choices, pipeline
from kd_jax.distillation.answers import keep_answers
from kd_jax.distillation.examples import AnsweredBatches, latent_examples, teacher_answers
from kd_jax.models.families import FAMILIES
from kd_jax.report.progress import Progress
from kd_jax.train import training
from kd_jax.train.logs import read_jsonl
from kd_jax.train.shutdown import ShutdownRequested

TINY = {"macs": 0.4, "batch_size": 8, "samples": 16, "features": "none"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A generator of 16x16."""
    folder = tmp_path_factory.mktemp("weights")
    return published.write_dcgan(folder / "g.safetensors", widths=(8, 6), latent=4)


def arrays(model):
    return jax.tree.leaves(jax.device_get(model.variables))


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(arrays(ours), arrays(theirs), strict=True))


@pytest.fixture(scope="module")
def pixel(weights, tmp_path_factory):
    """A distillation of 20 steps without a discriminator."""
    out = tmp_path_factory.mktemp("pixel") / "out"
    return kd.distill(weights, out, steps=20, method="pixel", **TINY)


def test_the_folder_has_a_student_a_report_and_sample_grids(pixel, weights):
    folder = pixel.folder
    for name in ("report.html", "report.md", "report.json", "examples.png", "curves.png"):
        assert (folder / name).stat().st_size
    assert [p.name for p in sorted((folder / "training" / "samples").iterdir())][:2] == [
        "000000.png",
        "000001.png",
    ]
    assert equal(kd.load(folder), pixel.student)
    assert equal(kd.load(folder / "student"), pixel.student)
    table = json.loads((folder / "report.json").read_text())["tables"][0]
    assert [entry["name"] for entry in table["entries"]] == ["teacher", "student"]
    assert (
        table["entries"][1]["figures"]["error"]["value"] == pixel.figures["student"]["error"].value
    )


def test_the_error_is_that_of_the_images_of_both_networks(pixel, weights):
    """The report's L1, from a plain application of both networks to the same latents."""
    teacher = kd.load(weights)
    key = jax.random.fold_in(jax.random.key(0), 0)
    z = jax.random.normal(key, (16, 4))
    images = [
        np.rint(127.5 * (np.clip(m.network.apply(m.variables, z)[0], -1, 1) + 1)) / 127.5
        for m in (teacher, pixel.student)
    ]
    expected = np.abs(images[0] - images[1]).mean()
    assert pixel.figures["student"]["error"].value == pytest.approx(expected, rel=1e-3)


def test_the_losses_fall(pixel):
    rows = read_jsonl(pixel.folder / "training" / "metrics.jsonl")
    totals = [row["g/total"] for row in rows if "g/total" in row]
    assert np.mean(totals[-5:]) < np.mean(totals[:5])


def test_another_call_with_the_same_settings_repeats_the_report(pixel, weights):
    again = kd.distill(weights, pixel.folder, steps=20, method="pixel", **TINY)
    assert equal(again.student, pixel.student)


def test_the_baseline_has_the_discriminator_of_the_family(weights):
    """Of a family that is passed, not of the one that its module would have."""
    family = FAMILIES[0]._replace(
        discriminator=lambda like: kd.models.mlp.discriminator(5, classes=like.classes)
    )
    parts = choices.make_distillation(weights, macs=0.4, family=family, method="pixel")
    networks = choices.make_plan(parts, 10, baseline=True).setup.networks
    assert networks.discriminator.module.widths == (5, 5)


@pytest.mark.parametrize(
    "changed", [{"method": "response"}, {"batch_size": 16}, {"seed": 1}, {"samples": 8}], ids=str
)
def test_another_distillation_does_not_take_the_folder(pixel, weights, changed):
    before = (pixel.folder / "report.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds a distillation with other settings"):
        kd.distill(weights, pixel.folder, steps=20, **{"method": "pixel", **TINY, **changed})
    assert (pixel.folder / "report.json").read_bytes() == before


def test_a_stopped_distillation_resumes_to_the_same_bits(pixel, weights, tmp_path, monkeypatch):
    save = training._Training.save

    def save_and_stop(self, step, state):
        save(self, step, state)
        if step == 8:
            self.checkpoints.wait()
            raise ShutdownRequested("a test")

    monkeypatch.setattr(training._Training, "save", save_and_stop)
    monkeypatch.setattr(pipeline, "LEAST_STEPS", 2)  # between checkpoints
    with pytest.raises(ShutdownRequested):
        kd.distill(weights, tmp_path / "out", steps=20, method="pixel", **TINY)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "student").exists()
    resumed = kd.distill(weights, tmp_path / "out", steps=20, method="pixel", **TINY)
    assert equal(resumed.student, pixel.student)


def test_stored_answers_give_the_same_student(weights, tmp_path):
    options = {**TINY, "steps": 6, "method": "pixel", "latents": 70}
    plain = kd.distill(weights, tmp_path / "plain", **options)
    stored = kd.distill(weights, tmp_path / "stored", answers=True, **options)
    assert equal(plain.student, stored.student)
    assert len(list((tmp_path / "stored" / "answers").glob("*.array_record"))) == 2


@pytest.fixture
def store(weights, tmp_path):
    teacher = kd.load(weights)
    inputs = latent_examples(teacher.interface, 130)

    def fill(folder=tmp_path / "answers", model=teacher, answer=None):
        return keep_answers(folder, model, inputs, answer or teacher_answers(model), Progress())

    return teacher, inputs, fill, tmp_path / "answers"


def test_answers_are_those_of_the_teacher(store):
    teacher, inputs, fill, _ = store
    numbers = np.array([129, 0, 64, 63, 0])
    latents = inputs.prepare(inputs.select(numbers))[0]
    expected = teacher.network.apply(teacher.variables, latents)[0]
    np.testing.assert_allclose(fill()(numbers), expected, atol=1e-6)


def test_an_interrupted_filling_continues(store):
    teacher, _, fill, folder = store
    answer, calls = teacher_answers(teacher), []

    def failing(latents):
        calls.append(len(latents[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(latents)

    with pytest.raises(KeyboardInterrupt):
        fill(answer=failing)
    assert len(list(folder.glob("*.array_record"))) == 1
    fill(answer=failing)
    assert calls == [64, 64, 64, 2]
    fill(answer=failing)
    assert len(calls) == 4


def test_stale_and_damaged_answers_are_named(store):
    teacher, _, fill, folder = store
    fill()
    other = jax.tree.map(lambda x: x + 1, teacher.variables)
    with pytest.raises(UsageError, match="answers of a teacher with other settings: teacher"):
        fill(model=teacher._replace(variables=other))
    path = folder / "000001.array_record"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"000001\.array_record is damaged or missing"):
        fill()(np.array([70]))


def test_answers_do_not_depend_on_their_batch(weights):
    """The bits of an answer, in batches of other sizes and at other positions."""
    teacher = kd.load(weights)
    answer = teacher_answers(teacher)
    z = jax.random.normal(jax.random.key(1), (37, 4))
    whole = np.asarray(answer((z,)))
    np.testing.assert_array_equal(answer((z[5:9],)), whole[5:9])
    np.testing.assert_array_equal(answer((z[::-1],)), whole[::-1])


def test_the_position_of_answered_batches_is_restored(weights):
    def open_batches():
        teacher = kd.load(weights)
        return AnsweredBatches(latent_examples(teacher.interface), 4, 0, teacher_answers(teacher))

    batches = open_batches()
    next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    expected, resumed = next(batches), open_batches()
    resumed.set_state(position)
    jax.tree.map(np.testing.assert_array_equal, next(resumed), expected)


def test_the_answer_replaces_the_teachers_output_but_not_its_features(weights):
    """A step whose batch has answers does not run the teacher, unless a term reads its features."""
    parts = choices.make_distillation(weights, macs=0.4, batch_size=4, method="pixel")
    batch = next(
        AnsweredBatches(parts.examples, 4, 0, lambda inputs: jnp.full((4, 16, 16, 3), 7.0))
    )
    plan = choices.make_plan(parts, 10)
    state = jax.jit(plan.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(plan.step)(state, parts.frozen, batch)
    images = parts.student.apply(state.generator.variables, *batch["inputs"], train=True)[0]
    np.testing.assert_allclose(metrics["g/pixel"], np.abs(images - 7.0).mean(), rtol=1e-5)


@pytest.mark.parametrize("name", ["response", "tinygan", "gan_compression", "cat", "stylekd"])
@pytest.mark.slow
def test_methods_train(weights, tmp_path, name):
    result = kd.distill(weights, tmp_path / "out", steps=3, method=name, baseline=True, **TINY)
    assert set(result.figures) == {"teacher", "student", "baseline"}
    assert not equal(result.student, kd.load(tmp_path / "out" / "baseline"))


def test_methods_that_need_what_is_not_there_are_refused(weights, tmp_path):
    for name, need in (
        ("omgd", "--perceptual"),
        ("dgl", "discriminator"),
        ("dcd", "discriminator"),
    ):
        with pytest.raises(ValueError, match=rf"method {name} needs .*{need}"):
            kd.distill(weights, tmp_path / "out", method=name, **TINY)
    assert not (tmp_path / "out").exists()
    assert {"response", "pixel", "adversarial"} <= METHODS.keys()


def test_a_researcher_replaces_the_student_the_losses_and_the_examples(weights, tmp_path):
    student = kd.models.mlp.generator(16, 8, channels=3)

    def squared(f):
        return ((f.student.output - f.teacher.output) ** 2).mean(axis=(1, 2, 3))

    result = kd.distill(
        weights,
        tmp_path / "out",
        steps=4,
        student=student,
        losses=PerNetwork({"squared": Term(squared, 2.0)}, {}),
        batch_size=8,
        samples=16,
        features="none",
    )
    assert result.student.network == student
    rows = read_jsonl(tmp_path / "out" / "training" / "metrics.jsonl")
    assert any("g/squared" in row for row in rows)


def test_minutes_are_steps_and_leave_a_measured_student(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "TIMED", 4)
    monkeypatch.setattr(pipeline, "EVALUATIONS", 2)
    options = {**TINY, "method": "pixel", "minutes": 0.02}
    result = kd.distill(weights, tmp_path / "out", **options)
    steps = json.loads((tmp_path / "out" / "steps.json").read_text())["steps"]
    assert result.steps <= steps
    assert equal(kd.load(tmp_path / "out"), result.student)
    assert f"{steps:,} steps in 0.02 minutes" in capsys.readouterr().out


def test_a_quantised_training_is_another_one_with_a_plain_student(weights, tmp_path, pixel):
    options = {**TINY, "steps": 20, "method": "pixel"}
    result = kd.distill(weights, tmp_path / "out", quantise=True, **options)
    assert result.student.network.module == pixel.student.network.module
    assert not equal(result.student, pixel.student)
    assert equal(kd.load(tmp_path / "out"), result.student)
    with pytest.raises(UsageError, match="quantise"):
        kd.distill(weights, tmp_path / "out", **options)
    for name in ("gan_compression", "cat"):
        planned = choices.make_distillation(
            weights, macs=0.4, batch_size=8, method=name, quantise=True
        )
        assert any("2 convolutions" in line for line in planned.choices)
    with pytest.raises(ValueError, match="quantise"):
        choices.make_distillation(
            weights, student=kd.models.mlp.generator(16, 8, channels=3), quantise=True
        )


def test_a_student_chosen_by_latency_is_the_same_at_a_resume(weights, tmp_path, monkeypatch):
    """Networks take a time of their parameters, and twice that time at the resume."""

    def slowness(factor):
        def latency(network, variables, *inputs, runs=1, **options):
            count = sum(leaf.size for leaf in jax.tree.leaves(variables))
            return cost.Latency(factor * 1e-6 * count, 0.0, 0.0, runs)

        monkeypatch.setattr(cost, "generator_latency", latency)

    options = {**TINY, "macs": None, "method": "pixel", "steps": 2}
    slowness(1)
    first = kd.distill(weights, tmp_path / "out", latency=1e-3, **options)
    slowness(2)
    assert equal(
        kd.distill(weights, tmp_path / "out", latency=1e-3, **options).student, first.student
    )
    other = choices.make_distillation(weights, latency=1e-3, macs=None, folder=tmp_path / "no")
    assert other.student.module != first.student.network.module
    with pytest.raises(UsageError, match="latency"):
        kd.distill(weights, tmp_path / "out", latency=2e-3, **options)


def test_the_limit_of_minutes_is_that_of_the_steps_left(weights, tmp_path, monkeypatch):
    limits, actual = [], pipeline.ShutdownSignal
    monkeypatch.setattr(pipeline, "EVALUATIONS", 2)
    monkeypatch.setattr(pipeline, "LEAST_STEPS", 5)
    monkeypatch.setattr(pipeline, "_steps_for", lambda *_: 20)
    monkeypatch.setattr(
        pipeline, "ShutdownSignal", lambda minutes: limits.append(minutes) or actual()
    )
    options = {**TINY, "method": "pixel", "minutes": 0.02}
    kd.distill(weights, tmp_path / "out", **options)
    shutil.rmtree(tmp_path / "out" / "training" / "checkpoints" / "20")
    kd.distill(weights, tmp_path / "out", **options)
    assert limits == pytest.approx([1.1 * 0.02, 1.1 * 0.02 / 2])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--macs=1/100000"], "macs"),
        (["--method=nothing"], "'nothing'"),
        (["--method=omgd"], "omgd"),
        (["--student=nothing"], "'nothing'"),
        (["--student=srvgg"], "srvgg"),
        (["--images=nothing"], "nothing"),
        (["--images=folder:nowhere"], "nowhere"),
        (["--size=32"], "size=32"),
        (["--degradation=real"], "degradation='real'"),
        (["--answers"], "latents=N"),
        (["--steps=0"], "steps=0"),
        (["--minutes=nan"], "minutes=nan"),
        (["--batch=-2"], "batch"),
        (["--samples=1"], "samples=1"),
        (["--seed=-1"], "seed=-1"),
        (["--learning_rate=nan"], "learning_rate=nan"),
        (["--perceptual", "nowhere.pth"], "nowhere.pth"),
        (["--features", "nowhere.pth"], "nowhere.pth"),
        (["--part=nothing"], "'nothing'"),
        (["--latents=0"], "latents=0"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    weights, tmp_path, monkeypatch, capsys, flags, named
):
    monkeypatch.chdir(tmp_path)
    budget = [] if flags[0].startswith("--macs") else ["--macs=0.5"]
    with pytest.raises(SystemExit) as stopped:
        command.main([str(weights), "--out=new", *budget, *flags])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert named in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/25", 0.04), ("0.04", 0.04), ("100k", 1e5), ("2.5G", 2.5e9), ("50M", 5e7), ("1e3", 1e3)],
)
def test_amounts(text, value):
    assert command.common.amount(text) == value


def test_a_discriminator_and_ambiguous_files_teach_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden = published.FOLDER / "dcgan_d_a.npz"
    if golden.exists():
        path = published.write_state_dict(tmp_path / "d.safetensors", golden)
        with pytest.raises(SystemExit, match="2"):
            command.main([str(path), "--out=new"])
        assert "a generator is needed" in capsys.readouterr().err
    two = {"a": published.dcgan_state_dict(), "b": published.dcgan_state_dict(seed=1)}
    published.write_parts(tmp_path / "two.pt", two)
    with pytest.raises(SystemExit, match="2"):
        command.main(["two.pt", "--out=new"])
    assert "FILE#NAME" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_dry_run_prints_both_networks_and_writes_nothing(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "TIMED", 4)
    command.main([str(weights), "--macs=0.4", "--dry_run", "--method=pixel", "--batch=8"])
    printed = capsys.readouterr().out
    assert "BatchNorm_1/scale" in printed
    assert "teacher: 2,3" in printed or "teacher: " in printed
    assert "ms with the teacher's answers" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("degradation", ["bicubic", pytest.param("real", marks=pytest.mark.slow)])
def test_images_are_inputs_and_some_are_held_out(tmp_path, degradation):
    """Super-resolution of photographs, whose answers are targets."""
    network = kd.models.realesrgan.srvgg(2, 6, 2)
    small = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros(small.shape))
    model = kd.load.__globals__["Model"](network, variables, (small,), 0, True, {})
    photos = kd.data.open_source("photos", "train", 16, 3, resize=True)
    images = kd.data.subset(photos, count=30, seed=0)
    options = {"steps": 3, "size": 16, "images": images, **TINY, "macs": 0.6}
    options["degradation"] = degradation
    result = kd.distill(model, tmp_path / "out", **options)
    assert {"error", "psnr", "target", "macs"} <= result.figures["student"].keys()
    again = kd.distill(model, tmp_path / "kept", answers=True, **options)
    assert equal(again.student, result.student)
