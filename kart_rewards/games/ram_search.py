"""A search for the address and type of a value in a game's RAM.

* ``RamSearch`` - the candidates, which are reduced by one comparison after the other
* ``Sample`` - the RAM of one frame, at which candidates were compared
* ``Reading`` - one candidate: an address and a type, with its value in each sample

The search uses only a part of stable-retro's search engine. The reasons were measured with stable-retro 1.0:

* ``GameData.delta_search`` is used. It finds the values that changed, increased, decreased or changed by a number. Its
  results agree with the decoder in ``kart_rewards.ram`` for every type.
* ``GameData.search`` finds known values, but is not used. After a match in the last bytes of a block of memory, it
  misses the wider types in all later blocks. On the SNES, a search for 0 misses them in all of work RAM. It also misses
  negative big-endian numbers, and it reports false matches, such as ten times the value. ``data.memory.extract`` reads
  the values instead. It uses the decoder that training uses.
* ``get_search(name)`` crashes the process if there is no search with that name. ``save_searches`` does not exist.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import numpy as np
import stable_retro

from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.ram import Variable

MOST_READINGS_TO_RANK = 50_000

COMPARISONS = {"equal": np.equal, "greater": np.greater, "less": np.less}
"""The comparisons with a known value."""

_ENGINE_SEARCH = "kart_rewards"  # the name of the one search in stable-retro's engine
_ENGINE_OPERATIONS = {"changed": "not-equal", "greater": "greater-than", "less": "less-than", "by": "equal"}
_WIDTHS_BY_LIKELIHOOD = (2, 4, 1, 3, 6, 8)  # of a number whose first and last byte both change


class Sample(NamedTuple):
    """The RAM of one frame.

    Args:
        frame: The frame's number.
        state: The emulator's snapshot.
        memory: The bytes of all blocks, in the order of ``RamSearch.addresses``.
    """

    frame: int
    state: bytes
    memory: bytes


class Reading(NamedTuple):
    """An address and a type, as in an entry of ``data.json``.

    Args:
        address: The address of the first byte.
        type: Byte order, representation and width. See ``kart_rewards.ram``.
        history: The value in each sample.
    """

    address: int
    type: str
    history: tuple[int, ...]

    @property
    def width(self) -> int:
        """The number of bytes."""
        return _width(self.type)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry's content in ``data.json``."""
        return {"address": self.address, "type": self.type}


