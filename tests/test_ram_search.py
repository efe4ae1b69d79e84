"""The search engine: the real core, random memory, and a second decoding of every candidate."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from kart_rewards.errors import KartRewardsError
from kart_rewards.games.ram_search import RamSearch, Reading
from kart_rewards.ram import Variable


def test_the_kept_candidates_are_those_that_our_decoder_finds(tiny_emulator: Any) -> None:
    """Random bytes in three samples. Each address is decoded again with each type, without stable-retro."""
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    start, size = 0x7F4000, 120
    random = np.random.default_rng(1)
    first = random.integers(0, 256, size)
    second = (first + random.integers(1, 256, size)) % 256
    second[80:100] = random.integers(0, 100, 20) // 10 * 16 + random.integers(0, 10, 20)  # digits
    third = np.where(random.random(size) < 0.4, second, random.integers(0, 256, size))
    third[::5] = (second[::5] + 3) % 256
    third[1::20] = (second[1::20] - 1) % 256
    third[50:60], third[60:70] = 0, [0xFF] * 4 + [0xFB] + [0xFF] * 5
    samples = [content.astype(np.uint8).tobytes() for content in (first, second, third)]

    def set_memory(content: bytes) -> None:
        for address, byte in enumerate(content, start=start):
            ram.data.memory.assign(address, "|u1", byte)

    set_memory(samples[0])
    ram.start(0)
    set_memory(samples[1])
    ram.keep("changed", None, 1)
    set_memory(samples[2])

    readings = []
    for type_, at in itertools.product(ram.types, range(size)):
        raw = [sample[at : at + int(type_[-1])] for sample in samples]
        above_nine = {"d": r".*[a-f]", "n": r"(..)*.[a-f]"}.get(type_[-2])
        is_number = not above_nine or not any(re.match(above_nine, content.hex()) for content in raw)
        if len(raw[0]) == int(type_[-1]) and is_number:
            decoded = [Variable("value", start + at, type_).decode(content) for content in raw]
            if decoded[0] != decoded[1]:
                readings.append(Reading(start + at, type_, tuple(decoded)))

    for comparison, value, fits in (
        ("changed", None, lambda before, now: now != before),
        ("unchanged", None, lambda before, now: now == before),
        ("greater", None, lambda before, now: now > before),
        ("less", None, lambda before, now: now < before),
        ("by", 3, lambda before, now: now - before == 3),
        ("by", -256, lambda before, now: now - before == -256),
        ("by", 0, lambda before, now: now == before),
        ("equal", 0, lambda before, now: now == 0),
        ("equal", -5, lambda before, now: now == -5),
        ("greater", 60_000, lambda before, now: now > 60_000),
        ("less", -1, lambda before, now: now < -1),
    ):
        ram.keep(comparison, value, 2)
        kept = {reading for place in ram.places() for reading in place}
        inside = {kept for kept in kept if start <= kept.address <= start + size - int(kept.type[-1])}
        expected = {reading for reading in readings if fits(*reading.history[1:])}
        assert inside == expected, (comparison, value)
        assert expected, "nothing was tested"
        assert ram.undo()


def test_stable_retros_search_for_known_values_still_has_its_errors(tiny_emulator: Any) -> None:
    """If this fails, stable-retro's search has been corrected and can be used."""
    emulator, _ = tiny_emulator
    data = RamSearch(emulator, "Snes").data
    for i in range(8):
        data.memory.assign(0x7F4000 + i, "|u1", 0x77)
    data.memory.assign(0x7F4002, "<u2", 0)
    data.memory.assign(0x7F4005, ">i2", -5)
    data.memory.assign(0x1FFF, "|u1", 0)  # the last byte of the block before
    data.search("zero", 0)
    data.search("minus five", -5)
    found = {
        name: {(address, type_) for (address, *_), types in search.typed_results() for type_ in types}
        for name, search in data.list_searches().items()
    }
    assert (0x7F4002, "|u1") in found["zero"]
    assert (0x7F4002, "<u2") not in found["zero"]
    assert (0x7F4006, "|i1") in found["minus five"]
    assert (0x7F4005, ">i2") not in found["minus five"]


def test_a_mirror_is_not_a_second_place(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    for value in (1, 2):
        ram.data.memory.assign(0x7E0123, "<u2", value * 1000)
        if value == 1:
            ram.start(0)
    assert ram.data.memory.extract(0x0123, "<u2") == 2000, "the low page mirrors it"
    ram.keep("by", 1000, 1)
    assert [place[0] for place in ram.places()] == [Reading(0x7E0123, "<u2", (1000, 2000))]
    assert ram.addresses_left() == 1


def test_undo_reverts_keep_and_start(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    everything = ram.addresses_left()
    assert not ram.undo()
    ram.data.memory.assign(0x7F3FFC, "<u8", 0)
    ram.start(0)
    for frame, value in enumerate((7, 8), start=1):
        ram.data.memory.assign(0x7F4000, "|u1", value)
        ram.keep("greater", None, frame)
    left = ram.places()
    assert left[0][0].history == (0, 7, 8)
    ram.data.memory.assign(0x7F4000, "|u1", 5)
    ram.keep("greater", None, 3)
    assert ram.addresses_left() == 0
    with pytest.raises(KartRewardsError, match="no candidate is left: 'undo' reverts the last 'keep'"):
        ram.keep("less", None, 3)
    assert ram.undo()
    assert ram.places() == left
    ram.keep("less", None, 3)
    assert ram.places()[0][0].history == (0, 7, 8, 5), "another comparison of the same two samples"
    ram.start(3)
    assert ram.addresses_left() == everything
    assert ram.undo()
    assert ram.places()[0][0].history == (0, 7, 8, 5)


def test_too_many_candidates_are_not_listed(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    with pytest.raises(KartRewardsError, match=r"^[\d,]+ candidates are too many to list: use 'keep' first"):
        RamSearch(emulator, "Snes").places()


def test_a_comparison_with_the_last_sample_needs_a_later_frame(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    for comparison in ("unchanged", "greater"):
        with pytest.raises(KartRewardsError, match="the game is still at the last sample: run some frames first"):
            ram.keep(comparison, None, 0)
    assert len(ram.samples) == 1


def test_a_wider_reading_with_the_same_values_is_offered(tiny_emulator: Any) -> None:
    emulator, _ = tiny_emulator
    ram = RamSearch(emulator, "Snes")
    for address in range(0x7F4000, 0x7F4008):
        ram.data.memory.assign(address, "|u1", 0)
    ram.start(0)
    ram.data.memory.assign(0x7F4002, "|u1", 200)
    ram.keep("by", 200, 1)
    (place,) = ram.places()
    assert place[0] == Reading(0x7F4002, "|u1", (0, 200))
    assert [(other.address, other.type) for other in ram.wider(place[0], place)] == [
        (0x7F4002, "<u2"),
        (0x7F4002, "<u4"),
    ]
