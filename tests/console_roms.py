"""A tiny ROM for each console of stable-retro that starts without a BIOS. All are this project's own machine code.

Each program counts in RAM without end, shows the count in the picture, and adds up what is held on the pad.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Program(NamedTuple):
    """The ROM of a console.

    Args:
        file: The name of its file.
        rom: Its content.
        counter: The address of the byte of the count that changes most often.
        other_size: Address, type and value of variables that give the picture another size than at power-on.
    """

    file: str
    rom: bytes
    counter: int
    other_size: tuple[tuple[int, str, int], ...] = ()


def _rom(size: int, fill: int = 0, **parts: bytes) -> bytes:
    """A ROM with some parts: ``x1F0=b"JUE"`` lies at offset 0x1F0."""
    rom = bytearray([fill]) * size
    for offset, part in parts.items():
        at = int(offset[1:], 16)
        rom[at : at + len(part)] = part
    return bytes(rom)


def _code(listing: str) -> bytes:
    """The bytes of a listing, whose lines have machine code and, after a semicolon, what it does."""
    return bytes.fromhex("".join(line.partition(";")[0] for line in listing.splitlines()))


def _words(order: str, *words: int) -> bytes:
    return struct.pack(f"{order}{len(words)}I", *words)


def atari2600() -> Program:
    code = _code("""
        e6 80       ; inc $80
        a5 80 85 09 ; the colour of the background
        ad 80 02 49 ff 18 65 81 85 81 ; the joystick
        4c 00 f0    ; jmp $f000
    """)
    return Program("rom.a26", _rom(4096, x0=code, xFFC=b"\x00\xf0\x00\xf0"), 128)


def nes() -> Program:
    code = _code("""
        78 d8 a2 ff 9a       ; sei; cld; ldx #$ff; txs
        e6 00 d0 02 e6 01    ; inc $00; bne; inc $01
        a9 01 8d 16 40 a9 00 8d 16 40 ad 16 40 29 01 18 65 02 85 02 ; the button A
        ad 02 20 a9 3f 8d 06 20 a9 00 8d 06 20 a5 00 8d 07 20       ; the colour of the background
        4c 05 c0             ; jmp $c005
    """)
    header = b"NES\x1a\x01\x01" + bytes(10)
    return Program("rom.nes", header + _rom(0x4000, 0xEA, x0=code, x3FFA=b"\x00\xc0" * 3) + bytes(0x2000), 0)


def snes() -> Program:
    code = _code("""
        78 a9 0f 8d 00 21 64 03 64 04 ; sei; the screen is on
        e6 00 d0 02 e6 01    ; inc $00; bne; inc $01
        a5 03 8d 05 21 a5 04 8d 33 21 ; the mode and the resolution of the picture
        9c 21 21 a5 00 8d 22 21 a5 01 8d 22 21 ; the colour of the background
        a9 01 8d 16 40 9c 16 40 ad 16 40 29 01 18 65 02 85 02 ; the button B
        4c 0a 80             ; jmp $800a
    """)
    header = {"x7FC0": b"TINY".ljust(21), "x7FD5": b"\x20", "x7FD7": b"\x05", "x7FFC": b"\x00\x80"}
    return Program(
        "rom.sfc", _rom(0x8000, 0xEA, x0=code, **header), 0x7E0000, ((0x7E0003, "|u1", 5), (0x7E0004, "|u1", 1))
    )


def genesis(file: str = "rom.md", work_ram: int = 0xFF0000) -> Program:
    code = _code("""
        33fc 8144 00c00004 33fc 8c81 00c00004 33fc 8700 00c00004 ; the screen is on, with 320 columns
        33fc 8c81 00ff0006 13fc 0040 00a10009 13fc 0040 00a10003 ; the pad
        5279 00ff0004        ; addq.w #1,$ff0004
        1039 00a10003 4600 0240 00ff d179 00ff0002    ; the pad
        3039 00c00004 0800 0003 67dc ; until the screen is drawn
        5279 00ff0000        ; addq.w #1,$ff0000
        33f9 00ff0006 00c00004 ; the number of columns
        23fc c0000000 00c00004 33f9 00ff0000 00c00000 ; the colour of the background
        3039 00c00004 0800 0003 66f4 ; until the next frame
        60aa                 ; bra to the first addq.w
    """)
    vectors = _words(">", 0xFFFE00, 0x200)
    rom = _rom(0x10000, x0=vectors, x100=b"SEGA GENESIS    ", x1F0=b"JUE", x200=code)
    return Program(file, rom, work_ram + 4, ((work_ram + 6, ">u2", 0x8C00),))


def thirty_two_x() -> Program:
    """The 68000 of the Genesis under it runs the program. Picodrive maps its RAM to address 0."""
    return genesis("rom.32x", work_ram=0)


def master_system(file: str = "rom.sms") -> Program:
    code = _code("""
        f3 31 f0 df 18 14    ; di; ld sp,$dff0; jr start
        00 00
    """)
    code += bytes(0x1A - len(code)) + _code("""
        3e 04 32 03 c0 3e e0 32 04 c0 ; start: the screen is on
        3a 03 c0 d3 bf 3e 80 d3 bf 3a 04 c0 d3 bf 3e 81 d3 bf ; the number of rows
        21 00 c0 34          ; ld hl,$c000; inc (hl)
        af d3 bf 3e c0 d3 bf 7e d3 be d3 be ; the colour of the background
        db dc 2f 23 86 77    ; the pad
        18 d6                ; jr
    """)
    pause = _code("21 02 c0 34 ed 45 ; ld hl,$c002; inc (hl); retn")
    return Program(
        file, _rom(0x8000, x0=code, x66=pause, x7FF0=b"TMR SEGA"), 0xC000, ((0xC003, "|u1", 6), (0xC004, "|u1", 0xF0))
    )


def game_gear() -> Program:
    return master_system("rom.gg")


def game_boy(file: str = "rom.gb", cgb: int = 0, palette: str = "e0 47") -> Program:
    code = _code(f"""
        31 fe df             ; ld sp,$dffe
        21 00 c0 34 7e       ; ld hl,$c000; inc (hl); ld a,(hl)
        {palette}            ; the colour of the background
        3e 10 e0 00 f0 00 2f e6 01 23 86 77 ; the button A
        18                   ; jr to the ld hl
    """)
    code += bytes([256 - (len(code) - 2)])
    header = bytearray(0x1A) + bytes(0x33)
    header[0:3], header[0x0F] = b"TIN", cgb
    header[0x19] = (-sum(header[:0x19]) - 25) & 0xFF  # the checksum of the header
    return Program(file, _rom(0x8000, x100=b"\x00\xc3\x50\x01", x134=bytes(header[:0x1A]), x150=code), 0xC000)


def game_boy_color() -> Program:
    return game_boy("rom.gbc", 0xC0, "3e 80 e0 68 7e e0 69")


_ARM_LOOP = (
    *(0xE5904000, 0xE2844001, 0xE5804000),  # ldr r4,[r0]; add r4,r4,#1; str r4,[r0]
    0xE1C240B0,  # strh r4,[r2]: the colour of the background
    *(0xE1D650B0, 0xE5907004, 0xE0477005, 0xE5807004),  # [r0,#4] -= [r6]: the buttons
    0xEAFFFFF6,  # b to the first instruction
)


def game_boy_advance() -> Program:
    code = _words(
        "<",
        *(0xE3A00402, 0xE3A01301, 0xE3A02405),  # r0 is RAM, r1 the registers, r2 the palette
        *(0xE3A03000, 0xE1C130B0, 0xE2816E13),  # the screen is on; r6 is the register of the buttons
        *_ARM_LOOP,
    )
    return Program("rom.gba", _rom(0x1000, x0=_words("<", 0xEA00002E), xB2=b"\x96", xC0=code), 0x2000000)


def nintendo_ds() -> Program:
    arm9 = _words(
        "<",
        *(0xE3A00621, 0xE3A01301, 0xE3A02405),  # r0 is RAM, r1 the registers, r2 the palette
        *(0xE3A03801, 0xE5813000, 0xE2816C03, 0xE3A03003, 0xE1C630B4),  # the screen is on
        0xE2816E13,  # r6 is the register of the buttons
        *_ARM_LOOP,
    )
    arm7 = _words("<", 0xEAFFFFFE)  # b to itself
    header = {
        "x0": b"TINY".ljust(12, b"\0") + b"####",
        "x20": _words("<", 0x200, 0x2000000, 0x2000000, 0x200),
        "x30": _words("<", 0x8000, 0x2380000, 0x2380000, 0x200),
        "x80": _words("<", 0x10000, 0x200),
    }
    return Program("rom.nds", _rom(0x10000, x200=arm9, x8000=arm7, **header), 0x100000)  # type: ignore[arg-type]


def pc_engine() -> Program:
    code = _code("""
        78 d4 d8 a9 ff 53 01 a9 f8 53 02 64 02 ; registers at $0000, RAM at $2000
        e6 00                ; inc <$00
        a5 02 8d 00 04       ; the number of columns
        9c 02 04 9c 03 04 a5 00 8d 04 04 9c 05 04          ; the colour of the background
        9c 02 04 a9 01 8d 03 04 a5 00 8d 04 04 9c 05 04    ; and of the border
        a9 01 8d 00 10 a9 03 8d 00 10 a9 01 8d 00 10 ad 00 10 49 ff 29 0f 18 65 01 85 01 ; the pad
        4c 0d e0             ; jmp $e00d
    """)
    return Program("rom.pce", _rom(0x2000, 0xEA, x0=code, x1FF6=b"\x00\xe0" * 5), 0xF80000, ((0xF80002, "|u1", 2),))


def nintendo_64() -> Program:
    t0, t1, t2, t3, t4, t5, t6 = range(8, 15)

    def upper(register: int, value: int) -> int:
        return 0x3C000000 | register << 16 | value >> 16  # lui

    def load(register: int, value: int) -> list[int]:
        return [upper(register, value), 0x34000000 | register << 21 | register << 16 | value & 0xFFFF]  # lui; ori

    def store(register: int, offset: int, base: int) -> int:
        return 0xAC000000 | base << 21 | register << 16 | offset  # sw

    def fetch(register: int, offset: int, base: int) -> int:
        return 0x8C000000 | base << 21 | register << 16 | offset  # lw

    ready = [fetch(t4, 0x18, t5), 0x318C0003, 0x1580FFFD, 0]  # andi t4,t4,3; bnez t4; nop: wait for the pads
    video = {0: 0x3202, 4: 0x100000, 8: 320, 12: 2, 20: 0x3E52239, 24: 525, 28: 0xC15, 32: 0xC150C15}
    video |= {36: 0x6C02EC, 40: 0x2501FF, 44: 0xE0204, 48: 0x200, 52: 0x400}
    start = [upper(t0, 0xA4400000)]
    for offset, value in video.items():
        start += [*load(t1, value), store(t1, offset, t0)]
    start += [upper(t2, 0xA0000000), upper(t3, 0xA0100000), upper(t5, 0xA4800000)]
    for offset, value in {0x800: 0xFF010401, 0x804: 0xFFFFFFFF, 0x808: 0xFE000000, 0x83C: 1}.items():
        start += [*load(t1, value), store(t1, offset, t2)]
    loop = [fetch(t4, 0x400, t2), 0x258C0001, store(t4, 0x400, t2)]  # addiu t4,t4,1
    loop += [store(t4, row * 640 + 4 * column, t3) for row in range(40, 44) for column in range(10, 14)]
    loop += [*load(t1, 0x800), store(t1, 0, t5), *load(t1, 0x1FC007C0), store(t1, 0x10, t5), *ready]
    loop += [*load(t1, 0x840), store(t1, 0, t5), *load(t1, 0x1FC007C0), store(t1, 4, t5), *ready]
    loop += [fetch(t6, 0x844, t2), fetch(t4, 0x404, t2), 0x018E6021, store(t4, 0x404, t2)]  # addu t4,t4,t6
    loop += [0x1000FFFF - len(loop), 0]  # b to the first fetch
    header = {"x0": _words(">", 0x80371240, 0xF, 0x80000400, 0x1444), "x20": b"TINY".ljust(20), "x3B": b"NTIE\0"}
    return Program("rom.n64", _rom(0x101000, x40=_words(">", *start, *loop), **header), 0x400)  # type: ignore[arg-type]


_ARCADE_CHIPS = {
    **{f"pm1_prg{i}.6{letter}": 0x800 for i, letter in enumerate("ekfmhnjp", start=1)},
    **{f"pm1_chg{i}.5{letter}": 0x800 for i, letter in enumerate("ehfj", start=1)},
    **{"pm1-1.7f": 0x20, "pm1-4.4a": 0x100, "pm1-3.1m": 0x100, "pm1-2.3m": 0x100},
}
_ARCADE_CHECKSUMS = (
    *(0xF36E88AB, 0x618BD9B3, 0x7D177853, 0xD3E8914C, 0x6BF4F625, 0xA948CE83, 0xB6289B26, 0x17A88C13),
    *(0x2066A0B7, 0x3591B89D, 0x9E39323A, 0x1B1D9096, 0x2FC650BD, 0x3EB3A8E4, 0xA9CC86BF, 0x77245B66),
)


def arcade(folder: Path) -> Program:
    """A board that FBNeo knows, with a program of ours. FBNeo compares names and CRC-32 of the board's chips.

    Its screen stands on its side. Seen upright, it has 36 rows and 28 columns of characters. The character that the
    program changes is the last one of the third row.
    """
    code = _code("""
        f3 31 f0 4f          ; di; ld sp,$4ff0
        21 00 4c 34 7e       ; ld hl,$4c00; inc (hl); ld a,(hl)
        32 40 44 32 40 40    ; a colour and a character of the picture
        32 c0 50             ; the watchdog
        3a 00 50 2f 23 86 77 ; the stick
        18 e9                ; jr to the ld hl
    """)
    contents = {name: bytes(i % 256 for i in range(size)) for name, size in _ARCADE_CHIPS.items()}
    contents["pm1_prg1.6e"] = code.ljust(0x800, b"\0")
    contents["pm1-1.7f"] = bytes(range(0, 256, 8))
    contents["pm1-4.4a"] = bytes(i % 16 for i in range(256))
    path = folder / "puckman.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for (name, content), checksum in zip(contents.items(), _ARCADE_CHECKSUMS, strict=True):
            archive.writestr(zipfile.ZipInfo(name), _with_crc32(content, checksum))
    return Program("puckman.zip", path.read_bytes(), 0x400)


_FIGHT_CHIPS = {
    **{f"l3.1_mortal_kombat_ii_game_rom_{place}.{place}": 0x80000 for place in ("uj12", "ug12")},
    **{f"l1_mortal_kombat_ii_sound_rom_u{i}.u{i}": 0x80000 for i in range(2, 8)},
    **{
        f"l1_mortal_kombat_ii_game_rom_u{side}{i}.u{side}{i}": 0x100000
        for i in (14, 19, 16, 20, 17, 22)
        for side in "gj"
    },
}
_FIGHT_CHECKSUMS = (
    *(0xCF100A75, 0x582C7DFD, 0x5F23D71D, 0xD6D92BF9, 0xEEBC8E0F, 0x2B0B7961, 0xF694B27F, 0x20387E0A),
    *(0x01E73AF6, 0xD4985CBB, 0xFEC137BE, 0x2D763156, 0x8BA6AE18, 0x39D885B4, 0x809118C1, 0xB96824F0),
    *(0x937D8620, 0x218DE160, 0x154D53B1, 0x8891D785),
)


def fight_board(folder: Path) -> Program:
    """The board of Mortal Kombat 2 with empty chips: it has the memory of that game, and does nothing."""
    path = folder / "mk2.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for (name, size), checksum in zip(_FIGHT_CHIPS.items(), _FIGHT_CHECKSUMS, strict=True):
            archive.writestr(zipfile.ZipInfo(name), _with_crc32(bytes(size), checksum), zipfile.ZIP_DEFLATED)
    return Program("mk2.zip", path.read_bytes(), 0)


def saturn() -> Program:
    """An empty CD of 600 sectors, as an uncompressed CHD file. The core needs ``saturn_bios``, too."""
    sectors, sector, per_hunk = 600, 2448, 8
    hunks, hunk = sectors // per_hunk, sector * per_hunk
    track = b"TRACK:1 TYPE:MODE1 SUBTYPE:NONE FRAMES:600 PREGAP:0 PGTYPE:MODE1 PGSUB:NONE POSTGAP:0\0"
    metadata = b"CHT2" + struct.pack(">IQ", 1 << 24 | len(track), 0) + track
    places = struct.pack(">6I3Q2I", 124, 5, 0, 0, 0, 0, sectors * sector, 124, 124 + 4 * hunks, hunk, sector)
    header = (b"MComprHD" + places).ljust(124, b"\0")
    hunk_map = struct.pack(f">{hunks}I", 1, *[2] * (hunks - 1))  # the first one, and an empty one for the others
    disc = (header + hunk_map + metadata).ljust(hunk, b"\0") + _rom(2 * hunk, x0=b"SEGA SEGASATURN ")
    return Program("rom.chd", disc, 0x110003, ((0x11000A, "<u2", 0x8002),))


def saturn_bios() -> bytes:
    """A BIOS of our own: all vectors lead to a program like those of the other consoles."""
    start, stack, vectors = 0x400, 0x6002000, 0x100
    code = _code("""
        d1 0d d2 0e d3 0e d4 0f d5 0f d6 10 ; r1 is RAM, the others are registers
        90 12 11 02          ; mov.w @(..,pc),r0; mov.l r0,@(8,r1): the screen is on
        e0 60 25 00 e0 40 24 00 e0 01 26 00 ; the pad
        57 12 22 71          ; mov.l @(8,r1),r7; mov.w r7,@r2: the number of columns
        60 12 70 01 21 02    ; mov.l @r1,r0; add #1,r0; mov.l r0,@r1
        23 01                ; mov.w r0,@r3: the colour of the background
        60 40 57 11 37 0c 11 71 ; mov.b @r4,r0: the pad; mov.l @(4,r1),r7; add r0,r7; mov.l r7,@(4,r1)
        af f4 00 09          ; bra to the mov.l @(8,r1); nop
        80 00 00 00
    """)
    registers = _words(">", 0x6010000, 0x25F80000, 0x25E00000, 0x20100075, 0x20100079, 0x2010007D)
    return _rom(0x80000, 0xFF, x0=_words(">", *(start, stack) * 2, *[start] * (vectors - 4)), x400=code + registers)


SATURN_BIOS_FILES = ("sega_101.bin", "mpr-17933.bin")
"""The names of the BIOS of two regions, in the folder of stable-retro's cores."""


def _with_crc32(content: bytes, wanted: int) -> bytes:
    """The content with other last four bytes, such that its CRC-32 is the one wanted."""
    steps = []
    for i in range(256):
        value = i
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        steps.append(value)
    by_highest_byte = {step >> 24: i for i, step in enumerate(steps)}
    value = wanted ^ 0xFFFFFFFF
    for _ in range(4):
        i = by_highest_byte[value >> 24]
        value = (value ^ steps[i]) << 8 & 0xFFFFFFFF | i
    before = zlib.crc32(content[:-4]) ^ 0xFFFFFFFF
    return content[:-4] + struct.pack("<I", value ^ before)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "32x": thirty_two_x,
    "Atari2600": atari2600,
    "GameBoy": game_boy,
    "GameGear": game_gear,
    "GbAdvance": game_boy_advance,
    "GbColor": game_boy_color,
    "Genesis": genesis,
    "N64": nintendo_64,
    "Nes": nes,
    "NintendoDs": nintendo_ds,
    "PCEngine": pc_engine,
    "Sms": master_system,
    "Snes": snes,
}
"""Console, by stable-retro's name -> its program. FBNeo has ``arcade``."""
