"""Typed RAM: decodes the variables that a ``data.json`` defines.

* ``Variable`` - a name, an address and a type such as ``<s2``; decodes raw bytes
* ``RamLayout`` - all variables of one ``data.json``; reads snapshots from live or recorded memory
* ``RamSnapshot`` - the values of one frame, as attributes; immutable
* ``read_state_file`` - returns the work RAM inside a snes9x ``.state`` file, without an emulator
* ``read_snapshot`` - returns the content of any core's ``.state`` file
* ``load_json`` - returns the object in a JSON file

A type is a byte order, a representation and a width in bytes, as in stable-retro:

* byte order: ``|``, ``<``, ``=`` and ``<=`` are little-endian. ``>`` is big-endian. ``><`` and ``>=`` are two
  little-endian halves, the high half first. ``<>`` is two big-endian halves, the low half first. If the width is odd,
  the first half is one byte shorter
* representation: ``u`` is unsigned, ``i`` is signed, ``d`` is binary-coded decimal, ``n`` is one decimal digit per byte
  (the low nibble). ``s`` is signed, too; stable-retro itself reads it as unsigned
* width: 1 to 8 bytes

Values are signed 64-bit integers, as in stable-retro: an unsigned 8-byte value of 2**63 or more reads as negative. A
``mask`` is applied to the decoded value.

This module imports no emulator. Its callers pass memory as bytes, or as a ``GameData`` object.
"""

from __future__ import annotations

import gzip
import json
import keyword
import re
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from kart_rewards.errors import KartRewardsError, did_you_mean

SNES_WORK_RAM = 0x7E0000
SNES_WORK_RAM_SIZE = 0x20000
SNES_LOW_PAGE_SIZE = 0x2000  # addresses below this one are a mirror of the start of work RAM

_TYPE = re.compile(r"(?P<order>\||<|>|=|><|<>|>=|<=)(?P<representation>[uisdn])(?P<width>[1-8])")


@dataclass(frozen=True)
class Variable:
    """One entry of ``data.json``.

    Args:
        name: The name of the snapshot's attribute.
        address: The address of the first byte in the core's memory map (SNES work RAM starts at 0x7E0000).
        type: Byte order, representation and width, such as ``<s2``. See the module's docstring.
        mask: The bits of the decoded value to keep. None keeps all.

    Raises:
        KartRewardsError: The type is not valid.

    Example:
        >>> Variable("speed", 0x7E10EA, "<s2").decode(b"\\xfb\\xff")
        -5
    """

    name: str
    address: int
    type: str
    mask: int | None = None

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise KartRewardsError(
                f"unknown type {self.type!r} of variable {self.name!r}: write a byte order (| < > = >< <> >= <=), "
                "a representation (u unsigned, i or s signed, d BCD, n low-nibble BCD) and a width (1-8), such as '<s2'"
            )

    @property
    def width(self) -> int:
        """The size of the value, in bytes."""
        return int(self.type[-1])

    @property
    def lowest(self) -> int:
        """The smallest value of the type."""
        return -(2 ** (8 * self.width - 1)) if self.type[-2] in "is" else 0

    @property
    def highest(self) -> int:
        """The largest value of the type."""
        if self.type[-2] in "dn":
            return 10 ** (self.width * (2 if self.type[-2] == "d" else 1)) - 1
        return int(2 ** (8 * self.width - (self.type[-2] in "is"))) - 1

    @property
    def core_type(self) -> str:
        """The type with which stable-retro's own decoder returns the same value."""
        return self.type.replace("s", "i")

    def decode(self, raw: bytes) -> int:
        """Decodes the value.

        Args:
            raw: The ``width`` bytes that start at ``address``.

        Returns:
            The value, with the mask applied.
        """
        ordered = _little_endian(raw, self.type[:-2])
        representation = self.type[-2]
        if representation == "n":
            value = sum((byte & 0xF) % 10 * 10**place for place, byte in enumerate(ordered))
        elif representation == "d":
            value = sum(((byte >> 4) % 10 * 10 + (byte & 0xF) % 10) * 100**place for place, byte in enumerate(ordered))
        else:
            # stable-retro stores unsigned 8-byte values in a signed 64-bit integer, so they read as signed.
            signed = representation in "is" or len(raw) == 8
            value = int.from_bytes(ordered, "little", signed=signed)
        return value if self.mask is None else value & self.mask


