"""Signs that a training is not doing what its recipe says, as figures and as one-line warnings.

    probe = compile_step(health.probe(**parts), mesh, rule, donate=False)
    _, figures = probe(state, teacher_variables, batch)     # now and then: some backward passes
    for line in health.warnings(figures, first=first_figures): print(line)

`parts` are those of `make_train_step`. The figures are scalars, for the metrics.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.objective import Forward, MakeInputs, Terms, weighted_total
from kd_jax.state import Networks, Pair, Teacher, TrainState
from kd_jax.step import Metrics, Step, forward_pass, step_key
from kd_jax.types import Array, Batch, Variables

_PROBE = 3  # folded into the step's key
_PLAYERS = {"g": "generator", "d": "discriminator"}


def probe(
    *,
    nets: Networks,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    optimizers: Any = None,
) -> Step[TrainState]:
    """A step that changes nothing and returns figures for `warnings`.

    * `image_gradient/TERM`: the norm of the gradient of the generator's weighted term with respect
      to the generated images; 0 for a term that reads the generator's features only.
    * `gradient/TERM`: that with respect to the generator's parameters.
    * `TERM/weight`: the weight, where it is no number.
    * `above_floor/g/TERM`, `above_floor/d/TERM`: what a term with a `floor` is above it, in units
      of the floor's size or of 1, whichever is larger.
    * `student/low`, `student/high`, `teacher/low`, `teacher/high`: the least and largest values of
      the images.
    * `teacher/fingerprint`: of all frozen variables.

    Args:
      nets: the networks.
      g_terms: the generator's terms.
      d_terms: the discriminator's.
      inputs: the task.
      optimizers: not read; so that the arguments of `make_train_step` fit.
    """
    del optimizers

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        variables = state.generator.variables
        opponent = state.discriminator.variables if state.discriminator else None
        key = step_key(state, _PROBE)

        def run(params: Any) -> Forward:
            players = Pair({**variables, "params": params}, opponent)
            return forward_pass(nets, players, teacher_variables, batch, inputs, key, state.step)[0]

        here = run(variables["params"])
        image = jax.lax.stop_gradient(here.fake)
        figures: Metrics = {}
        for name, term in g_terms.items():
            due, states = {name: term._replace(every=1)}, state.terms.generator

            def total(forward: Forward, due: Terms = due, states: Any = states) -> Array:
                return weighted_total(due, forward, states)[0]

            at_image = jax.grad(lambda x, total=total: total(here.at(x)))(image)
            at_params = jax.grad(lambda p, total=total: total(run(p)))(variables["params"])
            figures[f"image_gradient/{name}"] = optax.tree.norm(at_image)
            figures[f"gradient/{name}"] = optax.tree.norm(at_params)
            _, values, _ = weighted_total(due, here, states)
            figures |= {key: value for key, value in values.items() if key.endswith("/weight")}
        for player, terms in (("g", g_terms), ("d", d_terms)):
            states = getattr(state.terms, _PLAYERS[player])
            for name, term in terms.items():
                if term.floor is not None:
                    alone = {name: term._replace(every=1, weight=1.0)}
                    value, _, _ = weighted_total(alone, here, states)
                    figures[f"above_floor/{player}/{name}"] = (value - term.floor) / max(
                        1.0, abs(term.floor)
                    )
        for who, images in (("student", here.fake), ("teacher", here.teacher)):
            if images is not None:
                figures[f"{who}/low"], figures[f"{who}/high"] = images.min(), images.max()
        if teacher_variables is not None:
            figures["teacher/fingerprint"] = fingerprint(teacher_variables)
        return state, figures

    return step


def warnings(
    figures: Mapping[str, Any],
    first: Mapping[str, Any] | None = None,
    *,
    against: str = "adversarial",
    near: float = 1e-3,
    ratio: float = 1e3,
) -> list[str]:
    """What is wrong, by the figures of a `probe`: one line each, none where nothing is.

    Args:
      figures: of now.
      first: of the training's beginning, to tell whether the teacher has changed since.
      against: the term that others' pulls at the image are compared with.
      near: a term is at its floor within this.
      ratio: how many times the pull of `against` is too much.
    """
    value = {name: float(figure) for name, figure in figures.items()}
    lines = []
    for name, above in value.items():
        if name.startswith("above_floor/") and above <= near:
            term = name.removeprefix("above_floor/")
            lines.append(
                f"{term} is at its least value: "
                + (
                    "the discriminator is sure of everything, and teaches little"
                    if term.startswith("d/")
                    else "it is saturated, and has nothing left to teach"
                )
            )
    usual = value.get(f"image_gradient/{against}", 0.0)
    for name, pull in value.items():
        term = name.partition("/")[2]
        if name.startswith("gradient/") and pull == 0.0 and value.get(f"{term}/weight") != 0.0:
            lines.append(f"g/{term} has no gradient: it changes nothing")
        if name.startswith("image_gradient/") and usual > 0.0 and pull > ratio * usual:
            lines.append(
                f"g/{term} pulls at the image {pull / usual:.2g} times as hard as g/{against}: "
                "its weight leaves the game no say"
            )
    if "teacher/low" in value:
        lines += _ranges(
            *(value[f"{who}/{end}"] for who in ("student", "teacher") for end in _ENDS)
        )
    name = "teacher/fingerprint"
    before = None if first is None else first.get(name)
    if before is not None and name in value and value[name] != float(before):
        lines.append("the teacher's variables are not those that the training began with")
    return lines


_ENDS = ("low", "high")
_OVERLAP = 0.6  # of the ranges, [0, 1] and [-1, 1] having 0.5


def _ranges(low: float, high: float, teacher_low: float, teacher_high: float) -> list[str]:
    common = min(high, teacher_high) - max(low, teacher_low)
    if common < _OVERLAP * (max(high, teacher_high) - min(low, teacher_low)):
        return [
            f"the student's images are in [{low:.3g}, {high:.3g}] and the teacher's in "
            f"[{teacher_low:.3g}, {teacher_high:.3g}]: are both in one unit?"
        ]
    return []


def fingerprint(variables: Variables | Teacher) -> Array:
    """A number in [0, 2^24) that changes, almost surely, with any bit of the variables.

    Exact in float32, so that it may be logged.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in map(jnp.asarray, jax.tree.leaves(variables)):
        if leaf.dtype != jnp.bool_:
            # Of 8 bytes, two words.
            bits = jnp.dtype(f"uint{min(8 * leaf.dtype.itemsize, 32)}")
            leaf = jax.lax.bitcast_convert_type(leaf, bits)
        words = leaf.astype(jnp.uint32).reshape(-1)
        place = jnp.arange(words.size, dtype=jnp.uint32)
        # Bijective in the word, and another function at each place: exchanged values are seen, too,
        # round ones as well, whose low bits are all zero. The mixing is MurmurHash3's.
        words = words ^ (place * jnp.uint32(0x9E3779B1))
        words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
        words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
        words = words ^ (words >> 16)
        total = total * jnp.uint32(31) + jnp.sum(words, dtype=jnp.uint32)
    return (total ^ (total >> 24)) % jnp.uint32(2**24)
