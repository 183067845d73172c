"""Compositions of steps: data-free, self-taught, online, many in one call, guarded against NaN.

Offline distillation is a step of `kd_jax.step` itself, with a frozen teacher. What is here wraps
such steps, and the wrappers nest: `scanned(data_free(self_taught(step), ...), 8)`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.network import Network
from kd_jax.objective import Bound, Forward, MakeInputs, Term, Terms, Weight
from kd_jax.state import Teacher, TrainState
from kd_jax.step import Metrics, Step, split_over_mesh, step_key
from kd_jax.types import Array, Batch, Taps, Variables

_DATA = 2  # folded into the step's key
_OF_TEACHERS = ("teacher", "teacher_taps", "teach", "teacher_score")  # fields of a Forward


def data_free(
    step: Step[TrainState], teacher: Network, inputs: MakeInputs, share: float = 1.0
) -> Step[TrainState]:
    """`step` with the teacher's images standing where real ones would.

    Args:
      step: any step of a `TrainState`.
      teacher: the teacher's generator; its variables are `teacher_variables.generator`.
      inputs: the task; it draws the teacher's latents, and gives the condition they go with. With
        `kd_jax.noise` the batch may be empty.
      share: the part of the batch to replace, in (0, 1]; the first `round(share * B)` examples. At
        1 the batch needs no images at all, only what `inputs` reads.

    Raises:
      ValueError: when `share` is outside (0, 1], or less than one image of the batch.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share={share} of teacher images is outside (0, 1]")

    def data_free_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if teacher_variables is None:
            raise ValueError("the data-free step needs teacher_variables, not None")
        given = split_over_mesh(inputs(step_key(state, _DATA), batch))
        images, _, _ = teacher.apply(teacher_variables.generator, *given.generator)
        count = round(share * images.shape[0])
        if count == 0:
            raise ValueError(f"share={share} of a batch of {images.shape[0]} is not one image")
        if count < images.shape[0]:
            if "image" not in batch:
                raise ValueError(f"share={share} keeps real images; the batch has {sorted(batch)}")
            images = jnp.concatenate([images[:count], batch["image"][count:]])
        # What the task has drawn (labels) belongs to these images.
        return step(state, teacher_variables, {**batch, **given.extra, "image": images})

    return data_free_step


def self_taught(step: Step[TrainState]) -> Step[TrainState]:
    """`step` with the generator's own average for its teacher: self-distillation.

    `nets.teacher` is the generator itself; of `teacher_variables` only a frozen discriminator's and
    extractor's are read, if any. Tarvainen & Valpola 2017 (mean teachers), for generators.

    Args:
      step: any step of a `TrainState`.
    """

    def self_taught_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        others = Teacher() if teacher_variables is None else teacher_variables
        return step(state, others._replace(generator=state.ema), batch)

    return self_taught_step


def online(
    student: Step[TrainState], teachers: Mapping[str, Step[TrainState]], averaged: bool = False
) -> Step[TrainState]:
    """Teachers that are trained beside the student: each takes its step, then the student does.

    Ren et al. 2021 (OMGD), whose student has no discriminator of its own. The teachers see the
    student's batch, and may be taught themselves by `teacher_variables`.

        state = init_state(key, batch, **parts)
        state = state._replace(teachers={"wide": init_state(other_key, batch, **wide_parts)})
        step = online(make_train_step(**parts), {"wide": make_train_step(**wide_parts)})

    Args:
      student: the step that learns from them. Its teacher is the one teacher's network, or
        `together({name: network})` of several.
      teachers: their steps, by name; `state.teachers` has their states.
      averaged: whether the student learns from the teachers' averages, or from what they are now.

    Returns:
      A step; a teacher's metrics are `NAME/g/...` and `NAME/d/...`.

    Raises:
      ValueError: without any teacher, or (when traced) when `state.teachers` has others.
    """
    if not teachers:
        raise ValueError("online distillation needs at least one teacher's step")

    def online_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if set(state.teachers) != set(teachers):
            there = ", ".join(state.teachers) or "none"
            raise ValueError(
                f"state.teachers has {there}; there are steps of {', '.join(teachers)}"
            )
        after, metrics = {}, {}
        generators, discriminators = {}, {}
        for name, step in teachers.items():
            trained, figures = step(state.teachers[name], teacher_variables, batch)
            after[name] = trained
            metrics.update({f"{name}/{key}": value for key, value in figures.items()})
            generators[name] = trained.ema if averaged else trained.generator.variables
            if trained.discriminator:
                discriminators[name] = trained.discriminator.variables
        taught = Teacher(generators, discriminators)
        if len(teachers) == 1:
            (name,) = teachers
            taught = Teacher(generators[name], discriminators.get(name))
        if teacher_variables is not None:
            taught = taught._replace(extractor=teacher_variables.extractor)
        state, figures = student(state, taught, batch)
        return state._replace(teachers=after), {**metrics, **figures}

    return online_step


