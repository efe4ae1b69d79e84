"""Declared rewards: the ``reward``, ``rewards`` and ``done`` of a ``scenario.json``, as reward terms and done rules.

* ``Declared`` - the terms and rules that a scenario file declares
* ``declared_in`` - reads them
* ``DeclaredTerm``, ``DeclaredRule`` - a term or rule without code: its definition is data
* ``Measure``, ``Pay``, ``Node``, ``LuaValue`` - the parts of a declaration
* ``scripts_of`` - the Lua scripts that terms and rules need

stable-retro's own scenarios look like this; all keys are optional::

    "reward": {
        "variables": {"score": {"reward": 1, "penalty": 0}, "lives": {"penalty": 10}},
        "time": {"reward": -0.01}
    },
    "done": {
        "condition": "any",
        "variables": {"lives": {"op": "zero"}},
        "nodes": {"out_of_time": {"condition": "all", "variables": {"minutes": {"op": "zero"}, "laps": {"op": "zero"}}}}
    }

**Measures.** With ``"measurement": "delta"``, a variable is measured by its change since the previous frame; with
``"absolute"``, by its value. Rewards have ``delta`` as default, rules ``absolute``. An ``op`` converts this number to 1
or 0: ``equal``, ``negative-equal`` (to minus the reference), ``not-equal``, ``less-than``, ``less-or-equal``,
``greater-than`` and ``greater-or-equal`` compare it with ``reference`` (default 0); ``zero``, ``nonzero``, ``positive``
and ``negative`` need none. ``sign`` converts it to -1, 0 or 1. Without an ``op`` the number stays as it is.

**Terms.** Each rewarded variable is a term of its name (see ``kart_rewards.ram.attribute_name``). stable-retro pays a
positive measure times ``reward``, and a negative measure times ``penalty``. If only one of the two factors is not 0, it
is the term's weight, and the term's value is the measure where it has that sign, else 0. If both are equal, the weight
is that factor, and the value is the measure. If they differ, the weight is 1, and the value is the measure times its
factor. ``time`` is measured as the number 1 on each frame; its term is called ``time``, or ``time_per_frame`` if
a variable ``time`` is rewarded, too. Of the list ``rewards``, which has one element per player, the first counts; it
adds to ``reward``, which comes first where both reward one variable.

**Rules.** A variable ends the episode if its measure is positive. A node is a group of variables and nodes, which are
joined by its ``condition``: ``any`` (the default) or ``all``. If ``done`` has the condition ``any``, each of its
variables and nodes is a rule of its name. With ``all``, one rule joins them: ``lives_and_continues``.

**Lua.** The ``script`` of ``reward`` names a function of the Lua files in ``scripts``. It replaces everything else in
``reward``, and is one term, ``lua``. The ``script`` of ``done`` is one rule, ``lua``. stable-retro's own engine calls
both functions once per frame, see ``kart_rewards.env.lua``. Snapshots then also have their values, ``lua_reward`` and
``lua_done``, and the term and the rule read these.

**Differences to stable-retro.** It computes rewards in single precision, this project in double precision. It ignores
keys and words that it does not know, and reads a number of a wrong type as 0; here they are errors.

This module imports no emulator.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from kart_rewards.done import DoneRule
from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.lua import LuaScripts, lua_scripts
from kart_rewards.notices import notice
from kart_rewards.ram import RamLayout, attribute_name, check_keys, int_64, is_comment, shown
from kart_rewards.rewards import RewardTerm
from kart_rewards.scripting import Script

LUA = "lua"
"""The name of the term and of the rule that a Lua function decides."""

BLOCKS = ("reward", "rewards", "done")
"""The keys of a scenario file that declare rewards and rules."""

_MEASURE_KEYS = ("measurement", "op", "reference")

_OPERATIONS: dict[str, tuple[Callable[[int, int], int], str]] = {
    "": (lambda value, _: value, ""),
    "equal": (operator.eq, "equals {}"),
    "negative-equal": (lambda value, reference: value == int_64(-reference), "equals -({})"),
    "not-equal": (operator.ne, "is not {}"),
    "less-than": (operator.lt, "is less than {}"),
    "greater-than": (operator.gt, "is greater than {}"),
    "less-or-equal": (operator.le, "is at most {}"),
    "greater-or-equal": (operator.ge, "is at least {}"),
    "nonzero": (lambda value, _: value != 0, "is not 0"),
    "zero": (lambda value, _: value == 0, "is 0"),
    "positive": (lambda value, _: value > 0, "is positive"),
    "negative": (lambda value, _: value < 0, "is negative"),
    "sign": (lambda value, _: (value > 0) - (value < 0), ""),
}
"""Operation -> its function of a number and the reference, and its text in summaries."""


@dataclass(frozen=True)
class Measure:
    """A number that is computed from one variable on each frame.

    Args:
        variable: The name of the snapshot's attribute. None: the number 1, for ``time``.
        delta: Whether the change since the previous frame is measured, and not the value.
        op: A key of the table of operations. Empty: none.
        reference: The number that the operation compares with.
    """

    variable: str | None
    delta: bool
    op: str = ""
    reference: int = 0

    def __call__(self, ram: Any, previous: Any) -> int:
        """Returns the measure of a frame."""
        value = 1 if self.variable is None else getattr(ram, self.variable)
        if self.delta and self.variable is not None:
            value = int_64(value - getattr(previous, self.variable))
        return _OPERATIONS[self.op][0](value, self.reference)

    def reads(self) -> set[str]:
        """Returns the names of the variables."""
        return set() if self.variable is None else {self.variable}

    @property
    def number(self) -> str:
        """The number before the operation, as text for a person: ``the change of score``."""
        if self.variable is None:
            return "1"
        return f"the change of {self.variable}" if self.delta else self.variable

    def __str__(self) -> str:
        """The condition that the measure is positive: ``lives equals 0``."""
        return f"{self.number} {_OPERATIONS[self.op][1].format(self.reference) or 'is positive'}"


@dataclass(frozen=True)
class Pay:
    """What a term pays for a measure, before its weight.

    Args:
        measure: The measure.
        if_positive: The factor of a positive measure.
        if_negative: The factor of a negative measure.
    """

    measure: Measure
    if_positive: float
    if_negative: float

    def __call__(self, ram: Any, previous: Any) -> float:
        """Returns the unweighted value of a frame."""
        measured = self.measure(ram, previous)
        return measured * (self.if_positive if measured > 0 else self.if_negative)

    def reads(self) -> set[str]:
        """Returns the names of the variables."""
        return self.measure.reads()

    def __str__(self) -> str:
        """The value, as text for a person: ``the change of score, if it is positive``."""
        measure = self.measure
        if measure.variable is None or measure.op not in ("", "sign"):
            frames = "each frame" if measure.variable is None and not measure.op else f"each frame on which {measure}"
            return f"{self.if_positive:g} on {frames}"
        number = f"the sign of {measure.number}" if measure.op else measure.number
        if self.if_positive == self.if_negative == 1:
            return number
        if self.if_negative == 0:
            return f"{number}, if it is positive"
        if self.if_positive == 0:
            return f"{number}, if it is negative"
        return f"{number}, × {self.if_positive:g} if it is positive, × {self.if_negative:g} if it is negative"


@dataclass(frozen=True)
class Node:
    """Conditions that are joined.

    Args:
        every: Whether all conditions must be true, and not only one.
        parts: The conditions: nodes, and measures, which are true if they are positive.
    """

    every: bool
    parts: tuple[Measure | Node, ...]

    def __call__(self, ram: Any, previous: Any) -> bool:
        """Returns whether the conditions are true on a frame."""
        join = all if self.every else any
        return join(part(ram, previous) > 0 for part in self.parts)

    def reads(self) -> set[str]:
        """Returns the names of the variables."""
        return {name for part in self.parts for name in part.reads()}

    def __str__(self) -> str:
        texts = [f"({part})" if isinstance(part, Node) else str(part) for part in self.parts]
        return (" and " if self.every else " or ").join(texts) or ("always" if self.every else "never")


@dataclass(frozen=True)
class LuaValue:
    """The value that a Lua function returned on a frame.

    Args:
        variable: The name of the snapshot's attribute that has it: ``lua_reward`` or ``lua_done``.
        function: The name of the function.
        scripts: The scenario's scripts.
    """

    variable: str
    function: str
    scripts: LuaScripts

    def __call__(self, ram: Any, previous: Any) -> float:
        """Returns the value.

        Raises:
            KartRewardsError: The snapshot does not have it.
        """
        if self.variable not in ram._fields:
            raise KartRewardsError(
                f"the snapshot has no {self.variable}, because Lua runs only in an emulator: leave the term and the "
                f"rule {LUA!r} out, or use a drive of this game that kart-rewards play recorded"
            )
        value: float = getattr(ram, self.variable)
        return value

    def reads(self) -> set[str]:
        """Returns no names: stable-retro's engine reads the variables."""
        return set()

    def __str__(self) -> str:
        return f"the Lua function {self.function}, {self.scripts.where(self.function)}"


