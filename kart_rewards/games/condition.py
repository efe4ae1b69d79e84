"""Conditions over RAM variables, as text: ``laps == 127 and current_frame > 60``.

* ``Condition`` - such a text, checked; called with a snapshot, says whether it holds

For the command line and JSON files, which come from anywhere: nothing but what is listed here is ever run. A condition
is Python's: variables, whole and decimal numbers (``0x40`` too), ``True`` and ``False``, parentheses,

* ``==  !=  <  <=  >  >=``, also in chains: ``0 < speed < 900``
* ``and  or  not``
* ``+  -  *  //  %  &  |  ^  ~  <<  >>``, the last two by at most 64 bits
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kart_rewards.errors import KartRewardsError, did_you_mean

LONGEST_TEXT = 1000
MOST_BITS_TO_SHIFT = 64  # what a variable holds; more would only fill memory
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
"""A part of a condition at work: ``evaluate(ram, before)``."""


class Condition:
    """A condition over RAM variables. Its text is checked at once, and run as data, never as Python code.

    Args:
        text: The condition. See the module's docstring.
        names: The variables there are, such as ``RamLayout.names``.
        with_before: Let it also read ``before.NAME``, the value in an earlier snapshot.

    Raises:
        KartRewardsError: It is no condition, or names a variable that there is not.

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
        self._reads: dict[str, _Evaluate] = {}  # in the order in which the text names them
        try:
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"is longer than {LONGEST_TEXT} characters")
            self._evaluate = self._build(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError as error:
            why = "write == to compare" if _LONE_EQUALS.search(text) else error.msg
            raise self._error(f"is not a condition ({why})") from None
        except (ValueError, RecursionError, MemoryError) as error:  # what ast.parse raises for the strangest texts
            raise self._error(f"is not a condition ({error})") from None

    def __call__(self, ram: Any, before: Any = None) -> bool:
        """Returns whether the condition holds.

        Args:
            ram: The variables' values: a ``RamSnapshot``, or a mapping.
            before: The earlier ones, for a condition made ``with_before``.

        Raises:
            KartRewardsError: It can't be worked out: it divides by zero, say.
        """
        try:
            return bool(self._evaluate(ram, before))
        except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
            raise self._error(f"can't be worked out: {error} ({self.values(ram, before)})") from None

    def values(self, ram: Any, before: Any = None) -> str:
        """Returns what it reads, for a person: ``speed 20, before.speed 0``."""
        return ", ".join(f"{name} {read(ram, before)}" for name, read in self._reads.items())

    def _error(self, what: str) -> KartRewardsError:
        return KartRewardsError(f"{self.text!r} {what}")

    def _build(self, node: ast.AST) -> _Evaluate:
        """Returns what works out one node of the parsed text, and all below it."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return lambda ram, before: value
            case ast.Name(id=name):
                return self._read(name, name, lambda ram, before: _value(ram, name))
            case ast.Attribute(value=ast.Name(id="before"), attr=name) if self._with_before:
                return self._read(f"before.{name}", name, lambda ram, before: _value(before, name))
            case ast.BoolOp(op=op, values=values):
                parts = [self._build(value) for value in values]
                every_or_any = all if isinstance(op, ast.And) else any
                return lambda ram, before: every_or_any(part(ram, before) for part in parts)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                work, part = _OPERATORS[type(op)], self._build(operand)
                return lambda ram, before: work(part(ram, before))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                work, first, second = _OPERATORS[type(op)], self._build(left), self._build(right)
                return lambda ram, before: work(first(ram, before), second(ram, before))
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
                works = [_OPERATORS[type(op)] for op in ops]
                parts = [self._build(part) for part in (left, *others)]
                return lambda ram, before: all(
                    work(first(ram, before), second(ram, before))
                    for work, first, second in zip(works, parts[:-1], parts[1:], strict=True)
                )
        allowed = "variables, numbers, comparisons, and, or, not, and + - * // % & | ^ ~ << >>"
        raise self._error(f"may hold only {allowed}; {ast.unparse(node)!r} is none of these")

    def _read(self, shown: str, name: str, read: _Evaluate) -> _Evaluate:
        if name not in self._names:
            hint = did_you_mean(name, self._names)
            raise self._error(f"names no RAM variable {name!r}.{hint} There are: {', '.join(self._names) or 'none'}")
        self._reads[shown] = read
        return read


def _value(values: Any, name: str) -> Any:
    return values[name] if isinstance(values, Mapping) else getattr(values, name)
