from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import SNES_WORK_RAM, SNES_WORK_RAM_SIZE, RamLayout, Variable, read_state_file

ADDRESS = SNES_WORK_RAM + 0x1000
ORDERS = ["|", "<", ">", "=", "><", "<>", ">=", "<="]
TYPES = [
    f"{order}{representation}{width}" for order in ORDERS for representation in "uidns" for width in range(1, 9)
]  # fmt: skip


def layout_of(*variables: tuple[Any, ...]) -> RamLayout:
    return RamLayout([Variable(*variable) for variable in variables])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=8, max_size=8), mask=st.none() | st.integers(0, 2**63 - 1))
def test_each_type_is_decoded_as_in_the_core(tiny_emulator: Any, raw: bytes, mask: int | None) -> None:
    memory = tiny_emulator[1].memory
    for i, byte in enumerate(raw):
        memory.assign(ADDRESS + i, "|u1", byte)
    for type_ in TYPES:
        variable = Variable("value", ADDRESS, type_, mask)
        expected = memory.extract(ADDRESS, type_.replace("s", "i"))  # the core decodes s as unsigned
        if mask is not None:
            expected &= mask
        assert variable.decode(raw[: variable.width]) == expected, type_
        assert RamLayout([variable]).reader(tiny_emulator[1])().value == expected, type_


def test_masks_are_applied_as_in_the_core(tiny_emulator: Any, tmp_path: Path) -> None:
    """stable-retro applies the masks of a data.json only if it loads that file itself."""
    data = tiny_emulator[1]
    generator = random.Random(1)
    types = [type_ for type_ in TYPES if type_[-2] != "s"]

    def mask() -> int:
        return generator.choice((generator.getrandbits(64), -generator.getrandbits(63), 2**64 - 2, -3)) | 1

    info = {
        f"v{i}": {"address": ADDRESS + generator.randrange(64), "type": type_, "mask": mask()}
        for i, type_ in enumerate(types)
    }
    data_path, scenario_path = tmp_path / "data.json", write(tmp_path / "scenario.json", {})
    write(data_path, {"info": info})
    assert data.load(str(data_path), str(scenario_path))
    for i in range(80):
        data.memory.assign(ADDRESS + i, "|u1", generator.randrange(256))
    data.update_ram()
    expected = data.lookup_all()
    assert len(expected) == len(types)
    assert RamLayout.from_file(data_path).reader(data)()._asdict() == expected
    assert RamLayout.from_file(data_path).decode(data.memory.blocks)._asdict() == expected


def test_the_core_itself_decodes_s_as_unsigned(tiny_emulator: Any) -> None:
    data = tiny_emulator[1]
    data.memory.assign(ADDRESS, "<i2", -5)
    assert data.memory.extract(ADDRESS, "<s2") == 65531
    assert layout_of(("speed", ADDRESS, "<s2")).reader(data)().speed == -5


@pytest.mark.parametrize(
    ("type_", "raw", "value"),
    [
        ("<s2", b"\xfb\xff", -5),
        (">s2", b"\xff\xfb", -5),
        ("<u2", b"\xfb\xff", 65531),
        ("|u1", b"\x80", 128),
        ("|i1", b"\x80", -128),
        ("<d2", b"\x59\x01", 159),
        (">n3", b"\x01\x12\x23", 123),
        ("><u4", b"\x01\x02\x03\x04", 0x02010403),
        ("<>u4", b"\x01\x02\x03\x04", 0x03040102),
        ("<u8", b"\xff" * 8, -1),  # as in stable-retro, which stores signed 64-bit integers
    ],
)
def test_examples_of_types(type_: str, raw: bytes, value: int) -> None:
    assert Variable("value", 0, type_).decode(raw) == value


def test_a_mask_keeps_bits_of_the_decoded_value() -> None:
    assert Variable("value", 0, "|u1", mask=0xF0).decode(b"\x5a") == 0x50
    assert Variable("value", 0, "|i1", mask=-113).decode(b"\xff") == -113  # Amidar-Atari2600-v0
    assert Variable("value", 0, "|i1", mask=2**64 - 113).decode(b"\xff") == -113


