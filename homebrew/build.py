"""Build HomebrewKart's ROM from the descriptions of its courses, its graphics and its assembler source.

Run ``python homebrew/build.py``. It needs an installation of this project, and ca65 and ld65 (Debian package ``cc65``).
It writes intermediate files to ``homebrew/build/``, and ``rom.sfc``, ``rom.sha`` and ``courses.json`` to
``integrations/HomebrewKart-Snes/``. Each build gives the same bytes.

ld65 links code, graphics and perspective tables. This script appends the banks of the courses, so a new course needs no
change of the linker's configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import artwork  # noqa: E402
from courses import COURSES  # noqa: E402
from track import MAP_SIZE, Track, build_track  # noqa: E402

GAME = "HomebrewKart-Snes"
BANK = 0x8000
MIN_BANKS, MAX_BANKS = 32, 128  # 1 MB and 4 MB
WORK_RAM_BANKS = 2  # the last two banks of 4 MB: the console has its RAM at their addresses
FIRST_COURSE_BANK = 10
BANKS_A_COURSE = 3
FIRST_VIEW_BANK = 2

# --- perspective ------------------------------------------------------------------------------------------------------
VIEW_TOP = 40  # first screen line of the Mode-7 road
VIEW_LINES = 72  # down to line 111
VANISHING_LINE = 35  # screen line of the vanishing point
FOCAL = 163  # focal length in pixels; with it, a full turn is 1024 pixels of scenery
CAMERA_HEIGHT = 36  # world pixels; the scale at line y is CAMERA_HEIGHT / (y - VANISHING_LINE)
KART_LINE = 101  # screen line on which the kart touches the ground
HEADINGS = 512
HEADINGS_PER_BANK = 64
TABLE_SIZE = 1 + 4 + 1 + 4 * VIEW_LINES + 1

# --- layout of a course's second bank (the third one is the escape map) -----------------------------------------------
AUX = {
    "AUX_SURFACE": 0x0000,
    "AUX_SECTOR": 0x4000,
    "AUX_DIRECTION": 0x5000,
    "AUX_MAP": 0x6000,
    "AUX_PALETTE": 0x7880,
    "AUX_CHECKPOINTS": 0x7A80,
    "AUX_HEADER": 0x7C00,
}
NAME_LENGTH = 16
MAX_COURSES = (MAX_BANKS - WORK_RAM_BANKS - FIRST_COURSE_BANK) // BANKS_A_COURSE


def view_tables() -> list[bytes]:
    """Return eight banks of HDMA tables, 64 headings per bank.

    A table sets M7A and M7B on each line. M7C and M7D use the table of the heading a quarter turn earlier, because
    (C, D) at heading h equals (A, B) at h - 90 degrees.
    """
    banks = []
    for first in range(0, HEADINGS, HEADINGS_PER_BANK):
        bank = bytearray()
        for heading in range(first, first + HEADINGS_PER_BANK):
            angle = 2 * math.pi * heading / HEADINGS
            cosine, sine = math.cos(angle), math.sin(angle)
            table = bytearray([VIEW_TOP, 0, 1, 0, 0, 0x80 | VIEW_LINES])
            # The first entry is for the lines above the road, where the matrix has no effect.
            for line in range(VIEW_TOP, VIEW_TOP + VIEW_LINES):
                scale = CAMERA_HEIGHT / (line + 0.5 - VANISHING_LINE)
                for value in (scale * cosine, -scale * sine):
                    table += (round(value * 256) & 0xFFFF).to_bytes(2, "little")
            table.append(0)
            assert len(table) == TABLE_SIZE
            bank += table
        banks.append(bytes(bank))
    return banks


def camera_distance() -> float:
    """Return the distance from the kart back to the centre of rotation, in pixels. It puts the kart on KART_LINE."""
    return CAMERA_HEIGHT * (FOCAL / (KART_LINE + 0.5 - VANISHING_LINE) - 1)


def words(values: list[int]) -> bytes:
    """Pack integers into 16 bits each, little-endian, negative ones in two's complement."""
    return b"".join((v & 0xFFFF).to_bytes(2, "little") for v in values)


