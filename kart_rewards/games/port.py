"""A port: the rewards of a stable-retro scenario as Python code, with unit tests.

* ``port`` - the text of ``rewards.py`` and ``test_rewards.py`` for a scenario
* ``command`` - the command ``kart-rewards port``

What the scenario declares becomes functions that compute the same. Functions of Lua become a class that fails on its
first frame, until somebody writes its code.
"""

from __future__ import annotations

import builtins
import itertools
import json
import random
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from kart_rewards.declared import (
    LUA,
    DeclaredRule,
    DeclaredTerm,
    LuaValue,
    Measure,
    Node,
    Pay,
    declared_in,
    scripts_of,
)
from kart_rewards.errors import KartRewardsError
from kart_rewards.files import UnwritableError, atomic_write
from kart_rewards.integrations import Game, find_game
from kart_rewards.lua import LuaScripts
from kart_rewards.ram import RamLayout, Variable, load_json, snapshot_class
from kart_rewards.scripting import snake_case
from kart_rewards.training.options import GamesFolder

ScenarioName = Annotated[str, tyro.conf.arg(metavar="SCENARIO|FILE.json")]
"""The option with the scenario to port, or to compare with."""

_LINE_LENGTH = 100
_TRIALS = 1000  # of random values, until a term pays or a rule is true
_SYMBOLS = {
    "equal": "==",
    "negative-equal": "==",
    "not-equal": "!=",
    "less-than": "<",
    "greater-than": ">",
    "less-or-equal": "<=",
    "greater-or-equal": ">=",
    "nonzero": "!=",
    "zero": "==",
    "negative": "<",
}
"""Operation of ``kart_rewards.declared`` -> Python's. All others mean ``> 0``."""

_REWARDS = '''"""Reward terms and done rules of {game}, ported from {scenario}.

With --rewards rewards.py, a run uses them in place of the scenario's own, which have the same names.
"""

from kart_rewards import {imports}
'''

_TERM = """

{mark}
def {function}({arguments}):
{docstring}
{body}
"""

_LUA = '''

# The scenario's Lua files define these functions:
{functions}
#
# Write in Python what they compute. The name "{lua}" makes a run use this class in place of them.
{marks}
class {cls}:
    """The port of {what}."""

    def __init__(self):
        pass  # an episode begins: set here what the script keeps from frame to frame, such as self.best = 0

    def __call__(self, ram, previous):
{hint}
        raise NotImplementedError("{what}: not yet written in Python")
'''

_TESTS = '''"""Unit tests of the reward terms and done rules: run pytest on this folder. They need no emulator."""

import pytest
import rewards

from kart_rewards.integrations import find_game
from kart_rewards.ram import RamLayout
from kart_rewards.testing import {functions}

GAME = find_game({game})
LAYOUT = RamLayout.from_file(GAME.json_path("data"))


def snapshot(**values):
    """Return the variables of one frame. Variables that are not given are 0."""
    return LAYOUT.snapshot(**values)
'''

_TEST = """

@pytest.mark.parametrize(
    ("before", "now", "{result}"),
    [
{rows}
    ],
)
def test_{function}(before, now, {result}):
    result = {call}([snapshot(**before), snapshot(**now)], rewards.{function})
    assert result == {expected}
"""

_TEST_OF_LUA = """

@pytest.mark.skip(reason="{what}: not yet written in Python")
def test_{test}():
    trace = [snapshot({example}), snapshot({example})]
    assert score_episode(trace, rewards.{cls}) == ({sums}, None)
"""

_LUA_CLASS = "Lua"