def scanned(step: Step[Any], count: int) -> Step[Any]:
    """`count` steps in one dispatch, a `jax.lax.scan`: for steps so short that calling them costs.

    Args:
      step: any step.
      count: how many.

    Returns:
      A step whose batch holds `count` batches one after another, `[count * B, ...]`, or nothing
      (`{}`) where the task needs nothing. Its metrics are the means over the steps. `kd_jax.fit`
      takes `steps_per_call=count`.

    Raises:
      ValueError: when `count` is not positive, or (when traced) does not divide a batch.
    """
    if count < 1:
        raise ValueError(f"count={count} steps in one call: at least 1 is needed")

    def part(leaf: Array) -> Array:
        if leaf.shape[0] % count:
            raise ValueError(
                f"a batch of {leaf.shape[0]} does not hold {count} batches of one size"
            )
        return leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])

    def scanned_step(
        state: Any, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[Any, Metrics]:
        state, metrics = jax.lax.scan(
            lambda state, batch: step(state, teacher_variables, batch),
            state,
            jax.tree.map(part, dict(batch)),
            length=count,
        )
        return state, jax.tree.map(lambda values: values.mean(axis=0), metrics)

    return scanned_step


def guarded(step: Step[TrainState], patience: int = 0) -> Step[TrainState]:
    """`step`, which leaves no trace in the state where one of its numbers is NaN or infinite.

    Looked at are all metrics: every term's value, each player's total, the norm of its gradient.
    Such a step changes nothing but `state.step`, and is counted in `state.skipped`. With more than
    `patience` of them the state stands still for good, as it was before the last one: whoever looks
    at the metrics later still finds it. The outermost of all wrappers.

    Args:
      step: any step of a `TrainState`.
      patience: how many steps to leave out before standing still.

    Returns:
      A step with one more metric, `skipped`, the count.

    Raises:
      ValueError: when `patience` is negative.
    """
    if patience < 0:
        raise ValueError(f"patience={patience} steps left out: it must not be negative")

    def guarded_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, teacher_variables, batch)
        finite = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
        moving = state.skipped <= patience
        count = state.skipped + (moving & ~finite)
        kept = jax.tree.map(partial(jnp.where, moving & finite), after, state)
        number = jnp.where(count <= patience, after.step, state.step)
        return kept._replace(step=number, skipped=count), {**metrics, "skipped": count}

    return guarded_step


def together(networks: Mapping[str, Network]) -> Network:
    """Several teachers as one network, of the variables `{name: variables}`.

    Its output is the mean of theirs, which means something where they answer alike (logits, or
    images for the same condition). Each one's own output is the tap `NAME/output`, its tap t is
    `NAME/t`; `taught_by` turns terms towards one of them. Batch statistics are not updated.

    Args:
      networks: with the same inputs and outputs, by name.

    Raises:
      ValueError: without any network, or (when traced) when their outputs differ in shape, or one
        has a tap `output` that is not its output.
    """
    if not networks:
        raise ValueError("together() needs at least one network")

    def init(key: Array, *inputs: Any) -> Variables:
        keys = jax.random.split(key, len(networks))
        return {
            name: network.init(one, *inputs)
            for one, (name, network) in zip(keys, networks.items(), strict=True)
        }

    def apply(
        variables: Variables, *inputs: Any, train: bool = False, rngs: Array | None = None
    ) -> tuple[Array, Taps, Variables]:
        outputs, taps = {}, Taps()
        for name, network in networks.items():
            output, own, _ = network.apply(variables[name], *inputs, train=train, rngs=rngs)
            if own.get("output", output) is not output:
                raise ValueError(f"network {name!r} has a tap 'output' that is not its output")
            outputs[name] = taps[f"{name}/output"] = output
            taps.update({f"{name}/{tap}": feature for tap, feature in own.items()})
        shapes = {name: output.shape for name, output in outputs.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the teachers' outputs have different shapes: {shapes}")
        return jnp.stack(list(outputs.values())).mean(axis=0), taps, variables

    return Network(init, apply)


def taught_by(name: str, terms: Terms) -> dict[str, Term]:
    """`terms` that learn from one teacher of `together`; each is called `NAME/TERM`.

    Args:
      name: the teacher's.
      terms: written as for one teacher; they and their weights see its images and taps in the
        teacher's place, and its scores, where the teachers' discriminators are `together`, too.
    """
    mine = f"{name}/"

    def of_one(answer: tuple[Array, Taps]) -> tuple[Array, Taps]:
        _, taps = answer
        own = Taps({k.removeprefix(mine): v for k, v in taps.items() if k.startswith(mine)})
        if "output" not in own:
            there = sorted({tap.partition("/")[0] for tap in taps})
            raise ValueError(f"no teacher {name!r} taught here; there is {', '.join(there)}")
        return own.pop("output"), own

    def of_one_or_all(answer: tuple[Array, Taps]) -> tuple[Array, Taps]:
        return of_one(answer) if f"{mine}output" in answer[1] else answer

    def turned(forward: Forward) -> Forward:
        if forward.teacher is None or forward.teach is None:
            raise ValueError(f"teacher {name!r} is needed, but nets has no teacher")
        image, taps = of_one((forward.teacher, forward.teacher_taps or Taps()))
        teach, score = forward.teach, forward.teacher_score
        return forward._replace(
            teacher=image,
            teacher_taps=taps,
            teach=Bound(lambda *inputs: of_one(teach(*inputs))),
            teacher_score=score and Bound(lambda images: of_one_or_all(score(images))),
        )

    def weighing(weight: Weight) -> Weight:
        def fn(
            forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
        ) -> tuple[Array, Any]:
            # The term turns what it gets by itself: it is to get all the teachers back.
            all_of_them = {field: getattr(forward, field) for field in _OF_TEACHERS}
            return weight.fn(
                turned(forward), lambda other: term(other._replace(**all_of_them)), value, state
            )

        return Weight(fn, weight.init)

    def one(term: Term) -> Term:
        fn: Callable[..., Any] = term.fn
        weight = weighing(term.weight) if isinstance(term.weight, Weight) else term.weight
        return term._replace(fn=lambda forward, *state: fn(turned(forward), *state), weight=weight)

    return {f"{name}/{key}": one(term) for key, term in terms.items()}
