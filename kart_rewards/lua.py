"""Lua scripts that a ``scenario.json`` of stable-retro names, as text.

* ``LuaScripts`` - the files, and the functions that decide the reward and the end of an episode
* ``LuaFile``, ``LuaFunction`` - one file, and one of its functions
* ``lua_scripts`` - reads them

stable-retro's own engine runs these scripts, see ``kart_rewards.env.lua``. A script is code of the game's folder. This
module only reads it, and imports no emulator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import read_file
from kart_rewards.ram import attribute_name, shown

_OPAQUE = re.compile(
    r"""--\[(?P<long_comment>=*)\[.*?\](?P=long_comment)\] | --[^\n]*
    | (?P<text> \[(?P<long_text>=*)\[.*?\](?P=long_text)\] | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')""",
    re.VERBOSE | re.DOTALL,
)
_FUNCTION = re.compile(r"\bfunction\s+([\w.:]+)\s*\(|([A-Za-z_][\w.]*)\s*=\s*function\b")
_BLOCK = re.compile(r"\b(?:function|if|do|repeat|end|until)\b")
_READ = re.compile(r"""\bdata\s*(?:\.\s*(\w+)|\[\s*(?:"([^"\n]*)"|'([^'\n]*)')\s*\])""")


@dataclass(frozen=True)
class LuaFunction:
    """A function that a Lua file defines.

    Args:
        name: Its name.
        line: The line of its definition, from 1.
        reads: The variables that it reads from ``data``, by their names in ``data.json``, in the order of the text.
    """

    name: str
    line: int
    reads: tuple[str, ...]


@dataclass(frozen=True)
class LuaFile:
    """A Lua file. Its ``repr`` is the code that decides what its functions return.

    Args:
        path: Its path.
        content: Its bytes, as they were when the scenario was read.
    """

    path: Path = field(compare=False)
    content: bytes

    def __repr__(self) -> str:
        return repr([line.rstrip() for line in self.code.splitlines() if line.strip()])

    @cached_property
    def text(self) -> str:
        """The content as text. A character that is not UTF-8 is replaced."""
        return self.content.decode("utf-8", "replace")

    @cached_property
    def code(self) -> str:
        """The text without comments. Each of their characters is a space, so that all positions stay."""
        return _OPAQUE.sub(lambda found: found[0] if found["text"] else _blank(found[0]), self.text)

    @cached_property
    def functions(self) -> tuple[LuaFunction, ...]:
        """The functions that have a name, in the order of the text."""
        bare = _OPAQUE.sub(lambda found: _blank(found[0], '"' if found["text"] else " "), self.text)
        return tuple(self._functions(bare))

    def _functions(self, bare: str) -> Iterator[LuaFunction]:
        for found in _FUNCTION.finditer(bare):
            depth, end = 0, len(bare)
            for token in _BLOCK.finditer(bare, found.start()):
                depth += -1 if token[0] in ("end", "until") else 1
                if depth == 0:
                    end = token.end()
                    break
            line = bare.count("\n", 0, found.start()) + 1
            yield LuaFunction(found[1] or found[2], line, reads_of(self.code[found.start() : end]))


@dataclass(frozen=True)
class LuaScripts:
    """The Lua part of a scenario.

    Args:
        scenario: The scenario file.
        files: The files, in the order in which they are loaded.
        reward: The function that returns the reward of the first player. None: no function does.
        others: The functions that return the rewards of other players.
        done: The function that returns whether the episode is over. None: no function does.
    """

    scenario: Path = field(repr=False, compare=False)
    files: tuple[LuaFile, ...]
    reward: str | None
    others: tuple[str, ...]
    done: str | None

    def where(self, function: str) -> str:
        """Returns file and line of a function; the scenario file if no script seems to define it."""
        for file in reversed(self.files):  # the last definition counts
            for each in reversed(file.functions):
                if each.name == function:
                    return f"{file.path}:{each.line}"
        return str(self.scenario)

    def may_read(self, names: Iterable[str]) -> set[str]:
        """Returns the names of the variables that may decide the values of the functions."""
        texts = [file.code for file in self.files]
        if any(re.search(r"\bdata\b(?!\s*\.)", text) for text in texts):  # such as data[address]
            return {*names}
        return {*names} & {attribute_name(word) for text in texts for word in re.findall(r"\w+", text)}


def reads_of(code: str) -> tuple[str, ...]:
    """Returns the variables that Lua code reads from ``data``, in the order of the code.

    Example:
        >>> reads_of('return data.score + data["lives "]')
        ('score', 'lives ')
    """
    return tuple(dict.fromkeys(found[1] or found[2] or found[3] or "" for found in _READ.finditer(code)))


def lua_scripts(
    scenario: Path, scripts: Any, reward: str | None, others: Iterable[str], done: str | None
) -> LuaScripts:
    """Reads the Lua files of a scenario.

    Args:
        scenario: The scenario file. The files are relative to its folder.
        scripts: The value of its key ``scripts``: the list of the files.
        reward, others, done: See ``LuaScripts``.

    Raises:
        KartRewardsError: The list is not one of Lua files, or a file can't be read.
    """
    well_formed = isinstance(scripts, list) and all(isinstance(name, str) and name.endswith(".lua") for name in scripts)
    if not (well_formed and scripts):
        functions = " and ".join(repr(name) for name in dict.fromkeys((reward, done)) if name)
        raise KartRewardsError(
            f'{scenario}: "scripts" must be the list of the Lua files that define {functions}, such as ["script.lua"], '
            f"not {shown(scripts)}"
        )
    files = []
    for name in scripts:
        path = scenario.parent / name
        try:
            files.append(LuaFile(path, read_file(path)))
        except OSError as error:
            raise KartRewardsError(
                f'{path}: can\'t be read: {error.strerror}. "scripts" in {scenario} names it'
            ) from None
    return LuaScripts(scenario, tuple(files), reward, tuple(others), done)


def _blank(text: str, character: str = " ") -> str:
    return re.sub(r"[^\n]", character, text)