_NEXT_STEPS = """
Next:
  1. Run the unit tests (to install pytest: pip install pytest).
       {test}
  2. {write}Compare with stable-retro, frame by frame.
       {parity}
  3. Train with the port.
       {train}"""


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    /,
    scenario: ScenarioName = "scenario",
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path(),
    integrations_path: GamesFolder = None,
) -> None:
    """Writes the rewards of a game's scenario of stable-retro as Python code, with unit tests.

    Declared rewards and done rules become functions that compute the same. Functions of Lua are listed, and get a place
    for their code.

    Args:
        game: Name of the game's folder.
        scenario: The scenario: a name in the game's folder, or a path that ends in .json.
        output: Folder for rewards.py and test_rewards.py. By default the current folder. Existing files are not
            replaced.
    """
    found = find_game(game, integrations_path)
    files = port(found, found.json_path(scenario), integrations_path)
    for name in files:
        if (output / name).exists():
            raise KartRewardsError(
                f"{output / name}: exists already, and was not changed: name another folder with --output"
            )
    try:
        for name, text in files.items():
            with atomic_write(output / name) as file:
                file.write_text(text, encoding="utf-8")
    except UnwritableError as error:
        raise KartRewardsError(f"{error}. Name another folder with --output") from None
    options = f"--rewards {shlex.quote(str(output / 'rewards.py'))}"
    options += f" --scenario {shlex.quote(scenario)}" if scenario != "scenario" else ""
    print(f"wrote {output / 'rewards.py'} and {output / 'test_rewards.py'}")
    print(
        _NEXT_STEPS.format(
            test=f"pytest {shlex.quote(str(output / 'test_rewards.py'))}",
            write="Write the code of Lua in rewards.py. " if "NotImplementedError" in files["rewards.py"] else "",
            parity=found.command(f"parity {game} {options}"),
            train=found.command(f"train --env-id {game} {options}"),
        )
    )


def port(game: Game, scenario: Path, integrations: Path | None = None) -> dict[str, str]:
    """Returns the text of the files that compute in Python what a scenario declares.

    Args:
        game: The game.
        scenario: The scenario file.
        integrations: The folder of games, if the standard lookup does not find the game.

    Returns:
        File -> text: ``rewards.py`` and ``test_rewards.py``.

    Raises:
        KartRewardsError: A file is missing or wrong, or the scenario declares nothing.

    Example:
        >>> game = find_game("Airstriker-Genesis-v0")
        >>> code = port(game, game.json_path("scenario"))["rewards.py"]
        >>> "return max(ram.score - previous.score, 0)" in code
        True
    """
    declared = declared_in(load_json(scenario), scenario)
    layout = RamLayout.from_file(game.json_path("data"))
    if not (declared.terms or declared.rules):
        raise KartRewardsError(f'{scenario}: has no "reward" and no "done" of stable-retro\'s to port')
    code, tests, taken = "", "", {"reward_term", "done_rule", *dir(builtins)}
    scripts: tuple[DeclaredTerm | DeclaredRule, ...] = (*declared.terms, *declared.rules)
    for script in scripts:
        script.check_reads(layout)
        if isinstance(script.declaration, LuaValue):
            continue
        function = snake_case(script.name)
        while function in taken:
            function += "_term" if isinstance(script, DeclaredTerm) else "_rule"
        taken.add(function)
        code += _definition(script, function)
        tests += _test(script, function, layout)
    lua = scripts_of(scripts)
    if lua:
        lua_code, lua_test = _lua_class(lua, layout)
        code, tests = code + lua_code, tests + lua_test
    found = [game.name] if integrations is None else [game.name, str(integrations.resolve())]
    marks = ", ".join(name for name in ("done_rule", "reward_term") if f"@{name}" in code)
    functions = ", ".join(name for name in ("ends_at", "score", "score_episode") if f" {name}(" in tests)
    header = _TESTS.format(game=", ".join(map(json.dumps, found)), functions=functions)
    return {
        "rewards.py": _REWARDS.format(game=game.name, scenario=scenario.name, imports=marks) + code,
        "test_rewards.py": header + tests,
    }


def _mark(decorator: str, **arguments: Any) -> str:
    """Returns a decorator, without the arguments that are None."""
    given = ", ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
    return f"@{decorator}({given})" if given else f"@{decorator}"


def _definition(script: DeclaredTerm | DeclaredRule, function: str) -> str:
    """Returns the function that computes what a declared term or rule computes."""
    declaration = script.declaration
    name = None if function == script.name else f'"{script.name}"'
    if isinstance(script, DeclaredTerm):
        weight = None if script.weight == 1 else _number(script.weight)
        mark = _mark("reward_term", weight=weight, name=name)
        what, body = f"{'Charge' if script.weight < 0 else 'Pay'} {declaration}.", _body_of_term(declaration)
    else:
        mark = _mark("done_rule", name=name)
        what, body = f"End the episode: {declaration}.", _returned(declaration)
    return _TERM.format(
        mark=mark,
        function=function,
        arguments="ram, previous" if _has_delta(declaration) else "ram",
        docstring=textwrap.fill(f'    """{what}"""', _LINE_LENGTH, subsequent_indent="    ", break_long_words=False),
        body=textwrap.indent("\n".join(body), "    "),
    )


