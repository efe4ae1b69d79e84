"""ROMs for the SNES that use what an emulator may compute only while it draws. Their program is ``pictures.s``.

They read the overflow flags of sprites ($213E) at the vertical blank, at line 100 and all the time, and the position of
the beam. They use interlaced and high resolution, too many sprites, and registers that HDMA and an interrupt change in
the middle of the picture.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_LINKER = """
MEMORY {
    CODE:   start = $8000, size = $7E00, fill = yes, file = %O;
    TABLES: start = $FE00, size = $01C0, fill = yes, file = %O;
    HEADER: start = $FFC0, size = $0040, fill = yes, file = %O;
}
SEGMENTS {
    CODE: load = CODE, type = ro;
    TABLES: load = TABLES, type = ro;
    HEADER: load = HEADER, type = ro;
}
"""
_TABLES = ("setini", "setini_irq", "bgmode", "bgmode_irq", "obsel", "obsel_irq", "crowd", "hdma", "irq", "poll")

_BIG_SPRITES = 0xA0

_ROMS: dict[str, dict[str, int | list[int]]] = {
    "few sprites, scrolled by HDMA": {"bgmode": 1, "hdma": 2},
    "mode and brightness by HDMA": {"bgmode": 1, "hdma": [16, 8, 24, 26, 0, 2, 16, 8], "irq": [1, 0] * 4},
    "mode by an interrupt": {"bgmode": [1, 3, 5, 7, 0, 2, 4, 6], "bgmode_irq": [5, 1, 1, 2, 6, 3, 5, 1], "irq": 1},
    "high resolution": {"bgmode": [5, 5, 1, 6, 1, 1, 5, 3], "bgmode_irq": [5, 1, 5, 6, 1, 5, 5, 3], "irq": [0, 1] * 4},
    "pseudo high resolution": {
        "bgmode": 1,
        "setini": [8, 0, 0, 8, 8, 0, 8, 0],
        "setini_irq": [8, 8, 0, 0] * 2,
        "irq": 1,
    },
    "overscan": {"bgmode": 1, "setini": [0, 4, 0, 4, 4, 0, 4, 0], "setini_irq": [0, 4, 0, 4, 0, 0, 4, 4], "irq": 1},
    "too many sprites, always": {"bgmode": 1, "obsel": _BIG_SPRITES, "obsel_irq": _BIG_SPRITES, "crowd": 1, "poll": 1},
    "too many sprites, sometimes": {
        "bgmode": 1,
        "crowd": [0, 0, 0, 1, 0, 0, 0, 0],
        "obsel": [0, 0, 0, 0, 0, 0, _BIG_SPRITES, 0],
        "irq": [0, 0, 0, 1, 2, 0, 1, 0],
        "poll": [0, 0, 1, 1, 0, 0, 0, 1],
    },
    "too many sprites, later": {"bgmode": 1, "crowd": [0, 0, 0, 0, 0, 1, 0, 0], "poll": [0, 1] * 4},
    "sizes of sprites in the middle": {
        "bgmode": 1,
        "obsel": [0, 0, 0x20, 0, 0, 0x60, 0, 0],
        "obsel_irq": [0, 0, 0x60, 0, 0xC0, 0, 0, 0],
        "irq": [0, 0, 1, 2, 1, 0, 0, 0],
        "hdma": [0, 0, 0, 0, 0, 0, 4, 0],
    },
    "interlaced at times": {
        "bgmode": [5, 1, 1, 5, 1, 1, 6, 1],
        "bgmode_irq": [5, 1, 1, 5, 1, 1, 6, 1],
        "setini": [0, 0, 1, 1, 0, 0, 3, 0],
        "setini_irq": [0, 0, 1, 1, 0, 0, 3, 0],
    },
    "interlaced sprites": {
        "bgmode": 1,
        "setini": [0, 0, 2, 2, 2, 0, 0, 2],
        "crowd": [0, 0, 1, 0] * 2,
        "poll": [0, 1] * 4,
    },
}
NAMES = tuple(_ROMS)
SUSPICIOUS = (
    "overscan",
    "too many sprites, always",
    "too many sprites, sometimes",
    "too many sprites, later",
    "sizes of sprites in the middle",
    "interlaced at times",
    "interlaced sprites",
)
"""ROMs that make the emulator draw more frames than those that are seen."""


def assemble(folder: Path) -> bytes:
    """Assembles the program with ca65 and ld65. Returns the ROM with empty tables."""
    config, obj, rom = folder / "pictures.cfg", folder / "pictures.o", folder / "pictures.sfc"
    config.write_text(_LINKER)
    source = Path(__file__).with_name("pictures.s")
    subprocess.run(["ca65", "--cpu", "65816", "-o", str(obj), str(source)], check=True)  # noqa: S607
    subprocess.run(["ld65", "-C", str(config), "-o", str(rom), str(obj)], check=True)  # noqa: S607
    return rom.read_bytes()


def with_tables(program: bytes, name: str) -> bytes:
    """Returns the ROM of a name: the program with its tables."""
    rom = bytearray(program)
    for row, table in enumerate(_TABLES):
        values = _ROMS[name].get(table, 0)
        begin = 0x7E00 + 8 * row
        rom[begin : begin + 8] = bytes([values] * 8 if isinstance(values, int) else values)
    return bytes(rom)
