"""Wrappers of steps: data-free, self- and online distillation, `multi_step`, `skip_nonfinite`.

Offline distillation is a plain step of `kd_jax.core.step` with a frozen teacher. Wrappers compose:
`multi_step(data_free(self_distillation(step), ...), 8)`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.core.network import Network
from kd_jax.core.objective import (
    BoundNetwork,
    Forward,
    GeneratorPass,
    MakeInputs,
    Term,
    Terms,
    Weight,
)
from kd_jax.core.setup import Teacher, as_terms
from kd_jax.core.state import Metrics, Step, TrainState
from kd_jax.core.step import split_over_mesh, step_key
from kd_jax.core.types import Array, Batch, Taps, Variables

_DATA = 2  # folded into the step's key
_ONLINE, _SKIP = "teachers", "skipped"  # entries of `TrainState.wrappers`
# The fields of a `Forward` that belong to the teacher.
_TEACHER_FIELDS = ("teacher", "teacher_discriminator")


def data_free(
    step: Step[TrainState], teacher: Network, task: MakeInputs, share: float = 1.0
) -> Step[TrainState]:
    """`step` with the teacher's images in place of real images.

    Args:
      step: any step of a `TrainState`.
      teacher: the teacher's generator; its variables are `teacher_variables.generator`.
      task: draws the teacher's latents and conditions. With `kd_jax.noise` the
        batch may be empty.
      share: the fraction of the batch to replace, in (0, 1]: the first `round(share * B)` examples.
        With 1 the batch needs no images, only the entries that `task` reads.

    Raises:
      ValueError: when `share` is outside (0, 1], or rounds to zero images of the batch.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share={share} of teacher images is outside (0, 1]")

    def data_free_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if teacher_variables is None:
            raise ValueError("the data-free step needs teacher_variables, not None")
        drawn = split_over_mesh(task(step_key(state, _DATA), batch))
        images, _, _ = teacher.apply(teacher_variables.generator, *drawn.generator)
        count = round(share * images.shape[0])
        if count == 0:
            raise ValueError(f"share={share} of a batch of {images.shape[0]} is not one image")
        if count < images.shape[0]:
            if "image" not in batch:
                raise ValueError(f"share={share} keeps real images; the batch has {sorted(batch)}")
            images = jnp.concatenate([images[:count], batch["image"][count:]])
        # The task's draws (labels) belong to these images.
        return step(state, teacher_variables, {**batch, **drawn.extra, "image": images})

    return data_free_step


def self_distillation(step: Step[TrainState]) -> Step[TrainState]:
    """`step` with the generator's moving average as its teacher: self-distillation.

    `networks.teacher` is the generator itself; `teacher_variables` may hold a frozen discriminator
    and extractor. Tarvainen & Valpola 2017 (mean teachers), for generators.

    Args:
      step: any step of a `TrainState`.
    """

    def self_distillation_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        frozen = Teacher() if teacher_variables is None else teacher_variables
        return step(state, frozen._replace(generator=state.ema), batch)

    return self_distillation_step


def online_distillation(
    student: Step[TrainState], teachers: Mapping[str, Step[TrainState]], averaged: bool = False
) -> Step[TrainState]:
    """Trains the teachers jointly with the student: a step of each teacher, then of the student.

    Ren et al. 2021 (OMGD), whose student has no discriminator of its own. The teachers' steps read
    the student's batch, and may distil from `teacher_variables` themselves.

        step = online_distillation(make_train_step(setup), {"wide": make_train_step(wide_setup)})
        teachers = {"wide": init_state(wide_setup, other_key, batch)}
        state = with_teachers(init_state(setup, key, batch), teachers)

    Args:
      student: the student's step. Its teacher network is the network of a single teacher, or
        `ensemble({name: network})` of several.
      teachers: the teachers' steps, by name; their states are added by `with_teachers`.
      averaged: whether the student distils from the teachers' moving averages instead of their
        current variables.

    Returns:
      A step; the metrics of a teacher are `NAME/g/...` and `NAME/d/...`.

    Raises:
      ValueError: when `teachers` is empty, or (when traced) the state does not have the states of
        these teachers.
    """
    if not teachers:
        raise ValueError("online_distillation() needs at least one teacher's step")

    def online_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        states = state.wrappers.get(_ONLINE, {})
        if set(states) != set(teachers):
            raise ValueError(
                f"the state has teachers {', '.join(states) or 'none'}; expected "
                f"{', '.join(teachers)}: kd_jax.with_teachers(state, states)"
            )
        after, metrics = {}, {}
        generators, discriminators = {}, {}
        for name, step in teachers.items():
            trained, step_metrics = step(states[name], teacher_variables, batch)
            after[name] = trained
            metrics.update({f"{name}/{key}": value for key, value in step_metrics.items()})
            generators[name] = trained.ema if averaged else trained.generator.variables
            if trained.discriminator:
                discriminators[name] = trained.discriminator.variables
        current = Teacher(generators, discriminators)
        if len(teachers) == 1:
            (name,) = teachers
            current = Teacher(generators[name], discriminators.get(name))
        if teacher_variables is not None:
            current = current._replace(extractor=teacher_variables.extractor)
        state, student_metrics = student(state, current, batch)
        return with_teachers(state, after), {**metrics, **student_metrics}

    return online_step