@pytest.mark.parametrize("type_", ["<q2", "u2", "<u9", "<u0", "<u", "", "<<u2", "<u22"])
def test_unknown_types_are_refused(type_: str) -> None:
    with pytest.raises(KartRewardsError, match=r"unknown type .* of variable 'speed'"):
        Variable("speed", 0, type_)


def test_snapshots_are_immutable_and_readable() -> None:
    ram = layout_of(("speed", ADDRESS, "<s2"), ("laps", ADDRESS + 2, "|u1")).decode({ADDRESS: b"\xfb\xff\x7f"})
    assert (ram.speed, ram.laps) == (-5, 127)
    assert repr(ram) == "RamSnapshot(speed=-5, laps=127)"
    with pytest.raises(AttributeError):
        ram.speed = 3
    with pytest.raises(AttributeError):
        ram.other = 3
    assert ram == pickle.loads(pickle.dumps(ram))  # noqa: S301 - pickled on this line


def test_a_misspelt_variable_is_reported_with_the_known_ones() -> None:
    ram = layout_of(("speed", ADDRESS, "<s2"), ("laps", ADDRESS, "|u1")).decode({ADDRESS: bytes(2)})
    with pytest.raises(AttributeError, match=r"no RAM variable 'sped'\. Did you mean 'speed'\? There are: speed, laps"):
        ram.sped  # noqa: B018
    assert not hasattr(ram, "altitude")


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{nope", "is not JSON"),
        ([1], "not an object"),
        ({}, "holds no variables"),
        ({"info": {"speed": {"address": 1}}}, 'variable \'speed\' needs an "address" and a "type"'),
        ({"info": {"speed": {"address": "1", "type": "<u2"}}}, "must be integers"),
        ({"info": {"speed": {"address": True, "type": "<u2"}}}, "must be integers"),
        (
            {"info": {"speed": {"address": 1, "type": "<u2", "mask": -(2**63) - 1}}},
            r"a mask may be negative, -2\*\*63 or",
        ),
        ({"info": {"speed": {"address": "0x7E10EA", "type": "<u2"}}}, r"Write 0x7E10EA in decimal: 8261866\."),
        ({"info": {"speed": {"address": 1, "type": "<q2"}}}, "unknown type '<q2' of variable 'speed'"),
        ({"info": {"speed": {"address": 2**64, "type": "<u2"}}}, r"must be integers, 0 to 2\*\*64 - 1"),
        ({"info": {"speed": {"adress": 1, "type": "<u2"}}}, "'speed': unknown key 'adress'. Did you mean 'address'?"),
        ({"info": {"speed": {"address": 1, "type": "<u2", "maks": 3}}}, "unknown key 'maks'. Did you mean 'mask'?"),
        ({"info": {"speed": {"address": 1, "type": "|u1", "mask": 0}}}, "mask 0 keeps no bit of a value of 1 byte:"),
        ({"info": {"speed": {"address": 1, "type": "<u2", "mask": 1 << 16}}}, "65536 keeps no bit of a value of 2"),
        ({"info": {}, "inof": {}}, r"data\.json: unknown key 'inof'\. Did you mean 'info'\?"),
        ({"infos": {}}, r"data\.json: unknown key 'infos'\. Did you mean 'info'\?"),
        ({"info": {"speed": {"address": 1, "type": "<u2", "unit": 3}}}, "a comment begins with an underscore"),
        ({"info": {"speed": {"address": 1, "type": ["<u2"]}}}, r"unknown type \"\['<u2'\]\" of variable"),
        ({"info": {"2" * 5000 + "x": {"address": 1, "type": "<u2"}}}, "'222.*…2+x' can't be a variable's name"),
        ({"info": {"2nd place": {"address": 1, "type": "<u2"}}}, "'2nd_place' can't be a variable's name"),
        ({"info": {"": {"address": 1, "type": "<u2"}}}, "'' can't be a variable's name"),
        ({"info": {"a": {"address": 1, "type": "|u1"}, " a": {"address": 2, "type": "|u1"}}}, "have the same name"),
    ],
)
def test_bad_data_files_name_the_file_and_the_fault(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "data.json", content)
    with pytest.raises(KartRewardsError, match=message) as error:
        RamLayout.from_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("score", "score"),
        ("score ", "score"),  # ArdyLightfoot-Snes-v0
        (" score", "score"),  # BattleMasterKyuukyokuNoSenshiTachi-Snes-v0
        ("continue", "continue_"),  # KingOfDragons-Snes-v0
        ("top speed", "top_speed"),
        ("p1.health-max", "p1_health_max"),
        ("Größe", "Größe"),
        ("Gro\u0308ße", "Größe"),
        ("ﬁsh", "fish"),  # Python's parser reads ram.ﬁsh as ram.fish, too
        ("点数", "点数"),
    ],
)
def test_each_name_in_a_data_file_has_an_attribute(tmp_path: Path, name: str, attribute: str) -> None:
    path = write(tmp_path / "data.json", {"info": {name: {"address": ADDRESS, "type": "|u1"}}})
    ram = RamLayout.from_file(path).decode({ADDRESS: b"\x07"})
    assert eval(f"ram.{attribute}", {"ram": ram}) == 7  # noqa: S307 - the text is of this file