LUA_REWARD, LUA_DONE = "lua_reward", "lua_done"
"""The attributes of a snapshot that have the values of Lua functions."""


def paid(pay: Pay | LuaValue, ram: Any, previous: Any) -> float:
    """Returns what a declared term pays, before its weight. Terms are partials of this function."""
    return pay(ram, previous)


def is_over(condition: Measure | Node | LuaValue, ram: Any, previous: Any) -> bool:
    """Returns whether a declared rule ends the episode. Rules are partials of this function."""
    return condition(ram, previous) > 0


@dataclass(frozen=True)
class _DeclaredScript(Script):
    """A script without code of its own.

    Args:
        name: See ``Script``.
        definition: A partial of ``paid`` or ``is_over`` with the declaration.
        path: The scenario file.
    """

    path: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "where", self.path)

    @property
    def declaration(self) -> Any:
        """The ``Pay``, ``Measure``, ``Node`` or ``LuaValue``."""
        return self.definition.args[0]  # type: ignore[attr-defined]

    @cached_property
    def _code(self) -> str:
        return repr(self.declaration)

    @property
    def summary(self) -> str:
        """What the script does, in one line."""
        return str(self.declaration)

    def reads(self) -> set[str]:
        """Returns the names of the RAM variables that the script reads."""
        return set(self.declaration.reads())

    def check_reads(self, layout: RamLayout) -> None:
        """Checks that the layout has all variables that the script reads, and that each is a number.

        Raises:
            KartRewardsError: The game's ``data.json`` does not define one of them, or it is an array.
        """
        super().check_reads(layout)
        for variable in layout.variables:
            if variable.count is not None and variable.name in self.reads():
                raise KartRewardsError(
                    f"{self.where}: {self.name!r} reads {variable.name!r}, which is an array: write a term or rule in "
                    "Python that reads its elements"
                )

    def may_read(self, names: Iterable[str]) -> set[str]:
        """Returns the names of the variables that decide the script's values."""
        lua = isinstance(self.declaration, LuaValue)
        return self.declaration.scripts.may_read(names) if lua else {*names} & self.reads()


