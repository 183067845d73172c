"""The command line, and the checks before a training."""

import re

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from experiments import digits, harness, runner
from kd_jax import methods
from kd_jax.core.checks import user_errors
from kd_jax.core.setup import Networks, Teacher
from kd_jax.train import training


@pytest.mark.parametrize(
    "arguments",
    [["--workdir=/a/b", "--preset=demo"], ["--workdir", "/a/b", "--preset=demo"]],
)
def test_the_command_hides_this_machines_paths(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["/a/c/experiments/digits.py", *arguments])
    expected = "python -m experiments.digits --workdir=DIR --preset=demo"
    assert harness.command_line() == expected


@pytest.mark.parametrize(
    ("arguments", "preset"),
    [
        ([], "full"),
        (["--preset=demo"], "demo"),
        (["--preset", "tiny", "--dry_run"], "tiny"),
        (["-preset=demo", "--preset=tiny"], "tiny"),
        (["--config.preset=demo"], "full"),
    ],
)
def test_the_preset_is_read_before_the_flags_are_parsed(arguments, preset):
    assert harness._peek(["digits.py", *arguments], "preset", "full") == preset


def test_help_lists_the_flags():
    values = flags.FlagValues()
    harness.parse(digits.EXPERIMENT, ["digits.py", "--workdir=x"], values)
    text = values.module_help("digits.py")  # of --help; --helpfull has other modules' too
    for name in ("workdir", "preset", "resume", "dry_run", "max_minutes", "coordinator"):
        assert re.search(rf"--(\[no\])?{name}: ", text), name
    assert "--config.PATH=VALUE" in text


def test_user_errors_become_usage_errors():
    with pytest.raises(harness.UsageError, match="no such folder"), user_errors():
        raise FileNotFoundError("no such folder")


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / "run"
    with pytest.raises(harness.UsageError, match=f"--workdir={workdir}: Not a directory"):
        harness.check_workdir(workdir, ConfigDict(), resume=True)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.stduent.width=3", "no 'stduent' here; did you mean student?"),
        ("--config.student.w", "no 'w' here; there is width"),
        ("--config.student.width.more=1", "no 'more' here"),
        ("--config.student.width=1", None),
        ("--config.seeds=(1,)", None),
        ("--workdir=config.nothing", None),
    ],
)
def test_unknown_settings(flag, message):
    config = ConfigDict({"student": {"width": 1}, "seeds": (0,)})
    if message is None:
        harness.check_settings([flag], config)
    else:
        with pytest.raises(harness.UsageError, match=re.escape(message)):
            harness.check_settings([flag], config)


def test_a_bad_term_is_named_before_anything_is_written(tmp_path):
    config = digits.get_config("tiny")
    task = digits.make_task(config)
    batch = runner.example_batch(config, task.source)
    terms = methods.cat(["4x4", "9x9"])
    example = task.inputs(jax.random.key(0), batch).generator
    teacher = task.teacher.generator.init(jax.random.key(0), *example)
    bad = digits.training_plan(
        config,
        task,
        Networks(*task.student, teacher=task.teacher.generator),
        terms.generator,
        terms.discriminator,
        config.teacher,
        4,
        Teacher(teacher),
    )
    message = r"term 'alignment': the student: no tap '9x9'; this network has '4x4', '8x8'"
    with pytest.raises(harness.UsageError, match=message):
        training.train(
            tmp_path / "run",
            bad,
            runner.training_batches(config, task.source, 0),
            seed=0,
            configuration={},
            quality=lambda variables: {},
            schedule=training.Schedule(2, 2, 2),
        )
    assert not (tmp_path / "run").exists()
