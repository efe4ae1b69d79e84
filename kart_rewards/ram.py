"""Typed RAM: decodes the variables that a ``data.json`` defines.

* ``Variable`` - a name, an address and a type such as ``<s2``; decodes raw bytes
* ``RamLayout`` - all variables of one ``data.json``; reads snapshots from live or recorded memory
* ``RamSnapshot`` - the values of one frame, as attributes; immutable
* ``attribute_name`` - the attribute of a variable whose name in ``data.json`` is no Python name
* ``read_state_file`` - returns the work RAM inside a snes9x ``.state`` file, without an emulator
* ``read_snapshot`` - returns the content of any core's ``.state`` file
* ``load_json`` - returns the object in a JSON file
* ``check_keys``, ``check_outer_keys``, ``is_comment`` - the keys of such an object
* ``find_block`` - the block of memory that contains a variable
* ``shown`` - a value in a message
* ``value_text`` - the value of a variable in a table

A type is a byte order, a representation and a width in bytes, as in stable-retro:

* byte order: ``|``, ``<``, ``=`` and ``<=`` are little-endian. ``>`` is big-endian. ``><`` and ``>=`` are two
  little-endian halves, the high half first. ``<>`` is two big-endian halves, the low half first. If the width is odd,
  the first half is one byte shorter
* representation: ``u`` is unsigned, ``i`` is signed, ``d`` is binary-coded decimal, ``n`` is one decimal digit per byte
  (the low nibble). ``s`` is signed, too; stable-retro itself reads it as unsigned
* width: 1 to 8 bytes

Values are signed 64-bit integers, as in stable-retro: an unsigned 8-byte value of 2**63 or more reads as negative. A
``mask`` is applied to the decoded value. A mask may be negative: -113 keeps the same bits as 2**64 - 113.

Two keys of a variable are for this project only; stable-retro ignores them::

    "tiles": {"address": 8323072, "type": "|u1", "count": 320},
    "kart": {"address": 8257800, "type": "<u2"},
    "fuel": {"address": 8257570, "type": "<s2", "pointer": "kart"}

* ``count`` is the number of elements of an array: ``ram.tiles`` is a tuple of 320 integers, which lie one after the
  other. A mask is applied to each element
* ``pointer`` is the name of a variable further up. The variable lies at ``address`` plus the value of this variable.
  Here, ``kart`` is the 16-bit address of an object in the SNES's bank 0x7E, and ``fuel`` lies 34 bytes behind the
  object's start: 8257570 is 0x7E0000 + 34. A sum outside memory is no error, because a game may set a pointer only
  later: the variable then reads as 0, and each element of an array as 0

This module imports no emulator. Its callers pass memory as bytes, or as a ``GameData`` object.
"""

from __future__ import annotations

import gzip
import json
import keyword
import math
import operator
import re
import struct
import unicodedata
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.files import read_file
from kart_rewards.notices import notice

SNES_WORK_RAM = 0x7E0000
SNES_WORK_RAM_SIZE = 0x20000
SNES_LOW_PAGE_SIZE = 0x2000  # addresses below this one are a mirror of the start of work RAM

_LONGEST_SHOWN = 120  # characters of a value in a message
_JSON_RULES = "JSON allows no comments, no comma after the last item and no 0x numbers; it must be UTF-8 without BOM"
_ENTRY_KEYS = ("address", "type", "mask", "count", "pointer")  # of data.json; stable-retro reads the first three
_MOST_ELEMENTS = 0x10000
_CHUNK = 8  # bytes of the widest type: an array is read in pieces of this width
_TYPE = re.compile(r"(?P<order>\||<|>|=|><|<>|>=|<=)(?P<representation>[uisdn])(?P<width>[1-8])")


