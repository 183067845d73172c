"""The trainings of an experiment, their evaluation, and the report.

An experiment is a `Comparison`: a teacher, trained or read from a file, and students that are
trained from scratch or distilled, all evaluated in the same way. `main` runs the trainings that are
not finished, keeps each one's result in its folder, and writes the report of all.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from numpy.typing import NDArray

from experiments import harness
from kd_jax import data as kd_data
from kd_jax.core.files import file_lock, file_sha256, read_json, write_json
from kd_jax.core.mesh import fully_sharded, replicated
from kd_jax.core.network import Network, disconnect
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Batch, Variables
from kd_jax.data import BatchIterator
from kd_jax.evaluate import measure
from kd_jax.evaluate.generator import EvaluatedGenerator
from kd_jax.report import page, pictures
from kd_jax.report.columns import Column, Entry, Figure, Table
from kd_jax.report.environment import environment
from kd_jax.report.page import Gallery, Picture, Report
from kd_jax.report.summary import GAP, gap, over_draws, over_seeds, summarize, verdict
from kd_jax.train import diagnostics, distributed
from kd_jax.train.logs import read_jsonl
from kd_jax.train.training import Schedule, TrainingPlan, read_changes, train

TEACHER, FROM_SCRATCH, DISTILLED = "teacher", "from_scratch", "distilled"

Predictions: TypeAlias = NDArray[Any]
Predict: TypeAlias = Callable[[Variables, Sequence[Any]], Predictions]
"""`(variables, inputs [N, ...]) -> [N, ...]`."""


class Training(NamedTuple):
    """A training of a comparison.

    Attributes:
      name: `teacher`, or `[REGIME/]STUDENT`; also its folder within that of the seed.
      network: the generator that is evaluated.
      plan: `(the teacher's variables, seed) -> training plan`; they are None for the teacher's own
        training.
      batches: `seed -> batches`, an endless iterator.
      steps: the number of its steps.
      images: the number of real images that it has; None where they have no number.
      settings: further settings that it depends on, besides the configuration.
    """

    name: str
    network: Network
    plan: Callable[[Teacher | None, int], TrainingPlan]
    batches: Callable[[int], BatchIterator]
    steps: int
    images: int | None = None
    settings: Mapping[str, Any] = {}

    @property
    def group(self) -> str:
        """The regime, with the slash; empty if there are no regimes."""
        return self.name.rpartition("/")[0] + "/" if "/" in self.name else ""


class Evaluation(NamedTuple):
    """The inputs of an evaluation, and the metrics of the predictions for them.

    Attributes:
      inputs: the inputs, `[N, ...]`.
      metrics: the metrics; the report's verdicts compare the first.
      compute: `predictions [N, ...] -> values by metric`.
      compute_validation: the same during training; the checkpoint with the lowest first value is
        the best one.
      baselines: the predictions of non-learned methods, by name.
      description: the data, as reports name it: "557 held-out images".
      notes: the report's sentences on the metrics.
      shown: indices of the examples in the pictures.
      draw: `(file, {name: predictions of the shown examples})` saves a picture of these and of
        their inputs.
      predict: `network -> Predict`.
      draws: the generators' inputs for further draws of the latents: metrics are means over all.
      settings: further settings of the evaluation, by name.
    """

    inputs: Inputs
    metrics: Sequence[Column]
    compute: Callable[[Predictions], Mapping[str, float]]
    compute_validation: Callable[[Predictions], Mapping[str, float]]
    baselines: Mapping[str, Predictions]
    description: str
    notes: Sequence[str]
    shown: NDArray[np.int64]
    draw: Callable[[Path, Mapping[str, Predictions]], None]
    predict: Callable[[Network], Predict]
    draws: Sequence[Sequence[Any]] = ()
    settings: Mapping[str, Any] = {}


class Comparison(NamedTuple):
    """A teacher, its students, and their evaluation.

    Attributes:
      title: the report's title.
      task: the task, as it is trained.
      teacher: the teacher's training.
      students: the students' trainings.
      evaluation: builds the evaluation, which may take time.
      curves: captions of logged metrics to plot, by their keys: `quality/frechet`.
      mesh: the devices to train on.
      teacher_variables: the teacher's variables, if they are loaded; None to train it.
      galleries: `(run, results) -> galleries` of further pictures.
    """

    title: str
    task: MakeInputs
    teacher: Training
    students: Sequence[Training]
    evaluation: Callable[[], Evaluation]
    curves: Mapping[str, str]
    mesh: Mesh
    teacher_variables: Teacher | None = None
    galleries: Callable[["Run", Mapping[str, Sequence["Result"]]], Sequence[Gallery]] = (
        lambda run, results: ()
    )


RESULT_FILES = ("shown.npy", "metrics.jsonl")
"""Files of a training that the report reads beside its result."""


class Result(NamedTuple):
    """The result of one training.

    Attributes:
      metrics: the evaluation's metrics.
      changes: the settings that changed on the way, one line each.
    """

    metrics: Mapping[str, Figure]
    changes: Sequence[str]


class Run:
    """The trainings of a comparison in one folder; each is done once, and its result is kept.

    Args:
      config: the configuration; of its sections, `seeds`, `batch_size`, `mesh`, `run` and the three
        intervals are read.
      comparison: the trainings and the evaluation.
      workdir: the run's folder.
      runtime_fields: top-level settings that no training depends on.
      shared: whether several processes share the trainings through the folder; otherwise a second
        process is refused.
    """

    def __init__(
        self,
        config: ConfigDict,
        comparison: Comparison,
        workdir: Path,
        runtime_fields: Sequence[str] = (),
        shared: bool = False,
    ):
        self.config, self.comparison, self.workdir = config, comparison, workdir
        self.pending: list[tuple[Training, int]] = []
        self._settings = harness.persistent_config(config, runtime_fields)
        self._shared = shared
        self._teachers: dict[int, Teacher] = {}
        self._predictors: list[tuple[Network, Predict]] = []

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation, built at its first use."""
        return self.comparison.evaluation()

    def folder(self, training: Training, seed: int) -> Path:
        """The folder of a training."""
        return self.workdir / f"seed{seed}" / training.name

    def teacher(self, seed: int) -> Teacher:
        """The seed's teacher, which is trained now unless it is finished."""
        if self.comparison.teacher_variables is not None:
            return self.comparison.teacher_variables
        if seed not in self._teachers:
            training = self.comparison.teacher
            with self._lock(training, seed, wait=True):
                self._teachers[seed] = self._train(training, None, seed)
        return self._teachers[seed]

    def result(self, training: Training, seed: int) -> Result:
        """The result of a training, which runs now unless it is finished.

        Raises:
          BlockingIOError: another process runs it, and shares this run.
        """
        if finished := self._read(training, seed):
            return finished
        is_teacher = training is self.comparison.teacher
        teacher = self.teacher(seed)
        with self._lock(training, seed, wait=is_teacher):
            if finished := self._read(training, seed):
                return finished
            trained = teacher if is_teacher else self._train(training, teacher, seed)
            metrics, shown = self._evaluate(training.network, trained.generator)
            folder = self.folder(training, seed)
            result = Result(metrics, read_changes(folder))
            if distributed.is_primary():
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / "shown.npy", shown)
                files = [name for name in RESULT_FILES if (folder / name).exists()]
                stored = {
                    "settings": self._result_settings(training),
                    **result._asdict(),
                    "metrics": {name: figure._asdict() for name, figure in metrics.items()},
                    "files": {name: file_sha256(folder / name) for name in files},
                }
                write_json(folder / "result.json", stored)
        return result

    def shown(self, training: Training, seed: int) -> Predictions:
        """The predictions of a finished training for the examples in the pictures."""
        return np.load(self.folder(training, seed) / "shown.npy")

    def predictor(self, network: Network) -> Predict:
        """The function that computes a network's predictions; one for equal networks."""
        for known, predict in self._predictors:
            if known == network:
                return predict
        predict = self.evaluation.predict(network)
        self._predictors.append((network, predict))
        return predict

    def steps_ahead(self, training: Training, seed: int) -> int:
        """The steps of unfinished trainings that follow one."""
        if (training, seed) not in self.pending:
            return 0
        following = self.pending[self.pending.index((training, seed)) + 1 :]
        return sum(t.steps for t, s in following if not self._read(t, s))

    def _train(self, training: Training, teacher: Teacher | None, seed: int) -> Teacher:
        config = self.config
        predict, evaluation = self.predictor(training.network), self.evaluation

        def quality(variables: Variables) -> Mapping[str, float]:
            predictions = predict(disconnect(variables), evaluation.inputs.generator)
            return evaluation.compute_validation(predictions)

        shown = [x[evaluation.shown] for x in evaluation.inputs.generator]

        def draw(variables: Variables, file: Path) -> None:
            name = training.name.rpartition("/")[2]
            evaluation.draw(file, {name: predict(disconnect(variables), shown)})

        return train(
            self.folder(training, seed),
            training.plan(teacher, seed),
            training.batches(seed),
            seed=seed,
            configuration={**self._settings, **training.settings},
            quality=quality,
            draw=draw,
            schedule=Schedule(config.log_every, config.evaluate_every, config.checkpoint_every),
            mesh=self.comparison.mesh,
            rule=fully_sharded() if config.mesh.model > 1 else replicated,
            options=harness.options(config),
            stop=harness.STOP,
            name=f"seed{seed}/{training.name}",
            steps_ahead=self.steps_ahead(training, seed),
        )

    def _evaluate(
        self, network: Network, variables: Variables
    ) -> tuple[dict[str, Figure], Predictions]:
        """The metrics of a network, and its predictions for the examples in the pictures."""
        evaluation, predict = self.evaluation, self.predictor(network)
        variables = disconnect(variables)
        values: list[Mapping[str, float]] = []
        shown: list[Predictions] = []
        for inputs in (evaluation.inputs.generator, *evaluation.draws):
            predictions = predict(variables, inputs)
            values.append(evaluation.compute(predictions))
            if not shown:
                shown.append(predictions[evaluation.shown])
            del predictions  # which may be gigabytes, before the next ones are allocated
        return {name: over_draws([v[name] for v in values]) for name in values[0]}, shown[0]

    def _lock(self, training: Training, seed: int, wait: bool) -> Any:
        if not self._shared:
            return contextlib.nullcontext()
        return file_lock(self.folder(training, seed), wait=wait)

    def _result_settings(self, training: Training) -> Any:
        settings = {**self._settings, **training.settings}
        if (teacher := self.comparison.teacher_variables) is not None:
            # The file may have changed; the training compares its own record.
            settings["teacher's fingerprint"] = int(diagnostics.fingerprint(teacher))
        return json.loads(json.dumps(settings))

    def _read(self, training: Training, seed: int) -> Result | None:
        """The stored result, unless it was computed with other settings, or is damaged."""
        folder = self.folder(training, seed)
        path = folder / "result.json"
        # All processes must agree on what is left to do.
        if not distributed.broadcast(path.exists()):
            return None
        try:
            stored = read_json(path, checked=True)
            for name, sha256 in stored.pop("files").items():
                if not (folder / name).exists() or file_sha256(folder / name) != sha256:
                    raise ValueError(f"{folder / name} is damaged or missing")
        except (OSError, ValueError) as error:  # another process may remove it at the same time
            if distributed.is_primary():
                print(f"{error}; the training is evaluated again", file=sys.stderr, flush=True)
                path.unlink(missing_ok=True)
            return None
        if stored.pop("settings") != self._result_settings(training):
            return None
        stored["metrics"] = {name: Figure(**figure) for name, figure in stored["metrics"].items()}
        return Result(**stored)


