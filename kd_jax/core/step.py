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
from kd_jax.core.micro_batches import Update, Updates, check_count, mean_updates
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


def make_train_step(setup: Setup, *, micro_batches: int = 1) -> Step[TrainState]:
    """The alternating step: updates the discriminator, then the generator against the new one.

    Each update draws its own latents (Goodfellow et al. 2014, algorithm 1, with k = 1). Without a
    discriminator in `setup.networks`, only the generator is updated.

    With `micro_batches=n`, each update computes the gradients of n equal parts of the batch one
    after another and applies their mean (gradient accumulation), so that the activations of only
    one part are in memory. Inputs are drawn for the whole batch, and example i belongs to part
    `i % n`. The step equals the plain one, up to rounding, if every term is a mean over independent
    examples with weights that do not depend on the batch, and neither networks nor terms draw
    random numbers. Otherwise:

    * Terms that relate the examples of a batch (contrastive, relational, moments), and networks
      that do (batch normalisation, minibatch standard deviation), see one part at a time.
    * Collections other than parameters start from the same values in each part, and floats are
      averaged after it: exact for the running mean of batch normalisation, while its running
      variance is that within the parts. Spectral normalisation takes one power iteration per pass,
      as without parts.
    * Networks and terms that draw random numbers (noise, augmentation, gradient penalties) have a
      key for each part.
    * The states of terms and of adaptive weights (image pools, moving averages) are updated once
      per part. Lazy terms are evaluated in all parts of a step or in none.
    * Metrics are means over the parts; `grad_norm` is the norm of the mean gradient.

    Args:
      setup: the setup.
      micro_batches: the number of parts; 1 is the plain step.

    Raises:
      ValueError: `micro_batches` is not a positive integer; or (by the step, when first traced) a
        term fails, and the message names it; the state, the teacher's variables or the batch do
        not fit the setup; or with parts: the batch is not divisible, an input of the task has
        another first axis, or the shape of a term's state depends on the number of examples.
    """
    update_generator = g_step(setup, micro_batches=micro_batches)
    update_discriminator: Step[TrainState] = _no_update
    if setup.networks.discriminator:
        update_discriminator = d_step(setup, micro_batches=micro_batches)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        state, d_metrics = update_discriminator(state, teacher_variables, batch)
        state, g_metrics = update_generator(state, teacher_variables, batch)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def make_simultaneous_step(setup: Setup, *, micro_batches: int = 1) -> Step[TrainState]:
    """The simultaneous step: both gradients are taken at the same point, from one forward pass.

    Unlike in `make_train_step`, the two updates share their latents and images, and the generator's
    terms read the scores of the discriminator *before* its update. This saves a pass of each
    network (the compiler merges the identical ones). The fixed points of the training are the
    same, its dynamics are not (Mescheder et al. 2018, section 2).

    Args:
      setup: the setup.
      micro_batches: as for `make_train_step`.

    Raises:
      ValueError: as for `make_train_step`; or (immediately) the setup has no discriminator.
    """
    compute_updates = _compute_updates(
        setup, micro_batches, _discriminator_update(setup), _generator_update(setup)
    )

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        updates = compute_updates(state, teacher_variables, batch, key)
        state, d_metrics = _update_discriminator(setup, state, updates["discriminator"])
        state, g_metrics = _update_generator(setup, state, updates["generator"])
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def d_step(setup: Setup, *, micro_batches: int = 1) -> Step[TrainState]:
    """The update of the discriminator. It does not advance `state.step`.

    Args:
      setup: the setup.
      micro_batches: as for `make_train_step`.
    """
    compute_updates = _compute_updates(setup, micro_batches, _discriminator_update(setup))

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        updates = compute_updates(state, teacher_variables, batch, key)
        return _update_discriminator(setup, state, updates["discriminator"])

    return step


def g_step(setup: Setup, *, micro_batches: int = 1) -> Step[TrainState]:
    """The update of the generator and of its moving average. It does not advance `state.step`.

    Args:
      setup: the setup.
      micro_batches: as for `make_train_step`.
    """
    compute_updates = _compute_updates(setup, micro_batches, _generator_update(setup))

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _GENERATOR)
        updates = compute_updates(state, teacher_variables, batch, key)
        return _update_generator(setup, state, updates["generator"])

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


# The updates from a state, the teacher's variables, the inputs and a key.
_Compute: TypeAlias = Callable[[TrainState, Teacher | None, Inputs, Array], Updates]