def _has_delta(part: Pay | Node | Measure) -> bool:
    if isinstance(part, Node):
        return any(map(_has_delta, part.parts))
    measure = part.measure if isinstance(part, Pay) else part
    return measure.delta and measure.variable is not None


def _number(number: float) -> str:
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e15 else repr(number)


def _value(measure: Measure) -> str:
    """Returns the expression of the number that is measured, before the operation."""
    if measure.variable is None:
        return "1"
    return f"ram.{measure.variable} - previous.{measure.variable}" if measure.delta else f"ram.{measure.variable}"


def _condition(part: Measure | Node) -> str:
    """Returns the expression that is true if the measure is positive, or the condition of the node is true."""
    if isinstance(part, Node):
        texts = [f"({_condition(each)})" if _is_joined(each) else _condition(each) for each in part.parts]
        return (" and " if part.every else " or ").join(texts) or str(part.every)
    if part.variable is None:
        return str(part(None, None) > 0)
    reference = {"negative-equal": -part.reference, "nonzero": 0, "zero": 0, "negative": 0}.get(part.op, part.reference)
    symbol = _SYMBOLS.get(part.op, ">")
    reference = reference if part.op in _SYMBOLS else 0
    if part.delta and reference == 0:
        return f"ram.{part.variable} {symbol} previous.{part.variable}"
    return f"{_value(part)} {symbol} {reference}"


def _is_joined(part: Measure | Node) -> bool:
    return isinstance(part, Node) and len(part.parts) > 1


def _returned(condition: Measure | Node) -> list[str]:
    """Returns the lines of a function that returns a condition."""
    line = f"return {_condition(condition)}"
    if len(line) + 4 <= _LINE_LENGTH or not isinstance(condition, Node):
        return [line]
    return ["return (", *_broken(condition, "    "), ")"]


def _broken(node: Node, indent: str) -> Iterator[str]:
    """Yields the lines of a node's condition, a part on each line."""
    for number, part in enumerate(node.parts):
        word = f"{'and' if node.every else 'or'} " if number else ""
        text = f"({_condition(part)})" if _is_joined(part) else _condition(part)
        if isinstance(part, Node) and len(indent) + len(word) + len(text) + 4 > _LINE_LENGTH:
            yield f"{indent}{word}("
            yield from _broken(part, f"{indent}    ")
            yield f"{indent})"
        else:
            yield f"{indent}{word}{text}"


def _body_of_term(pay: Pay) -> list[str]:
    """Returns the lines of a function that returns a term's unweighted value."""
    measure, factors = pay.measure, (pay.if_positive, pay.if_negative)
    if measure.op not in ("", "sign"):
        return [f"return {_condition(measure)}"]
    value, lines = _value(measure), []
    if measure.op == "sign":
        lines, value = [f"number = {value}"], "(number > 0) - (number < 0)"
    if factors == (1, 1) or measure.variable is None:
        return [*lines, f"return {value}"]
    if factors in ((1, 0), (0, 1)):
        return [*lines, f"return {'max' if factors[0] else 'min'}({value}, 0)"]
    positive, negative = map(_number, factors)
    return [*lines, f"value = {value}", f"return value * ({positive} if value > 0 else {negative})"]


def _test(script: DeclaredTerm | DeclaredRule, function: str, layout: RamLayout) -> str:
    """Returns the unit test of a function of ``_definition``: what it returns for some values of its variables."""
    is_term = isinstance(script, DeclaredTerm)
    expected = f'{{"{script.name}": pytest.approx(paid)}}' if is_term else f'((1, "{script.name}") if over else None)'
    rows = []
    for before, now, value in _examples(script, layout):
        result = _number(script.weight * value) if isinstance(script, DeclaredTerm) else value
        row = f"        ({_dict(before)}, {_dict(now)}, {result}),"
        rows.append(textwrap.fill(row, _LINE_LENGTH, subsequent_indent=" " * 9, break_on_hyphens=False))
    names = ("paid", "score") if is_term else ("over", "ends_at")
    texts = dict(zip(("result", "call"), names, strict=True))
    return _TEST.format(rows="\n".join(rows), function=function, expected=expected, **texts)


