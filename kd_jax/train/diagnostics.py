"""Training diagnostics: scalar figures, and one-line warnings about them.

    probe = compile_step(diagnostics.probe(setup), mesh, rule, donate=False)
    _, figures = probe(state, teacher_variables, batch)     # occasionally: it costs backward passes
    for line in diagnostics.warnings(figures, first=first_figures): print(line)

The figures are scalars, to be logged as metrics. `diagnosis` locates values that are not finite in
a step skipped by `kd_jax.skip_nonfinite`; `Trend` monitors the logged means.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.core.objective import Forward, Terms, weighted_total
from kd_jax.core.setup import PerNetwork, Setup, Teacher
from kd_jax.core.state import Metrics, Step, TrainState
from kd_jax.core.step import forward_pass, step_key
from kd_jax.core.types import Array, Batch, Variables

_PROBE = 3  # folded into the step's key
_NETWORKS = {"g": "generator", "d": "discriminator"}


def probe(setup: Setup) -> Step[TrainState]:
    """A step that leaves the state unchanged and returns figures for `warnings`.

    * `image_gradient/TERM`: the norm of the gradient of the generator's weighted term with respect
      to the generated images; 0 for a term that only reads the generator's features.
    * `gradient/TERM`: the gradient norm with respect to the generator's parameters.
    * `TERM/weight`: the weight, if it is not a number.
    * `above_lower_bound/g/TERM`, `above_lower_bound/d/TERM`: the distance of a term from its
      `lower_bound`, divided by `max(1, |lower_bound|)`.
    * `student/low`, `student/high`, and so on for `teacher` and `real`: the minimum and maximum of
      the images.
    * `teacher/fingerprint`: the fingerprint of all frozen variables.
    """
    networks, losses = setup.networks, setup.losses

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        variables = state.generator.variables
        discriminator = state.discriminator.variables if state.discriminator else None
        key = step_key(state, _PROBE)

        def run(params: Any) -> Forward:
            students = PerNetwork({**variables, "params": params}, discriminator)
            return forward_pass(
                networks, setup.task, students, teacher_variables, batch, key, state.step
            )[0]

        forward = run(variables["params"])
        image = jax.lax.stop_gradient(forward.student.output)
        figures: Metrics = {}
        for name, term in losses.generator.items():
            due, states = {name: term._replace(every=1)}, state.terms.generator

            def total(forward: Forward, due: Terms = due, states: Any = states) -> Array:
                return weighted_total(due, forward, states)[0]

            at_image = jax.grad(lambda x, total=total: total(forward.with_output(x)))(image)
            at_params = jax.grad(lambda p, total=total: total(run(p)))(variables["params"])
            figures[f"image_gradient/{name}"] = optax.tree.norm(at_image)
            figures[f"gradient/{name}"] = optax.tree.norm(at_params)
            _, values, _ = weighted_total(due, forward, states)
            figures |= {key: value for key, value in values.items() if key.endswith("/weight")}
        for prefix, terms in zip(_NETWORKS, losses, strict=True):
            states = getattr(state.terms, _NETWORKS[prefix])
            for name, term in terms.items():
                if term.lower_bound is not None:
                    single = {name: term._replace(every=1, weight=1.0)}
                    value, _, _ = weighted_total(single, forward, states)
                    figures[f"above_lower_bound/{prefix}/{name}"] = (
                        value - term.lower_bound
                    ) / max(1.0, abs(term.lower_bound))
        images = {"student": forward.student.output, "real": forward.inputs.real}
        if forward.teacher:
            images["teacher"] = forward.teacher.output
        for owner, array in images.items():
            if array is not None:
                figures[f"{owner}/low"], figures[f"{owner}/high"] = array.min(), array.max()
        if teacher_variables is not None:
            figures["teacher/fingerprint"] = fingerprint(teacher_variables)
        return state, figures

    return step


def diagnosis(setup: Setup) -> Step[TrainState]:
    """A step that leaves the state unchanged and returns flags for `locate_nonfinite`.

    A flag is 1 if the values are finite, else 0.

    Both updates are computed as in the step, the generator's against the current discriminator.
    `0/...` are the variables of the trained networks and of the teacher, `1/...` the teacher's
    outputs, `2/...` the inputs and outputs of the networks, `3/...` the values of the terms and
    `4/...` their gradients, one term at a time.
    """
    networks, losses = setup.networks, setup.losses

    def step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        flags: Metrics = {}
        variables = {"g": state.generator.variables}
        if networks.discriminator is not None:
            variables["d"] = state.discriminator.variables
        by_name = {_NETWORKS[prefix]: value for prefix, value in variables.items()}
        for name, value in {**by_name, "teacher": teacher_variables}.items():
            flags[f"0/the {name}'s variables"] = _is_finite(value)
        flags["1/the teacher's output"] = jnp.array(True)
        for use, prefix in enumerate(("d", "g")):
            if prefix not in variables:
                continue
            key = step_key(state, use)

            def run(params: Any, prefix: str = prefix, key: Array = key) -> Forward:
                current = {**variables, prefix: {**variables[prefix], "params": params}}
                students = PerNetwork(current["g"], current.get("d"))
                return forward_pass(
                    networks, setup.task, students, teacher_variables, batch, key, state.step
                )[0]

            params = variables[prefix]["params"]
            forward = run(params)
            if forward.teacher:
                flags["1/the teacher's output"] &= _is_finite(forward.teacher.output)
            scores = forward.discriminator and (
                forward.discriminator.fake_scores,
                forward.discriminator.real and forward.discriminator.real_scores,
            )
            arrays = {
                "the inputs": forward.inputs,
                "the real images": forward.inputs.real,
                "the generated images": forward.student.output,
                "the scores": scores or (),
            }
            flags |= {f"2/{prefix}: {name}": _is_finite(x) for name, x in arrays.items()}
            terms = getattr(losses, _NETWORKS[prefix])
            states = getattr(state.terms, _NETWORKS[prefix])
            for name, term in terms.items():
                single = {name: term._replace(every=1)}

                def total(
                    params: Any, run: Any = run, single: Terms = single, states: Any = states
                ) -> Array:
                    return weighted_total(single, run(params), states)[0]

                value, grads = jax.value_and_grad(total)(params)
                flags[f"3/{prefix}/{name}"] = _is_finite(value)
                flags[f"4/the gradient of {prefix}/{name}"] = _is_finite(grads)
        return state, flags

    return step


def locate_nonfinite(flags: Mapping[str, Any]) -> str | None:
    """The first quantity flagged as not finite by `diagnosis`; None if all are finite."""
    bad = sorted(name for name, flag in flags.items() if float(flag) < 1.0)
    return f"{bad[0].partition('/')[2]} is not finite" if bad else None


def first_nonfinite(tree: Any) -> str | None:
    """The first floating-point array that is not finite: "PATH is not finite", or None."""
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
    """Monitors the logged means of metrics, window by window, for divergence.

    Args:
      lower_bounds: the lower bounds of terms, by metric name (`d/adversarial`).
      patience: the number of windows at its lower bound after which a discriminator term is
        reported, and the minimum number of windows for the median of a gradient norm.
      near: the tolerance of a lower bound, relative to `max(1, |lower_bound|)`.
      ratio: the maximum ratio of a gradient norm to the median over its previous windows.
    """

    def __init__(
        self,
        lower_bounds: Mapping[str, float] = {},
        patience: int = 3,
        near: float = 1e-3,
        ratio: float = 100.0,
    ):
        self._lower_bounds = dict(lower_bounds)
        self._patience, self._near, self._ratio = patience, near, ratio
        self._windows_at_bound: dict[str, int] = {}
        self._norms: dict[str, list[float]] = {}

    def update(self, means: Mapping[str, float]) -> list[str]:
        """Checks the means of a window, and returns warnings, one line each."""
        lines = []
        for name, lower_bound in self._lower_bounds.items():
            if name not in means or not name.startswith("d/"):
                continue
            low = means[name] - lower_bound <= self._near * max(1.0, abs(lower_bound))
            self._windows_at_bound[name] = self._windows_at_bound.get(name, 0) + 1 if low else 0
            if self._windows_at_bound[name] >= self._patience:
                count = self._windows_at_bound[name]
                lines.append(
                    f"{name} has been at its lower bound for {count} windows: "
                    "the discriminator is saturated, and the generator gets no useful gradient"
                )
        for name, value in means.items():
            if not name.endswith("/grad_norm"):
                continue
            previous = self._norms.setdefault(name, [])
            median = statistics.median(previous) if len(previous) >= self._patience else math.inf
            if median > 0 and value > self._ratio * median:
                lines.append(
                    f"{name} is {value:.3g}, {value / median:.0f} times its median: the training "
                    "diverges"
                )
            previous.append(value)
        return lines


def warnings(
    figures: Mapping[str, Any],
    first: Mapping[str, Any] | None = None,
    *,
    against: str = "adversarial",
    near: float = 1e-3,
    ratio: float = 1e3,
) -> list[str]:
    """Warnings about the figures of a `probe`, one line each.

    Args:
      figures: the current figures.
      first: the figures at the start of the training, to detect a changed teacher.
      against: the term whose gradient norm at the image is the reference for other terms.
      near: the tolerance of a lower bound.
      ratio: the maximum ratio of a term's gradient norm at the image to that of `against`.
    """
    value = {name: float(figure) for name, figure in figures.items()}
    lines = []
    for name, above in value.items():
        if name.startswith("above_lower_bound/") and above <= near:
            term = name.removeprefix("above_lower_bound/")
            lines.append(
                f"{term} is at its lower bound: "
                + (
                    "the discriminator is saturated, and the generator gets no useful gradient"
                    if term.startswith("d/")
                    else "the term is saturated, and has no useful gradient"
                )
            )
    reference = value.get(f"image_gradient/{against}", 0.0)
    for name, norm in value.items():
        term = name.partition("/")[2]
        if name.startswith("gradient/") and norm == 0.0 and value.get(f"{term}/weight") != 0.0:
            lines.append(f"g/{term} has no gradient: it does not train the generator")
        if name.startswith("image_gradient/") and reference > 0.0 and norm > ratio * reference:
            lines.append(
                f"g/{term} outweighs g/{against}: its gradient norm at the image is "
                f"{norm / reference:.2g} times as large"
            )
    if "teacher/low" in value:
        lines += _check_ranges(
            *(value[f"{owner}/{end}"] for owner in ("student", "teacher") for end in _ENDS)
        )
    if value.get("real/low", -1.0) >= 0.0 and value["real/high"] > value["real/low"]:
        convert = "images / 127.5 - 1" if value["real/high"] > 1.5 else "images * 2 - 1"
        lines.append(
            f"the real images are in [{value['real/low']:.3g}, {value['real/high']:.3g}] and not "
            f"in [-1, 1]: {convert} converts them"
        )
    name = "teacher/fingerprint"
    expected = None if first is None else first.get(name)
    if expected is not None and name in value and value[name] != float(expected):
        lines.append("the teacher's variables have changed since the start of the training")
    return lines


_ENDS = ("low", "high")
_OVERLAP = 0.6  # of the ranges; [0, 1] and [-1, 1] overlap by 0.5


def _check_ranges(low: float, high: float, teacher_low: float, teacher_high: float) -> list[str]:
    common = min(high, teacher_high) - max(low, teacher_low)
    if common < _OVERLAP * (max(high, teacher_high) - min(low, teacher_low)):
        return [
            f"the student's images are in [{low:.3g}, {high:.3g}] and the teacher's in "
            f"[{teacher_low:.3g}, {teacher_high:.3g}]: their units may differ"
        ]
    return []


def check_units(generated: Any, real: Any) -> None:
    """Checks that the teacher's images have the units of the real ones, [-1, 1].

    Args:
      generated: the teacher's images.
      real: real images.

    Raises:
      ValueError: the teacher's images are not finite, nonnegative unlike the real ones (as in
        [0, 1]), or more than fifty times as large (as in [0, 255]; without a tanh, images of a
        generator may be well beyond 1).
    """
    generated, real = (np.asarray(x, np.float64) for x in (generated, real))
    if not np.isfinite(generated).all():
        raise ValueError("the teacher's images are not finite")
    low, high, largest = generated.min(), generated.max(), np.abs(real).max()
    if (real.min() < 0 <= low and high > 0) or np.abs(generated).max() > 50 * largest > 0:
        raise ValueError(
            f"the teacher's images are in [{low:.3g}, {high:.3g}] and the real ones "
            f"in [{real.min():.3g}, {real.max():.3g}]: both must have the same units"
        )


def fingerprint(variables: Variables | Teacher) -> Array:
    """A hash in [0, 2^24) that changes, almost surely, with any bit of the variables.

    The hash is exact in float32, so that it can be logged.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in map(jnp.asarray, jax.tree.leaves(variables)):
        if leaf.dtype != jnp.bool_:
            # Elements of 8 bytes are two words.
            bits = jnp.dtype(f"uint{min(8 * leaf.dtype.itemsize, 32)}")
            leaf = jax.lax.bitcast_convert_type(leaf, bits)
        words = leaf.astype(jnp.uint32).reshape(-1)
        position = jnp.arange(words.size, dtype=jnp.uint32)
        # Bijective in the word and different at each position, so that swapped values change the
        # hash, including round ones, whose low bits are all zero. The mixing is MurmurHash3's.
        words = words ^ (position * jnp.uint32(0x9E3779B1))
        words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
        words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
        words = words ^ (words >> 16)
        total = total * jnp.uint32(31) + jnp.sum(words, dtype=jnp.uint32)
    return (total ^ (total >> 24)) % jnp.uint32(2**24)