def with_teachers(state: TrainState, teachers: Mapping[str, TrainState]) -> TrainState:
    """The student's state with those of the teachers of `online_distillation`, by name."""
    return state._replace(wrappers={**state.wrappers, _ONLINE: dict(teachers)})


def multi_step(step: Step[Any], count: int) -> Step[Any]:
    """`count` steps in one dispatch by `jax.lax.scan`, for steps dominated by dispatch overhead.

    Args:
      step: any step.
      count: the number of steps per call.

    Returns:
      A step whose batch is the concatenation of `count` batches, `[count * B, ...]`, or empty
      (`{}`) if the task needs no batch. Its metrics are the means over the steps. Pass
      `steps_per_call=count` to `kd_jax.train.loop.fit`.

    Raises:
      ValueError: when `count` is not positive, or (when traced) does not divide the batch size.
    """
    if count < 1:
        raise ValueError(f"count={count} steps in one call: count must be at least 1")

    def split(leaf: Array) -> Array:
        if leaf.shape[0] % count:
            raise ValueError(
                f"a batch of {leaf.shape[0]} is not divisible into {count} batches of equal size"
            )
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    def scan_steps(
        state: Any, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[Any, Metrics]:
        state, metrics = jax.lax.scan(
            lambda state, batch: step(state, teacher_variables, batch),
            state,
            jax.tree.map(split, dict(batch)),
            length=count,
        )
        return state, jax.tree.map(lambda values: values.mean(axis=0), metrics)

    return scan_steps


def skip_nonfinite(step: Step[TrainState], patience: int = 0) -> Step[TrainState]:
    """Skips the update of a `step` with a NaN or infinite metric.

    All metrics are checked: every term's value, and each network's total and gradient norm. A
    skipped step only advances `state.step` and increments the count of skipped steps. After more
    than `patience` of them the state is frozen as it was before the last one, so that a later check
    of the metrics still sees the fault. This must be the outermost wrapper.

        step = skip_nonfinite(make_train_step(setup), patience=10)
        state = with_skip_count(init_state(setup, key, batch))

    Args:
      step: any step of a `TrainState`.
      patience: the number of steps to skip before the state is frozen.

    Returns:
      A step with the additional metric `skipped`, the number of skipped steps.

    Raises:
      ValueError: when `patience` is negative, or (when traced) the state has no count of skipped
        steps.
    """
    if patience < 0:
        raise ValueError(f"patience={patience} skipped steps: patience must not be negative")

    def checked_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if _SKIP not in state.wrappers:
            raise ValueError(
                "the state has no count of skipped steps: kd_jax.with_skip_count(state)"
            )
        after, metrics = step(state, teacher_variables, batch)
        finite = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
        skipped = state.wrappers[_SKIP]
        active = skipped <= patience
        count = skipped + (active & ~finite)
        selected = jax.tree.map(partial(jnp.where, active & finite), after, state)
        number = jnp.where(count <= patience, after.step, state.step)
        wrappers = {**selected.wrappers, _SKIP: count}
        return selected._replace(step=number, wrappers=wrappers), {**metrics, "skipped": count}

    return checked_step


def with_skip_count(state: TrainState) -> TrainState:
    """The state with the number of steps that `skip_nonfinite` skipped, 0."""
    return state._replace(wrappers={**state.wrappers, _SKIP: jnp.zeros((), jnp.int32)})


def skip_count(state: TrainState) -> int:
    """The number of steps that `skip_nonfinite` skipped; 0 for another step."""
    return int(state.wrappers.get(_SKIP, 0))


def ensemble(networks: Mapping[str, Network]) -> Network:
    """Several teachers as one network with variables `{name: variables}`.

    Its output is the mean of the networks' outputs, which is meaningful for comparable outputs
    (logits, or images for the same condition). The output of a network is the tap `NAME/output`,
    and its tap t is `NAME/t`; `for_teacher` directs terms at one of them. Batch statistics are not
    updated.

    Args:
      networks: networks with the same inputs and output shapes, by name.

    Raises:
      ValueError: when `networks` is empty, or (when traced) their outputs differ in shape or a
        network has a tap `output` that is not its output.
    """
    if not networks:
        raise ValueError("ensemble() needs at least one network")

    def init(key: Array, *inputs: Any) -> Variables:
        keys = jax.random.split(key, len(networks))
        return {
            name: network.init(network_key, *inputs)
            for network_key, (name, network) in zip(keys, networks.items(), strict=True)
        }

    def apply(
        variables: Variables, *inputs: Any, train: bool = False, rngs: Array | None = None
    ) -> tuple[Array, Taps, Variables]:
        outputs, taps = {}, Taps()
        for name, network in networks.items():
            output, own_taps, _ = network.apply(variables[name], *inputs, train=train, rngs=rngs)
            if own_taps.get("output", output) is not output:
                raise ValueError(f"network {name!r} has a tap 'output' that is not its output")
            outputs[name] = taps[f"{name}/output"] = output
            taps.update({f"{name}/{tap}": feature for tap, feature in own_taps.items()})
        shapes = {name: output.shape for name, output in outputs.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the teachers' outputs have different shapes: {shapes}")
        return jnp.stack(list(outputs.values())).mean(axis=0), taps, variables

    return Network(init, apply)


def for_teacher(name: str, terms: Terms) -> dict[str, Term]:
    """`terms` that distil from one teacher of an `ensemble`, renamed to `NAME/TERM`.

    Args:
      name: the name of the teacher.
      terms: terms written for a single teacher. They and their weights read this teacher's images
        and taps as the teacher's, and its scores if the teachers' discriminators are an `ensemble`,
        too.

    Raises:
      ValueError: (of the terms, when traced) without a teacher, or without one of this name.
    """
    prefix = f"{name}/"

    def select(outputs: tuple[Array, Taps]) -> tuple[Array, Taps]:
        _, taps = outputs
        own_taps = Taps(
            {k.removeprefix(prefix): v for k, v in taps.items() if k.startswith(prefix)}
        )
        if "output" not in own_taps:
            names = sorted({tap.partition("/")[0] for tap in taps})
            raise ValueError(f"there is no teacher {name!r}; there is {', '.join(names)}")
        return own_taps.pop("output"), own_taps

    def select_if_ensemble(outputs: tuple[Array, Taps]) -> tuple[Array, Taps]:
        return select(outputs) if f"{prefix}output" in outputs[1] else outputs

    def with_teacher(forward: Forward) -> Forward:
        network, discriminator = forward.teacher.network, forward.teacher_discriminator
        image, taps = select((forward.teacher.output, forward.teacher.taps))
        bound = BoundNetwork(lambda *inputs: select(network(*inputs)))
        forward = forward._replace(teacher=GeneratorPass(image, taps, bound))
        if not discriminator:
            return forward
        return forward._replace(
            teacher_discriminator=BoundNetwork(
                lambda images: select_if_ensemble(discriminator(images))
            )
        )

    def wrap_weight(weight: Weight) -> Weight:
        def fn(
            forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
        ) -> tuple[Array, Any]:
            # `term` selects this teacher itself, so it needs the fields of the whole ensemble.
            ensemble_fields = {field: getattr(forward, field) for field in _TEACHER_FIELDS}
            return weight.fn(
                with_teacher(forward),
                lambda other: term(other._replace(**ensemble_fields)),
                value,
                state,
            )

        return Weight(fn, weight.init)

    def wrap_term(term: Term) -> Term:
        fn: Callable[..., Any] = term.fn
        weight = wrap_weight(term.weight) if isinstance(term.weight, Weight) else term.weight
        return term._replace(
            fn=lambda forward, *state: fn(with_teacher(forward), *state), weight=weight
        )

    return {f"{name}/{key}": wrap_term(term) for key, term in as_terms("terms", terms).items()}
