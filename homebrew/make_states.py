"""Make the start states: boot the ROM, choose a course on the menu, wait for GO, save.

Run ``python homebrew/make_states.py`` after ``python homebrew/build.py``. It needs stable-retro. It writes
``Level1.state`` ... to ``integrations/HomebrewKart-Snes/``, one a course, at the first frame in which the kart can
drive, and ``metadata.json`` with Level1 as the default. The files depend on the ROM and the core only.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
from pathlib import Path

import numpy as np
import stable_retro

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "integrations" / "HomebrewKart-Snes"
BUTTONS = ["B", "Y", "SELECT", "START", "UP", "DOWN", "LEFT", "RIGHT", "A", "X", "L", "R"]
GAME_MODE = 0x7E00B5
MODE_MENU = 0x04
MODE_RACE = 0x1C
BOOT_FRAMES = 60
PATIENCE = 1200  # frames after which something is wrong


def press(emulator: stable_retro.RetroEmulator, *buttons: str, frames: int = 1) -> None:
    """Hold buttons for a number of frames."""
    mask = np.array([name in buttons for name in BUTTONS], dtype=np.uint8)
    for _ in range(frames):
        emulator.set_button_mask(mask, 0)
        emulator.step()


def start_state(rom: Path, data_json: Path, course: int) -> bytes:
    """Return the core's state at the first drivable frame of a course.

    Args:
        rom: Path of rom.sfc.
        data_json: Path of data.json; it tells stable-retro the memory layout.
        course: 0 for the first course on the menu.

    Raises:
        RuntimeError: If the race does not start.
    """
    emulator = stable_retro.RetroEmulator(str(rom))
    data = stable_retro.data.GameData()
    emulator.configure_data(data)
    data.load(str(data_json), None)
    try:
        press(emulator, frames=BOOT_FRAMES)
        for _ in range(course):
            press(emulator, "RIGHT", frames=2)
            press(emulator, frames=20)
        press(emulator, "START", frames=2)
        for _ in range(PATIENCE):
            press(emulator)
            if data.memory.extract(GAME_MODE, "|u1") == MODE_RACE:
                return emulator.get_state()
        raise RuntimeError(f"course {course + 1} did not start within {PATIENCE} frames")
    finally:
        del emulator
        gc.collect()


def main() -> None:
    """Write all states."""
    parser = argparse.ArgumentParser(description="Make HomebrewKart's start states.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="holds rom.sfc, data.json and courses.json")
    parser.add_argument("--out", type=Path, default=None, help="where the states go (default: the same folder)")
    args = parser.parse_args()
    out = args.out or args.folder
    out.mkdir(parents=True, exist_ok=True)
    courses = json.loads((args.folder / "courses.json").read_text(encoding="ascii"))["courses"]
    for course in courses:
        state = start_state(args.folder / "rom.sfc", args.folder / "data.json", course["index"])
        # No time stamp and no name inside, so that the file depends on its content only.
        (out / f"{course['state']}.state").write_bytes(gzip.compress(state, mtime=0))
        print(f"{course['state']}: {course['name']}, {len(state)} bytes")
    (out / "metadata.json").write_text('{\n  "default_state": "Level1"\n}\n', encoding="ascii")


if __name__ == "__main__":
    main()
