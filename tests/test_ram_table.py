from __future__ import annotations

import json
import shutil
from pathlib import Path

from command_line import run

from kart_rewards.integrations import FOLDER_VARIABLE, INTEGRATIONS


def test_the_ram_command_needs_no_emulator() -> None:
    done = run("ram", str(INTEGRATIONS / "HomebrewKart-Snes" / "Level1.state"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()}
    assert run("ram", "nowhere.state").stderr == "error: nowhere.state: no such file\n"
    assert rows["laps"] == ["0x7E10C1", "|u1", "127"]
    assert rows["speed"] == ["0x7E10EA", "<s2", "0"]
    assert rows["backward"] == ["0x00010B", "|u1", "0"]


def test_the_name_of_a_state_is_answered_with_the_files_of_that_name(tmp_path: Path) -> None:
    game = INTEGRATIONS / "HomebrewKart-Snes"
    copy = tmp_path / "Another-Snes"
    copy.mkdir()
    for name in ("data.json", "Level1.state"):
        shutil.copy(game / name, copy)
    environment = {FOLDER_VARIABLE: str(tmp_path)}
    done = run("ram", "Gen02", folder=tmp_path, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    plus = INTEGRATIONS / "HomebrewKartPlus-Snes"
    assert done.stderr == f"error: Gen02: no such file. Did you mean {plus / 'Gen02.state'}?\n"
    done = run("ram", "Level1", folder=tmp_path, environment=environment)
    several = " or ".join(str(folder / "Level1.state") for folder in (copy, game, plus))
    assert done.stderr == f"error: Level1: no such file. Did you mean {several}?\n"


def test_arrays_and_variables_behind_pointers_are_shown(tmp_path: Path) -> None:
    info = {
        "checkpoint": {"address": 8261824, "type": "|u1"},
        "clock": {"address": 256, "type": "<d2", "count": 3},
        "tiles": {"address": 8257536, "type": "|u1", "count": 40},
        "ahead": {"address": 8261802, "type": "|u1", "pointer": "checkpoint"},
    }
    (tmp_path / "data.json").write_text(json.dumps({"info": info}))
    state = INTEGRATIONS / "HomebrewKart-Snes" / "Level1.state"
    done = run("ram", str(state), "--data", str(tmp_path / "data.json"))
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()[1:]]
    assert lines[0] == "checkpoint 0x7E10C0 |u1 23 0x17"
    assert lines[1:3] == ["clock 0x000100 <d2 × 3", "0: 0 0 0"]
    assert lines[3] == "tiles 0x7E0000 |u1 × 40"
    assert [(line.partition(": ")[0], len(line.split()) - 1) for line in lines[4:7]] == [
        ("0", 16),
        ("16", 16),
        ("32", 8),
    ]
    assert lines[7] == "ahead 0x7E10AA + checkpoint |u1 127 0x7F", "8261802 + 23 is the address of laps"