def test_entries_may_have_comments(tmp_path: Path) -> None:
    entry = {"address": 1, "type": "<u2", "_unit": "pixels", "comment": "the kart's", "//": "read from 0x1"}
    path = write(tmp_path / "data.json", {"_source": "a forum", "info": {"speed": entry}})
    assert RamLayout.from_file(path).variables == (Variable("speed", 1, "<u2"),)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KartRewardsError, match=r"nowhere\.json: can't be read: No such file"):
        RamLayout.from_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("address", [0x2000, SNES_WORK_RAM - 1, SNES_WORK_RAM + SNES_WORK_RAM_SIZE - 1, 10**9])
def test_addresses_outside_memory_are_refused(tiny_emulator: Any, address: int) -> None:
    blocks = tiny_emulator[1].memory.blocks
    layout_of(("speed", 0x1FFE, "<u2"), ("laps", SNES_WORK_RAM + SNES_WORK_RAM_SIZE - 1, "|u1")).check_addresses(blocks)
    with pytest.raises(KartRewardsError, match=r"variable 'speed' .* lies outside memory.*0x7E0000-0x7FFFFF"):
        layout_of(("speed", address, "<u2")).check_addresses(blocks)


def test_an_address_without_its_0x_has_a_hint() -> None:
    hint = "Did you mean 0x7010? It is 28688 in decimal, and JSON has only decimal numbers."
    with pytest.raises(KartRewardsError) as error:
        layout_of(("speed", 7010, "<u2"), ("gear", 10000, "<u2")).check_addresses({0: bytes(7000), 0x7000: bytes(99)})
    assert str(error.value).endswith(hint)
    with pytest.raises(KartRewardsError) as error:
        layout_of(("gear", 9999, "<u2")).check_addresses({0: bytes(99)})
    assert "Did you mean" not in str(error.value)


def test_a_reader_of_live_memory_refuses_addresses_outside_it(tiny_emulator: Any) -> None:
    for address in (0x7E0000 + 0x1FFFF, 2**64):
        with pytest.raises(KartRewardsError, match=f"'speed' at address {address} .* lies outside memory"):
            layout_of(("speed", address, "<u2")).reader(tiny_emulator[1])


def test_a_state_file_has_the_same_values_as_live_memory(tiny_emulator: Any, tmp_path: Path) -> None:
    emulator, data = tiny_emulator
    layout = layout_of(("speed", 0x7E10EA, "<s2"), ("backward", 0x010B, "|u1"))
    data.memory.assign(0x7E10EA, "<i2", -5)
    data.memory.assign(0x010B, "|u1", 0x10)
    path = tmp_path / "here.state"
    path.write_bytes(gzip.compress(emulator.get_state()))
    assert layout.decode(read_state_file(path)) == layout.reader(data)()
    assert layout.decode(read_state_file(path)).speed == -5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plain", "is not a save state"),
        (gzip.compress(b"x" * 99)[:-9], "is not a save state"),
        (gzip.compress(b"#!s9xsnp:0012"), "holds no snes9x work RAM"),
        (gzip.compress(b"RAM:131072:" + bytes(100)), "holds no snes9x work RAM"),
    ],
    ids=["not gzip'd", "cut short", "no work RAM", "too little work RAM"],
)
def test_damaged_states_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.state"
    path.write_bytes(content)
    with pytest.raises(KartRewardsError, match=message):
        read_state_file(path)