def main(config: ConfigDict, comparison: Comparison, workdir: Path) -> None:
    """Runs the trainings that are not finished, and writes the report of all."""
    run = Run(config, comparison, workdir)
    trainings = [comparison.teacher, *comparison.students]
    run.pending = [(training, seed) for seed in config.seeds for training in trainings]
    results: dict[str, list[Result]] = {training.name: [] for training in trainings}
    for training, seed in run.pending:
        results[training.name].append(run.result(training, seed))
    write_report(run, results)


def plan(config: ConfigDict, comparison: Comparison) -> tuple[dict[str, TrainingPlan], Batch]:
    """All training plans, with zeros in place of the teacher's variables, and a batch."""
    teacher, seed = comparison.teacher, config.seeds[0]
    batch = next(teacher.batches(seed))
    plans, variables = {}, comparison.teacher_variables
    if variables is None:
        plans[teacher.name] = teacher.plan(None, seed)
        variables = zero_teacher(plans[teacher.name], batch)
    plans |= {training.name: training.plan(variables, seed) for training in comparison.students}
    return plans, batch


def zero_teacher(plan: TrainingPlan, batch: Batch) -> Teacher:
    """Zeros of the shapes of the variables that a teacher's training returns."""
    state = jax.eval_shape(plan.init, jax.random.key(0), batch)
    shapes = Teacher(state.ema, state.discriminator.variables if state.discriminator else None)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def write_report(
    run: Run,
    results: Mapping[str, Sequence[Result]],
    columns: Sequence[Column] = (),
    figures: Mapping[str, Mapping[str, Figure | str]] = {},
    notes: Sequence[str] = (),
    details: Mapping[str, Any] = {},
) -> None:
    """Writes the report of a run and its pictures, and prints it; only the primary process does.

    Args:
      run: the run.
      results: the results of each training, one per seed, by name.
      columns: further columns of the table.
      figures: their figures, by training.
      notes: further sentences below the title.
      details: further entries of the JSON file's configuration.
    """
    if not distributed.is_primary():
        return
    evaluation, comparison = run.evaluation, run.comparison
    trainings = [t for t in (comparison.teacher, *comparison.students) if t.name in results]
    costs = measure_costs(run, trainings)
    quality = {
        name: {k: Figure(v, values=(v,)) for k, v in evaluation.compute(predictions).items()}
        for name, predictions in evaluation.baselines.items()
    }
    for training in trainings:
        by_seed = [result.metrics for result in results[training.name]]
        quality[training.name] = {
            name: over_seeds([metrics[name] for metrics in by_seed]) for name in by_seed[0]
        }
    values = {
        name: {metric: figure.values for metric, figure in own.items()}
        for name, own in quality.items()
    }
    gaps = _gaps(evaluation, values, trainings)
    images = {t.name: Figure(t.images) for t in trainings if t.images is not None}
    entries = [
        Entry(
            name,
            "",
            {
                **own,
                **({"images": images[name]} if name in images else {}),
                **({"gap": gaps[name]} if name in gaps else {}),
                **costs.get(name, {}),
                **figures.get(name, {}),
            },
        )
        for name, own in quality.items()
    ]
    seeds, draws = len(run.config.seeds), 1 + len(evaluation.draws)
    uncertainty = (
        f"mean ± standard deviation over {seeds} seeds"
        if seeds > 1
        else "a single seed" + f", ± standard deviation over {draws} draws" * (draws > 1)
    )
    table = Table(
        "Networks",
        " ".join([f"{evaluation.description}; {uncertainty}.", *evaluation.notes]),
        (
            Column("images", "real images", group="", better="", digits=0),
            *evaluation.metrics,
            GAP,
            *measure.COST,
            *columns,
        ),
        tuple(entries),
    )
    changes = [
        f"seed{seed}/{name}: {line}"
        for name, by_seed in results.items()
        for seed, result in zip(run.config.seeds, by_seed, strict=True)
        for line in result.changes
    ]
    report = Report(
        title=comparison.title,
        summary=[
            *_cost_sentence(costs, comparison),
            *_verdicts(evaluation, values, gaps, trainings),
            *notes,
            *(["**Settings changed on the way:** " + "; ".join(changes) + "."] if changes else []),
        ],
        tables=[table],
        galleries=[
            *_examples(run, trainings),
            *comparison.galleries(run, results),
            *_curves(run, trainings),
        ],
        protocol={
            **evaluation.settings,
            "samples": len(evaluation.inputs.generator[0]),
            "draws": draws,
            "seeds": ", ".join(map(str, run.config.seeds)),
            "latencies": f"per image, in a batch of {run.config.batch_size} unless of one image",
        },
        environment=environment(),
        command=harness.command_line(),
        configuration={**run.config.to_dict(), **details},
    )
    files = page.write(report, run.workdir)
    print(f"\n{page.plain_text(report)}")
    for file in files:
        print(f"written: {file}")


