from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import stable_retro
from conftest import emulator
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


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
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


POINTED = {
    "fuel": {"address": 2, "type": "<s2", "pointer": "kart"},
    "kart": {"address": 0, "type": "<u2"},
}  # in the wrong order


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
        (
            {"info": {"a": {"address": 1, "type": "<u2", "count": 0}}},
            "count of variable 'a' must be an .* 1 to 65536, not 0",
        ),
        ({"info": {"a": {"address": 1, "type": "<u2", "count": 10**6}}}, "must be an integer, 1 to 65536, not 1000000"),
        ({"info": {"a": {"address": 1, "type": "<u2", "count": True}}}, "must be an integer, 1 to 65536, not True"),
        ({"info": {"a": {"address": 1, "type": "<u2", "count": "3"}}}, "must be an integer, 1 to 65536, not '3'"),
        (
            {"info": {"a": {"address": 1, "type": "<u2", "pointer": 3}}},
            '"pointer" must be the name of a variable, not 3',
        ),
        (
            {"info": POINTED},
            "'fuel': its \"pointer\" 'kart' is not the name of a variable further up, without \"count\".",
        ),
        ({"info": {"karts": POINTED["kart"]} | POINTED}, r"further up, without \"count\"\. Did you mean 'karts'\?"),
        (
            {"info": {"kart": POINTED["kart"] | {"count": 2}, "fuel": POINTED["fuel"]}},
            "'kart' is not the name of a variable further",
        ),
        ({"info": {"fuel": POINTED["fuel"] | {"pointer": "fuel"}}}, "'fuel' is not the name of a variable further up"),
        ({"info": {"": {"address": 1, "type": "<u2"}}}, "'' can't be a variable's name"),
        (
            {"info": {"a": {"address": 1, "type": "|u1"}, " a": {"address": 2, "type": "|u1"}}},
            "variables 'a' and ' a' have one",
        ),
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
    path = write(tmp_path / "data.json", {"_source": "a forum", "info": {"_why": "found by search", "speed": entry}})
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


def forms(generator: random.Random) -> list[Variable]:
    """Three pointers, and arrays and pointed variables of each type."""
    variables = [Variable("kart", ADDRESS, "<u2"), Variable("next", ADDRESS + 2, ">u4", mask=0x7FFFFF)]
    variables.append(Variable("chained", SNES_WORK_RAM, "<i2", pointer="kart"))
    for type_ in TYPES:
        count = generator.choice((None, 1, 2, 7, 8, 9, 40, 320))
        pointer = generator.choice((None, "kart", "next", "chained")) if count else "kart"
        mask = generator.choice((None, None, 0x7F, -16))
        address = SNES_WORK_RAM + generator.randrange(0x8000) if pointer != "next" else generator.randrange(0x100)
        variables.append(Variable(f"v{len(variables)}", address, type_, mask, count, pointer))
    generator.shuffle(rest := variables[3:])
    return variables[:3] + rest


def test_arrays_and_pointers_are_read_element_by_element(tiny_emulator: Any) -> None:
    """One call of the reader returns what single calls of stable-retro's decoder return."""
    data, generator = tiny_emulator[1], random.Random(3)
    memory, zeros, values = data.memory, 0, 0
    for offset in range(0, 0x20000, 8):
        memory.assign(SNES_WORK_RAM + offset, "<u8", generator.getrandbits(63))
    for _ in range(4):
        variables = forms(generator)
        layout = RamLayout(variables)
        read = layout.reader(data)
        for kart, following in ((0x1234, SNES_WORK_RAM + 0x4000), (0, 0), (0xFFF0, SNES_WORK_RAM + 0x1FFFD)):
            memory.assign(ADDRESS, "<u2", kart)
            memory.assign(ADDRESS + 2, ">u4", following)
            ram = read()
            assert ram == layout.decode(memory.blocks)
            for variable, value in zip(variables, ram, strict=True):
                start = variable.address + (getattr(ram, variable.pointer) if variable.pointer else 0)
                elements = range(start, start + variable.size, variable.width)
                try:
                    for end in (start, start + variable.size - 1):
                        memory.extract(end, "|u1")
                    expected = [memory.extract(at, variable.core_type) & variable.core_mask for at in elements]
                except (IndexError, TypeError):  # outside memory; a negative address
                    expected = [0] * len(elements)
                assert pickle.loads(pickle.dumps(variable)) == variable  # noqa: S301 - pickled on this line
                values += 1
                zeros += not any(expected)
                assert value == (expected[0] if variable.count is None else tuple(expected)), variable
    assert values > 3 * 4 * len(TYPES)
    assert 100 < zeros < values / 2, "some pointers point outside memory"


