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

from kd_jax.core.checks import check_batch
from kd_jax.core.network import Network, check_variables
from kd_jax.core.objective import (
    BoundNetwork,
    DiscriminatorPass,
    Forward,
    GeneratorPass,
    Inputs,
    MakeInputs,
    TermState,
    weighted_total,
)
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher, check_teacher, ema_decay
from kd_jax.core.state import Metrics, NetworkState, Step, TrainState, check_state
from kd_jax.core.types import Array, Batch, Taps, Variables

_DISCRIMINATOR, _GENERATOR = 0, 1  # folded into the step's key, per use


def make_train_step(setup: Setup) -> Step[TrainState]:
    """The alternating step: updates the discriminator, then the generator against the new one.

    Each update draws its own latents (Goodfellow et al. 2014, algorithm 1, with k = 1). Without a
    discriminator in `setup.networks`, only the generator is updated.

    Raises:
      ValueError: (by the step, when first traced) a term fails, and the message names it; or the
        state, the teacher's variables or the batch do not fit the setup.
    """
    update_generator = g_step(setup)
    update_discriminator = d_step(setup) if setup.networks.discriminator else _no_update

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        state, d_metrics = update_discriminator(state, teacher_variables, batch)
        state, g_metrics = update_generator(state, teacher_variables, batch)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def make_simultaneous_step(setup: Setup) -> Step[TrainState]:
    """The simultaneous step: both gradients are taken at the same point, from one forward pass.

    Unlike in `make_train_step`, the two updates share their latents and images, and the generator's
    terms read the scores of the discriminator *before* its update. This saves a pass of each
    network (the compiler merges the identical ones). The fixed points of the training are the
    same, its dynamics are not (Mescheder et al. 2018, section 2).

    Raises:
      ValueError: as for `make_train_step`; or (immediately) the setup has no discriminator.
    """
    compute_d, compute_g = _discriminator_update(setup), _generator_update(setup)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        d_update = compute_d(state, teacher_variables, batch, key)
        g_update = compute_g(state, teacher_variables, batch, key)
        state, d_metrics = _update_discriminator(setup, state, d_update)
        state, g_metrics = _update_generator(setup, state, g_update)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def d_step(setup: Setup) -> Step[TrainState]:
    """The update of the discriminator. It does not advance `state.step`."""
    compute_update = _discriminator_update(setup)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        update = compute_update(state, teacher_variables, batch, key)
        return _update_discriminator(setup, state, update)

    return step


def g_step(setup: Setup) -> Step[TrainState]:
    """The update of the generator and of its moving average. It does not advance `state.step`."""
    compute_update = _generator_update(setup)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        update = compute_update(state, teacher_variables, batch, step_key(state, _GENERATOR))
        return _update_generator(setup, state, update)

    return step


def step_key(state: TrainState, use: int) -> Array:
    """The key for one use of randomness in the next step; the updates use 0 and 1.

    Raises:
      ValueError: the state is not a `TrainState`.
    """
    check_state(state)
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


