from __future__ import annotations

from command_line import run

from kart_rewards.integrations import INTEGRATIONS


def test_the_ram_command_needs_no_emulator() -> None:
    done = run("ram", str(INTEGRATIONS / "HomebrewKart-Snes" / "Level1.state"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()}
    assert run("ram", "nowhere.state").stderr == "error: nowhere.state: no such file\n"
    assert rows["laps"] == ["0x7E10C1", "|u1", "127"]
    assert rows["speed"] == ["0x7E10EA", "<s2", "0"]
    assert rows["backward"] == ["0x00010B", "|u1", "0"]