def test_an_array_is_read_in_the_consoles_byte_order(tmp_path: Path) -> None:
    """The core of the Genesis keeps work RAM with the bytes of each word swapped."""
    integrations = Path(stable_retro.data.path()) / "stable" / "Airstriker-Genesis-v0"
    with emulator(integrations / "rom.md", integrations) as (_, data):
        start, generator = min(data.memory.blocks), random.Random(5)
        for i in range(64):
            data.memory.assign(start + i, "|u1", generator.randrange(256))
        data.memory.assign(start + 64, ">u4", 0x00FF0008)
        layout = layout_of(
            ("bytes", start + 1, "|u1", None, 23),
            ("words", start + 2, ">i2", None, 11),
            ("object", start + 64, ">u4", 0xFFFF),
            ("pointed", start + 2, ">u2", None, 9, "object"),
            ("single", start + 3, ">u4", None, None, "object"),
        )
        ram = layout.reader(data)()
        assert ram.bytes == tuple(data.memory.extract(start + 1 + i, "|u1") for i in range(23))
        assert ram.words == tuple(data.memory.extract(start + 2 + 2 * i, ">i2") for i in range(11))
        assert ram.object == 8
        assert ram.pointed == tuple(data.memory.extract(start + 10 + 2 * i, ">u2") for i in range(9))
        assert ram.single == data.memory.extract(start + 11, ">u4")


def test_stable_retro_loads_a_file_with_arrays_and_pointers_and_reads_one_number_of_each(
    tiny_emulator: Any, tmp_path: Path
) -> None:
    """An address that only has a meaning behind a pointer is not read at all."""
    data = tiny_emulator[1]
    info = {
        "tiles": {"address": ADDRESS, "type": "|u1", "count": 320},
        "kart": {"address": ADDRESS + 1, "type": "<u2"},
        "fuel": {"address": ADDRESS, "type": "<u2", "pointer": "kart"},
        "far": {"address": 2**31, "type": "<s2", "pointer": "kart"},
    }
    path = write(tmp_path / "data.json", {"info": info})
    assert data.load(str(path), str(write(tmp_path / "scenario.json", {})))
    data.memory.assign(ADDRESS, "<u4", 0x040302)
    data.update_ram()
    assert data.lookup_all() == {"tiles": 2, "kart": 0x0403, "fuel": 0x0302}
    ram = RamLayout.from_file(path).reader(data)()
    assert (ram.tiles[:3], ram.kart, ram.fuel, ram.far) == (
        (2, 3, 4),
        0x0403,
        data.memory.extract(ADDRESS + 0x403, "<u2"),
        0,
    )


def test_an_array_must_lie_inside_memory_and_a_pointed_variable_need_not() -> None:
    blocks = {0x100: bytes(range(8))}
    layout_of(("a", 0x100, "<u2", None, 4), ("p", 0x100, "|u1"), ("b", 9, "<u2", None, 3, "p")).check_addresses(blocks)
    with pytest.raises(KartRewardsError, match=r"'a' at address 258 \(0x102, 8 bytes\) lies outside memory"):
        layout_of(("a", 0x102, "<u2", None, 4)).check_addresses(blocks)
    with pytest.raises(KartRewardsError, match=r"'p' at address 8 .* lies outside memory"):
        layout_of(("p", 8, "|u1"), ("b", 9, "<u2", None, 3, "p")).check_addresses(blocks)


def test_a_snapshot_of_some_values_has_zeros_for_the_others() -> None:
    layout = layout_of(("speed", 0, "<s2"), ("tiles", 2, "|u1", None, 3))
    assert layout.snapshot() == layout.snapshot_class(0, (0, 0, 0))
    assert layout.snapshot(tiles=[1, 2, 255], speed=-5) == (-5, (1, 2, 255))
    for value in ([1, 2], 5, None, "abcd", (1, 2, 3, 4)):
        with pytest.raises(KartRewardsError, match=r"tiles=.* is not a sequence of 3 integers"):
            layout.snapshot(tiles=value)
    with pytest.raises(KartRewardsError, match=r"tiles=256 does not fit its type \|u1, 0 to 255"):
        layout.snapshot(tiles=[1, 2, 256])
    with pytest.raises(KartRewardsError, match=r"no RAM variable 'tile'\. Did you mean 'tiles'\?"):
        layout.snapshot(tile=[1, 2, 3])
    ram = layout.snapshot(tiles=[1, 2, 3])
    assert pickle.loads(pickle.dumps(ram)) == ram  # noqa: S301 - pickled on this line


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "terms.md").read_text()
    [example] = [block for block in page.split("```json\n")[1:] if '"pointer"' in block]
    layout = RamLayout.from_file(write(tmp_path / "data.json", example.partition("```")[0]))
    memory = bytearray(0x20000)
    memory[8257800 - SNES_WORK_RAM : 8257800 - SNES_WORK_RAM + 2] = (0x1500).to_bytes(2, "little")
    memory[0x1500 + 34 : 0x1500 + 36] = b"\xfb\xff"
    memory[0x10000 + 319] = 7
    ram = layout.decode({SNES_WORK_RAM: bytes(memory)})
    assert (ram.kart, ram.fuel, len(ram.tiles), ram.tiles[319]) == (0x1500, -5, 320, 7)
