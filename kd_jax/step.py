"""The training step: a discriminator's move, a generator's move, and how they are put together.

Every step is a pure function `step(state, teacher_variables, batch) -> (state, metrics)`. The
teacher's variables are an argument, never a closure: closed over they would be compiled in as
constants. Metrics are scalars: `g/NAME` and `d/NAME` for every term's unweighted value,
`g/NAME/weight` where a weight is no number, `total`, `grad_norm`, and the discriminator's mean
scores. What steps are put together to is in `kd_jax.modes`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from kd_jax.network import Network
from kd_jax.objective import (
    Bound,
    Forward,
    Inputs,
    MakeInputs,
    Schedule,
    Terms,
    TermState,
    init_terms,
    weighted_total,
)
from kd_jax.state import Networks, Pair, Player, Teacher, TrainState
from kd_jax.types import Array, Batch, Taps, Variables

Metrics: TypeAlias = dict[str, Array]
State = TypeVar("State")
Step: TypeAlias = Callable[[State, Teacher | None, Batch], tuple[State, Metrics]]
"""`(state, teacher_variables, batch) -> (state, metrics)`."""

_DISCRIMINATOR, _GENERATOR = 0, 1  # what is folded into the step's key, per use


def make_train_step(
    *,
    nets: Networks,
    optimizers: Pair,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The alternating step: the discriminator moves, then the generator, against the new one.

    Each move draws its own latents (Goodfellow et al. 2014, algorithm 1, with k = 1). Without a
    discriminator in `nets` the generator's move is all there is.

    Args:
      nets: the networks.
      optimizers: a `Pair` of optax transformations.
      g_terms: what the generator minimises, by name.
      d_terms: what the discriminator minimises, by name.
      inputs: the task, `(key, batch) -> Inputs`.
      ema: the decay of the generator's average, a number or a schedule of the step.

    Raises:
      ValueError: when a term is malformed or there are terms for no discriminator (now), or a term
        fails (when first traced; it is named).
    """
    generator = g_step(nets, optimizers.generator, g_terms, inputs, ema)
    discriminator: Step[TrainState]
    if nets.discriminator is None and not d_terms:
        discriminator = _stand_still
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
    optimizers: Pair,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The simultaneous step: both gradients are taken at the same point, from one forward pass.

    It differs from `make_train_step` in that the two moves share their latents and images, and the
    generator is judged by the discriminator *before* its update. That saves a pass of each network
    (the compiler merges the identical ones) and is the other game: its fixed points are the same,
    its dynamics are not (Mescheder et al. 2018, section 2).

    Args and errors are those of `make_train_step`; a discriminator is needed.
    """
    d_move = _discriminator_move(nets, d_terms, inputs)
    g_move = _generator_move(nets, g_terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = step_key(state, _DISCRIMINATOR)
        d_result = d_move(state, teacher_variables, batch, key)
        g_result = g_move(state, teacher_variables, batch, key)
        state, d_metrics = _moved_discriminator(state, optimizers.discriminator, d_result)
        state, g_metrics = _moved_generator(state, optimizers.generator, g_result, ema)
        return state._replace(step=state.step + 1), {**d_metrics, **g_metrics}

    return step


def d_step(
    nets: Networks,
    optimizer: optax.GradientTransformation,
    terms: Terms,
    inputs: MakeInputs,
) -> Step[TrainState]:
    """The discriminator's move alone. It does not advance `state.step`."""
    move = _discriminator_move(nets, terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        result = move(state, teacher_variables, batch, step_key(state, _DISCRIMINATOR))
        return _moved_discriminator(state, optimizer, result)

    return step


def g_step(
    nets: Networks,
    optimizer: optax.GradientTransformation,
    terms: Terms,
    inputs: MakeInputs,
    ema: float | Schedule = 0.999,
) -> Step[TrainState]:
    """The generator's move alone, and its average's. It does not advance `state.step`."""
    move = _generator_move(nets, terms, inputs)

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        result = move(state, teacher_variables, batch, step_key(state, _GENERATOR))
        return _moved_generator(state, optimizer, result, ema)

    return step


def step_key(state: TrainState, use: int) -> Array:
    """The key of one use of randomness in the step that comes next; 0 and 1 are the moves'."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), use)


def split_over_mesh(given: Inputs) -> Inputs:
    """The inputs split by example over the mesh that the step is compiled for, if any.

    Latents are drawn from one key, so no argument of the step says that they are a batch. Were they
    whole on every device, each would compute the whole batch, and the compiler would split images
    along their height where parameters are sharded: XLA's convolutions are wrong then (jax 0.10.2).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return given
    return jax.lax.with_sharding_constraint(given, PartitionSpec(mesh.axis_names))


def _stand_still(
    state: TrainState, teacher_variables: Teacher | None, batch: Batch
) -> tuple[TrainState, Metrics]:
    del teacher_variables, batch
    return state, {}


# One move: gradients, the mover's variables after the pass, metrics, the terms' states.
_Result: TypeAlias = tuple[Any, Variables, Metrics, dict[str, TermState]]
_Move: TypeAlias = Callable[[TrainState, Teacher | None, Batch, Array], _Result]


def _discriminator_move(nets: Networks, terms: Terms, inputs: MakeInputs) -> _Move:
    init_terms(terms)  # refuses malformed terms before anything is traced
    if nets.discriminator is None:
        names = ", ".join(sorted(terms)) or "none"
        raise ValueError(f"nets has no discriminator to train (with the terms: {names})")

    def move(state: TrainState, teacher: Teacher | None, batch: Batch, key: Array) -> _Result:
        variables = state.discriminator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            players = Pair(state.generator.variables, {**variables, "params": params})
            forward, after = forward_pass(nets, players, teacher, batch, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.discriminator)
            scores = {"fake_score": forward.fake_scores.mean()}
            if forward.real_scores is not None:
                scores["real_score"] = forward.real_scores.mean()
            return total, (after.discriminator, {"total": total, **values, **scores}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return move


def _generator_move(nets: Networks, terms: Terms, inputs: MakeInputs) -> _Move:
    init_terms(terms)

    def move(state: TrainState, teacher: Teacher | None, batch: Batch, key: Array) -> _Result:
        variables = state.generator.variables

        def loss(params: Any) -> tuple[Array, Any]:
            opponent = None if nets.discriminator is None else state.discriminator.variables
            players = Pair({**variables, "params": params}, opponent)
            forward, after = forward_pass(nets, players, teacher, batch, inputs, key, state.step)
            total, values, states = weighted_total(terms, forward, state.terms.generator)
            return total, (after.generator, {"total": total, **values}, states)

        grads, (after, metrics, states) = jax.grad(loss, has_aux=True)(variables["params"])
        return grads, after, metrics, states

    return move


def forward_pass(
    nets: Networks,
    players: Pair,
    teacher: Teacher | None,
    batch: Batch,
    inputs: MakeInputs,
    key: Array,
    step: Array,
) -> tuple[Forward, Pair]:
    """One pass of every network, and both players' variables after it."""
    input_key, g_key, real_key, fake_key, term_key = jax.random.split(key, 5)
    given = split_over_mesh(inputs(input_key, batch))

    generate = _bound(nets.generator, players.generator, train=True, rngs=g_key)
    fake, taps, generator = nets.generator.apply(
        players.generator, *given.generator, train=True, rngs=g_key
    )
    judge, discriminator = nets.discriminator, players.discriminator
    score = real_scores = real_taps = fake_scores = fake_taps = None
    if given.real is not None:
        _same_images(real=given.real, fake=fake)
    if judge is not None:

        def score(images: Array) -> tuple[Array, Taps]:
            return judge.apply(
                players.discriminator, images, *given.condition, train=True, rngs=fake_key
            )[:2]

        if given.real is not None:
            real_scores, real_taps, discriminator = judge.apply(
                discriminator, given.real, *given.condition, train=True, rngs=real_key
            )
        fake_scores, fake_taps, discriminator = judge.apply(
            discriminator, fake, *given.condition, train=True, rngs=fake_key
        )

    teach = _frozen(nets.teacher, teacher and teacher.generator, "teacher", ())
    teacher_score = _frozen(
        nets.teacher_discriminator,
        teacher and teacher.discriminator,
        "teacher_discriminator",
        given.condition,
    )
    features = _frozen(nets.extractor, teacher and teacher.extractor, "extractor", ())

    def extract(images: Array) -> Taps:
        if features is None:
            raise ValueError("nets has no extractor")
        return features(images)[1]

    teacher_image, teacher_taps = teach(*given.generator) if teach else (None, None)
    forward = Forward(
        step=step,
        key=term_key,
        inputs=given,
        real=given.real,
        fake=fake,
        taps=taps,
        teacher=jax.lax.stop_gradient(teacher_image),
        teacher_taps=jax.lax.stop_gradient(teacher_taps),
        real_scores=real_scores,
        real_taps=real_taps,
        fake_scores=fake_scores,
        fake_taps=fake_taps,
        generate=generate,
        teach=teach,
        score=score,
        teacher_score=teacher_score,
        extract=extract,
    )
    return forward, Pair(generator, discriminator)


def _bound(
    network: Network,
    variables: Variables,
    *condition: Any,
    train: bool = False,
    rngs: Array | None = None,
) -> Bound:
    def apply(*inputs: Any) -> tuple[Array, Taps]:
        return network.apply(variables, *inputs, *condition, train=train, rngs=rngs)[:2]

    if network.mapping is None or network.synthesis is None:
        return Bound(apply)
    synthesis = partial(network.synthesis, variables)
    return Bound(
        apply,
        partial(network.mapping, variables),
        # Without a key noise is not drawn, so that the teacher's is the same in every pass.
        synthesis if rngs is None else partial(synthesis, rngs=rngs),
    )


def _frozen(
    network: Network | None, variables: Variables | None, name: str, condition: tuple[Any, ...]
) -> Bound | None:
    if network is None:
        return None
    if variables is None:
        article = "an" if name == "extractor" else "a"
        raise ValueError(
            f"nets has {article} {name}, but teacher_variables holds no variables for it"
        )
    return _bound(network, variables, *condition)


def _same_images(real: Array, fake: Array) -> None:
    if real.shape != fake.shape:
        raise ValueError(f"real images have shape {real.shape}, generated ones {fake.shape}")


def _moved_discriminator(
    state: TrainState, optimizer: optax.GradientTransformation, result: _Result
) -> tuple[TrainState, Metrics]:
    player, metrics, states = _moved(state.discriminator, optimizer, result)
    terms = state.terms._replace(discriminator=states)
    return state._replace(discriminator=player, terms=terms), _named("d", metrics)


def _moved_generator(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    result: _Result,
    ema: float | Schedule,
) -> tuple[TrainState, Metrics]:
    player, metrics, states = _moved(state.generator, optimizer, result)
    decay = ema(state.step) if callable(ema) else ema
    return (
        state._replace(
            generator=player,
            ema=_averaged(state.ema, player.variables, decay),
            terms=state.terms._replace(generator=states),
        ),
        _named("g", metrics),
    )


def _moved(
    player: Player, optimizer: optax.GradientTransformation, result: _Result
) -> tuple[Player, Metrics, dict[str, TermState]]:
    grads, after, metrics, states = result
    params = player.variables["params"]
    updates, opt_state = optimizer.update(grads, player.opt_state, params)
    variables = {**after, "params": optax.apply_updates(params, updates)}
    return Player(variables, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}, states


def _averaged(ema: Variables, new: Variables, decay: Any) -> Variables:
    """Averages every floating variable, batch statistics too: those of the averaged weights are
    nearer to the averaged statistics than to the latest ones. Counters are copied.
    """

    def average(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (new + decay * (old - new)).astype(old.dtype)  # exactly `new` where both agree

    return jax.tree.map(average, ema, new)


def _named(player: str, metrics: Metrics) -> Metrics:
    return {f"{player}/{name}": value for name, value in metrics.items()}
