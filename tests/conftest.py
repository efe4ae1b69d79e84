"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stable_retro

SNES_SHAPE = (224, 256, 3)

# A shell starts its background jobs deaf to Ctrl-C, and every process below them is, too: tests send it to some.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def tiny_rom() -> bytes:
    """A SNES ROM that does nothing, made here: a LoROM header and a branch to itself at the reset vector."""
    rom = bytearray(b"\xea" * 0x8000)
    rom[0:2] = b"\x80\xfe"  # bra *-2
    rom[0x7FC0:0x7FD5] = b"TINY".ljust(21)
    rom[0x7FD5], rom[0x7FD7] = 0x20, 5
    rom[0x7FFC:0x7FFE] = b"\x00\x80"
    return bytes(rom)


@pytest.fixture(scope="session")
def tiny_rom_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The do-nothing ROM on disk."""
    path = tmp_path_factory.mktemp("tiny") / "rom.sfc"
    path.write_bytes(tiny_rom())
    return path


@pytest.fixture
def tiny_state(tiny_rom_path: Path) -> bytes:
    """A snapshot of the do-nothing ROM; its emulator is gone again."""
    emulator = stable_retro.RetroEmulator(str(tiny_rom_path))
    emulator.step()
    return emulator.get_state()


@pytest.fixture
def tiny_emulator(tiny_rom_path: Path) -> Iterator[Any]:
    """The real snes9x core running the do-nothing ROM, and stable-retro's game data bound to it."""
    gc.collect()
    emulator = stable_retro.RetroEmulator(str(tiny_rom_path))
    data = stable_retro.data.GameData()
    emulator.configure_data(data)
    emulator.step()
    for name, content in (("data.json", {"info": {}}), ("scenario.json", {})):
        (tiny_rom_path.parent / name).write_text(json.dumps(content))
    assert data.load(str(tiny_rom_path.parent / "data.json"), str(tiny_rom_path.parent / "scenario.json"))
    yield emulator, data
    del emulator, data
    gc.collect()
