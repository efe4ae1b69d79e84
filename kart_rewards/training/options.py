"""Options of a command line: bounds, and a form that a checkpoint can hold.

* ``check_bounds`` - compares each option with the bounds that its annotation names
* ``Names`` - the type of an option with one or more values
* ``to_plain_options`` - option dataclasses as plain values
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from annotated_types import Ge, Interval

from kart_rewards.errors import KartRewardsError


def _at_least_one(words: list[str]) -> tuple[str, ...]:
    if not words:
        raise ValueError("needs at least one value")
    return tuple(words)


Names = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="STR [STR ...]",
        instance_from_str=_at_least_one,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=list,
    ),
]
"""An option with one or more values. Without a value the command line refuses it."""


def check_given_once(arguments: Iterable[str], *options: str) -> None:
    """Refuses options with several values that are given twice, of which the parser would use the last alone.

    Args:
        arguments: The words of the command line.
        options: The options, such as ``--rewards``.

    Raises:
        KartRewardsError: One of the options is given more than once.
    """
    given = [word.partition("=")[0].replace("_", "-") for word in arguments]
    for option in options:
        if given.count(option) > 1:
            raise KartRewardsError(f"{option} is given more than once: write all its values after one {option}")


def check_bounds(options: Any) -> None:
    """Checks the fields of a dataclass against the bounds in their annotations. A value of None is not checked.

    Args:
        options: An instance of a dataclass with fields such as ``gamma: Annotated[float, Interval(ge=0, le=1)]``.

    Raises:
        KartRewardsError: A value is outside its bounds. The message names the option as the command line spells it.

    Example:
        >>> from kart_rewards.training.run import RunOptions
        >>> check_bounds(RunOptions(checkpoints_kept=0))
        Traceback (most recent call last):
        kart_rewards.errors.KartRewardsError: --checkpoints-kept must be 1 or more, not 0
    """
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        for bound in getattr(hint, "__metadata__", ()):
            if value is None or not isinstance(bound, (Ge, Interval)):
                continue
            low: Any = bound.ge
            high: Any = math.inf if isinstance(bound, Ge) else bound.le
            if not low <= value <= high or math.isinf(value):
                wanted = f"{low} or more" if high == math.inf else f"between {low} and {high}"
                raise KartRewardsError(f"--{name.replace('_', '-')} must be {wanted}, not {value}")


def to_plain_options(options: Any) -> dict[str, Any]:
    """Returns a dataclass of options as a dict. Paths become text, which ``torch.load`` accepts without unpickling."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