def _dict(values: dict[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"


def _examples(
    script: DeclaredTerm | DeclaredRule, layout: RamLayout
) -> Iterator[tuple[dict[str, int], dict[str, int], Any]]:
    """Yields values of the variables on two frames, and what the script returns: one example of each sign."""
    variables = {each.name: each for each in layout.variables}
    measures = [each for each in _measures(script.declaration) if each.variable is not None]
    choices = [_choices(each, variables[str(each.variable)]) for each in measures]
    generator = random.Random(script.name)
    for sign in (1, -1, 0) if isinstance(script, DeclaredTerm) else (1, 0):
        for _ in range(_TRIALS):
            before: dict[str, int] = {}
            now: dict[str, int] = {}
            for measure, (all_pairs, true, false) in zip(measures, choices, strict=True):
                wanted = (true if sign else false) or all_pairs
                # In a condition with many parts, most parts should be as they are wanted.
                first, second = generator.choice(wanted if generator.random() < 0.9 else all_pairs)
                if measure.delta:
                    before[str(measure.variable)] = first
                now[str(measure.variable)] = second
            value = script.definition(layout.snapshot(**now), layout.snapshot(**before))
            if (value > 0) - (value < 0) == sign:
                yield before, now, value
                break


def _choices(measure: Measure, variable: Variable) -> tuple[list[tuple[int, int]], ...]:
    """Returns pairs of values on two frames: all, those whose measure is positive, and the other ones."""
    reference = measure.reference
    true: list[tuple[int, int]] = []
    false: list[tuple[int, int]] = []
    near = [0, 1, 2, 10, reference, reference + 1, reference - 1, -reference]
    near = [value for value in near if variable.lowest <= value <= variable.highest]
    frame = snapshot_class((variable.name,))
    near = [value for value in near if value & variable.core_mask == value] or [0]
    for before, now in itertools.product(near, near):
        (true if measure(frame(now), frame(before)) > 0 else false).append((before, now))
    return true + false, true, false


def _measures(part: Pay | Node | Measure) -> Iterator[Measure]:
    if isinstance(part, Node):
        for each in part.parts:
            yield from _measures(each)
    else:
        yield part.measure if isinstance(part, Pay) else part


def _comment(text: str, indent: int = 0) -> str:
    """Returns a text as lines of comments."""
    first = f"# {' ' * indent}"
    return textwrap.fill(
        text, _LINE_LENGTH - 8, initial_indent=first, subsequent_indent=f"{first}  " if indent else first
    )


def _lua_class(scripts: LuaScripts, layout: RamLayout) -> tuple[str, str]:
    """Returns the class for what Lua functions compute, and its unit test."""
    names = [name for name in (scripts.done, scripts.reward) if name]
    functions = [(file, each) for file in scripts.files for each in file.functions]
    lines = [
        _comment(
            f"{file.path.name}, line {each.line}: {each.name}(){' reads ' * bool(each.reads)}{', '.join(each.reads)}", 2
        )
        for file, each in functions
    ]
    what = " and ".join(f"{name}()" for name in names) + " of Lua"
    marks = [f'@reward_term(name="{LUA}")'] * bool(scripts.reward) + [f'@done_rule(name="{LUA}")'] * bool(scripts.done)
    hint = "Return the reward." if scripts.reward else "Return whether the episode is over."
    if len(names) > 1:
        hint = f"Return both values: return reward, over. On each frame, stable-retro calls {names[0]}() first."
    hint = textwrap.indent(_comment(hint), "        ")
    read = [name for _, function in functions for name in function.reads if name in layout.names]
    code = _LUA.format(
        functions="\n".join(lines), lua=LUA, marks="\n".join(marks), cls=_LUA_CLASS, what=what, hint=hint
    )
    sums = f'{{"{LUA}": 0}}' if scripts.reward else "{}"
    example = f"{read[0]}=1" if read else ""
    return code, _TEST_OF_LUA.format(what=what, test=LUA, example=example, cls=_LUA_CLASS, sums=sums)
