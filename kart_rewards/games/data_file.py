"""The variables in a game's ``data.json``, as a file to edit.

* ``read_entries`` - the entries of a file that may still be empty
* ``add_variable`` - adds an entry
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import stable_retro

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import UnwritableError, atomic_write
from kart_rewards.ram import RamLayout, Variable, load_json


def read_entries(path: Path) -> dict[str, Any]:
    """Returns the entries of a ``data.json``: name -> content. A file without entries is valid here.

    Raises:
        KartRewardsError: The file can't be read, or an entry is wrong.
    """
    entries = load_json(path).get("info", {})
    if entries != {}:
        RamLayout.from_file(path)
    return entries


def add_variable(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Adds an entry at the end of a ``data.json``'s ``info``. The write is atomic and keeps the file's permissions.

    All other text of the file stays as it is, to the byte. Only a file without entries is formatted again, because it
    does not show how to format them.

    Args:
        path: The file.
        name: The variable's name.
        entry: Its ``address`` and ``type``.

    Raises:
        KartRewardsError: The name is in use or not valid, an entry is wrong, or the file can't be read or written.

    Example:
        >>> add_variable(Path("data.json"), "speed", {"address": 8261866, "type": "<i2"})  # doctest: +SKIP
    """
    RamLayout([Variable(name, entry["address"], entry["type"])], source=f"add {name}")
    existing = read_entries(path).get(name)
    if existing is not None:
        raise KartRewardsError(f"{path}: already has a variable {name!r}, {json.dumps(existing)}: use another name")
    try:
        with atomic_write(path) as file:
            file.write_bytes(_with_entry(path.read_bytes().decode(), name, entry).encode())
            shutil.copymode(path, file)
            if _read_by_stable_retro(file) != _read_by_stable_retro(path) | {name: entry}:
                raise KartRewardsError(
                    f"{path}: nothing was added, because stable-retro reads this file differently: make it standard "
                    "JSON, without NaN and without repeated keys"
                )
    except UnwritableError as error:
        raise KartRewardsError(f"{error}. The entry is {json.dumps(name)}: {json.dumps(entry)}") from None


def _read_by_stable_retro(path: Path) -> dict[str, Any]:
    """The variables that stable-retro finds in a file. Of a repeated key, it reads the first, and Python the last."""
    data = stable_retro.data.GameData()
    data.load(str(path), None)
    return dict(data.list_variables())


def _with_entry(text: str, name: str, entry: dict[str, Any]) -> str:
    """Returns the text of a ``data.json`` with one more entry at the end of ``info``.

    The entry is inserted before each closing brace in turn, until the parser finds it in ``info``.
    """
    wanted = json.loads(text)
    if not wanted.get("info"):
        text = json.dumps(wanted | {"info": {}}, indent=2)
        text = text.replace('\n  "info": {}', f'\n  "info": {{\n    {json.dumps(name)}: {json.dumps(entry)}\n  }}')
        return text + "\n"
    wanted["info"][name] = entry
    for brace in re.finditer(r"\s*\}", text):
        before, after = text[: brace.start()], text[brace.start() :]
        candidate = f"{before},{_formatted(name, entry, before)}{after}"
        with contextlib.suppress(json.JSONDecodeError):
            if json.dumps(json.loads(candidate)) == json.dumps(wanted):
                return candidate
    raise AssertionError("valid JSON has a place for the entry")


def _formatted(name: str, entry: dict[str, Any], before: str) -> str:
    """Returns the space after the entry that ``before`` ends with, and the text of a new entry in the same layout."""
    space = [" ", *re.findall(r"\r?\n[ \t]*", before)][-1]  # a new line and its indentation, if there are lines
    value = json.dumps(entry)
    if before.endswith(f"{space}}}"):  # the entry before has one line per key
        indent = space.lstrip("\r\n")
        value = json.dumps(entry, indent=indent[: len(indent) // 2]).replace("\n", space)
    return f"{space}{json.dumps(name)}: {value}"