def _little_endian(raw: bytes, order: str) -> bytes:
    half = len(raw) // 2
    if order == ">":
        return raw[::-1]
    if order in ("><", ">="):
        return raw[half:] + raw[:half]
    if order == "<>":
        return raw[:half][::-1] + raw[half:][::-1]
    return raw


class RamSnapshot:
    """The values of one emulated frame: ``ram.speed``. It is an immutable named tuple.

    Each set of variables has its own subclass, with the variables as attributes. See ``RamLayout.snapshot_class``.
    """

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> int:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(unknown_variable(name, self._fields), name=name, obj=self)


def unknown_variable(name: str, known: Iterable[str]) -> str:
    """Returns the message for a variable name that is not one of the ``known`` names."""
    known = tuple(known)
    return f"no RAM variable {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}"


@lru_cache
def snapshot_class(names: tuple[str, ...]) -> Any:
    """Returns the subclass of ``RamSnapshot`` with these variables.

    Its constructor takes one int per variable: ``cls(*values)`` or ``cls(**values)``.
    """
    namespace = {"__slots__": (), "__reduce__": lambda self: (_rebuild_snapshot, (names, tuple(self)))}
    return type("RamSnapshot", (namedtuple("RamSnapshot", names), RamSnapshot), namespace)


def _rebuild_snapshot(names: tuple[str, ...], values: tuple[int, ...]) -> RamSnapshot:
    return snapshot_class(names)(*values)


class RamLayout:
    """All variables of one ``data.json``.

    Args:
        variables: The variables, in the order of a snapshot's values.
        source: The file that defines the variables, for error messages.

    Attributes:
        snapshot_class: The subclass of ``RamSnapshot`` with these variables.

    Raises:
        KartRewardsError: Two variables have the same name, or a name can't be a Python attribute.
    """

    def __init__(self, variables: list[Variable], source: str = "data.json") -> None:
        self.variables = tuple(variables)
        self.source = source
        for name in self.names:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
                raise KartRewardsError(
                    f"{source}: {name!r} can't be a variable's name: rename it to a valid Python name without a "
                    "leading underscore"
                )
        if len(set(self.names)) != len(self.names):
            raise KartRewardsError(f"{source}: two variables have the same name: rename one of them")
        self.snapshot_class = snapshot_class(self.names)
        self._build = partial(tuple.__new__, self.snapshot_class)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variables, in the order of a snapshot's values."""
        return tuple(variable.name for variable in self.variables)

    @classmethod
    def from_file(cls, path: str | Path) -> RamLayout:
        """Reads a ``data.json``: ``{"info": {name: {"address": int, "type": str, "mask": int}}}``; mask is optional.

        Raises:
            KartRewardsError: The file can't be read, it is not JSON, or an entry is not valid.
        """
        info = load_json(path).get("info")
        if not isinstance(info, dict):
            raise KartRewardsError(
                f'{path}: holds no variables: expected {{"info": {{"NAME": {{"address": …, "type": …}}}}}}'
            )
        variables = []
        for name, entry in info.items():
            if not isinstance(entry, dict) or not {"address", "type"} <= entry.keys():
                raise KartRewardsError(f'{path}: variable {name!r} needs an "address" and a "type"')
            numbers = [entry["address"], entry.get("mask", 0)]
            if any(type(number) is not int or number < 0 for number in numbers):
                raise KartRewardsError(f"{path}: address and mask of variable {name!r} must be integers, 0 or more")
            try:
                variables.append(Variable(name, entry["address"], str(entry["type"]), entry.get("mask")))
            except KartRewardsError as error:
                raise KartRewardsError(f"{path}: {error}") from None
        return cls(variables, source=str(path))

    def check_addresses(self, blocks: Mapping[int, bytes]) -> None:
        """Checks that each variable lies inside one memory block.

        Args:
            blocks: Start address -> content of each memory block, in the format of stable-retro's
                ``data.memory.blocks``.

        Raises:
            KartRewardsError: A variable does not lie inside one block.
        """
        for variable in self.variables:
            if _find_block(variable, blocks) is None:
                known = ", ".join(
                    f"0x{start:X}-0x{start + len(block) - 1:X}" for start, block in sorted(blocks.items())
                )
                raise KartRewardsError(
                    f"{self.source}: variable {variable.name!r} at address {variable.address} (0x{variable.address:X}, "
                    f"{variable.width} bytes) lies outside memory; this console's memory is {known}"
                )

    def reader(self, data: Any) -> Callable[[], Any]:
        """Returns a function without arguments that reads a ``RamSnapshot`` from live memory.

        The function runs once per emulated frame. It therefore decodes all variables in one call of stable-retro,
        which is faster than one call per variable. To make that possible, this method defines the variables in
        ``data`` and replaces those of the same names. It defines ``s`` as signed and leaves masks out: the function
        applies them to the decoded values.

        Args:
            data: A ``stable_retro.data.GameData`` that is bound to an emulator. One layout at a time can read it.

        Raises:
            KartRewardsError: A variable does not lie inside one memory block.
        """
        self.check_addresses(data.memory.blocks)
        for variable in self.variables:
            data.set_variable(variable.name, {"address": variable.address, "type": variable.core_type})
        build, lookup_all, names = self._build, data.lookup_all, self.names
        values_of = itemgetter(*names) if len(names) > 1 else lambda values: map(values.__getitem__, names)
        masks = [(variable.name, variable.mask) for variable in self.variables if variable.mask is not None]

        def read() -> Any:
            values = lookup_all()
            for name, mask in masks:
                values[name] &= mask
            return build(values_of(values))

        return read

    def decode(self, blocks: Mapping[int, bytes]) -> Any:
        """Returns a ``RamSnapshot`` of recorded memory, without an emulator.

        Args:
            blocks: Start address -> content of each memory block, in the console's byte order.

        Raises:
            KartRewardsError: A variable does not lie inside one block.
        """
        self.check_addresses(blocks)
        values = []
        for variable in self.variables:
            start = _find_block(variable, blocks)
            assert start is not None
            offset = variable.address - start
            values.append(variable.decode(blocks[start][offset : offset + variable.width]))
        return self._build(values)


