"""Conditions on RAM variables, written as text: ``laps == 127 and current_frame > 60``.

* ``Condition`` - a checked condition; a call with a snapshot returns whether it holds

Conditions are read from the command line and from JSON files of unknown origin. They are therefore never run as Python
code. This part of Python's syntax is allowed, with Python's meaning:

* variables, integers (also ``0x40``), decimal numbers, ``True``, ``False`` and parentheses
* ``==  !=  <  <=  >  >=``, also chained: ``0 < speed < 900``
* ``and  or  not``
* ``tiles[3]``, a number of an array
* ``+  -  *  //  %  &  |  ^  ~  <<  >>``; shifts are limited to 64 bits
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kart_rewards.errors import KartRewardsError, did_you_mean

LONGEST_TEXT = 1000
MOST_BITS_TO_SHIFT = 64  # the width of the widest variable; larger shifts would only fill memory
_LONE_EQUALS = re.compile(r"(?<![=!<>:])=(?!=)")


def _bits(count: Any) -> Any:
    if not 0 <= count <= MOST_BITS_TO_SHIFT:
        raise ValueError(f"shifts by {count} bits, not 0 to {MOST_BITS_TO_SHIFT}")
    return count


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: lambda value, count: value << _bits(count),
    ast.RShift: lambda value, count: value >> _bits(count),
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}

_Evaluate = Callable[[Any, Any], Any]
"""Evaluates one part of a condition: ``evaluate(ram, before)`` returns its value."""


class Condition:
    """A condition on RAM variables. The text is checked when the object is made.

    Args:
        text: The condition. See the module's docstring.
        names: The names of the known variables, such as ``RamLayout.names``.
        with_before: Whether the condition may also use ``before.NAME``, the value in an earlier snapshot.

    Raises:
        KartRewardsError: The text is not a condition, or it names an unknown variable.

    Example:
        >>> speeds_up = Condition("speed > before.speed + 10", ["speed"], with_before=True)
        >>> speeds_up({"speed": 20}, before={"speed": 0})
        True
        >>> speeds_up.values({"speed": 20}, before={"speed": 0})
        'speed 20, before.speed 0'
    """

    def __init__(self, text: str, names: Iterable[str], with_before: bool = False) -> None:
        self.text = text
        self._names = list(names)
        self._with_before = with_before
        self._reads: dict[str, _Evaluate] = {}  # in the order of the text
        try:
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"is longer than {LONGEST_TEXT} characters")
            self._evaluate = self._build(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError as error:
            why = "write == to compare" if _LONE_EQUALS.search(text) else error.msg
            raise self._error(f"is not a condition ({why})") from None
        except (ValueError, RecursionError, MemoryError) as error:  # ast.parse raises these, too
            raise self._error(f"is not a condition ({error})") from None

    def __call__(self, ram: Any, before: Any = None) -> bool:
        """Returns whether the condition holds.

        Args:
            ram: The variables' values: a ``RamSnapshot``, or a mapping from names to values.
            before: The earlier values. Only a condition made ``with_before`` uses them.

        Raises:
            KartRewardsError: The condition has no value for these variables. For example, it divides by zero.
        """
        return bool(self.value(ram, before))

    def value(self, ram: Any, before: Any = None) -> Any:
        """Returns the value: a bool, or a number if the text is one, such as ``laps * 100 + checkpoint``.

        Args:
            ram, before: See ``__call__``.

        Raises:
            KartRewardsError: See ``__call__``.
        """
        try:
            return self._evaluate(ram, before)
        except (ArithmeticError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise self._error(f"can't be worked out: {error} ({self.values(ram, before)})") from None

    def values(self, ram: Any, before: Any = None) -> str:
        """Returns the values of the variables in the condition, as text: ``speed 20, before.speed 0``."""
        return ", ".join(f"{name} {read(ram, before)}" for name, read in self._reads.items())

    def _error(self, problem: str) -> KartRewardsError:
        return KartRewardsError(f"{self.text!r} {problem}")

    def _build(self, node: ast.AST) -> _Evaluate:
        """Returns a function that evaluates a node of the parsed text."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return lambda ram, before: value
            case ast.Name() | ast.Attribute(value=ast.Name(id="before")):
                read = self._read(node)
                return lambda ram, before: _number(read(ram, before))
            case ast.Subscript(value=ast.Name() | ast.Attribute(value=ast.Name(id="before")) as array, slice=index):
                read, at = self._read(array), self._build(index)
                return lambda ram, before: read(ram, before)[at(ram, before)]
            case ast.BoolOp(op=op, values=values):
                parts = [self._build(value) for value in values]
                every_or_any = all if isinstance(op, ast.And) else any
                return lambda ram, before: every_or_any(part(ram, before) for part in parts)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                apply, part = _OPERATORS[type(op)], self._build(operand)
                return lambda ram, before: apply(part(ram, before))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                apply, first, second = _OPERATORS[type(op)], self._build(left), self._build(right)
                return lambda ram, before: apply(first(ram, before), second(ram, before))
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
                operators = [_OPERATORS[type(op)] for op in ops]
                parts = [self._build(part) for part in (left, *others)]
                return lambda ram, before: all(
                    holds(first(ram, before), second(ram, before))
                    for holds, first, second in zip(operators, parts[:-1], parts[1:], strict=True)
                )
        allowed = "variables, numbers, comparisons, and, or, not, and + - * // % & | ^ ~ << >>"
        raise self._error(f"may hold only {allowed}; {ast.unparse(node)!r} is none of these")

    def _read(self, node: ast.Name | ast.Attribute) -> _Evaluate:
        """Returns a function that reads a variable: ``NAME``, or ``before.NAME``."""
        shown = ast.unparse(node)
        earlier = isinstance(node, ast.Attribute)
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if earlier and not self._with_before:
            raise self._error(f"can't use {shown!r}: there is no earlier snapshot here")
        if name not in self._names:
            hint = did_you_mean(name, self._names)
            raise self._error(f"names no RAM variable {name!r}.{hint} There are: {', '.join(self._names) or 'none'}")

        def read(ram: Any, before: Any) -> Any:
            return _value(before if earlier else ram, name)

        self._reads[shown] = read
        return read


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        raise TypeError("an array has several numbers: write NAME[0] for the first one")
    return value


def _value(values: Any, name: str) -> Any:
    return values[name] if isinstance(values, Mapping) else getattr(values, name)