def _discriminator_update(setup: Setup) -> _ComputeUpdate:
    networks, terms = setup.networks, setup.losses.discriminator
    if networks.discriminator is None:
        raise ValueError("networks.discriminator is None: there is no discriminator to train")

    def compute_update(
        state: TrainState, teacher: Teacher | None, batch: Batch, key: Array
    ) -> _Update:
        variables = state.discriminator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            students = PerNetwork(state.generator.variables, {**variables, "params": params})
            forward, after = forward_pass(
                networks, setup.task, students, teacher, batch, key, state.step
            )
            total, values, states = weighted_total(terms, forward, state.terms.discriminator)
            scores = {"fake_score": forward.discriminator.fake_scores.mean()}
            if forward.inputs.real is not None:
                scores["real_score"] = forward.discriminator.real_scores.mean()
            return total, (after.discriminator, {"total": total, **values, **scores}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return compute_update


def _generator_update(setup: Setup) -> _ComputeUpdate:
    networks, terms = setup.networks, setup.losses.generator

    def compute_update(
        state: TrainState, teacher: Teacher | None, batch: Batch, key: Array
    ) -> _Update:
        variables = state.generator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            discriminator = state.discriminator.variables if networks.discriminator else None
            students = PerNetwork({**variables, "params": params}, discriminator)
            forward, after = forward_pass(
                networks, setup.task, students, teacher, batch, key, state.step
            )
            total, values, states = weighted_total(terms, forward, state.terms.generator)
            return total, (after.generator, {"total": total, **values}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return compute_update


def forward_pass(
    networks: Networks,
    task: MakeInputs,
    variables: PerNetwork,
    teacher: Teacher | None,
    batch: Batch,
    key: Array,
    step: Array,
) -> tuple[Forward, PerNetwork]:
    """A pass of every network, and the trained networks' variables after it.

    Args:
      networks: the networks.
      task: `(key, batch) -> Inputs`.
      variables: those of the trained networks.
      teacher: those of the frozen networks.
      batch: the batch.
      key: the key of this pass.
      step: the number of the step.

    Raises:
      ValueError: the variables, the batch or the shapes of the images do not fit the networks.
    """
    check_batch(batch)
    check_teacher(teacher)
    frozen = Teacher() if teacher is None else teacher
    input_key, g_key, real_key, fake_key, term_key = jax.random.split(key, 5)
    inputs = split_over_mesh(task(input_key, batch))
    if not isinstance(inputs, Inputs):
        raise ValueError(f"the task returned a {type(inputs).__name__}, not kd_jax.Inputs")

    output, taps, generator = networks.generator.apply(
        variables.generator, *inputs.generator, train=True, rngs=g_key
    )
    if inputs.real is not None:
        _check_images(real=inputs.real, output=output)
    forward = Forward(
        step=step,
        key=term_key,
        inputs=inputs,
        student=GeneratorPass(
            output, taps, _bound(networks.generator, variables.generator, train=True, rngs=g_key)
        ),
    )
    discriminator = variables.discriminator
    if networks.discriminator is not None:
        network = networks.discriminator
        real = None
        if inputs.real is not None:
            real_scores, real_taps, discriminator = network.apply(
                discriminator, inputs.real, *inputs.condition, train=True, rngs=real_key
            )
            real = real_scores, real_taps
        fake_scores, fake_taps, discriminator = network.apply(
            discriminator, output, *inputs.condition, train=True, rngs=fake_key
        )
        bound = _bound(
            network, variables.discriminator, *inputs.condition, train=True, rngs=fake_key
        )
        forward = forward._replace(
            discriminator=DiscriminatorPass(fake_scores, fake_taps, real, bound)
        )

    if networks.teacher is not None:
        bound = _frozen(networks.teacher, frozen.generator, "generator")
        forward = forward._replace(
            teacher=GeneratorPass(*jax.lax.stop_gradient(bound(*inputs.generator)), bound)
        )
    if networks.teacher_discriminator is not None:
        forward = forward._replace(
            teacher_discriminator=_frozen(
                networks.teacher_discriminator,
                frozen.discriminator,
                "discriminator",
                *inputs.condition,
            )
        )
    if networks.extractor is not None:
        forward = forward._replace(
            extractor=_frozen(networks.extractor, frozen.extractor, "extractor")
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
    network: Network, variables: Variables | None, name: str, *condition: Any
) -> BoundNetwork:
    """A frozen network; a failing pass is explained by the variables, if they do not fit it."""
    if variables is None:
        raise ValueError(
            f"teacher_variables.{name} is None, but the step has a frozen network for it: pass "
            f"kd_jax.Teacher({name}=variables)"
        )
    bound = _bound(network, variables, *condition)

    def apply(*inputs: Any) -> tuple[Array, Taps]:
        try:
            return bound(*inputs)
        except Exception:  # of any type: the variables explain it, or it is raised again
            check_variables(
                network, variables, *inputs, *condition, name=f"teacher_variables.{name}"
            )
            raise

    return bound._replace(apply=apply)


def _check_images(real: Array, output: Array) -> None:
    if real.shape != output.shape:
        raise ValueError(
            f"the real images have shape {real.shape}, the generator's output {output.shape}"
        )
    if not jnp.issubdtype(real.dtype, jnp.floating):
        raise ValueError(
            f"the real images are {real.dtype}; they must be floats in [-1, 1]: of uint8, "
            "images / 127.5 - 1"
        )


def _update_discriminator(
    setup: Setup, state: TrainState, update: _Update
) -> tuple[TrainState, Metrics]:
    network_state, metrics, states = _apply_update(
        state.discriminator, setup.optimizers.discriminator, update
    )
    terms = state.terms._replace(discriminator=states)
    return state._replace(discriminator=network_state, terms=terms), _with_prefix("d", metrics)


def _update_generator(
    setup: Setup, state: TrainState, update: _Update
) -> tuple[TrainState, Metrics]:
    network_state, metrics, states = _apply_update(
        state.generator, setup.optimizers.generator, update
    )
    return (
        state._replace(
            generator=network_state,
            ema=_average(state.ema, network_state.variables, ema_decay(setup.ema, state.step)),
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