def measure_costs(run: Run, trainings: Iterable[Training]) -> dict[str, Mapping[str, Figure]]:
    """The cost of each training's network, measured once for equal networks."""
    inputs = [jnp.asarray(x[: run.config.batch_size]) for x in run.evaluation.inputs.generator]
    measured: list[tuple[Network, Mapping[str, Figure]]] = []

    def measure_cost(network: Network) -> Mapping[str, Figure]:
        for known, figures in measured:
            if known == network:
                return figures
        # Speed does not depend on the values of the variables.
        variables = jax.jit(network.init)(jax.random.key(0), *(x[:1] for x in inputs))
        subject = EvaluatedGenerator("", "", network, variables, (), 0, {})
        measured.append((network, measure.cost_of(subject, inputs)))
        return measured[-1][1]

    return {training.name: measure_cost(training.network) for training in trainings}


def _cost_sentence(costs: Mapping[str, Mapping[str, Figure]], comparison: Comparison) -> list[str]:
    large, small = (
        {name: figure.value for name, figure in costs[training.name].items()}
        for training in (comparison.teacher, comparison.students[0])
    )
    parameters, macs, time = (large[k] / small[k] for k in ("parameters", "macs", "per_image"))
    return [
        f"The student has **{parameters:.1f} times fewer parameters** than its teacher and needs "
        f"**{macs:.1f} times fewer multiply-accumulates**; an image takes {1 / time:.2f} of the "
        "teacher's time."
    ]