def _compute_updates(
    setup: Setup, micro_batches: int, *computes: _Compute
) -> Callable[[TrainState, Teacher | None, Batch, Array], Updates]:
    """The updates for a batch, each the mean over `micro_batches` parts."""
    check_count(micro_batches)

    def compute(state: TrainState, teacher: Teacher | None, inputs: Inputs, key: Array) -> Updates:
        updates: Updates = {}
        for compute in computes:
            updates.update(compute(state, teacher, inputs, key))
        return updates

    def compute_updates(
        state: TrainState, teacher: Teacher | None, batch: Batch, key: Array
    ) -> Updates:
        inputs = _draw_inputs(setup.task, batch, key)
        if micro_batches == 1:
            return compute(state, teacher, inputs, key)

        def compute_part(terms: PerNetwork, part: Inputs, index: Array) -> Updates:
            part_key = jax.random.fold_in(key, index)
            return compute(state._replace(terms=terms), teacher, split_over_mesh(part), part_key)

        return mean_updates(compute_part, state.terms, inputs, micro_batches)

    return compute_updates


def _discriminator_update(setup: Setup) -> _Compute:
    networks, terms = setup.networks, setup.losses.discriminator
    if networks.discriminator is None:
        raise ValueError("networks.discriminator is None: there is no discriminator to train")

    def compute(state: TrainState, teacher: Teacher | None, inputs: Inputs, key: Array) -> Updates:
        variables = state.discriminator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            students = PerNetwork(state.generator.variables, {**variables, "params": params})
            forward, after = _run_networks(networks, students, teacher, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.discriminator)
            scores = {"fake_score": forward.discriminator.fake_scores.mean()}
            if forward.inputs.real is not None:
                scores["real_score"] = forward.discriminator.real_scores.mean()
            metrics = {"total": total, **values, **scores}
            return total, (_collections(after.discriminator), metrics, states)

        grads, results = jax.grad(loss, has_aux=True)(variables["params"])
        return {"discriminator": Update(grads, *results)}

    return compute


def _generator_update(setup: Setup) -> _Compute:
    networks, terms = setup.networks, setup.losses.generator

    def compute(state: TrainState, teacher: Teacher | None, inputs: Inputs, key: Array) -> Updates:
        variables = state.generator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            discriminator = state.discriminator.variables if networks.discriminator else None
            students = PerNetwork({**variables, "params": params}, discriminator)
            forward, after = _run_networks(networks, students, teacher, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.generator)
            return total, (_collections(after.generator), {"total": total, **values}, states)

        grads, results = jax.grad(loss, has_aux=True)(variables["params"])
        return {"generator": Update(grads, *results)}

    return compute


def _collections(variables: Variables) -> Variables:
    return {name: value for name, value in variables.items() if name != "params"}


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
    inputs = _draw_inputs(task, batch, key)
    return _run_networks(networks, variables, teacher, inputs, key, step)


def _draw_inputs(task: MakeInputs, batch: Batch, key: Array) -> Inputs:
    check_batch(batch)
    inputs = split_over_mesh(task(jax.random.split(key, 5)[0], batch))
    if not isinstance(inputs, Inputs):
        raise ValueError(f"the task returned a {type(inputs).__name__}, not kd_jax.Inputs")
    return inputs


def _run_networks(
    networks: Networks,
    variables: PerNetwork,
    teacher: Teacher | None,
    inputs: Inputs,
    key: Array,
    step: Array,
) -> tuple[Forward, PerNetwork]:
    check_teacher(teacher)
    frozen = Teacher() if teacher is None else teacher
    _, g_key, real_key, fake_key, term_key = jax.random.split(key, 5)  # the first: for the inputs
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
        answer, features = jax.lax.stop_gradient(bound(*inputs.generator))
        if inputs.answer is not None:
            if inputs.answer.shape != answer.shape:
                raise ValueError(
                    f"inputs.answer has shape {inputs.answer.shape}, and the teacher's output "
                    f"{answer.shape}"
                )
            answer = inputs.answer
        forward = forward._replace(teacher=GeneratorPass(answer, features, bound))
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
    setup: Setup, state: TrainState, update: Update
) -> tuple[TrainState, Metrics]:
    network_state, metrics, states = _apply_update(
        state.discriminator, setup.optimizers.discriminator, update
    )
    terms = state.terms._replace(discriminator=states)
    return state._replace(discriminator=network_state, terms=terms), _with_prefix("d", metrics)


def _update_generator(
    setup: Setup, state: TrainState, update: Update
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
    network_state: NetworkState, optimizer: optax.GradientTransformation, update: Update
) -> tuple[NetworkState, Metrics, dict[str, TermState]]:
    grads, collections, metrics, states = update
    params = network_state.variables["params"]
    updates, opt_state = optimizer.update(grads, network_state.opt_state, params)
    variables = {
        **network_state.variables,
        **collections,
        "params": optax.apply_updates(params, updates),
    }
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