@dataclass(frozen=True)
class Variable:
    """One entry of ``data.json``.

    Args:
        name: The name of the snapshot's attribute.
        address: The address of the first byte in the core's memory map (SNES work RAM starts at 0x7E0000).
        type: Byte order, representation and width, such as ``<s2``. See the module's docstring.
        mask: The bits of the decoded value to keep, -2**63 to 2**64 - 1. None keeps all.
        count: The number of elements of an array. None: a single value.
        pointer: The name of the variable whose value is added to the address. None: the address is fixed.

    Raises:
        KartRewardsError: The type or the count is not valid.

    Example:
        >>> Variable("speed", 0x7E10EA, "<s2").decode(b"\\xfb\\xff")
        -5
        >>> Variable("tiles", 0x7F0000, "|u1", count=3).decode(b"\\x01\\x01\\x05")
        (1, 1, 5)
    """

    name: str
    address: int
    type: str
    mask: int | None = None
    count: int | None = None
    pointer: str | None = None

    def __post_init__(self) -> None:
        if not _TYPE.fullmatch(self.type):
            raise KartRewardsError(
                f"unknown type {shown(self.type)} of variable {shown(self.name)}: write a byte order "
                "(| < > = >< <> >= <=), a representation (u unsigned, i or s signed, d BCD, n low-nibble BCD) and a "
                "width (1-8), such as '<s2'"
            )
        if self.count is not None and not (type(self.count) is int and 1 <= self.count <= _MOST_ELEMENTS):
            raise KartRewardsError(
                f"the count of variable {shown(self.name)} must be an integer, 1 to {_MOST_ELEMENTS}, not "
                f"{shown(self.count)}"
            )

    @property
    def width(self) -> int:
        """The size of the value, or of one element, in bytes."""
        return int(self.type[-1])

    @property
    def size(self) -> int:
        """The size of the value, or of all elements, in bytes."""
        return self.width * (self.count or 1)

    @property
    def zero(self) -> int | tuple[int, ...]:
        """The value where all bytes are 0."""
        return 0 if self.count is None else (0,) * self.count

    @property
    def description(self) -> str:
        """What decides the value, as text."""
        array = "" if self.count is None else f", count {self.count}"
        through = "" if self.pointer is None else f", pointer {self.pointer}"
        return f"address {self.address}, type {self.type}, mask {self.mask}{array}{through}"

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
    def core_mask(self) -> int:
        """The mask as a signed 64-bit integer. ``value & core_mask`` is what stable-retro returns."""
        return -1 if self.mask is None else int_64(self.mask)

    @property
    def core_type(self) -> str:
        """The type with which stable-retro's own decoder returns the same value."""
        return self.type.replace("s", "i")

    @cached_property
    def _format(self) -> str:
        """The elements of an array, as a format of Python's module ``struct``; empty if it does not know the type."""
        order = {"|": "<", "<": "<", "=": "<", "<=": "<", ">": ">"}.get("<" if self.width == 1 else self.type[:-2])
        letter = {1: "b", 2: "h", 4: "i", 8: "q"}.get(self.width)
        if not (order and letter) or self.type[-2] in "dn":
            return ""
        is_signed = self.type[-2] in "is" or self.width == 8  # as below
        return f"{order}{self.count}{letter if is_signed else letter.upper()}"

    def decode(self, raw: bytes) -> Any:
        """Decodes the value.

        Args:
            raw: The ``size`` bytes that start at ``address``.

        Returns:
            The value, with the mask applied: an integer, or a tuple of ``count`` integers.
        """
        if self.count is None:
            return self._decode(raw)
        if not self._format:
            return tuple(self._decode(raw[at : at + self.width]) for at in range(0, len(raw), self.width))
        values = struct.unpack(self._format, raw)
        return values if self.mask is None else tuple(value & self.core_mask for value in values)

    def _decode(self, raw: bytes) -> int:
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
        return value if self.mask is None else value & self.core_mask

    def check_value(self, value: Any) -> Any:
        """Returns a value as Python's own integer, or as a tuple of such.

        Args:
            value: An integer, also one of NumPy's; for an array, a sequence of ``count`` integers.

        Raises:
            KartRewardsError: The value is not an integer in the range of the type, or not such a sequence.
        """
        if self.count is None:
            return self._check_number(value)
        try:
            values = tuple(value)
        except TypeError:
            values = ()
        if len(values) != self.count:
            raise KartRewardsError(f"{self.name}={shown(value)} is not a sequence of {self.count} integers")
        return tuple(map(self._check_number, values))

    def _check_number(self, value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            raise KartRewardsError(f"{self.name}={shown(value)} is not an integer") from None
        if not self.lowest <= number <= self.highest:
            raise KartRewardsError(
                f"{self.name}={shown(number)} does not fit its type {self.type}, {self.lowest} to {self.highest}"
            )
        return number


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


def readable_names(snapshot: Any) -> set[str]:
    """Returns the attributes of a snapshot, or of its class, that a term may read: its variables, and ``_asdict``."""
    return {*snapshot._fields, *(name for name in dir(snapshot) if name.startswith("_"))}


def unknown_variable(name: str, known: Iterable[str]) -> str:
    """Returns the message for a variable name that is not one of the ``known`` names."""
    known = tuple(known)
    return f"no RAM variable {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}"


@lru_cache
def snapshot_class(names: tuple[str, ...]) -> Any:
    """Returns the subclass of ``RamSnapshot`` with these variables.

    Its constructor takes one value per variable: ``cls(*values)`` or ``cls(**values)``.
    """
    namespace: dict[str, Any] = {"__slots__": (), "__reduce__": lambda self: (_rebuild_snapshot, (names, tuple(self)))}
    namespace |= {name: property(_not_a_variable) for name in ("count", "index") if name not in names}
    return type("RamSnapshot", (namedtuple("RamSnapshot", names), RamSnapshot), namespace)


def _not_a_variable(self: Any) -> Any:
    """Hides a method of tuples: ``ram.count`` must be a variable, or be reported."""
    raise AttributeError


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
        KartRewardsError: Two variables have the same name, a name can't be a Python attribute, or a variable's pointer
            is not a variable further up.
    """

    def __init__(self, variables: list[Variable], source: str = "data.json") -> None:
        self.variables = tuple(variables)
        self.source = source
        for name in self.names:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
                raise KartRewardsError(
                    f"{source}: {shown(name)} can't be a variable's name: rename it to a valid Python name without a "
                    "leading underscore"
                )
        if len(set(self.names)) != len(self.names):
            raise KartRewardsError(f"{source}: two variables have the same name: rename one of them")
        pointers: list[str] = []
        for variable in self.variables:
            if variable.pointer is not None and variable.pointer not in pointers:
                hint = did_you_mean(variable.pointer, pointers)
                raise KartRewardsError(
                    f'{source}: variable {shown(variable.name)}: its "pointer" {shown(variable.pointer)} is not the '
                    f'name of a variable further up, without "count".{hint}'
                )
            if variable.count is None:
                pointers.append(variable.name)
        self.snapshot_class = snapshot_class(self.names)
        self._build = partial(tuple.__new__, self.snapshot_class)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the variables, in the order of a snapshot's values."""
        return tuple(variable.name for variable in self.variables)

    @classmethod
    def from_file(cls, path: str | Path) -> RamLayout:
        """Reads a ``data.json``: ``{"info": {name: {"address": int, "type": str}}}``.

        Optional keys of a variable are ``mask``, ``count`` and ``pointer``. See the module's docstring.

        The name of each variable is the ``attribute_name`` of the name in the file.

        Raises:
            KartRewardsError: The file can't be read, it is not JSON, or an entry is not valid. Unknown keys of an entry
                are refused, except comments.
        """
        content = load_json(path)
        check_outer_keys(content, ("info",), str(path))
        info = content.get("info")
        if not isinstance(info, dict):
            raise KartRewardsError(
                f'{path}: holds no variables: expected {{"info": {{"NAME": {{"address": …, "type": …}}}}}}'
            )
        variables = []
        names: dict[str, str] = {}
        for name, entry in info.items():
            where = f"{path}: variable {shown(name)}"
            if is_comment(name) and not isinstance(entry, dict):
                continue
            if isinstance(entry, dict):
                check_keys(entry, _ENTRY_KEYS, where)
            if not isinstance(entry, dict) or not {"address", "type"} <= entry.keys():
                raise KartRewardsError(f'{where} needs an "address" and a "type"')
            for key, lowest in {"address": 0, "mask": -(2**63)}.items():
                number = entry.get(key, 0)
                if type(number) is not int or not lowest <= number < 2**64:
                    raise KartRewardsError(
                        f"{where}: address and mask must be integers, 0 to 2**64 - 1; a mask may be negative, "
                        f"-2**63 or more.{_decimal(number)}"
                    )
            attribute = attribute_name(name)
            if attribute in names:
                raise KartRewardsError(
                    f"{path}: the variables {shown(names[attribute])} and {shown(name)} have one attribute name, "
                    f"{attribute!r}: rename one of them"
                )
            names[attribute] = name
            pointer = entry.get("pointer")
            if not (pointer is None or isinstance(pointer, str)):
                raise KartRewardsError(f'{where}: "pointer" must be the name of a variable, not {shown(pointer)}')
            try:
                variable = Variable(
                    attribute,
                    entry["address"],
                    str(entry["type"]),
                    entry.get("mask"),
                    entry.get("count"),
                    None if pointer is None else attribute_name(pointer),
                )
            except KartRewardsError as error:
                raise KartRewardsError(f"{path}: {error}") from None
            if variable.mask is not None and not variable.mask & (2 ** (8 * variable.width) - 1):
                raise KartRewardsError(
                    f"{where}: the mask {variable.mask} keeps no bit of a value of "
                    f"{counted(variable.width, 'byte')}: correct the mask, or leave it out"
                )
            variables.append(variable)
        return cls(variables, source=str(path))

    def snapshot(self, **values: Any) -> Any:
        """Returns a ``RamSnapshot`` with some values; all others are 0.

        Args:
            values: Variable -> value; for an array, a sequence of integers.

        Raises:
            KartRewardsError: A variable is unknown, or a value does not fit its type.

        Example:
            >>> layout = RamLayout([Variable("lives", 0, "|u1"), Variable("items", 1, "|u1", count=3)])
            >>> layout.snapshot(lives=2)
            RamSnapshot(lives=2, items=(0, 0, 0))
        """
        variables = {variable.name: variable for variable in self.variables}
        content = {name: variable.zero for name, variable in variables.items()}
        for name, value in values.items():
            if name not in variables:
                raise KartRewardsError(unknown_variable(name, variables))
            content[name] = variables[name].check_value(value)
        return self._build(content.values())

    def check_addresses(self, blocks: Mapping[int, bytes]) -> None:
        """Checks that each variable lies inside one memory block. Those with a pointer may lie anywhere.

        Args:
            blocks: Start address -> content of each memory block, in the format of stable-retro's
                ``data.memory.blocks``.

        Raises:
            KartRewardsError: A variable does not lie inside one block.
        """
        for variable in self.variables:
            self.check_address(variable, blocks)

    def check_address(self, variable: Variable, blocks: Mapping[int, bytes]) -> None:
        """Checks one variable; see ``check_addresses``."""
        if variable.pointer is None and find_block(variable, blocks) is None:
            known = ", ".join(f"0x{start:X}-0x{start + len(block) - 1:X}" for start, block in sorted(blocks.items()))
            raise KartRewardsError(
                f"{self.source}: variable {variable.name!r} at address {variable.address} (0x{variable.address:X}, "
                f"{variable.size} bytes) lies outside memory; this console's memory is {known}."
                f"{_hexadecimal(variable, blocks)}"
            )

    def reader(self, data: Any) -> Callable[[], Any]:
        """Returns a function without arguments that reads a ``RamSnapshot`` from live memory.

        The function runs once per emulated frame. It therefore decodes all variables in one call of stable-retro,
        which is faster than one call per variable. To make that possible, this method defines the variables in
        ``data`` and replaces those of the same names. It defines ``s`` as signed and leaves masks out: the function
        applies them to the decoded values. An array is read in the same call, in pieces of 8 bytes. A variable with a
        pointer needs a further call.

        Args:
            data: A ``stable_retro.data.GameData`` that is bound to an emulator. One layout at a time can read it.

        Raises:
            KartRewardsError: A variable does not lie inside one memory block.
        """
        blocks = data.memory.blocks
        self.check_addresses(blocks)
        plain = [variable for variable in self.variables if variable.count is None and variable.pointer is None]
        for variable in plain:
            data.set_variable(variable.name, {"address": variable.address, "type": variable.core_type})
        build, lookup_all, values_of = self._build, data.lookup_all, _getter(self.names)
        masks = [(variable.name, variable.core_mask) for variable in plain if variable.mask is not None]
        others = [
            (each.name, _array_reader(each, data) if each.pointer is None else _pointed_reader(each, data, blocks))
            for each in self.variables
            if each not in plain
        ]

        def read() -> Any:
            values = lookup_all()
            for name, mask in masks:
                values[name] &= mask
            return build(values_of(values))

        def read_others_too() -> Any:
            values = lookup_all()
            for name, mask in masks:
                values[name] &= mask
            for name, value_of in others:
                values[name] = value_of(values)
            return build(values_of(values))

        return read_others_too if others else read

    def decode(self, blocks: Mapping[int, bytes]) -> Any:
        """Returns a ``RamSnapshot`` of recorded memory, without an emulator.

        Args:
            blocks: Start address -> content of each memory block, in the console's byte order.

        Raises:
            KartRewardsError: A variable does not lie inside one block.
        """
        self.check_addresses(blocks)
        values: dict[str, Any] = {}
        for variable in self.variables:
            address = variable.address + (0 if variable.pointer is None else values[variable.pointer])
            start = find_block(replace(variable, address=address), blocks)
            if start is None:
                values[variable.name] = variable.zero
            else:
                offset = address - start
                values[variable.name] = variable.decode(blocks[start][offset : offset + variable.size])
        return self._build(values.values())


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Iterable[Any]]:
    """Returns a function that returns the values of these names, in this order."""
    return itemgetter(*names) if len(names) > 1 else lambda values: map(values.__getitem__, names)