Values: TypeAlias = Mapping[str, Mapping[str, Sequence[float]]]
"""`{network: {metric: one value per seed}}`."""


def _gaps(
    evaluation: Evaluation, values: Values, trainings: Sequence[Training]
) -> dict[str, Figure | str]:
    """The closed share of the gap in the first metric, by training."""
    gaps: dict[str, Figure | str] = {}
    if not evaluation.metrics:
        return gaps
    metric = evaluation.metrics[0]
    sign = -1.0 if metric.better == "higher" else 1.0
    for training in trainings:
        reference = training.group + FROM_SCRATCH
        if training.name in (TEACHER, reference) or reference not in values:
            continue
        closed = gap(
            *(
                [sign * value for value in values[name][metric.name]]
                for name in (reference, training.name, TEACHER)
            )
        )
        gaps[training.name] = closed or "no gap"
    return gaps


def _verdicts(
    evaluation: Evaluation,
    values: Values,
    gaps: Mapping[str, Figure | str],
    trainings: Sequence[Training],
) -> list[str]:
    """Sentences that compare the teacher and the distilled students with the others."""
    if not evaluation.metrics:
        return ["No metric was computed, as requested."]
    metric = evaluation.metrics[0]
    distilled = [t for t in trainings if t.name == t.group + DISTILLED]
    pairs = [(TEACHER, method) for method in evaluation.baselines]
    pairs += [(t.name, t.group + FROM_SCRATCH) for t in distilled]
    pairs += [(t.name, method) for t in distilled for method in evaluation.baselines]
    images = {t.name: f" with {t.images:,} images" for t in trainings if t.images is not None}
    sentences = []
    for name, other in pairs:
        ours, theirs = (values[network][metric.name] for network in (name, other))
        label = name + images.get(name, "") if name != TEACHER else name
        sentence = verdict(label, other, ours, theirs, metric)
        closed = gaps.get(name)
        if (
            other.endswith(FROM_SCRATCH)
            and isinstance(closed, Figure)
            and closed.value > 0
            and len(ours) > 1
            and metric.difference(summarize(ours).mean, summarize(theirs).mean) > 0
        ):
            sentence += f" It closes **{100 * closed.value:.0f}%** of the gap to the teacher."
        sentences.append(sentence)
    return sentences


