"""Options of a command line: bounds, and a form that a checkpoint can hold.

* ``check_bounds`` - compares each option with the bounds that its annotation names
* ``check_given_once`` - refuses an option with several values that is given twice
* ``Drives`` - the type of the drives that follow a command's name
* ``flow_help`` - joins the lines of help texts
* ``GamesFolder`` - the type of the option ``--integrations-path``
* ``INTEGERS`` - rules for tyro: integers may be written as 1e5, too
* ``Names`` - the type of an option with one or more values
* ``Paths`` - the type of an option with paths
* ``to_plain_options`` - option dataclasses as plain values
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

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
    tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {default})" if default else ""),
]
"""An option with one or more values. Without a value the command line refuses it."""

Paths = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="")]
"""An option with paths, which is empty by default."""

Drives = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DRIVE …]", help_behavior_hint="")]
"""The drives that follow a command's name. By default there are none, and the command has its own."""

GamesFolder = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="PATH",
        help="Folder of games. By default ./integrations, your data folder, then the packages kart_rewards and "
        "stable-retro.",
        help_behavior_hint="",
    ),
]
"""The option ``--integrations-path`` of all commands."""


INTEGERS = tyro.constructors.ConstructorRegistry()
"""Rules for ``tyro.cli``: integers may be written as 1e5, too."""


@INTEGERS.primitive_rule
def _integers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: _integer(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _integer(text: str) -> int:
    """Returns the integer that a text such as 100000, 100_000 or 1e5 means."""
    with suppress(ValueError):
        return int(text)
    with suppress(ArithmeticError):
        if (number := Decimal(text)) == number.to_integral_value() and number.adjusted() < 20:
            return int(number)
    raise ValueError(f"{text!r} is not an integer")


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


def check_bounds(*groups: Any) -> None:
    """Checks the fields of dataclasses against the bounds in their annotations. None and ``auto`` are not checked.

    Args:
        groups: Instances of dataclasses with fields such as ``gamma: Annotated[float, Interval(ge=0, le=1)]``.

    Raises:
        KartRewardsError: A value is outside its bounds, or is not a finite number. The message names the option as the
            command line spells it.

    Example:
        >>> from kart_rewards.training.run import RunOptions
        >>> check_bounds(RunOptions(checkpoints_kept=0))
        Traceback (most recent call last):
        kart_rewards.errors.KartRewardsError: --checkpoints-kept must be 1 or more, not 0
    """
    for group in groups:
        for name, hint in get_type_hints(type(group), include_extras=True).items():
            value, option = getattr(group, name), f"--{name.replace('_', '-')}"
            for bound in getattr(hint, "__metadata__", ()):
                if value in (None, "auto") or not isinstance(bound, (Ge, Interval)):
                    continue
                low: Any = bound.ge
                most: Any = getattr(bound, "le", None)
                less_than: Any = getattr(bound, "lt", None) or math.inf
                if not (low <= value < less_than if most is None else low <= value <= most):
                    wanted = f"{low} or more" if most is None else f"between {low} and {most}"
                    wanted += f" and less than {less_than}" if less_than < math.inf else ""
                    raise KartRewardsError(f"{option} must be {wanted}, not {value}")
            if isinstance(value, float) and not math.isfinite(value):
                raise KartRewardsError(f"{option} must be a finite number, not {value}")


def flow_help(*described: Callable[..., Any]) -> None:
    """Joins the lines of each option's help text, which tyro would break where the source code does.

    Args:
        described: Functions whose docstrings have ``Args``, and dataclasses whose fields have docstrings. Their own
            docstrings are changed.
    """
    for each in described:
        text = inspect.getdoc(each) or ""
        if not inspect.isclass(each):
            each.__doc__ = re.sub(r"\n {8,}", " ", text)
            continue
        lines = [text.partition("\n\nArgs:")[0], "", "Args:"]  # which tyro prefers to the docstrings of the fields
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        for option, its_help in itertools.pairwise(cast(ast.ClassDef, definition).body):
            if isinstance(option, ast.AnnAssign) and isinstance(its_help, ast.Expr):
                lines.append(f"    {ast.unparse(option.target)}: {' '.join(ast.literal_eval(its_help.value).split())}")
        each.__doc__ = "\n".join(lines)


def to_plain_options(options: Any) -> dict[str, Any]:
    """Returns a dataclass of options as a dict. Paths become text, which ``torch.load`` accepts without unpickling."""
    return {key: _plain(value) for key, value in asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