@dataclass(frozen=True)
class DeclaredTerm(_DeclaredScript, RewardTerm):
    """A reward term that a scenario file declares."""


@dataclass(frozen=True)
class DeclaredRule(_DeclaredScript, DoneRule):
    """A done rule that a scenario file declares."""


def scripts_of(terms_and_rules: Iterable[Script]) -> LuaScripts | None:
    """Returns the Lua scripts that decide some of the terms and rules; None if none is decided by Lua."""
    for script in terms_and_rules:
        if isinstance(script, _DeclaredScript) and isinstance(script.declaration, LuaValue):
            return script.declaration.scripts
    return None


@dataclass(frozen=True)
class Declared:
    """What a scenario file declares in stable-retro's own form.

    Args:
        terms: The reward terms.
        rules: The done rules.
    """

    terms: tuple[DeclaredTerm, ...] = ()
    rules: tuple[DeclaredRule, ...] = ()


def declared_in(content: Mapping[str, Any], path: Path) -> Declared:
    """Returns the terms and rules that a scenario file declares; see the module's docstring.

    A notice says once what has no effect: the rewards of other players, and a reference or penalty that is never used.

    Args:
        content: The object in the file.
        path: The file, for messages and as the origin of the terms.

    Raises:
        KartRewardsError: The declaration is not valid: an unknown key or word, or a value of a wrong type; or a Lua
            file can't be read.

    Example:
        >>> reward, done = {"variables": {"score": {"reward": 2}}}, {"variables": {"lives": {"op": "zero"}}}
        >>> declared = declared_in({"reward": reward, "done": done}, Path("scenario.json"))
        >>> [(term.name, term.weight, term.summary) for term in declared.terms]
        [('score', 2.0, 'the change of score, if it is positive')]
        >>> [(rule.name, rule.summary) for rule in declared.rules]
        [('lives', 'lives is 0')]
    """
    _check_view(content, path)
    terms: dict[str, DeclaredTerm] = {}
    per_frame, paying = None, None
    for where, block in _reward_blocks(content, path):
        check_keys(block, ("variables", "time", "script"), where)
        for name, variable, entry in _entries(block, "variables", where):
            pay, weight = _pay(entry, f"{where}: variable {shown(name)}", variable)
            terms.setdefault(variable, DeclaredTerm(variable, partial(paid, pay), weight, path=str(path)))
        if "time" in block:
            at = f'{where}: "time"'
            per_frame = _pay(_object(block["time"], at), at, None)
        paying = _script(block, where) or paying
    if per_frame:
        name = "time_per_frame" if "time" in terms else "time"
        terms[name] = DeclaredTerm(name, partial(paid, per_frame[0]), per_frame[1], path=str(path))
    done_at = f'{path}: "done"'
    done = _object(content.get("done", {}), done_at)
    check_keys(done, ("variables", "nodes", "condition", "script"), done_at)
    rules = tuple(_rules(done, done_at, path))
    ending = _script(done, done_at)
    if not (paying or ending):
        return Declared(tuple(terms.values()), rules)
    scripts = lua_scripts(path, content.get("scripts"), paying, _of_other_players(content, path), ending)
    lua_terms = _of_lua(DeclaredTerm, paid, LUA_REWARD, scripts.reward, scripts)
    lua_rules = _of_lua(DeclaredRule, is_over, LUA_DONE, scripts.done, scripts)
    return Declared(lua_terms or tuple(terms.values()), lua_rules or rules)


