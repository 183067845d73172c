"""A function that builds both networks of a GAN, from the factories of a family."""

import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kd_jax.core.network import Network
from kd_jax.core.setup import PerNetwork


def make_gan(
    generator: Callable[..., Network],
    discriminator: Callable[..., Network],
    *,
    fixed: Mapping[str, str] | None = None,
) -> Callable[..., PerNetwork]:
    """Returns `gan(...)`, a `PerNetwork` of a generator and its discriminator.

    It takes the arguments of both factories, the generator's first, and passes to each those that
    it takes. It is a function of the generator's module, named `gan`.

    Args:
      generator: the factory of the generator, without positional-only and variadic parameters.
      discriminator: that of the discriminator.
      fixed: arguments that `gan` does not take, such as those with different defaults in the two
        factories, and for each the values in use, for the documentation and for messages.

    Raises:
      ValueError: the factories have different defaults for the same argument, or neither takes one
        in `fixed`. `gan` raises a TypeError for missing and unknown arguments.
    """
    fixed = fixed or {}
    factories = {
        make: dict(inspect.signature(make).parameters) for make in (generator, discriminator)
    }
    first, second = factories.values()
    name = f"{generator.__module__}.gan"
    if unknown := [key for key in fixed if key not in first and key not in second]:
        raise ValueError(f"{name}: neither factory takes {', '.join(unknown)}, listed in `fixed`")
    for key in first:
        if key in second and key not in fixed and first[key].default != second[key].default:
            raise ValueError(
                f"{name}: the factories have different defaults, {first[key]} and {second[key]}; "
                f"list {key} in `fixed`"
            )
    # The order is that of the first dict, and so are the parameters that both have.
    merged = {**first, **second, **first}
    parameters = sorted((p for p in merged.values() if p.name not in fixed), key=lambda p: p.kind)
    signature = inspect.Signature(parameters, return_annotation=PerNetwork)
    accepted = ", ".join(signature.parameters)

    def gan(*args: Any, **options: Any) -> PerNetwork:
        for key in options:
            if key not in signature.parameters:
                reason = f" ({fixed[key]})" if key in fixed else ""
                raise TypeError(f"{name} does not take {key}{reason}; it takes {accepted}")
        try:
            arguments = signature.bind(*args, **options).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}; it takes {accepted}") from None
        return PerNetwork(
            *(
                make(**{key: value for key, value in arguments.items() if key in own})
                for make, own in factories.items()
            )
        )

    gan.__module__, gan.__qualname__ = generator.__module__, "gan"
    gan.__signature__ = signature  # type: ignore[attr-defined]
    gan.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": PerNetwork}
    gan.__doc__ = _documentation(factories, fixed)
    return gan


def _documentation(
    factories: Mapping[Callable[..., Network], Collection[str]], fixed: Mapping[str, str]
) -> str:
    """The docstring of a `gan` of factories with these arguments."""
    paths = " and ".join(f"`{make.__module__}.{make.__qualname__}`" for make in factories)
    lines = [
        "A generator and its discriminator, as a `PerNetwork` of networks.",
        f"Args and errors are those of {paths}; each network receives those that it takes.",
    ]
    first, second = factories.values()
    for network, own, other in (("generator", first, second), ("discriminator", second, first)):
        if only := [f"`{key}`" for key in own if key not in other and key not in fixed]:
            lines.append(f"For the {network} only: {', '.join(only)}.")
    lines += [f"`{key}` is fixed: {reason}." for key, reason in fixed.items()]
    lines.append("A TypeError is raised for missing and unknown arguments.")
    return "\n\n".join(textwrap.fill(line, 96, break_on_hyphens=False) for line in lines)