def _find_block(variable: Variable, blocks: Mapping[int, bytes]) -> int | None:
    for start, block in blocks.items():
        if start <= variable.address and variable.address + variable.width <= start + len(block):
            return start
    return None


def load_json(path: str | Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        KartRewardsError: The file can't be read, it is not JSON, or its value is not an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KartRewardsError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise KartRewardsError(f"{path}: holds a JSON {type(content).__name__}, not an object {{…}}")
    return content


def read_snapshot(path: str | Path) -> bytes:
    """Returns the emulator state that a ``.state`` file contains, uncompressed.

    Raises:
        KartRewardsError: The file can't be read, or it is damaged.
    """
    try:
        return gzip.decompress(Path(path).read_bytes())
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise KartRewardsError(f"{path}: is not a save state (a gzip-compressed file): {error}") from None


def read_state_file(path: str | Path) -> dict[int, bytes]:
    """Returns the SNES work RAM that a ``.state`` file contains, and its mirror at address 0.

    A snes9x state is a sequence of blocks. Each has a name of three letters, a size of six digits, and the content. The
    block ``RAM:131072:`` is work RAM.

    Returns:
        Start address -> bytes, the argument of ``RamLayout.decode``.

    Raises:
        KartRewardsError: The file can't be read, or it contains no snes9x state.
    """
    content = read_snapshot(path)
    marker = f"RAM:{SNES_WORK_RAM_SIZE:06d}:".encode()
    start = content.find(marker) + len(marker)
    work_ram = content[start : start + SNES_WORK_RAM_SIZE]
    if marker not in content or len(work_ram) < SNES_WORK_RAM_SIZE:
        raise KartRewardsError(f"{path}: holds no snes9x work RAM: it is not a SNES save state, or it is damaged")
    return {SNES_WORK_RAM: work_ram, 0: work_ram[:SNES_LOW_PAGE_SIZE]}