def _check_view(content: Mapping[str, Any], path: Path) -> None:
    """Checks the form of what else stable-retro reads in the file. It raises exceptions of its JSON library instead."""
    crop, actions = content.get("crop", [0, 0, 0, 0]), content.get("actions", [])
    if not (isinstance(crop, list) and len(crop) == 4 and all(type(each) is int and each >= 0 for each in crop)):
        raise KartRewardsError(f'{path}: "crop" must be [x, y, width, height] in pixels, not {shown(crop)}')
    if content.get("crops"):
        raise KartRewardsError(f'{path}: "crops" does not work in stable-retro: write "crop": [x, y, width, height]')
    well_formed = _has_lists(actions) and all(map(_has_lists, actions)) and all(actions)
    if not (well_formed and all(isinstance(each, str) for group in actions for buttons in group for each in buttons)):
        raise KartRewardsError(
            f'{path}: "actions" must be a list of groups of combinations of buttons, such as [[[], ["LEFT"]], [["B"]]]'
            f", not {shown(actions)}"
        )


def _has_lists(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, list) for each in value)


def _of_lua(kind: Any, call: Any, variable: str, function: str | None, scripts: LuaScripts) -> tuple[Any, ...]:
    """Returns the term or the rule that is the value of a Lua function; none if there is no function."""
    if function is None:
        return ()
    return (kind(LUA, partial(call, LuaValue(variable, function, scripts)), path=scripts.where(function)),)