_ValueOf = Callable[[dict[str, Any]], Any]
"""Returns the value of a variable on a frame, from the values that ``lookup_all`` returned."""


def _array_reader(variable: Variable, data: Any) -> _ValueOf:
    """Defines the pieces of an array in ``data``. See ``RamLayout.reader``."""
    names = []
    for offset in range(0, variable.size, _CHUNK):
        names.append(f"{variable.name}[{offset}]")
        width = min(_CHUNK, variable.size - offset)
        data.set_variable(names[-1], {"address": variable.address + offset, "type": f"<u{width}"})
    pieces_of, decode, size = _getter(names), variable.decode, variable.size
    pack = struct.Struct(f"<{len(names)}q").pack
    return lambda values: decode(pack(*pieces_of(values))[:size])


def _pointed_reader(variable: Variable, data: Any, blocks: Mapping[int, bytes]) -> _ValueOf:
    """Returns the reader of a variable with a pointer. See ``RamLayout.reader``."""
    ranges = [(start, start + len(block) - variable.size) for start, block in blocks.items()]
    extract, zero, pointer, base = data.memory.extract, variable.zero, variable.pointer, variable.address
    type_, mask, size = variable.core_type, variable.core_mask, variable.size
    pieces = [(offset, f"<u{min(_CHUNK, size - offset)}") for offset in range(0, size, _CHUNK)]
    pack, decode = struct.Struct(f"<{len(pieces)}q").pack, variable.decode

    def value_of(values: dict[str, Any]) -> Any:
        address = base + values[pointer]  # type: ignore[index]
        if not any(first <= address <= last for first, last in ranges):
            return zero
        if variable.count is None:
            return extract(address, type_) & mask
        return decode(pack(*[extract(address + offset, piece) for offset, piece in pieces])[:size])

    return value_of


