"""The setup of a training: networks, losses, optimizers and the task, in one frozen record."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
import optax

from kd_jax.core.network import Network
from kd_jax.core.objective import MakeInputs, Schedule, Term, Weight
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Array

TRAINED = ("generator", "discriminator")
"""The names of the trained networks: the fields of a `PerNetwork`."""


class PerNetwork(NamedTuple):
    """A value for the generator and one for the discriminator."""

    generator: Any
    discriminator: Any = None

    def __repr__(self) -> str:
        return record_repr(self)


class Teacher(NamedTuple):
    """The variables of the frozen networks: the argument `teacher_variables` of every step.

    Attributes:
      generator, discriminator: the teacher's.
      extractor: those of the network whose features compare images.
    """

    generator: Any = None
    discriminator: Any = None
    extractor: Any = None

    def __repr__(self) -> str:
        return record_repr(self)


def check_teacher(teacher: Any) -> None:
    """Raises a ValueError unless `teacher_variables` is a `Teacher` of variables, or None."""
    if isinstance(teacher, Teacher):
        for name, value in teacher._asdict().items():
            if isinstance(value, Network) or hasattr(value, "network"):
                raise ValueError(
                    f"teacher_variables.{name} is a {_type_name(value)}, not variables: pass "
                    f"kd_jax.Teacher({name}={_variables_of(value)})"
                )
    elif teacher is not None:
        raise ValueError(
            f"teacher_variables is a {_type_name(teacher)}; it must be a kd_jax.Teacher(generator, "
            f"discriminator, extractor): wrap it, kd_jax.Teacher({_variables_of(teacher)})"
        )


def _type_name(value: Any) -> str:
    kind = type(value)
    return f"kd_jax.{kind.__name__}" if kind.__module__.startswith("kd_jax.") else kind.__name__


def _variables_of(value: Any) -> str:
    # A `kd_jax.Model`, which the core does not import, holds its variables; a `Network` has none.
    return "teacher.variables" if hasattr(value, "variables") else "variables"


class Networks(NamedTuple):
    """The networks of one step.

    Attributes:
      generator, discriminator: the student's, trained. Without a discriminator, the teacher is the
        generator's only supervision.
      teacher: the frozen teacher generator, with the same inputs as `generator`.
      teacher_discriminator: the frozen teacher discriminator.
      extractor: a frozen network whose taps are the features that compare images, such as VGG.
    """

    generator: Network
    discriminator: Network | None = None
    teacher: Network | None = None
    teacher_discriminator: Network | None = None
    extractor: Network | None = None

    def __repr__(self) -> str:
        return record_repr(self)


Loss: TypeAlias = Term | Callable[..., Any] | tuple[Callable[..., Any], float | Schedule | Weight]
"""A `Term`, its function (weight 1), or `(function, weight)`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Setup:
    """Everything that defines a training step; `dataclasses.replace` changes a part.

    Attributes:
      networks: the networks.
      losses: the summands of the generator's and of the discriminator's objective, a `PerNetwork`
        of dicts by name, as `kd_jax.methods` returns them. A summand is a `Term`, a function of a
        `Forward`, or `(function, weight)`.
      optimizers: a `PerNetwork` of optax transformations.
      task: `(key, batch) -> Inputs`, see `kd_jax.tasks`.
      ema: the decay of the generator's moving average, which is what is evaluated and deployed. A
        number is reached gradually: the decay of step t is `min(ema, (1 + t) / (10 + t))`, so that
        a short training is not an average of its first guess. A schedule of the step is used as it
        is.

    Raises:
      ValueError: a part has another type, a number is out of range, or there are losses of a
        discriminator that is not there.
    """

    networks: Networks
    losses: PerNetwork
    optimizers: PerNetwork
    task: MakeInputs
    ema: float | Schedule = 0.999

    def __repr__(self) -> str:
        return record_repr(self)

    def __post_init__(self) -> None:
        _check_type("networks", self.networks, Networks)
        for name, network in self.networks._asdict().items():
            if network is not None or name == "generator":
                _check_network(f"networks.{name}", network)
        _check_type("losses", self.losses, PerNetwork)
        terms = {
            name: as_terms(f"losses.{name}", losses or {})
            for name, losses in self.losses._asdict().items()
        }
        object.__setattr__(self, "losses", PerNetwork(**terms))
        _check_type("optimizers", self.optimizers, PerNetwork)
        for name in TRAINED:
            optimizer = getattr(self.optimizers, name)
            if getattr(self.networks, name) is not None and not isinstance(
                optimizer, optax.GradientTransformation
            ):
                raise ValueError(
                    f"optimizers.{name} is a {type(optimizer).__name__}, not an optax "
                    "transformation"
                )
        if self.networks.discriminator is None and self.losses.discriminator:
            names = ", ".join(sorted(self.losses.discriminator))
            raise ValueError(
                f"losses.discriminator has {names}, but networks.discriminator is None"
            )
        if not callable(self.ema) and not 0 <= self.ema <= 1:
            raise ValueError(f"ema={self.ema} is not a decay: it must be from 0 to 1")
        if not callable(self.task):
            raise ValueError(
                f"task is a {type(self.task).__name__}, not a function (key, batch) -> Inputs such "
                "as kd_jax.latents(64)"
            )


def as_terms(name: str, losses: Any) -> dict[str, Term]:
    """Losses as `Term`s, by name.

    Raises:
      ValueError: they are not a dict, or one of them is not a loss.
    """
    if not isinstance(losses, Mapping):
        raise ValueError(
            f"{name} is a {type(losses).__name__}, not a dict of losses by name: "
            '{"pixel": function}'
        )
    return {key: _as_term(f"{name}[{key!r}]", loss) for key, loss in losses.items()}


def _as_term(name: str, loss: Any) -> Term:
    if not isinstance(loss, Term):
        fn, weight = loss if type(loss) is tuple and len(loss) == 2 else (loss, 1.0)
        if not callable(fn):
            raise ValueError(
                f"{name} is a {type(loss).__name__}, not a Term, a function or (function, weight)"
            )
        loss = Term(fn, weight)
    if not isinstance(loss.every, int) or loss.every < 1:
        raise ValueError(f"{name}: every={loss.every!r} is not a positive integer")
    if isinstance(loss.weight, int | float) and not math.isfinite(loss.weight):
        raise ValueError(f"{name}: weight={loss.weight} is not finite")
    return loss


def _check_type(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        fields = ", ".join(kind._fields)
        raise ValueError(
            f"{name} is a {type(value).__name__}; it must be a kd_jax.{kind.__name__}({fields})"
        )


def _check_network(name: str, network: Any) -> None:
    if isinstance(network, Network):
        return
    hint = "a kd_jax.Network(init, apply)"
    if isinstance(network, nn.Module):
        hint += ": wrap it, kd_jax.from_linen(module)"
    elif type(network).__module__.startswith("flax.nnx") or hasattr(network, "__nnx_repr__"):
        hint += ": wrap it, kd_jax.from_nnx(module)"
    raise ValueError(f"{name} is a {type(network).__name__}; it must be {hint}")


def ema_decay(ema: float | Schedule, step: Array) -> Any:
    """The decay of the generator's moving average at a step, see `Setup.ema`."""
    return ema(step) if callable(ema) else jnp.minimum(ema, (1.0 + step) / (10.0 + step))