def trigonometry() -> dict[str, bytes]:
    """Return the sine table (512 words, -255..255) and the camera offsets (512 word pairs, quarter pixels)."""
    sine, camera = [], []
    distance = 4 * camera_distance()
    for heading in range(HEADINGS):
        angle = 2 * math.pi * heading / HEADINGS
        sine.append(round(255 * math.sin(angle)))
        camera += [round(-distance * math.sin(angle)), round(distance * math.cos(angle))]
    return {"sine": words(sine), "camera": words(camera)}


def turn_rates() -> bytes:
    """Return the turning rate with full steering for each 32 units of speed: 64 bytes, in 4/65536 turn per frame.

    It increases from speed 0, is then constant, and decreases at high speed. The radius at full speed is about 115
    pixels.
    """
    rates = []
    for step in range(64):
        speed = step * 32 + 16
        rate = 500 * speed // 160 if speed < 160 else 500 if speed < 420 else 500 - (speed - 420) * 172 // 500
        rates.append(max(240, rate) // 4 if speed >= 160 else rate // 4)
    return bytes(rates)


def sky_graphics() -> tuple[bytes, bytes]:
    """Return the 4-bit tiles and the 64 x 5 tilemap (words, palette 1) of the sky. The first tile is number 1."""
    image = artwork.sky()
    blocks = image.reshape(5, 8, 64, 8).swapaxes(1, 2).reshape(-1, 64)
    unique, inverse = np.unique(blocks, axis=0, return_inverse=True)
    if len(unique) > 190:
        raise ValueError(f"the sky has {len(unique)} different tiles; the maximum is 190")
    tilemap = words([(1 + int(k)) | 1 << 10 for k in inverse.reshape(-1)])
    return artwork.planar(unique.reshape(-1, 8, 8), 4), tilemap


def course_banks(track: Track) -> tuple[bytes, bytes, bytes]:
    """Return a course's three banks: tilemap and tiles; maps, colours and header; escape map."""
    first = track.tilemap.tobytes() + track.tiles.tobytes()
    aux = bytearray(BANK)

    def put(name: str, data: bytes) -> None:
        aux[AUX[name] : AUX[name] + len(data)] = data

    put("AUX_SURFACE", track.surface.tobytes())
    put("AUX_SECTOR", track.sector.tobytes())
    put("AUX_DIRECTION", track.direction.tobytes())
    picture = artwork.course_map(track.image)
    side = MAP_SIZE // 8
    tiles = picture.reshape(side, 8, side, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    put("AUX_MAP", artwork.planar(tiles, 4))
    colours = artwork.palette(track.course.colours, track.course.sky)
    put("AUX_PALETTE", words([artwork.bgr555(c) for c in colours]))
    put("AUX_CHECKPOINTS", b"".join(words([x, y, heading, 0]) for x, y, heading in track.checkpoints))
    name = track.course.name
    if len(name) >= NAME_LENGTH or set(name) - set(artwork.CHARACTERS):
        raise ValueError(f"{name!r} can't be a course's name: use at most 15 characters of A-Z, 0-9 and space")
    text = bytes(artwork.CHARACTERS.index(c) for c in name.ljust(NAME_LENGTH))
    put("AUX_HEADER", words([track.course.num_checkpoints, *track.start]) + text)
    return first, bytes(aux), track.escape.tobytes().ljust(BANK, b"\0")


def rom_banks(courses: int) -> int:
    """Return the number of banks of a ROM: the smallest power of two that has room for the courses.

    Raises:
        ValueError: Not even the largest ROM has room for them.
    """
    if courses > MAX_COURSES:
        raise ValueError(f"the ROM of 4 MB has room for {MAX_COURSES} courses, not for {courses}")
    needed = FIRST_COURSE_BANK + BANKS_A_COURSE * courses
    return max(MIN_BANKS, 1 << (needed - 1).bit_length())


def generated_include(courses: int) -> str:
    """Return an assembler include file with the constants that this script and the source share."""
    lines = ["; Written by build.py: constants that the tables and the code share."]
    lines += [f"{name} = ${value + BANK:04X}" for name, value in AUX.items()]
    lines += [
        f"COURSE_COUNT = {courses}",
        f"ROM_SIZE = {(rom_banks(courses) * BANK // 1024).bit_length() - 1}",
        f"FIRST_COURSE_BANK = {FIRST_COURSE_BANK}",
        f"BANKS_A_COURSE = {BANKS_A_COURSE}",
        f"FIRST_VIEW_BANK = {FIRST_VIEW_BANK}",
        f"VIEW_TABLE_SIZE = {TABLE_SIZE}",
        f"VIEW_TOP = {VIEW_TOP}",
        f"VIEW_LINES = {VIEW_LINES}",
        f"VIEW_CENTRE = {VANISHING_LINE + FOCAL}",
        f"KART_LINE = {KART_LINE}",
        f"BAR_TILE = {artwork.BAR_TILE}",
        f"LOGO_TILE = {artwork.LOGO_TILE}",
        f"NAME_LENGTH = {NAME_LENGTH}",
        f"CHAR_MINUTE = {artwork.CHARACTERS.index(chr(39))}",
        f"CHAR_SECOND = {artwork.CHARACTERS.index(chr(34))}",
    ]
    for number, character in enumerate(artwork.CHARACTERS):
        lines.append(f".charmap ${ord(character):02X}, ${number:02X}")
    return "\n".join(lines) + "\n"


def logo_letters() -> bytes:
    """Return the logo as letter numbers, 255 for a space."""
    return bytes(255 if c == " " else artwork.LOGO_LETTERS.index(c) for c in artwork.LOGO_TEXT)


def fix_checksum(rom: bytearray) -> None:
    """Write the checksum and its complement to the LoROM header."""
    rom[0x7FDC:0x7FE0] = b"\xff\xff\x00\x00"
    total = sum(rom) & 0xFFFF
    rom[0x7FDC:0x7FE0] = words([total ^ 0xFFFF, total])


def level_states(courses: int) -> list[str]:
    """Return the names of the start states of hand-made courses: Level1 and so on."""
    return [f"Level{number + 1}" for number in range(courses)]


def courses_json(tracks: list[Track], states: list[str]) -> str:
    """Return the description of the built courses for drivers and plots."""
    entries = []
    for number, (track, state) in enumerate(zip(tracks, states, strict=True)):
        course = track.course
        step = 4  # every fourth sample: one point per 8 pixels
        entries.append(
            {
                "name": course.name,
                "state": state,
                "index": number,
                "num_checkpoints": course.num_checkpoints,
                "held_out": course.held_out,
                "road_width": course.road_width,
                "lap_length": round(track.length, 1),
                "start": {"x": track.start[0] // 4, "y": track.start[1] // 4, "direction": track.start[2] >> 8},
                "centreline": [[int(x + 8) // 16, int(y + 8) // 16] for x, y in track.line[::step]],
            }
        )
    parts = []
    for entry in entries:
        # One line per course keeps the file short and diffs readable.
        parts.append("  " + json.dumps(entry))
    head = '{"world_size": 1024, "position_units_per_pixel": 4, "direction": "0 north, clockwise, 256 a turn",\n'
    return head + ' "courses": [\n' + ",\n".join(parts) + "\n]}\n"


def write_includes(build_dir: Path, courses: int) -> None:
    """Write all files that the assembler includes, for a ROM with this number of courses."""
    build_dir.mkdir(parents=True, exist_ok=True)

    def write(name: str, data: bytes) -> None:
        (build_dir / name).write_bytes(data)

    for number, bank in enumerate(view_tables()):
        write(f"view{number}.bin", bank)
    for name, data in trigonometry().items():
        write(f"{name}.bin", data)
    write("turn_rates.bin", turn_rates())
    write("logo.bin", logo_letters())
    tiles, tilemap = sky_graphics()
    write("sky_tiles.bin", tiles)
    write("sky_map.bin", tilemap)
    write("font.bin", artwork.planar(artwork.font(), 2))
    sheet = artwork.sprites()
    sprite_tiles = sheet.reshape(16, 8, 16, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    write("sprites.bin", artwork.planar(sprite_tiles, 4))
    (build_dir / "generated.inc").write_text(generated_include(courses), encoding="ascii")


def generate(build_dir: Path) -> list[Track]:
    """Write all files that the assembler includes, for the hand-made courses. Return their tracks."""
    write_includes(build_dir, len(COURSES))
    return build_tracks()


def build_tracks() -> list[Track]:
    """Return the tracks of the hand-made courses."""
    held_out = [course.name for course in COURSES if course.held_out]
    if len(held_out) != 1 or not COURSES[-1].held_out:
        raise ValueError("exactly one course, the last, must be held out")
    return [build_track(course) for course in COURSES]


def assemble(source: Path, build_dir: Path, stem: str) -> bytearray:
    """Assemble and link one source file. Return the linked image."""
    obj, image = build_dir / f"{stem}.o", build_dir / f"{stem}.bin"
    include = ["-I", str(source.parent), "-I", str(build_dir), "--bin-include-dir", str(build_dir)]
    subprocess.run(["ca65", "-g", "--cpu", "65816", *include, "-o", str(obj), str(source)], check=True)
    link = ["ld65", "-C", str(HERE / "lorom.cfg"), "-m", str(build_dir / f"{stem}.map"), "-o", str(image), str(obj)]
    link[1:1] = ["-Ln", str(build_dir / f"{stem}.labels")]
    subprocess.run(link, check=True)
    return bytearray(image.read_bytes())


def finish(linked: bytearray, tracks: list[Track]) -> bytes:
    """Append the course banks, pad to a power of two and fix the checksum."""
    rom = linked[: FIRST_COURSE_BANK * BANK]
    for track in tracks:
        for bank in course_banks(track):
            if len(bank) != BANK:
                raise ValueError(f"{track.course.name}: a course bank has {len(bank)} bytes")
            rom += bank
    rom += bytes(rom_banks(len(tracks)) * BANK - len(rom))
    fix_checksum(rom)
    return bytes(rom)


def check_tools() -> None:
    """End the program if the assembler is not installed."""
    for tool in ("ca65", "ld65"):
        if shutil.which(tool) is None:
            sys.exit(
                f"{tool} not found: install cc65 (Debian and Ubuntu: apt-get install cc65; macOS: brew install cc65)"
            )


def write_game(out: Path, rom: bytes, tracks: list[Track], states: list[str]) -> None:
    """Write ``rom.sfc``, ``rom.sha`` and ``courses.json``, and print a summary."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rom.sfc").write_bytes(rom)
    sha = hashlib.sha1(rom, usedforsecurity=False).hexdigest()
    (out / "rom.sha").write_text(sha + "\n", encoding="ascii")
    (out / "courses.json").write_text(courses_json(tracks, states), encoding="ascii")
    for track in tracks:
        print(f"{track.course.name:16s} lap {track.length:6.0f} px, {track.unique_tiles:5d} tiles merged to 256")
    print(f"rom.sfc {len(rom)} bytes, SHA-1 {sha}")


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description="Build HomebrewKart's ROM.")
    parser.add_argument("--build-dir", type=Path, default=HERE / "build", help="intermediate files")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE.parent / "integrations" / GAME,
        help="folder for rom.sfc, rom.sha, courses.json",
    )
    args = parser.parse_args()
    check_tools()
    tracks = generate(args.build_dir)
    rom = finish(assemble(HERE / "src" / "main.s", args.build_dir, "game"), tracks)
    write_game(args.out, rom, tracks, level_states(len(tracks)))


if __name__ == "__main__":
    main()