def _examples(run: Run, trainings: Sequence[Training]) -> list[Gallery]:
    evaluation, seed = run.evaluation, run.config.seeds[0]
    rows = {name: x[evaluation.shown] for name, x in evaluation.baselines.items()}
    rows |= {training.name: run.shown(training, seed) for training in trainings}
    evaluation.draw(run.workdir / "examples.png", rows)
    about = f"Of seed {seed}; all networks have the same inputs in a column."
    return [Gallery("Examples", about, [Picture("", "examples.png")])]


def _curves(run: Run, trainings: Sequence[Training]) -> list[Gallery]:
    histories = {
        training.name: [
            read_jsonl(run.folder(training, seed) / "metrics.jsonl") for seed in run.config.seeds
        ]
        for training in trainings
    }
    panels = {
        caption: curves
        for name, caption in run.comparison.curves.items()
        if (curves := mean_curves(histories, name))
    }
    if not panels:
        return []
    pictures.save_curves(run.workdir / "curves.png", panels)
    about = "Means over seeds of the averaged generator's metrics, and of the losses."
    return [Gallery("During training", about, [Picture("", "curves.png")])]


def mean_curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], name: str
) -> dict[str, tuple[list[float], list[float]]]:
    """`(steps, values)` of one metric, averaged over seeds, for each training that logs it."""
    curves = {}
    for training, runs in histories.items():
        rows = [[row for row in run if name in row] for run in runs]
        if rows and all(rows):
            values = np.mean([[row[name] for row in run] for run in rows], axis=0)
            curves[training] = ([row["step"] for row in rows[0]], values.tolist())
    return curves