def attribute_name(name: str) -> str:
    """Returns the attribute of a snapshot for a name in ``data.json``.

    Spaces around the name are left out, and other characters that a Python name can't have become underscores. A
    keyword gets an underscore at its end. Like Python's own names, it has the Unicode form NFKC.

    Example:
        >>> attribute_name("score "), attribute_name("top speed"), attribute_name("continue"), attribute_name("Größe")
        ('score', 'top_speed', 'continue_', 'Größe')
    """
    attribute = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name).strip())
    return f"{attribute}_" if keyword.iskeyword(attribute) else attribute


def int_64(number: int) -> int:
    """Returns a number as a signed 64-bit integer: what a larger number becomes in stable-retro."""
    return (number + 2**63) % 2**64 - 2**63


def _decimal(number: Any) -> str:
    """Returns a hint if a text is a hexadecimal number."""
    try:
        return f" Write {number} in decimal: {int(number, 16)}." if re.search("(?i)[a-fx]", number) else ""
    except (TypeError, ValueError):
        return ""


def _hexadecimal(variable: Variable, blocks: Mapping[int, bytes]) -> str:
    """Returns a hint if the digits of an address are a hexadecimal number that lies inside a memory block."""
    address = int(str(variable.address), 16)
    if find_block(replace(variable, address=address), blocks) is None:
        return ""
    return f" Did you mean 0x{variable.address}? It is {address} in decimal, and JSON has only decimal numbers."