def _of_other_players(content: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Yields the functions of the other players' rewards: the scripts may share variables with them."""
    for player, block in enumerate(content.get("rewards", [])[1:], start=2):
        where = f'{path}: "rewards", player {player}'
        function = _script(_object(block, where), where)
        if function:
            yield function


def _reward_blocks(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the content of the objects that reward the first player."""
    if "reward" in content:
        yield f'{path}: "reward"', _object(content["reward"], f'{path}: "reward"')
    players = content.get("rewards", [])
    if not isinstance(players, list):
        raise KartRewardsError(f'{path}: "rewards" must be a list with one object for each player')
    if len(players) > 1:
        notice(f'{path}: "rewards" are for {counted(len(players), "player")}: those of the first player are used')
    if players:
        yield f'{path}: "rewards", player 1', _object(players[0], f'{path}: "rewards", player 1')


def _rules(done: Mapping[str, Any], where: str, path: Path) -> Iterator[DeclaredRule]:
    node, names = _node(done, where)
    if node.every and len(node.parts) != 1:
        joined = "_and_".join(names) or "done"
        yield DeclaredRule(joined, partial(is_over, node), path=str(path))
        return
    for name, part in zip(names, node.parts, strict=True):
        yield DeclaredRule(name, partial(is_over, part), path=str(path))


def _node(content: Mapping[str, Any], where: str) -> tuple[Node, list[str]]:
    """Returns a node, and a name for each of its parts."""
    condition = _word(content, "condition", ("any", "all"), "any", where)
    parts: dict[str, Measure | Node] = {}
    for name, variable, entry in _entries(content, "variables", where):
        parts[variable] = _measure(entry, f"{where}: variable {shown(name)}", variable, "absolute")
    for name, _, entry in _entries(content, "nodes", where):
        at = f"{where}: node {shown(name)}"
        check_keys(entry, ("variables", "nodes", "condition"), at)
        parts[_name_of_node(name, parts)] = _node(entry, at)[0]
    return Node(condition == "all", tuple(parts.values())), list(parts)


def _name_of_node(name: str, taken: Mapping[str, Any]) -> str:
    name = attribute_name(name)
    if not name.isidentifier() or name.startswith("_"):
        name = f"node_{name}".rstrip("_")
    while name in taken:
        name += "_node"
    return name


def _entries(content: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields the name in the file, the attribute's name and the content of each entry. Comments are left out."""
    seen: dict[str, str] = {}
    for name, entry in _object(content.get(key, {}), f'{where}: "{key}"').items():
        if is_comment(name) and not isinstance(entry, dict):
            continue
        attribute = attribute_name(name)
        if key == "variables" and seen.setdefault(attribute, name) != name:
            raise KartRewardsError(
                f"{where}: {shown(seen[attribute])} and {shown(name)} are one variable here, {attribute!r}: rename one"
            )
        yield name, attribute, _object(entry, f"{where}: {shown(name)}")


def _measure(
    entry: Mapping[str, Any], where: str, variable: str | None, measurement: str, other_keys: tuple[str, ...] = ()
) -> Measure:
    """Returns the measure of an entry.

    Args:
        entry: The entry.
        where: The beginning of messages.
        variable: The name of the attribute; None for ``time``.
        measurement: The default.
        other_keys: The keys of the entry besides those of the measure.
    """
    check_keys(entry, (*_MEASURE_KEYS, *other_keys), where)
    if variable is not None and (not variable.isidentifier() or variable.startswith("_")):
        raise KartRewardsError(f"{where}: no variable can have this name: see the names in data.json")
    reference = entry.get("reference", 0)
    if type(reference) is float and reference.is_integer():
        reference = int(reference)
    if type(reference) is not int or int_64(reference) != reference:
        raise KartRewardsError(f'{where}: "reference" must be an integer of 64 bits, not {shown(reference)}')
    op = _word(entry, "op", [op for op in _OPERATIONS if op], "", where)
    if "reference" in entry and "{}" not in _OPERATIONS[op][1]:
        notice(f'{where}: "reference" has no effect {f"with the op {op!r}" if op else "without an op"}')
    measurement = _word(entry, "measurement", ("absolute", "delta"), measurement, where)
    return Measure(variable, measurement == "delta", op, reference)


def _pay(entry: Mapping[str, Any], where: str, variable: str | None) -> tuple[Pay, float]:
    """Returns what an entry pays before its weight, and the weight."""
    measure = _measure(entry, where, variable, "delta", ("reward", "penalty"))
    reward, penalty = (_factor(entry, key, where) for key in ("reward", "penalty"))
    if variable is None or measure.op not in ("", "sign"):  # the measure is never negative
        if penalty:
            notice(f'{where}: "penalty" has no effect here: write a negative "reward"')
        penalty = 0.0
    if reward and penalty and reward != penalty:
        return Pay(measure, reward, penalty), 1.0
    weight = reward or penalty
    return Pay(measure, int(reward == weight), int(penalty == weight)), weight


def _factor(entry: Mapping[str, Any], key: str, where: str) -> float:
    factor = entry.get(key, 0.0)
    if type(factor) not in (int, float):
        raise KartRewardsError(f'{where}: "{key}" must be a number, not {shown(factor)}')
    return float(factor)


def _word(content: Mapping[str, Any], key: str, known: Iterable[str], default: str, where: str) -> str:
    known = tuple(known)
    word = content.get(key, default)
    if word not in known and (word != default or key in content):
        hint = did_you_mean(word, known) if isinstance(word, str) else ""
        raise KartRewardsError(f'{where}: "{key}" is one of {", ".join(known)}, not {shown(word)}.{hint}')
    return str(word)


def _script(block: Mapping[str, Any], where: str) -> str | None:
    """Returns the name of a block's function in Lua; None if it has none."""
    script = block.get("script")
    if script is None:
        return None
    if not (isinstance(script, str) and (found := re.fullmatch(r"(?:lua:)?([^:].*)", script)) and ":" not in found[1]):
        raise KartRewardsError(
            f'{where}: "script" must be the name of a function of Lua, such as "lua:reward", not {shown(script)}'
        )
    return found[1]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise KartRewardsError(f"{where} must be an object {{…}}, not {shown(value)}")
    return value