def training_batches(config: ConfigDict, source: kd_data.Source, seed: int) -> kd_data.Batches:
    """An endless iterator over this process's part of the batches."""
    return kd_data.batches(
        source,
        config.batch_size,
        seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        skip_corrupt=config.run.skip_corrupt,
    )


def training_plan(
    config: ConfigDict,
    nets: Networks,
    terms: PerNetwork,
    optimizers: PerNetwork,
    inputs: MakeInputs,
    steps: int,
    teacher: Teacher | None = None,
    initial: Mapping[str, Variables] | None = None,
    learning_rates: Mapping[str, Callable[[int], Any]] = {},
) -> TrainingPlan:
    """The alternating step of these networks and terms.

    Args:
      config: the configuration, of which `ema` and `diagnostics` are read.
      nets: the networks.
      terms: a `PerNetwork` of dicts of terms.
      optimizers: a `PerNetwork` of optax transformations.
      inputs: the task.
      steps: the number of training steps.
      teacher: the frozen variables.
      initial: initial variables by network, where they are not random.
      learning_rates: schedules to log, as in `TrainingPlan`.
    """
    setup = Setup(nets, terms, optimizers, inputs, config.ema)
    return TrainingPlan(
        init=partial(init_state, setup, initial=initial),
        step=make_train_step(setup),
        teacher=teacher,
        steps=steps,
        probe=diagnostics.probe(setup) if config.diagnostics else None,
        diagnosis=diagnostics.diagnosis(setup),
        setup=setup,
        learning_rates={
            name: rate for name, rate in learning_rates.items() if name == "g" or nets.discriminator
        },
    )


def example_batch(config: ConfigDict, source: kd_data.Source) -> Batch:
    """A batch of zeros with the shapes of real batches."""
    shape = (config.batch_size, *source.image_shape)
    return {
        "image": np.zeros(shape, np.float32),
        "label": np.zeros(config.batch_size, np.int32),
    }


def apply_in_chunks(
    apply: Callable[..., Any], inputs: Sequence[Any], chunk_size: int
) -> np.ndarray:
    """`apply(*inputs)` for all examples, in chunks of one size, so that it compiles once.

    Args:
      apply: maps inputs `[B, ...]` to an output `[B, ...]`.
      inputs: `[N, ...]` each.
      chunk_size: the largest number of examples in a chunk.
    """
    count = len(inputs[0])
    size = min(count, chunk_size)
    padded = np.arange(-(-count // size) * size) % count
    outputs = [
        np.asarray(apply(*(x[indices] for x in inputs)))
        for indices in np.split(padded, len(padded) // size)
    ]
    return np.concatenate(outputs)[:count]


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` indices, evenly spaced in `range(count)`."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def predict_in_chunks(network: Network, chunk_size: int = 32) -> Predict:
    """`(variables, inputs) -> [N, ...]`: a network's outputs, unchanged."""
    apply = jax.jit(lambda v, *x: network.apply(v, *x)[0])
    return lambda variables, inputs: apply_in_chunks(partial(apply, variables), inputs, chunk_size)


def open_images(config: ConfigDict, spec: str, split: str) -> kd_data.Source:
    """Opens images with the size, channels and resizing of `config.data`.

    Prints which files of a folder were left out or converted.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    data = config.data
    source = kd_data.open_source(
        spec,
        split,
        data.size,
        data.channels,
        resize=data.resize,
        in_patches=data.get("patches", False),
        skip_corrupt=config.run.skip_corrupt,
        background=data.background or None,
    )
    for note in source.notes if distributed.is_primary() else ():
        print(f"{source.name}: {note}", flush=True)
    return source


def check_schedule(config: ConfigDict) -> None:
    """Checks the seeds and the logging, evaluation and checkpoint intervals.

    Raises:
      ValueError: a one-line message.
    """
    if not config.seeds:
        raise ValueError("config.seeds needs at least one entry")
    for name, every in (
        ("evaluate", config.evaluate_every),
        ("checkpoint", config.checkpoint_every),
    ):
        if config.log_every < 1 or every < 1 or every % config.log_every:
            raise ValueError(
                f"config.{name}_every={every} is not a multiple of config.log_every="
                f"{config.log_every}"
            )


def experiment(
    get_config: Callable[[str], ConfigDict],
    build: Callable[[ConfigDict], Comparison],
    presets: Sequence[str],
) -> harness.Experiment:
    """An experiment that runs one comparison."""
    return harness.Experiment(get_config, presets, build, plan, main)
