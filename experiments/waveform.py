"""Distil a network for sound: teacher, student alone, student distilled, and interpolation.

    python -m experiments.waveform --workdir=runs/waveform           # synthesised tones, minutes
    python -m experiments.waveform --workdir=runs/full --preset=full # a GPU
    python -m experiments.waveform --dry_run --config.student.width=8

A network of one dimension learns what a plucked string sounds like above a quarter of the rate's
half, from what is below it: bandwidth extension, or super-resolution of sound (Kuleshov et al.
2017). A narrower one learns it alone, with the L1 distance to the original, and from the teacher
too; both play a game against a discriminator of waveforms. The step is that of images. No tone is
ever seen twice, and the exam's are others still.

Hardware and results: two CPU cores; the table in README.md.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness, lessons
from experiments.lessons import Answers, Exam, Figure, Lesson
from kd_jax import data as kd_data
from kd_jax import losses, ops, tasks
from kd_jax.data import tones
from kd_jax.models import waveform
from kd_jax.network import Network
from kd_jax.objective import MakeInputs, Term
from kd_jax.state import Networks
from kd_jax.types import Variables

_FRAME = 256  # samples, of a spectrum


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = lessons.settings()
    config.update(
        {
            "factor": 4,
            "data": {"length": 1024, "rate": 8000},
            "distilled": {"truth": 1.0, "response": 1.0},  # weights of the L1
            "adversarial": 0.001,  # weight of a least-squares game; 0 for none
            "discriminator": {"width": 8, "layers": 4, "rate": 2e-4},
        }
    )
    config.teacher.update({"width": 32, "blocks": 6})
    config.student.update({"width": 8, "blocks": 3})
    config.evaluate.waves = 512
    config.evaluate.examples = 4
    if preset == "full":
        config.batch_size = 64
        config.data.update({"length": 8192, "rate": 16000})
        config.teacher.update({"width": 128, "blocks": 16, "steps": 200_000, "rate": 2e-4})
        config.student.update({"width": 32, "blocks": 8, "steps": 200_000, "rate": 2e-4})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        lessons.tiny(config)
        config.data.length = 256
        config.teacher.update({"width": 4, "blocks": 1})
        config.student.update({"width": 2, "blocks": 1})
        config.evaluate.waves = 6
    return config


def build(config: ConfigDict) -> Lesson:
    """Makes the networks.

    Raises:
      ValueError: when a setting does not fit; one line.
    """
    lessons.check(config)
    given = config.data
    if given.length < _FRAME:
        raise ValueError(f"config.data.length={given.length} is below {_FRAME}, a spectrum's frame")
    if config.evaluate.waves < 1 or config.adversarial < 0:
        raise ValueError(
            f"config.evaluate.waves={config.evaluate.waves} must be positive and "
            f"config.adversarial={config.adversarial} not negative"
        )
    lessons.check_distilled(config)
    draw = partial(tones.plucked, length=given.length, rate=given.rate)
    inputs = tasks.bandwidth_extension(config.factor)
    dtype = lessons.dtype(config)
    teacher, student = (
        waveform.generator(config.factor, sizes.width, sizes.blocks, dtype=dtype)
        for sizes in (config.teacher, config.student)
    )
    sizes = config.discriminator
    judge = waveform.discriminator(sizes.width, sizes.layers, dtype=dtype)
    example = jax.eval_shape(inputs, jax.random.key(0), draw(np.random.default_rng(0), 1))
    if config.adversarial:
        jax.eval_shape(judge.init, jax.random.key(0), example.real, *example.condition)
    return Lesson(
        title=f"Distilling {config.factor}x bandwidth extension of tones",
        batches=lambda seed: kd_data.drawn(
            draw,
            config.batch_size,
            seed,
            name=f"plucked strings of {given.length} samples at {given.rate} Hz",
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        inputs=inputs,
        teacher=teacher,
        student=student,
        recipe=partial(
            recipe, config, inputs, teacher, student, judge if config.adversarial else None
        ),
        exam=lambda: make_exam(config, inputs),
        watched=("snr", "signal-to-noise ratio, dB"),
        mesh=harness.mesh(config.mesh, config.batch_size),
    )


def recipe(
    config: ConfigDict,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    judge: Network | None,
    name: str,
    variables: Variables | None = None,
) -> harness.Recipe:
    """One of `lessons.TRAININGS`: the L1 to what is right and, distilled, to the teacher's."""
    nets = Networks(teacher if name == "teacher" else student, judge)
    terms = {"truth": Term(lambda f: losses.response.l1(f.fake, f.real))}
    if name == "distilled":
        weights = config.distilled
        nets = nets._replace(teacher=teacher)
        terms = {
            "truth": terms["truth"]._replace(weight=weights.truth),
            "response": Term(lambda f: losses.response.l1(f.fake, f.teacher), weights.response),
        }
    both = lessons.in_game(terms, config.adversarial)
    rate = config.discriminator.rate
    return lessons.recipe(config, name, nets, both, inputs, variables, judge_rate=rate)


