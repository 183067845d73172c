"""Distil a network for sound: teacher, student from scratch and distilled, and interpolation.

    python -m experiments.waveform --workdir=runs/waveform           # synthesised tones, minutes
    python -m experiments.waveform --workdir=runs/full --preset=full # a GPU
    python -m experiments.waveform --dry_run --config.student.width=8

A one-dimensional network learns to extend the bandwidth of plucked-string tones: from the content
below a quarter of the Nyquist frequency it predicts the rest (super-resolution of sound, Kuleshov
et al. 2017). A narrower one is trained from scratch with the L1 distance to the original, and
distilled; all are trained with an adversarial loss of a waveform discriminator. The training step
is that of images. Every training tone is used once, and the evaluation uses others.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness, prediction, runner
from experiments.runner import Comparison, Evaluation, Predictions
from kd_jax import data as kd_data, losses, ops, tasks
from kd_jax.core.network import Network
from kd_jax.core.objective import MakeInputs, Term
from kd_jax.core.setup import Networks, Teacher
from kd_jax.data import tones
from kd_jax.models import waveform
from kd_jax.report.columns import Column
from kd_jax.train.training import TrainingPlan

_FRAME = 256  # samples, of a spectrum


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = prediction.base_config()
    config.update(
        {
            "factor": 4,
            "data": {"length": 1024, "rate": 8000},
            "distilled": {"truth": 1.0, "response": 1.0},  # weights of the L1
            "adversarial": 0.001,  # weight of a least-squares adversarial loss; 0 for none
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
        prediction.tiny(config)
        config.data.length = 256
        config.teacher.update({"width": 4, "blocks": 1})
        config.student.update({"width": 2, "blocks": 1})
        config.evaluate.waves = 6
    return config


def build(config: ConfigDict) -> Comparison:
    """Makes the networks.

    Raises:
      ValueError: a setting does not fit; a one-line message.
    """
    prediction.check(config)
    data = config.data
    if data.length < _FRAME:
        raise ValueError(f"config.data.length={data.length} is below {_FRAME}, a spectrum's frame")
    prediction.check_distilled(config)
    draw = partial(tones.plucked, length=data.length, rate=data.rate)
    inputs = tasks.bandwidth_extension(config.factor)
    dtype = prediction.dtype(config)
    teacher, student = (
        waveform.generator(config.factor, sizes.width, sizes.blocks, dtype=dtype)
        for sizes in (config.teacher, config.student)
    )
    sizes = config.discriminator
    discriminator = waveform.discriminator(sizes.width, sizes.layers, dtype=dtype)
    example = jax.eval_shape(inputs, jax.random.key(0), draw(np.random.default_rng(0), 1))
    if config.adversarial:
        jax.eval_shape(discriminator.init, jax.random.key(0), example.real, *example.condition)
    return prediction.make_comparison(
        config,
        title=f"Distilling {config.factor}x bandwidth extension of tones",
        batches=lambda seed: kd_data.generated_batches(
            draw,
            config.batch_size,
            seed,
            name=f"plucked strings of {data.length} samples at {data.rate} Hz",
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        task=inputs,
        teacher=teacher,
        student=student,
        plan=partial(
            training_plan,
            config,
            inputs,
            teacher,
            student,
            discriminator if config.adversarial else None,
        ),
        evaluation=lambda: make_evaluation(config, inputs),
        tracked=("snr", "signal-to-noise ratio, dB"),
    )


def training_plan(
    config: ConfigDict,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    discriminator: Network | None,
    name: str,
    variables: Teacher | None = None,
) -> TrainingPlan:
    """The plan of the training of this name: teacher, from_scratch or distilled.

    The loss is the L1 to the targets and, for the distilled student, to the teacher's waves.
    """
    nets = Networks(teacher if name == runner.TEACHER else student, discriminator)
    terms = {"truth": Term(lambda f: losses.response.l1(f.student.output, f.real))}
    if name == runner.DISTILLED:
        weights = config.distilled
        nets = nets._replace(teacher=teacher)
        terms = {
            "truth": terms["truth"]._replace(weight=weights.truth),
            "response": Term(
                lambda f: losses.response.l1(f.student.output, f.teacher.output), weights.response
            ),
        }
    all_terms = prediction.with_adversarial(terms, config.adversarial)
    rate = config.discriminator.rate
    return prediction.training_plan(config, name, nets, all_terms, inputs, variables, d_rate=rate)


def make_evaluation(config: ConfigDict, inputs: MakeInputs) -> Evaluation:
    """The evaluation on tones that no training draws, with interpolation as the baseline."""
    # Trainings use the seeds (seed, batch), which NumPy does not distinguish from (seed, batch, 0).
    random = np.random.default_rng([config.evaluate.seed, 0, 1])
    data = config.data
    held_out = tones.plucked(random, config.evaluate.waves, length=data.length, rate=data.rate)
    held_out_inputs = jax.jit(inputs)(jax.random.key(0), held_out)
    targets = held_out["wave"]
    baseline = np.asarray(ops.interpolate(held_out_inputs.generator[0], config.factor))

    def compute(waves: Predictions) -> dict[str, float]:
        return {
            "snr": float(signal_to_noise(waves, targets).mean()),
            "lsd": float(log_spectral_distance(waves, targets).mean()),
        }

    def compute_validation(waves: Predictions) -> dict[str, float]:
        squared_error = float(((waves - targets) ** 2).mean())
        snr = float(signal_to_noise(waves, targets).mean())
        return {"squared_error": squared_error, "snr": snr}

    shown = np.arange(min(config.evaluate.examples, len(targets)))

    def draw(file: Path, predictions: Mapping[str, Predictions]) -> None:
        save_waves(file, {**predictions, "truth": targets[shown]}, data.rate)

    return Evaluation(
        inputs=held_out_inputs,
        metrics=[
            Column("snr", "SNR, dB", better="higher", digits=2),
            Column("lsd", "log-spectral distance", digits=2),
        ],
        compute=compute,
        compute_validation=compute_validation,
        baselines={"interpolation": baseline},
        description=f"{len(targets):,} held-out tones",
        notes=[
            "Signal-to-noise ratio and log-spectral distance as in Kuleshov et al. 2017, section "
            f"4.2, the latter in decades of power over frames of {_FRAME} samples; means over "
            "tones."
        ],
        shown=shown,
        draw=draw,
        predict=runner.predict_in_chunks,
    )


def signal_to_noise(waves: Predictions, targets: Predictions) -> NDArray[np.float64]:
    """`[N, L, C]` twice `-> [N]`, in dB: `10 log10(sum y^2 / sum (x - y)^2)`, at most 100."""
    signal = (targets.astype(np.float64) ** 2).sum(axis=(1, 2))
    noise = ((waves.astype(np.float64) - targets) ** 2).sum(axis=(1, 2))
    return np.asarray(10 * np.log10(signal / np.maximum(noise, 1e-10 * signal)))


def log_spectral_distance(waves: Predictions, targets: Predictions) -> NDArray[np.float64]:
    """`[N, L, C]` twice `-> [N]`: Kuleshov et al. 2017, section 4.2, of the first channel.

    The root mean square over frequencies of the difference of log10 powers, averaged over
    Hann-windowed frames. Powers are clipped from below at 1e-8 of a full-scale tone's.
    """

    def logs(x: Predictions) -> NDArray[np.float64]:
        frames = np.lib.stride_tricks.sliding_window_view(x[..., 0], _FRAME, axis=1)
        spectra = np.fft.rfft(frames[:, :: _FRAME // 2] * np.hanning(_FRAME), axis=-1)
        return np.asarray(np.log10(np.maximum(np.abs(spectra) ** 2 / (_FRAME / 4) ** 2, 1e-8)))

    difference = logs(waves) - logs(targets)
    return np.asarray(np.sqrt((difference**2).mean(axis=-1)).mean(axis=-1))


def save_waves(file: Path, rows: Mapping[str, Predictions], rate: int) -> None:
    """Writes a PNG with two panels per wave: its samples and its spectrum.

    Args:
      file: the PNG file.
      rows: `[N, L, 1]` by name; the last are the targets.
      rate: samples per second.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    count = len(next(iter(rows.values())))
    picture = Picture(figsize=(4.2 * count, 1.5 * 2 * len(rows)), layout="constrained")
    FigureCanvasAgg(picture)
    panels = picture.subplots(2 * len(rows), count, squeeze=False)
    targets = list(rows.values())[-1]
    shown = min(160, targets.shape[1])
    times = 1000 * np.arange(shown) / rate
    frequencies = np.fft.rfftfreq(targets.shape[1], 1 / rate) / 1000
    window = np.hanning(targets.shape[1])
    for row, (name, waves) in enumerate(rows.items()):
        for column in range(count):
            for wave, style in (
                (targets[column, :, 0], {"color": "#bbb", "linewidth": 2.5}),
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


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)
