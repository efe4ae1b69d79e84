"""Make the start states: start the ROM, choose a course on the menu, wait for the start of the race, save.

Run ``python homebrew/make_states.py`` after ``python homebrew/build.py``. It needs stable-retro. It writes one state
per course, ``Level1.state`` and so on, to ``integrations/HomebrewKart-Snes/``: the first frame on which the kart can
drive. It also writes ``metadata.json``, with Level1 as the default. The files depend on the ROM and the core only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kart_rewards.games.states import command as make_state  # noqa: E402
from kart_rewards.ram import load_json  # noqa: E402

GAME = "HomebrewKart-Snes"
MAX_FRAMES = 1260  # a race that has not begun by then never begins


def menu_inputs(course: int) -> str:
    """Return an input script that starts the game and chooses a course; 0 is the first on the menu."""
    return "59\n" + course * "2 RIGHT\n20\n" + "2 START\n"


def make_states(folder: Path) -> None:
    """Make the states of all courses in a game's folder."""
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary) / "menu.inputs"
        for course in load_json(folder / "courses.json")["courses"]:
            inputs.write_text(menu_inputs(course["index"]))
            make_state(
                folder.name,
                course["state"],
                inputs=inputs,
                until="game_mode == 0x1c",
                max_frames=MAX_FRAMES,
                overwrite=True,
                default=course["index"] == 0,
                integrations_path=folder.parent,
            )


def main() -> None:
    """Write all states."""
    parser = argparse.ArgumentParser(description="Make HomebrewKart's start states.")
    parser.add_argument("--integrations", type=Path, default=ROOT / "integrations", help=f"folder that holds {GAME}")
    args = parser.parse_args()
    make_states(args.integrations / GAME)


if __name__ == "__main__":
    main()