def make_exam(config: ConfigDict, inputs: MakeInputs) -> Exam:
    """Tones that no training draws, and what interpolation makes of them."""
    # Trainings draw by (seed, batch); to NumPy (seed, batch, 0) is the same.
    random = np.random.default_rng([config.evaluate.seed, 0, 1])
    settings = config.data
    drawn = tones.plucked(random, config.evaluate.waves, length=settings.length, rate=settings.rate)
    asked = jax.jit(inputs)(jax.random.key(0), drawn)
    right = drawn["wave"]
    baseline = np.asarray(ops.interpolated(asked.generator[0], config.factor))

    def mark(waves: Answers) -> dict[str, float]:
        return {
            "snr": float(signal_to_noise(waves, right).mean()),
            "lsd": float(log_spectral_distance(waves, right).mean()),
        }

    def watch(waves: Answers) -> dict[str, float]:
        noise = float(((waves - right) ** 2).mean())
        return {"squared_error": noise, "snr": float(signal_to_noise(waves, right).mean())}

    def draw(file: Path, found: Mapping[str, Answers]) -> None:
        save_waves(file, {**found, "truth": right}, config.evaluate.examples, settings.rate)

    return Exam(
        inputs=asked,
        figures={
            "snr": Figure("SNR, dB", more=True, unit=" dB"),
            "lsd": Figure("log-spectral distance", more=False),
        },
        mark=mark,
        watch=watch,
        classical={"interpolation": baseline},
        asked=f"{len(right):,} tones that no network has heard",
        notes=[
            "Signal-to-noise ratio and log-spectral distance as in Kuleshov et al. 2017, section "
            f"4.2, the latter in decades of power over frames of {_FRAME} samples; means over "
            "tones."
        ],
        draw=draw,
    )


def signal_to_noise(waves: Answers, right: Answers) -> NDArray[np.float64]:
    """`[N, L, C]` twice `-> [N]`, in dB: `10 log10(sum y^2 / sum (x - y)^2)`, at most 100."""
    signal = (right.astype(np.float64) ** 2).sum(axis=(1, 2))
    noise = ((waves.astype(np.float64) - right) ** 2).sum(axis=(1, 2))
    return np.asarray(10 * np.log10(signal / np.maximum(noise, 1e-10 * signal)))


def log_spectral_distance(waves: Answers, right: Answers) -> NDArray[np.float64]:
    """`[N, L, C]` twice `-> [N]`: Kuleshov et al. 2017, section 4.2, of the first channel.

    The root over frequencies of the mean squared difference of the logarithms (to base 10) of the
    power, its mean over Hann-windowed frames. Power is at least 1e-8 of a full-scale tone's.
    """

    def logs(x: Answers) -> NDArray[np.float64]:
        frames = np.lib.stride_tricks.sliding_window_view(x[..., 0], _FRAME, axis=1)
        spectra = np.fft.rfft(frames[:, :: _FRAME // 2] * np.hanning(_FRAME), axis=-1)
        return np.asarray(np.log10(np.maximum(np.abs(spectra) ** 2 / (_FRAME / 4) ** 2, 1e-8)))

    difference = logs(waves) - logs(right)
    return np.asarray(np.sqrt((difference**2).mean(axis=-1)).mean(axis=-1))


def save_waves(file: Path, rows: Mapping[str, Answers], examples: int, rate: int) -> None:
    """Writes a PNG: for each of some waves two panels, its samples and its spectrum.

    Args:
      file: where.
      rows: `[N, L, 1]` by name; the last are the right ones.
      examples: how many.
      rate: samples a second.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    count = min(examples, len(next(iter(rows.values()))))
    picture = Picture(figsize=(4.2 * count, 1.5 * 2 * len(rows)), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(2 * len(rows), count, squeeze=False)
    right = list(rows.values())[-1]
    shown = min(160, right.shape[1])
    times = 1000 * np.arange(shown) / rate
    frequencies = np.fft.rfftfreq(right.shape[1], 1 / rate) / 1000
    window = np.hanning(right.shape[1])
    for row, (name, waves) in enumerate(rows.items()):
        for column in range(count):
            for wave, style in (
                (right[column, :, 0], {"color": "#bbb", "linewidth": 2.5}),
                (waves[column, :, 0], {"color": "C0", "linewidth": 1}),
            ):
                power = np.abs(np.fft.rfft(wave * window)) / len(wave)
                panels[2 * row, column].plot(times, wave[:shown], **style)
                panels[2 * row + 1, column].plot(
                    frequencies, 20 * np.log10(np.maximum(power, 1e-6)), **style
                )
        panels[2 * row, 0].set_ylabel(name)
        panels[2 * row + 1, 0].set_ylabel("dB")
    for column in range(count):
        panels[0, column].set_title("ms; below: kHz", fontsize=8)
    picture.savefig(file, dpi=70)


EXPERIMENT = lessons.experiment(get_config, build)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
