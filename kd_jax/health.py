"""Signs that a training is not doing what its recipe says, as figures and as one-line warnings.

    probe = compile_step(health.probe(**parts), mesh, rule, donate=False)
    _, figures = probe(state, teacher_variables, batch)     # now and then: some backward passes
    for line in health.warnings(figures, first=first_figures): print(line)

`parts` are those of `make_train_step`. The figures are scalars, for the metrics. `diagnosis` says
what was not finite in a step that `kd_jax.guarded` left out, `Trend` looks at the logged means.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def diagnosis(
    *,
    nets: Networks,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    optimizers: Any = None,
) -> Step[TrainState]:
    """A step that changes nothing and tells what is finite, for `culprit`: 1 where it is, or 0.

    Both moves are made as the step would make them, the generator's against the discriminator that
    there is. `0/...` are the players' and the teacher's variables, `1/...` what the teacher makes,
    `2/...` what the networks get and make, `3/...` the terms' values and `4/...` the gradients of
    each term alone.

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
        flags: Metrics = {}
        variables = {"g": state.generator.variables}
        if nets.discriminator is not None:
            variables["d"] = state.discriminator.variables
        named = {_PLAYERS[name]: value for name, value in variables.items()}
        for name, value in {**named, "teacher": teacher_variables}.items():
            flags[f"0/the {name}'s variables"] = _is_finite(value)
        flags["1/the teacher's output"] = jnp.array(True)
        for use, player in enumerate(("d", "g")):
            if player not in variables:
                continue
            key = step_key(state, use)

            def run(params: Any, player: str = player, key: Array = key) -> Forward:
                moved = {**variables, player: {**variables[player], "params": params}}
                players = Pair(moved["g"], moved.get("d"))
                return forward_pass(
                    nets, players, teacher_variables, batch, inputs, key, state.step
                )[0]

            params = variables[player]["params"]
            here = run(params)
            flags["1/the teacher's output"] &= _is_finite(here.teacher)
            seen = {
                "the inputs": here.inputs,
                "the real images": here.real,
                "the generated images": here.fake,
                "the scores": (here.real_scores, here.fake_scores),
            }
            flags |= {f"2/{player}: {name}": _is_finite(x) for name, x in seen.items()}
            terms = {"d": d_terms, "g": g_terms}[player]
            states = getattr(state.terms, _PLAYERS[player])
            for name, term in terms.items():
                alone = {name: term._replace(every=1)}

                def total(
                    params: Any, run: Any = run, alone: Terms = alone, states: Any = states
                ) -> Array:
                    return weighted_total(alone, run(params), states)[0]

                value, grads = jax.value_and_grad(total)(params)
                flags[f"3/{player}/{name}"] = _is_finite(value)
                flags[f"4/the gradient of {player}/{name}"] = _is_finite(grads)
        return state, flags

    return step


def culprit(flags: Mapping[str, Any]) -> str | None:
    """The first thing that was not finite, by the flags of a `diagnosis`; None if all was."""
    bad = sorted(name for name, flag in flags.items() if float(flag) < 1.0)
    return f"{bad[0].partition('/')[2]} is not finite" if bad else None


def first_fault(tree: Any) -> str | None:
    """Which floating array of `tree` is not finite all over: "PATH is not finite", or None."""
    flags = jax.device_get(_all_finite(tree))
    for path, finite in jax.tree_util.tree_leaves_with_path(flags):
        if not finite:
            return f"{jax.tree_util.keystr(path, simple=True, separator='/')} is not finite"
    return None


@jax.jit
def _all_finite(tree: Any) -> Any:
    return jax.tree.map(_is_finite, tree)


def _is_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves] or [jnp.array(True)]).all()


class Trend:
    """Looks at the logged means of metrics, window after window, for a training that diverges.

    Args:
      floors: the least values of terms, by their metrics' names (`d/adversarial`).
      patience: after how many windows to speak of a discriminator's term at its least value; and
        how many make a gradient's usual norm.
      near: it is there within this, in units of the floor's size or of 1, whichever is larger.
      ratio: how many times the median of its windows so far a gradient's norm may be.
    """

    def __init__(
        self,
        floors: Mapping[str, float] = {},
        patience: int = 3,
        near: float = 1e-3,
        ratio: float = 100.0,
    ):
        self._floors = dict(floors)
        self._patience, self._near, self._ratio = patience, near, ratio
        self._at_floor: dict[str, int] = {}
        self._norms: dict[str, list[float]] = {}

    def look(self, means: Mapping[str, float]) -> list[str]:
        """What is wrong, one line each; none where nothing is."""
        lines = []
        for name, floor in self._floors.items():
            if name not in means or not name.startswith("d/"):
                continue
            low = means[name] - floor <= self._near * max(1.0, abs(floor))
            self._at_floor[name] = self._at_floor.get(name, 0) + 1 if low else 0
            if self._at_floor[name] >= self._patience:
                lines.append(
                    f"{name} has been at its least value for {self._at_floor[name]} windows: the "
                    "discriminator is sure of everything, and the game is over"
                )
        for name, value in means.items():
            if not name.endswith("/grad_norm"):
                continue
            before = self._norms.setdefault(name, [])
            usual = statistics.median(before) if len(before) >= self._patience else math.inf
            if usual > 0 and value > self._ratio * usual:
                lines.append(
                    f"{name} is {value:.3g}, {value / usual:.0f} times what it was: the training "
                    "diverges"
                )
            before.append(value)
        return lines


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


def check_units(made: Any, real: Any) -> None:
    """Refuses a teacher whose images are clearly not in the units of the real ones, [-1, 1].

    Args:
      made: the teacher's.
      real: the data's.

    Raises:
      ValueError: they are not finite, nowhere below 0 though real ones are (as in [0, 1]), or
        fifty times as wide (as in [0, 255]; without a tanh a generator may be well beyond 1).
    """
    made, real = (np.asarray(x, np.float64) for x in (made, real))
    if not np.isfinite(made).all():
        raise ValueError("the teacher's images are not finite")
    widest = np.abs(real).max()
    if (real.min() < 0 <= made.min() and made.max() > 0) or np.abs(made).max() > 50 * widest > 0:
        raise ValueError(
            f"the teacher's images are in [{made.min():.3g}, {made.max():.3g}] and the real ones "
            f"in [{real.min():.3g}, {real.max():.3g}]: both are needed in one unit"
        )


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
