"""Compares the emulation speed of HomebrewKart in a race with a minimal Mode-7 ROM.

    python benchmarks/rom_speed.py

The minimal ROM has 72 lines of Mode 7 like the game, because these lines need more time than others. This script needs
ca65 and ld65 to assemble ``homebrew/src/minimal.s``. The two ROMs run in turns, each time in a new process, so that a
change of the machine's load has the same effect on both. It prints the medians in frames per second and their ratio.
The exit code is 1 if the game needs over 20 % more time.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GAME = ROOT / "integrations" / "HomebrewKart-Snes"
WARM_UP = 120
LIMIT = 1 / 1.2


def build_minimal(folder: Path) -> Path:
    """Assembles the minimal ROM with the tables and the first course of the game. Returns its path."""
    sys.path.insert(0, str(ROOT / "homebrew"))
    import build

    tracks = build.generate(folder)
    rom = folder / "minimal.sfc"
    rom.write_bytes(build.finish(build.assemble(ROOT / "homebrew" / "src" / "minimal.s", folder, "minimal"), tracks))
    return rom


def measure(rom: Path, state: Path | None, frames: int) -> float:
    """Returns the frames per second of the bare core, which sets the buttons and steps.

    Args:
        rom: The ROM.
        state: The start state, or None. The kart drives with full throttle: 30 frames left, then 60 frames straight on.
        frames: Number of frames to measure.
    """
    import numpy as np
    import stable_retro

    emulator = stable_retro.RetroEmulator(str(rom))
    if state is not None:
        emulator.set_state(gzip.decompress(state.read_bytes()))
    straight, left = np.zeros(12, dtype=np.uint8), np.zeros(12, dtype=np.uint8)
    straight[0] = left[0] = left[6] = 1  # B; B and LEFT
    for _ in range(WARM_UP):
        emulator.set_button_mask(straight, 0)
        emulator.step()
    begin = time.perf_counter()
    for frame in range(frames):
        emulator.set_button_mask(left if frame // 30 % 3 == 0 else straight, 0)
        emulator.step()
    return frames / (time.perf_counter() - begin)


def main() -> int:
    """Runs the measurements in turns, and compares the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=3000, help="frames per measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each ROM")
    parser.add_argument("--one", nargs="+", metavar=("ROM", "STATE"), help="measure one ROM and print its frames/s")
    args = parser.parse_args()
    if args.one:
        state = Path(args.one[1]) if len(args.one) > 1 else None
        print(measure(Path(args.one[0]), state, args.frames))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        minimal = build_minimal(Path(folder))
        rivals = {"minimal": [str(minimal)], "HomebrewKart": [str(GAME / "rom.sfc"), str(GAME / "Level1.state")]}
        speeds: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(args.repeats):
            for name, files in rivals.items():
                command = [sys.executable, __file__, "--frames", str(args.frames), "--one", *files]
                speeds[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for name, values in speeds.items():
        spread = f"from {min(values):.0f} to {max(values):.0f}"
        print(f"{name:13s} median {statistics.median(values):6.0f} frames/s ({spread})")
    ratio = statistics.median(speeds["HomebrewKart"]) / statistics.median(speeds["minimal"])
    print(f"ratio {ratio:.3f} (goal: at least {LIMIT:.3f})")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