class RamSearch:
    """The candidates for the address and type of a value.

    At the start, each address with each type is a candidate. Each ``keep`` rules out the candidates that do not fit.

    The types are the unsigned, signed and BCD numbers of 1 to 4 bytes in both byte orders, and the types that
    stable-retro searches for on the console. Signed types are written with ``i``, because stable-retro's decoder reads
    ``s`` as unsigned.

    Args:
        emulator: stable-retro's emulator, with a game running.
        system: stable-retro's name of the console, such as ``Snes``.

    Attributes:
        addresses: The address of each byte of memory, ascending. Shape (bytes,), dtype int64.
        types: The types.
        samples: The sample at the start of the search, and one for each ``keep``.
        data: stable-retro's game data, bound to the emulator.

    Raises:
        KartRewardsError: The core does not give access to any memory.

    Example:
        >>> search = RamSearch(emulator, "Snes")  # doctest: +SKIP
        >>> emulator.step()  # doctest: +SKIP
        >>> search.keep("by", 1, frame=1)  # doctest: +SKIP
        >>> search.places()[0][0].entry  # doctest: +SKIP
        {'address': 8257592, 'type': '<u2'}
    """

    def __init__(self, emulator: Any, system: str) -> None:
        self._emulator = emulator
        own_types = stable_retro.data.EMU_INFO[system].get("types", [])
        self._big_endian = ">u2" in own_types
        wide = [f"{order}{kind}{width}" for width in (2, 3, 4) for order in "<>" for kind in "uid"]
        self.types = list(dict.fromkeys(["|u1", "|i1", "|d1", *wide, *own_types]))
        self.data = stable_retro.data.GameData()
        _configure(emulator, self.data, system, self.types)
        blocks = sorted((start, len(content)) for start, content in self.data.memory.blocks.items())
        if not blocks:
            raise KartRewardsError(f"stable-retro's core for {system} gives no access to memory: it can't be searched")
        self.addresses = np.concatenate([np.arange(start, start + size) for start, size in blocks])
        ends = np.cumsum([size for _, size in blocks])
        self._blocks = [slice(end - size, end) for end, (_, size) in zip(ends.tolist(), blocks, strict=True)]
        self._undo_stack: list[tuple[np.ndarray, list[Sample]]] = []
        self._reset(0)

    def start(self, frame: int) -> None:
        """Starts a new search at the current frame: each address with each type is a candidate again.

        Args:
            frame: The current frame's number.
        """
        self._push_undo()
        self._reset(frame)

    def _reset(self, frame: int) -> None:
        self._candidates = np.zeros((len(self.types), len(self.addresses)), bool)
        for row, type_ in zip(self._candidates, self.types, strict=True):
            for block in self._blocks:
                row[block][: 1 - _width(type_) or None] = True
        self.samples = [self._sample(frame)]
        self._rule_out_invalid_digits(self._candidates, self.samples[0])

    def keep(self, comparison: str, value: int | None, frame: int) -> None:
        """Keeps the candidates that fit the comparison, and rules out all others.

        Args:
            comparison: Without a value: ``changed``, ``unchanged``, ``greater`` or ``less`` than in the last sample.
                With a value: ``equal``, ``greater`` or ``less`` than the value; or ``by``, changed by the value since
                the last sample.
            value: The number to compare with, or None.
            frame: The current frame's number.

        Raises:
            KartRewardsError: There are no candidates, or no frame was run since the last sample.
        """
        now = self._sample(frame)
        if not self._candidates.any():
            raise KartRewardsError("no candidate is left: 'undo' reverts the last 'keep', 'start' starts a new search")
        if comparison in COMPARISONS and value is not None:
            fitting = self._compared_with(comparison, value)
        elif now.state == self.samples[-1].state:
            raise KartRewardsError("the game is still at the last sample: run some frames first")
        elif comparison == "unchanged" or (comparison, value) == ("by", 0):
            fitting = ~self._changed("changed", 0, now)
        else:
            fitting = self._changed(comparison, value or 0, now)
        fitting &= self._candidates
        self._rule_out_invalid_digits(fitting, now)
        self._push_undo()
        self._candidates, self.samples = fitting, [*self.samples, now]

    def _rule_out_invalid_digits(self, fitting: np.ndarray, sample: Sample) -> None:
        """Rules out BCD numbers with a digit above 9. The decoder accepts any byte."""
        memory = np.frombuffer(sample.memory, np.uint8)
        low_digits = memory & 15 < 10
        digits = {"n": low_digits, "d": low_digits & (memory >> 4 < 10)}
        for row, type_ in zip(fitting, self.types, strict=True):
            if type_[-2] in digits:
                for byte in range(_width(type_)):
                    row[: len(row) - byte] &= digits[type_[-2]][byte:]

    def _changed(self, comparison: str, value: int, now: Sample) -> np.ndarray:
        """Which candidates fit a comparison with the last sample, by stable-retro's engine. Shape (types, bytes)."""
        # The engine compares with the memory of its own last call. A search without a comparison ("noop") makes this
        # the memory of the last sample. remove_search deletes the search, but not the memory: the next search compares
        # all addresses with it.
        try:
            self._emulator.set_state(self.samples[-1].state)
            self.data.delta_search(_ENGINE_SEARCH, "noop", 0)
            self.data.remove_search(_ENGINE_SEARCH)
        finally:
            self._emulator.set_state(now.state)
        self.data.delta_search(_ENGINE_SEARCH, _ENGINE_OPERATIONS[comparison], value)
        found: dict[str, list[int]] = {type_: [] for type_ in self.types}
        for (address, *_), types in self.data.get_search(_ENGINE_SEARCH).typed_results():
            for type_ in types:
                found[type_].append(address)
        self.data.remove_search(_ENGINE_SEARCH)
        fitting = np.zeros_like(self._candidates)
        for row, type_ in zip(fitting, self.types, strict=True):
            row[np.searchsorted(self.addresses, found[type_])] = True
        return fitting

    def _compared_with(self, comparison: str, value: int) -> np.ndarray:
        """Which candidates now have a value that fits a comparison with ``value``. Shape (types, bytes)."""
        fitting = np.zeros_like(self._candidates)
        for row, candidates, type_ in zip(fitting, self._candidates, self.types, strict=True):
            at = np.flatnonzero(candidates)
            extracted = map(self.data.memory.extract, self.addresses[at].tolist(), itertools.repeat(type_))
            row[at] = COMPARISONS[comparison](np.fromiter(extracted, np.int64, len(at)), value)
        return fitting

    def _push_undo(self) -> None:
        self._undo_stack.append((np.packbits(self._candidates), self.samples))

    def undo(self) -> bool:
        """Reverts the last ``keep`` or ``start``. The game's state does not change.

        Returns:
            Whether there was anything to revert.
        """
        if not self._undo_stack:
            return False
        packed, self.samples = self._undo_stack.pop()
        shape = self._candidates.shape
        self._candidates = np.unpackbits(packed, count=self._candidates.size).astype(bool).reshape(shape)
        return True

    def _sample(self, frame: int) -> Sample:
        # Some cores keep their memory in another byte order than the console. Only the decoder accounts for that.
        memory = bytes(map(self.data.memory.extract, self.addresses.tolist(), itertools.repeat("|u1")))
        return Sample(frame, self._emulator.get_state(), memory)

    def addresses_left(self) -> int:
        """Returns the number of addresses that have a candidate, without mirrors."""
        return int(np.count_nonzero(self._candidates.any(axis=0) & ~self._mirrored()))

    def _mirrored(self) -> np.ndarray:
        """Which bytes mirror the start of a larger block, such as the SNES's low page, which mirrors work RAM."""
        mirrored = np.zeros(len(self.addresses), bool)
        for block, larger in itertools.permutations(self._blocks, 2):
            size = block.stop - block.start
            if size < larger.stop - larger.start:
                same = (s.memory[block] == s.memory[larger.start : larger.start + size] for s in self.samples)
                mirrored[block] |= all(same)
        return mirrored

    def places(self) -> list[list[Reading]]:
        """Returns the candidates in groups of readings that share bytes.

        The groups, and the readings in each group, are sorted: the most likely first. A reading is more likely if it
        has the console's byte order, if it is as wide as the bytes that change, and if it is signed exactly when its
        values were negative as well as positive. BCD is the least likely.

        Raises:
            KartRewardsError: There are too many candidates.
        """
        found = np.argwhere(self._candidates & ~self._mirrored())
        if len(found) > MOST_READINGS_TO_RANK:
            raise KartRewardsError(f"{counted(len(found), 'candidate')} are too many to list: use 'keep' first")
        memory = np.stack([np.frombuffer(sample.memory, np.uint8) for sample in self.samples])
        changes = (memory != memory[0]).any(axis=0)
        ranked = sorted(self._ranked(int(at), self.types[row], changes) for row, at in found)
        places: list[list[Reading]] = []
        place_of: dict[int, list[Reading]] = {}
        for _, reading in ranked:
            covered = range(reading.address, reading.address + reading.width)
            place = next((place_of[byte] for byte in covered if byte in place_of), None)
            if place is None:
                place = []
                places.append(place)
                place_of |= dict.fromkeys(covered, place)
            place.append(reading)
        return places

    def _ranked(self, at: int, type_: str, changes: np.ndarray) -> tuple[tuple[Any, ...], Reading]:
        """A reading, after the key to sort it by."""
        address, width, kind = int(self.addresses[at]), _width(type_), type_[-2]
        decode = Variable("value", address, type_).decode
        history = tuple(decode(sample.memory[at : at + width]) for sample in self.samples)
        reading = Reading(address, type_, history)
        both_signs = min(history) < 0 <= max(history)
        constant_ends = width > 1 and not (changes[at] and changes[at + width - 1])
        key = (
            kind in "dn",
            not self._is_native(reading),
            constant_ends,
            _WIDTHS_BY_LIKELIHOOD.index(width),
            (kind == "i") != both_signs,
            max(map(abs, history)),
            at,
        )
        return key, reading

    def _is_native(self, reading: Reading) -> bool:
        """Whether the console's processor would store a number so. A big-endian one stores wide numbers aligned."""
        if reading.width == 1:
            return True
        return reading.type[0] == ">" and reading.address % 2 == 0 if self._big_endian else reading.type[0] == "<"

    def wider(self, chosen: Reading, place: list[Reading]) -> list[Reading]:
        """Returns the readings that had the same values as a reading so far, but have room for larger numbers.

        Args:
            chosen: The reading.
            place: The readings that share bytes with it.
        """
        return [
            reading
            for reading in place
            if reading.history == chosen.history
            and reading.width in (2, 4)
            and reading.width > chosen.width
            and reading.type[-2] == chosen.type[-2]
            and self._is_native(reading)
        ]


def _width(type_: str) -> int:
    return int(type_[-1])


def _configure(emulator: Any, data: Any, system: str, types: list[str]) -> None:
    """Binds game data to the emulator, whose engine then searches for ``types`` instead of the console's own."""
    info = stable_retro.data.EMU_INFO[system]
    try:
        emulator.load_core_info(json.dumps({system: info | {"types": types}}))
        emulator.configure_data(data)
    finally:
        emulator.load_core_info(json.dumps({system: info}))
