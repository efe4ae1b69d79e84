"""Targets of a search: conditions on RAM variables that the source of terms names.

* ``Target`` - a condition on a variable
* ``OPERATORS``, ``CHANGES`` - its operators
* ``targets_of`` - the targets in the files of terms and rules
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from kart_rewards import race
from kart_rewards.scripting import Script

CHANGES = "changes"
"""The operator of a condition that is true when a variable has another value than at the beginning of the phase."""

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INVERSE = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}


class Target(NamedTuple):
    """A condition on a variable.

    Args:
        name: The variable.
        op: One of ``OPERATORS``, or ``CHANGES``.
        value: The number that it is compared with.
    """

    name: str
    op: str
    value: float = 0.0

    def inverse(self) -> Target:
        """Returns the condition that is true when this one is false."""
        return self._replace(op=_INVERSE.get(self.op, self.op))

    def __str__(self) -> str:
        return f"{self.name} {self.op}" + ("" if self.op == CHANGES else f" {self.value:g}")


def targets_of(scripts: Iterable[Script], names: Sequence[str]) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Returns the conditions on variables in the files of scripts, and all words in their texts.

    The files of this package are left out: their terms are known.

    Args:
        scripts: Terms and rules.
        names: The names of the variables.
    """
    targets: dict[Target, None] = {}
    words: dict[str, None] = {}
    own = Path(__file__).parents[2]
    for script in scripts:
        path = Path(script.where.rpartition(":")[0])
        if not path.is_file() or own in path.parents:
            continue
        with suppress(OSError, SyntaxError, ValueError):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            known = _constants(tree, getattr(script.definition, "__globals__", {}))
            aliases = {**dict(zip(names, names, strict=True)), **_aliases(tree)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare):
                    targets.update(dict.fromkeys(_in_comparison(node, known, aliases, names)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words.update(dict.fromkeys(node.value.split()))
    return tuple(targets), tuple(words)


def _constants(tree: ast.AST, of_module: Mapping[str, Any]) -> dict[str, float]:
    known = {name: value for name, value in of_module.items() if type(value) in (int, float)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "kart_rewards.race":
            known |= {
                alias.asname or alias.name: value
                for alias in node.names
                if type(value := getattr(race, alias.name, None)) is int
            }
        elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.UnaryOp)):
            with suppress(ValueError):
                value = ast.literal_eval(node.value)
                for target in node.targets:
                    name = getattr(target, "id", getattr(target, "attr", None))
                    if name and type(value) in (int, float):
                        known[name] = value
    return known


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Returns the other names of variables: ``ground = ram.surface``."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                targets, values = [target], [node.value]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    targets, values = target.elts, node.value.elts
                for one, value in zip(targets, values, strict=False):
                    if isinstance(value, ast.Attribute) and isinstance(one, (ast.Name, ast.Attribute)):
                        aliases[one.id if isinstance(one, ast.Name) else one.attr] = value.attr
    return aliases


_COMPARED: dict[type[ast.AST], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.In: "==",
    ast.NotIn: "!=",
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _in_comparison(
    node: ast.Compare, known: Mapping[str, float], aliases: Mapping[str, str], names: Sequence[str]
) -> Iterator[Target]:
    parts = [node.left, *node.comparators]
    for left, op, right in zip(parts, node.ops, parts[1:], strict=False):
        text = _COMPARED.get(type(op))
        if text is None:
            continue
        for one, other, how in ((left, right, text), (right, left, _MIRRORED.get(text, text))):
            while isinstance(one, ast.Call) and len(one.args) == 1:  # abs(ram.speed) > 3
                one = one.args[0]
            name = getattr(one, "attr", getattr(one, "id", None))
            name = aliases.get(name, name) if name else None
            if name is None or name not in names:
                continue
            options = other.elts if isinstance(other, (ast.Tuple, ast.Set, ast.List)) else [other]
            for option in options:
                with suppress(ValueError, TypeError):
                    of_name = known.get(getattr(option, "id", getattr(option, "attr", "")))
                    value = ast.literal_eval(option) if of_name is None else of_name
                    if type(value) in (int, float):
                        yield Target(name, how, float(value))
