"""A smaller generator for a budget: of the same architecture by pruning, or of another family."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kd_jax.core import cost
from kd_jax.core.axes import Axes, group_widths
from kd_jax.core.family import Family, interface_of
from kd_jax.core.network import Network, from_linen
from kd_jax.core.types import Variables
from kd_jax.model import Model
from kd_jax.models.families import family_of
from kd_jax.pruning import from_teacher, magnitude, width_for
from kd_jax.pruning.scores import Scores

WIDEST = 1024
"""The largest width of a student of another family."""


class Budget(NamedTuple):
    """The cost that an image may have.

    Attributes:
      name: `macs`, `parameters` or `latency`.
      value: a number of multiply-accumulates or parameters, or seconds on this machine; of the
        first two, a value below 1 is a share of the teacher's.
    """

    name: str
    value: float

    def of(self, network: Network, variables: Variables, inputs: tuple[Any, ...]) -> float:
        """The cost of a network for these inputs, in the unit of the budget."""
        if self.name == "macs":
            return cost.multiply_accumulates(network, variables, *inputs)
        if self.name == "parameters":
            return float(cost.parameter_count(variables))
        zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), (variables, inputs))
        return cost.generator_latency(network, zeros[0], *zeros[1], runs=10).median


def make_budget(
    macs: float | None = None, parameters: float | None = None, latency: float | None = None
) -> Budget:
    """The budget of the only argument that is not None.

    Raises:
      ValueError: there is none, there are several, or it is not positive.
    """
    budgets = [
        Budget(name, value)
        for name, value in (("macs", macs), ("parameters", parameters), ("latency", latency))
        if value is not None
    ]
    if len(budgets) != 1:
        listed = ", ".join(budget.name for budget in budgets) or "none"
        raise ValueError(f"one budget of macs, parameters and latency is needed, not {listed}")
    if not 0 < budgets[0].value < float("inf"):
        raise ValueError(f"{budgets[0].name}={budgets[0].value} is not a positive number")
    return budgets[0]


def prune(
    model: Model,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    family: Family | None = None,
    score: Callable[[Variables, Axes], Scores] = magnitude,
) -> Model:
    """The model with the largest share of its channels that meets a budget.

        student = kd_jax.prune(teacher, macs=1 / 25)

    Every layer keeps about the same share, and of its channels those with the highest scores.

    Args:
      model: a generator, such as one from `kd_jax.load`.
      macs: multiply-accumulates of an image: below 1, a share of the model's.
      parameters: or the number of parameters: below 1, a share of the model's.
      latency: or seconds for one image on this machine.
      family: the description of its architecture; by default that of its module.
      score: `(variables, axes) -> {group: [C]}`; see `kd_jax.pruning`.

    Raises:
      ValueError: not exactly one budget is set, no width meets it, or the model is of no known
        family.
    """
    family = family or family_of(model.network)
    module, style = model.network.module, model.network.mapping is not None
    axes = family.axes(model.variables)
    widest = max(group_widths(model.variables, axes).values())
    network = _largest(
        lambda width: from_linen(family.narrow(module, width / widest), style=style),
        widest,
        model,
        make_budget(macs, parameters, latency),
    )
    scores, like = score(model.variables, axes), shapes_of(network, model.inputs)
    variables = from_teacher(model.variables, axes, scores, like)
    return model._replace(network=network, variables=variables)


def student_of(
    family: Family,
    teacher: Model,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
) -> Network:
    """The widest generator of another family that meets a budget, with the teacher's interface.

    Args:
      family: a family that offers students.
      teacher: the teacher.
      macs: as of `prune`, a share of the teacher's below 1.
      parameters: likewise.
      latency: likewise.

    Raises:
      ValueError: the family does not have such generators, or no width meets the budget.
    """
    make, interface = family.student, teacher.interface
    if make is None:
        raise ValueError(f"the family {family.name} offers no students")
    try:
        network = make(interface, 8)
        output = interface_of(network, shapes_of(network, teacher.inputs), teacher.inputs, 0).output
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a student of the family {family.name} cannot have {interface.describe()}: {error}"
        ) from None
    if output != interface.output:
        raise ValueError(
            f"a student of the family {family.name} generates {output}, not {interface.output}"
        )
    budget = make_budget(macs, parameters, latency)
    return _largest(lambda width: make(interface, width), WIDEST, teacher, budget)


def _largest(
    make: Callable[[int], Network], widest: int, teacher: Model, budget: Budget
) -> Network:
    """The network of the largest width up to `widest` whose cost is within the budget.

    Raises:
      ValueError: even a width of 1 costs more.
    """
    inputs = teacher.inputs
    limit = budget.value
    if limit < 1 and budget.name != "latency":
        limit *= budget.of(teacher.network, teacher.variables, inputs)

    def cost_of(width: int) -> float:
        network = make(width)
        return budget.of(network, shapes_of(network, inputs), inputs)

    try:
        return make(width_for(cost_of, limit, widest))
    except ValueError as error:
        raise ValueError(f"no width meets {budget.name}={limit:.4g}: {error}") from None


def shapes_of(network: Network, inputs: tuple[Any, ...]) -> Variables:
    """The shapes of a network's variables for these inputs."""
    shapes: Variables = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return shapes