def find_block(variable: Variable, blocks: Mapping[int, bytes]) -> int | None:
    """Returns the start of the memory block that contains all bytes of a variable, without its pointer; or None."""
    for start, block in blocks.items():
        if start <= variable.address and variable.address + variable.size <= start + len(block):
            return start
    return None


def load_json(path: str | Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    A key that an object repeats with another value is refused: stable-retro reads the first value, and Python the last.

    Raises:
        KartRewardsError: The file can't be read, it is not JSON, its value is not an object, an object repeats a key,
            or a number or a character can't be represented.
    """
    text = ""

    def refuse(why: str, *places: int) -> KartRewardsError:
        lines = " and ".join(str(text.count("\n", 0, place) + 1) for place in places)
        return KartRewardsError(f"{path}: {f'line {lines}: ' if len(places) == 1 else f'lines {lines}: '}{why}")

    def place_of(token: str) -> int:
        found = re.search(rf'(?<![\w".+-]){re.escape(token)}(?![\w".])', text)
        return found.start() if found else 0

    def number(token: str) -> int | float:
        if math.isinf(float(token)):
            raise refuse(f"the number {shown(token)[1:-1]} is too large", place_of(token))
        return int(token) if token.lstrip("-").isdigit() else float(token)

    def constant(token: str) -> None:
        raise refuse(f"{token} is not JSON: write a finite number", place_of(token))

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in items:
            if content.setdefault(key, value) != value:
                why = f"the key {shown(key)} is repeated with another value: delete or rename one of them"
                raise refuse(why, *_places_of_repeated(key, text))
        return content

    try:
        text = read_file(Path(path)).decode()
        content = json.loads(
            text, parse_int=number, parse_float=number, parse_constant=constant, object_pairs_hook=pairs
        )
        json.dumps(content, ensure_ascii=False).encode()
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise KartRewardsError(f"{path}: is not JSON: {error}. {_JSON_RULES}") from None
    except RecursionError:
        raise KartRewardsError(f"{path}: is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise KartRewardsError(f"{path}: is not JSON: {error}. {_JSON_RULES}") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise KartRewardsError(f"{path}: {half!a} is half of a character: write the character itself") from None
    except ValueError as error:  # a null byte in the path
        raise KartRewardsError(f"{shown(str(path))}: can't be read: {error}") from None
    if not isinstance(content, dict):
        raise KartRewardsError(f"{path}: holds a JSON {type(content).__name__}, not an object {{…}}")
    return content


def _places_of_repeated(key: str, text: str) -> list[int]:
    """Returns the positions of a key in the first object of a JSON text that has the key several times."""
    places: list[list[int]] = []  # for each open object
    for token in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', text):
        if token[0] == "{":
            places.append([])
        elif token[0] == "}":
            if len(repeated := places.pop()) > 1:
                return repeated
        elif token[2] and json.loads(token[1]) == key:
            places[-1].append(token.start())
    raise AssertionError("the key is repeated")


def check_keys(content: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Checks the keys of a JSON object. Comments may have any key that ``is_comment`` accepts.

    Args:
        content: The object.
        known: The keys that are allowed.
        where: The beginning of the message: the file and the object.

    Raises:
        KartRewardsError: A key is unknown.
    """
    known = tuple(known)
    for key in content:
        if key not in known and not is_comment(key):
            raise KartRewardsError(
                f"{where}: unknown key {shown(key)}.{did_you_mean(key, known)} The keys are {', '.join(known)}; the "
                "key of a comment begins with an underscore"
            )


def check_outer_keys(content: Mapping[str, Any], known: Iterable[str], path: str) -> None:
    """Checks the keys of a complete JSON file, which may have keys for other programs. These have a notice.

    Args:
        content: The file's object.
        known: The keys that have a meaning.
        path: The file, for messages.

    Raises:
        KartRewardsError: A key is probably a misspelt one.
    """
    known = tuple(known)
    for key in content:
        if key not in known and not is_comment(key):
            hint = did_you_mean(key, known)
            if hint:
                raise KartRewardsError(f"{path}: unknown key {shown(key)}.{hint}")
            notice(f"{path}: the key {shown(key)} has no effect")


def is_comment(key: str) -> bool:
    """Whether a key of a JSON object marks a comment: ``_comment``, ``comment``, ``//``, ``$schema`` and the like."""
    return not key[:1].isalpha() or key.lower() in ("comment", "comments")


def shown(value: Any) -> str:
    """Returns the ``repr`` of a value for a message. A long one is shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        text = hex(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 20]}…{text[-19:]}"


def value_text(value: int | tuple[int, ...], width: int) -> str:
    """Returns the value of a variable as text for a table: an integer, or the first elements of an array.

    Args:
        value: The value.
        width: The maximum number of characters for an array.

    Example:
        >>> value_text(-5, 9), value_text((1, 2, 3, 4), 9), value_text((1, 2, 3, 4, 5, 6), 9)
        ('-5', '1 2 3 4', '1 2 3 4 …')
    """
    if not isinstance(value, tuple):
        return str(value)
    text = " ".join(map(str, value))
    return text if len(text) <= width else f"{text[: width - 1].rpartition(' ')[0]} …"


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
