"""The training step: an update of the discriminator and an update of the generator.

Every step is a pure function `step(state, teacher_variables, batch) -> (state, metrics)`. The
teacher's variables are an argument, never a closure, which would compile them in as constants.
Metrics are scalars: `g/NAME` and `d/NAME` for every term's unweighted value, `g/NAME/weight` for a
weight that is not a number, `total`, `grad_norm`, and the discriminator's mean scores. Wrappers of
steps are in `kd_jax.core.wrappers`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from kd_jax.core.network import Network
from kd_jax.core.objective import (
    BoundNetwork,
    Forward,
    Inputs,
    MakeInputs,
    Schedule,
    Terms,
    TermState,
    init_terms,
    weighted_total,
)
from kd_jax.core.state import (
    Metrics,
    Networks,
    NetworkState,
    PerNetwork,
    Step,
    Teacher,
    TrainState,
)
from kd_jax.core.types import Array, Batch, Taps, Variables

_DISCRIMINATOR, _GENERATOR = 0, 1  # folded into the step's key, per use


def make_train_step(
    *,
    nets: Networks,
    optimizers: PerNetwork,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The alternating step: updates the discriminator, then the generator against the new one.

    Each update draws its own latents (Goodfellow et al. 2014, algorithm 1, with k = 1). Without a
    discriminator in `nets`, only the generator is updated.

    Args:
      nets: the networks.
      optimizers: a `PerNetwork` of optax transformations.
      g_terms: the terms of the generator's objective, by name.
      d_terms: the terms of the discriminator's objective, by name.
      inputs: the task, `(key, batch) -> Inputs`.
      ema: the decay of the generator's moving average, a number or a schedule of the step.

    Raises:
      ValueError: when a term is malformed or there are discriminator terms without a discriminator
        (immediately), or a term fails (when first traced; the message names it).
    """
    generator = g_step(nets, optimizers.generator, g_terms, inputs, ema)
    discriminator: Step[TrainState]
    if nets.discriminator is None and not d_terms:
        discriminator = _no_update
    else:
        discriminator = d_step(nets, optimizers.discriminator, d_terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        state, d_metrics = discriminator(state, teacher_variables, batch)
        state, g_metrics = generator(state, teacher_variables, batch)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def make_simultaneous_step(
    *,
    nets: Networks,
    optimizers: PerNetwork,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The simultaneous step: both gradients are taken at the same point, from one forward pass.

    Unlike in `make_train_step`, the two updates share their latents and images, and the generator's
    terms read the scores of the discriminator *before* its update. This saves a pass of each
    network (the compiler merges the identical ones). The fixed points of the training are the
    same, its dynamics are not (Mescheder et al. 2018, section 2).

    Arguments and errors are those of `make_train_step`; a discriminator is required.
    """
    compute_d = _discriminator_update(nets, d_terms, inputs)
    compute_g = _generator_update(nets, g_terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        d_update = compute_d(state, teacher_variables, batch, key)
        g_update = compute_g(state, teacher_variables, batch, key)
        state, d_metrics = _update_discriminator(state, optimizers.discriminator, d_update)
        state, g_metrics = _update_generator(state, optimizers.generator, g_update, ema)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def d_step(
    nets: Networks,
    optimizer: optax.GradientTransformation,
    terms: Terms,
    inputs: MakeInputs,
) -> Step[TrainState]:
    """The update of the discriminator. It does not advance `state.step`."""
    compute_update = _discriminator_update(nets, terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        update = compute_update(state, teacher_variables, batch, step_key(state, _DISCRIMINATOR))
        return _update_discriminator(state, optimizer, update)

    return step


def g_step(
    nets: Networks,
    optimizer: optax.GradientTransformation,
    terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The update of the generator and of its moving average. It does not advance `state.step`."""
    compute_update = _generator_update(nets, terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        update = compute_update(state, teacher_variables, batch, step_key(state, _GENERATOR))
        return _update_generator(state, optimizer, update, ema)

    return step


def step_key(state: TrainState, use: int) -> Array:
    """The key for one use of randomness in the next step; the updates use 0 and 1."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), use)


def split_over_mesh(inputs: Inputs) -> Inputs:
    """Splits the inputs by example over the mesh that the step is compiled for, if any.

    Latents are drawn from one key, so no argument of the step marks them as a batch. If they were
    replicated, every device would compute the whole batch, and with sharded parameters the compiler
    would split images along their height, for which XLA's convolutions are wrong (jax 0.10.2).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return inputs
    return jax.lax.with_sharding_constraint(inputs, PartitionSpec(mesh.axis_names))


def _no_update(
    state: TrainState, teacher_variables: Teacher | None, batch: Batch
) -> tuple[TrainState, Metrics]:
    del teacher_variables, batch
    return state, {}


# Of one network: gradients, its variables after the pass, metrics, the terms' states.
_Update: TypeAlias = tuple[Any, Variables, Metrics, dict[str, TermState]]
_ComputeUpdate: TypeAlias = Callable[[TrainState, Teacher | None, Batch, Array], _Update]


def _discriminator_update(nets: Networks, terms: Terms, inputs: MakeInputs) -> _ComputeUpdate:
    init_terms(terms)  # checks the terms before anything is traced
    if nets.discriminator is None:
        names = ", ".join(sorted(terms)) or "none"
        raise ValueError(f"nets has no discriminator to train (with the terms: {names})")

    def compute_update(
        state: TrainState, teacher: Teacher | None, batch: Batch, key: Array
    ) -> _Update:
        variables = state.discriminator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            students = PerNetwork(state.generator.variables, {**variables, "params": params})
            forward, after = forward_pass(nets, students, teacher, batch, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.discriminator)
            scores = {"fake_score": forward.fake_scores.mean()}
            if forward.real_scores is not None:
                scores["real_score"] = forward.real_scores.mean()
            return total, (after.discriminator, {"total": total, **values, **scores}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return compute_update


def _generator_update(nets: Networks, terms: Terms, inputs: MakeInputs) -> _ComputeUpdate:
    init_terms(terms)

    def compute_update(
        state: TrainState, teacher: Teacher | None, batch: Batch, key: Array
    ) -> _Update:
        variables = state.generator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            discriminator = None if nets.discriminator is None else state.discriminator.variables
            students = PerNetwork({**variables, "params": params}, discriminator)
            forward, after = forward_pass(nets, students, teacher, batch, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.generator)
            return total, (after.generator, {"total": total, **values}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return compute_update


def forward_pass(
    nets: Networks,
    variables: PerNetwork,
    teacher: Teacher | None,
    batch: Batch,
    inputs: MakeInputs,
    key: Array,
    step: Array,
) -> tuple[Forward, PerNetwork]:
    """A pass of every network, and the student networks' variables after it."""
    input_key, g_key, real_key, fake_key, term_key = jax.random.split(key, 5)
    drawn = split_over_mesh(inputs(input_key, batch))

    generate = _bound(nets.generator, variables.generator, train=True, rngs=g_key)
    fake, taps, generator = nets.generator.apply(
        variables.generator, *drawn.generator, train=True, rngs=g_key
    )
    network, discriminator = nets.discriminator, variables.discriminator
    discriminate = real_scores = real_taps = fake_scores = fake_taps = None
    if drawn.real is not None:
        _check_images(real=drawn.real, fake=fake)
    if network is not None:

        def discriminate(images: Array) -> tuple[Array, Taps]:
            return network.apply(
                variables.discriminator, images, *drawn.condition, train=True, rngs=fake_key
            )[:2]

        if drawn.real is not None:
            real_scores, real_taps, discriminator = network.apply(
                discriminator, drawn.real, *drawn.condition, train=True, rngs=real_key
            )
        fake_scores, fake_taps, discriminator = network.apply(
            discriminator, fake, *drawn.condition, train=True, rngs=fake_key
        )

    teacher_fn = _frozen(nets.teacher, teacher and teacher.generator, "teacher", ())
    teacher_discriminate = _frozen(
        nets.teacher_discriminator,
        teacher and teacher.discriminator,
        "teacher_discriminator",
        drawn.condition,
    )
    features = _frozen(nets.extractor, teacher and teacher.extractor, "extractor", ())

    def extract(images: Array) -> Taps:
        if features is None:
            raise ValueError("nets has no extractor")
        return features(images)[1]

    teacher_image, teacher_taps = teacher_fn(*drawn.generator) if teacher_fn else (None, None)
    forward = Forward(
        step=step,
        key=term_key,
        inputs=drawn,
        real=drawn.real,
        fake=fake,
        taps=taps,
        teacher=jax.lax.stop_gradient(teacher_image),
        teacher_taps=jax.lax.stop_gradient(teacher_taps),
        real_scores=real_scores,
        real_taps=real_taps,
        fake_scores=fake_scores,
        fake_taps=fake_taps,
        generate=generate,
        teacher_fn=teacher_fn,
        discriminate=discriminate,
        teacher_discriminate=teacher_discriminate,
        extract=extract,
    )
    return forward, PerNetwork(generator, discriminator)


def _bound(
    network: Network,
    variables: Variables,
    *condition: Any,
    train: bool = False,
    rngs: Array | None = None,
) -> BoundNetwork:
    def apply(*inputs: Any) -> tuple[Array, Taps]:
        return network.apply(variables, *inputs, *condition, train=train, rngs=rngs)[:2]

    if network.mapping is None or network.synthesis is None:
        return BoundNetwork(apply)
    synthesis = partial(network.synthesis, variables)
    return BoundNetwork(
        apply,
        partial(network.mapping, variables),
        # Without a key no noise is drawn, so that all passes of the teacher agree.
        synthesis if rngs is None else partial(synthesis, rngs=rngs),
    )


def _frozen(
    network: Network | None, variables: Variables | None, name: str, condition: tuple[Any, ...]
) -> BoundNetwork | None:
    if network is None:
        return None
    if variables is None:
        article = "an" if name == "extractor" else "a"
        raise ValueError(
            f"nets has {article} {name}, but teacher_variables holds no variables for it"
        )
    return _bound(network, variables, *condition)


def _check_images(real: Array, fake: Array) -> None:
    if real.shape != fake.shape:
        raise ValueError(f"real images have shape {real.shape}, generated ones {fake.shape}")


def _update_discriminator(
    state: TrainState, optimizer: optax.GradientTransformation, update: _Update
) -> tuple[TrainState, Metrics]:
    network_state, metrics, states = _apply_update(state.discriminator, optimizer, update)
    terms = state.terms._replace(discriminator=states)
    return state._replace(discriminator=network_state, terms=terms), _with_prefix("d", metrics)


def _update_generator(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    update: _Update,
    ema: float | Schedule,
) -> tuple[TrainState, Metrics]:
    network_state, metrics, states = _apply_update(state.generator, optimizer, update)
    decay = ema(state.step) if callable(ema) else ema
    return (
        state._replace(
            generator=network_state,
            ema=_average(state.ema, network_state.variables, decay),
            terms=state.terms._replace(generator=states),
        ),
        _with_prefix("g", metrics),
    )


def _apply_update(
    network_state: NetworkState, optimizer: optax.GradientTransformation, update: _Update
) -> tuple[NetworkState, Metrics, dict[str, TermState]]:
    grads, after, metrics, states = update
    params = network_state.variables["params"]
    updates, opt_state = optimizer.update(grads, network_state.opt_state, params)
    variables = {**after, "params": optax.apply_updates(params, updates)}
    return (
        NetworkState(variables, opt_state),
        {**metrics, "grad_norm": optax.tree.norm(grads)},
        states,
    )


def _average(ema: Variables, new: Variables, decay: Any) -> Variables:
    """The moving average of all floating-point variables; counters are copied.

    Batch statistics are averaged, too: the statistics of the averaged weights are closer to the
    averaged statistics than to the latest ones.
    """

    def average(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (new + decay * (old - new)).astype(old.dtype)  # exactly `new` where both are equal

    return jax.tree.map(average, ema, new)


def _with_prefix(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
