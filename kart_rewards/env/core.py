"""stable-retro's emulator. A process can have one at a time.

* ``start_emulator`` - starts an emulator, whose pictures are upright and have the size in which its core draws them
* ``console_of``, ``buttons_of`` - the console of a ROM, and the buttons of a console
* ``game_runs_on`` - whether a loaded state is one of a running game
* ``Drawing`` - runs the emulator's frames, and leaves those undrawn that nobody sees
* ``SharedEmulator`` - the emulator of this process; several environments of one game use it in turns
* ``Player`` - the interface of such an environment
* ``SLOW_TURNS``, ``INEXACT_STATES`` - consoles on which each environment should, or must, have a process of its own

A change of turns saves one game and loads the other. On the SNES it takes a fifth of the time of an emulated frame
(``python benchmarks/scoring.py``). One process per environment would take more on a machine with fewer cores than
environments, because each switch of processes loads the interpreter into the caches again (``python
benchmarks/speed.py``).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import os
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import cv2
import numpy as np
import stable_retro

from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout

SLOW_TURNS = {
    "Atari2600": "stable-retro starts its core again at each change of turns, which takes the time of many frames, and "
    "0.14 MB of memory that is never freed",
    "N64": "its core saves and loads 17 MB at each change of turns",
    "NintendoDs": "its core saves and loads 7 MB at each change of turns",
}
"""Console -> why a change of turns is slow on it."""
INEXACT_STATES = {
    "32x": "its core leaves clock cycles out of the states that it saves",
    "FBNeo": "its core leaves the direction of the stick out of the states that it saves",
}
"""Console -> why environments can't take turns on it: a game does not run on from its state as if alone."""

_RESIZED = {"32x", "Genesis", "PCEngine", "SCD", "Sms", "Snes"}
"""Consoles for whose pictures stable-retro has one size, whatever their core draws. Their pixels have 16 bits."""
_ROTATED = {"FBNeo"}
"""Consoles whose core may draw for a screen that stands on its side, as those of many arcade games do."""
_KEEPS_BUTTONS = {"Sms", "32x", "FBNeo"}
"""Consoles whose core knows which buttons were held on the last frame, but does not save it in its states."""
_MOVES_MEMORY = {"Atari2600"}
"""Consoles whose RAM is at another place of the process's memory after a state is loaded."""


def start_emulator(rom: Path) -> Any:
    """Returns a new ``stable_retro.RetroEmulator``. There must be no reference to a previous one.

    stable-retro itself reads pictures of one size, and leaves those of arcade games whose screen stands on its side as
    they are. ``get_screen`` of this emulator returns upright pictures in the size in which the core drew the latest
    frame. So a loaded state has its own size after one frame.

    Args:
        rom: The ROM. Its suffix decides the console.

    Raises:
        KartRewardsError: The emulator does not start: the ROM does not belong to the console of its suffix, or this
            process has another emulator.
    """
    gc.collect()  # deletes a previous emulator, if only a reference cycle keeps it
    console = console_of(rom)
    emulator: Any = stable_retro.RetroEmulator
    if console in _RESIZED:
        emulator = _ResizingEmulator
    elif console in _ROTATED:
        emulator = _UprightEmulator
    try:
        return emulator(str(rom))
    except RuntimeError as error:
        raise KartRewardsError(f"{rom}: the emulator did not start: {error}") from None


class _UprightEmulator(stable_retro.RetroEmulator):
    """An emulator that turns the picture as its core asks for.

    ``get_rotation`` counts quarter turns clockwise. The environments of stable-retro 1.0 turn counterclockwise, so
    their pictures of most of these games are upside down.
    """

    def get_screen(self) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(super().get_screen(), -self.get_rotation()))


_PICTURE = struct.Struct("NIIN")  # where it is in memory, its width, its height, bytes from one row to the next
_latest_picture = bytearray(_PICTURE.size)
_VideoRefresh = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t)
# libretro's retro_video_refresh_t, which a core calls on each frame. It is not a Python function: such a one would run
# the handlers of signals, and an exception of these, such as that of Ctrl-C, would be lost.
_note_picture = _VideoRefresh(functools.partial(_PICTURE.pack_into, _latest_picture, 0))


class _ResizingEmulator(stable_retro.RetroEmulator):
    """An emulator that returns the picture in the size in which its core draws it."""

    def __init__(self, rom: str) -> None:
        super().__init__(rom)
        console = console_of(Path(rom))
        self._ragged_width = 512 if console == "Snes" else None  # snes9x does not draw all of the last column
        _PICTURE.pack_into(_latest_picture, 0, 0, 0, 0, 0)
        set_video_refresh = _address(_core_of(console), b"retro_set_video_refresh")
        if set_video_refresh:
            ctypes.CFUNCTYPE(None, _VideoRefresh)(set_video_refresh)(_note_picture)

    def get_screen(self) -> np.ndarray:
        at, width, height, pitch = _PICTURE.unpack(_latest_picture)
        if not at:  # before the first frame
            before: np.ndarray = super().get_screen()
            return before
        memory = (ctypes.c_uint8 * ((height - 1) * pitch + 2 * width)).from_address(at)
        pixels = np.ndarray((height, width, 2), np.uint8, memory, strides=(pitch, 2, 1))
        screen = cv2.cvtColor(pixels, cv2.COLOR_BGR5652RGB)
        if width == self._ragged_width:
            screen[:, -1] = screen[:, -2]
        return screen


def console_of(rom: Path) -> str:
    """Returns stable-retro's name of a ROM's console, such as ``Snes``. The suffix of the file decides."""
    return str(stable_retro.get_romfile_system(str(rom)))


def fingerprints_of(rom: Path) -> dict[str, str]:
    """Returns hashes of a ROM and of the emulator's core for it: what decides how a game runs, beside the inputs."""
    return {name: _sha256(path)[:16] for name, path in (("ROM", rom), ("core", _core_of(console_of(rom))))}


def _core_of(console: str) -> Path:
    """Returns the file of a console's core."""
    library = stable_retro.data.EMU_INFO[console]["lib"]
    [core, *_] = Path(stable_retro.core_path()).glob(f"{library}_libretro.[!j]*")  # not its .json
    return core


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def buttons_of(console: str) -> list[str | None]:
    """Returns a console's buttons in the core's order; None where the core has no button."""
    return list(stable_retro.get_system_info(console)["buttons"])


_FRAMES_TO_COUNT = 11  # current_frame must count up within this many frames; a prime, so a small counter shows it too
_FRAMES_TO_MOVE = 60  # RAM or screen must change within this many frames, in a game without current_frame


def game_runs_on(
    em: Any, data: Any, layout: RamLayout | None, read: Callable[[], Any], step: Callable[[], object]
) -> bool:
    """Returns whether the game continues from a loaded state.

    The emulator may accept a state of another ROM; then the game hangs. This function checks that ``current_frame``
    counts up. In a game without this variable, it checks that RAM or screen changes.

    Args:
        em: stable-retro's emulator, with the state loaded. This function runs it for at most 61 frames.
        data: The ``GameData`` that is bound to the emulator.
        layout: The game's variables. None if they are not known.
        read: Returns a ``RamSnapshot`` of live memory with these variables.
        step: Runs one emulated frame without buttons.
    """
    variables = layout.variables if layout else ()
    counter = next((each for each in variables if each.name == "current_frame" and each.count is None), None)
    if counter:
        before = read().current_frame
        for _ in range(_FRAMES_TO_COUNT):
            step()
        numbers = counter.highest - counter.lowest + 1  # after so many frames, it begins again
        if counter.mask is not None:
            kept = counter.mask & (2 ** (8 * counter.width) - 1)  # a mask may be negative
            numbers = min(numbers, kept + 1)
        return 1 <= (read().current_frame - before) % numbers <= _FRAMES_TO_COUNT
    step()  # the screen shows a loaded state only after a frame
    memory, screen = dict(data.memory.blocks), em.get_screen()
    for _ in range(_FRAMES_TO_MOVE):
        step()
    return dict(data.memory.blocks) != memory or not np.array_equal(em.get_screen(), screen)


class Structures(NamedTuple):
    """Where three structures of a snes9x core lie in memory, relative to its function ``retro_run``.

    Args:
        ippu: ``IPPU``, the state of the renderer.
        ppu: ``PPU``, the registers of the picture processor.
        gfx: ``GFX``, the picture.
    """

    ippu: int
    ppu: int
    gfx: int


KNOWN_CORES = {
    # stable-retro 1.0.0 and 1.0.1, Linux on x86-64
    "c74d8549e4e6d8646ad6e52821f42071e6678181a608808e3317fbdddbcd2f31": Structures(0x201020, 0x202060, 0x1FCC60),
    "bc024ccb7b67ec0916233227579e718abeaa84eaf23f8cd34c4a0f02edd91419": Structures(0x201020, 0x202060, 0x1FCC60),
    # The same two versions, macOS. They were read, but never run. The core of 1.0.0 is one for x86-64.
    "be132430006517279814790ac6f18de5d7ca0b7cb1dfaa6d6564f8afc369a473": Structures(0x3C2C8, 0x3B7DC, 0x3D3F8),
    "b2799c0919e0b48536881d573b7f34f4f3c4b2cb0c23c63316e58473cd3230d8": Structures(0x362FC, 0x35810, 0x3742C),
}
"""SHA-256 of a snes9x core -> where its structures lie. ``scripts/drawing_offsets.py`` reads it from a wheel."""
STRUCTURE_FIELDS = {
    "IPPU.Interlace": 0x1FA,  # the next byte is IPPU.InterlaceOBJ
    "IPPU.RenderThisFrame": 0x1011,
    "IPPU.TotalEmulatedFrames": 0x1028,
    "PPU.RangeTimeOver": 0xA7E,
    "GFX.DoInterlace": 0x70,  # the next byte is GFX.InterlaceFrame
}
"""Field -> its offset in its structure, in each of ``KNOWN_CORES``. The same script checks them."""

_DRAW = 2  # snes9x itself writes 1 when it loads a state, and only compares with 0
_FRAMES_OF_CAUTION = 120


class Drawing:
    """Runs the emulator's frames, and leaves those undrawn that nobody sees. Drawing is a quarter of a frame's time.

    snes9x has no option for this, but one byte of its memory decides whether it draws a frame. Neither the game nor the
    pictures of the other frames change, with three exceptions. If a line has too many sprites, the flags for it in the
    register $213E change at another time. In interlaced modes, frames have another length, and a picture consists of
    two. If a game increases the height of the picture, snes9x runs the end of a frame twice, and draws the second end
    into the first picture. So ``frame`` says if one of these was the case, and then draws each of the following frames
    until none was the case for two seconds.

    The position of the byte differs between builds of the core. With a core that is not in ``KNOWN_CORES``, every frame
    is drawn.

    Args:
        em: stable-retro's emulator. Do not use this object any more when the emulator has ended: then the core's memory
            is no longer there.
        console: stable-retro's name of the console.

    Attributes:
        obstacle: Why every frame is drawn; an empty text if not.
        behind: Whether the latest frame was not drawn, so that the screen is an older one's.
    """

    def __init__(self, em: Any, console: str) -> None:
        self.behind = False
        self._caution = 0  # frames to draw in any case
        self._latest = 0  # the core's count of frames
        self.obstacle = "only the core of the SNES can leave out the drawing of frames that nobody sees"
        if console == "Snes":
            self.obstacle = self._find(em, _core_of(console))
        self.settle()

    def _find(self, em: Any, core: Path) -> str:
        """Finds the core's variables. Returns why they can't be used."""
        structures = KNOWN_CORES.get(_sha256_once(core))
        if not structures:
            return f"this version of kart_rewards does not know the core {core}"
        run = _address(core, b"retro_run")
        if not run:
            return f"the core {core} is not the one that runs"

        def variable(kind: Any, name: str) -> Any:
            structure = getattr(structures, name.partition(".")[0].lower())
            return kind.from_address(run + structure + STRUCTURE_FIELDS[name])

        self._render = variable(ctypes.c_uint8, "IPPU.RenderThisFrame")
        self._frame_count = variable(ctypes.c_uint32, "IPPU.TotalEmulatedFrames")
        self._interlace = variable(ctypes.c_uint16, "IPPU.Interlace")
        self._overflow = variable(ctypes.c_uint8, "PPU.RangeTimeOver")
        self._fields = variable(ctypes.c_uint16, "GFX.DoInterlace")
        if self._render.value == 1:
            self._render.value = 0
            em.set_state(em.get_state())
        if self._render.value != 1:
            return f"the core {core} does not switch on drawing when it loads a state"
        return ""

    def frame(self, step: Callable[[], object], seen: bool) -> bool:
        """Runs an emulated frame.

        Args:
            step: Runs it: the emulator's ``step``.
            seen: Whether the frame must be drawn.

        Returns:
            Whether game and screen are as if all frames had been drawn. If not, ``rewind``, load the state of the last
            ``settle``, and run the frames since then again, all of them with ``seen``.
        """
        if self.obstacle:
            step()
            return True
        drawn = seen or self._caution > 0
        was_behind, self.behind = self.behind, not drawn
        render = _DRAW if drawn else 0
        if self._render.value != render:
            self._render.value = render
        step()
        began, self._latest = self._frame_count.value - self._latest, self._frame_count.value
        if not drawn and began & 1:
            self._fields.value ^= 0x100  # the core itself changes InterlaceFrame only on frames that it draws
        interlaced = self._interlace.value or self._fields.value & 0xFF
        suspicious = self._overflow.value or interlaced or not began
        if suspicious:
            self._caution = _FRAMES_OF_CAUTION
        elif self._caution:
            self._caution -= 1
        return not (suspicious and (was_behind or self.behind))

    def settle(self) -> None:
        """Notes that a state was saved or loaded just now."""
        if not self.obstacle:
            self._render.value = _DRAW
            self._latest = self._frame_count.value
            self._lacking = self._fields.value, self._overflow.value

    def rewind(self) -> None:
        """Sets what the core leaves out of states to what it was at the last ``settle``."""
        if not self.obstacle:
            self._fields.value, self._overflow.value = self._lacking

    @property
    def disturbed(self) -> bool:
        """Whether someone else ran a frame or loaded a state since the latest frame or ``settle``."""
        return self._render.value != _DRAW or self._frame_count.value != self._latest


_sha256_once = functools.cache(_sha256)


def _address(library: Path, symbol: bytes) -> int:
    """Returns the address of a symbol of a library that this process has loaded already, or 0.

    Each emulator loads its core anew, perhaps to another address. A reference to the library must not remain here: the
    core would stay loaded when its emulator ends.
    """
    process = ctypes.CDLL(None)
    process.dlopen.restype = process.dlsym.restype = ctypes.c_void_p
    process.dlsym.argtypes, process.dlclose.argtypes = [ctypes.c_void_p, ctypes.c_char_p], [ctypes.c_void_p]
    handle = process.dlopen(os.fsencode(library), os.RTLD_NOLOAD | os.RTLD_LAZY)
    if not handle:
        return 0
    address = process.dlsym(handle, symbol)
    process.dlclose(handle)
    return address or 0


class Player(Protocol):
    """An environment that uses a shared emulator in turns."""

    def put_aside(self) -> None:
        """Saves the game. It is called at the end of this player's turn."""

    def take_up(self) -> None:
        """Loads the saved game. It is called at the beginning of this player's turn."""


class SharedEmulator:
    """The emulator of this process. ``SharedEmulator.of`` returns the same one for the same ROM.

    The emulator ends when nothing refers to it any more.

    Args:
        rom: The game's ROM.

    Attributes:
        em: stable-retro's emulator.
        console: stable-retro's name of the console.
        drawing: Runs the emulator's frames.
        players: The environments that use this emulator.

    Raises:
        KartRewardsError: See ``start_emulator``.
    """

    faults: ClassVar[dict[Path, str]] = {}
    """ROM -> why environments can't take turns, or an empty text. Child processes need not find out again."""

    _running: ClassVar[weakref.ref[SharedEmulator] | None] = None

    def __init__(self, rom: Path) -> None:
        self.rom = rom
        self.console = console_of(rom)
        self.em = start_emulator(rom)
        self.drawing = Drawing(self.em, self.console)
        self.players: weakref.WeakSet[Player] = weakref.WeakSet()
        self._player: weakref.ref[Player] | None = None
        self._data: Any = None

    @classmethod
    def of(cls, rom: Path) -> SharedEmulator:
        """Returns the emulator of this process if it runs this ROM, else a new one.

        Raises:
            KartRewardsError: See ``start_emulator``. There must be no reference to an emulator of another ROM.
        """
        running = cls._running and cls._running()
        if not running or running.rom != rom:
            running = None  # the only reference must not keep the old emulator while the new one starts
            running = cls(rom)
            cls._running = weakref.ref(running)
        return running

    def configure(self, data: Any) -> None:
        """Binds a ``stable_retro.data.GameData`` to the emulator's memory."""
        self.em.configure_data(data)
        self._data = data  # the emulator keeps only a raw pointer to the latest data

    def load(self, data: Any, snapshot: bytes, held: np.ndarray) -> bool:
        """Loads a state of a game. Returns whether the core accepts it.

        Args:
            data: The ``GameData`` of the player that loads it.
            snapshot: The state.
            held: The buttons that were held on the frame before the state was saved: a mask.
        """
        if self.console in _MOVES_MEMORY and self._data is not data:
            self.configure(data)  # the emulator lets only this data know where its memory lies
        if self.console in _KEEPS_BUTTONS:
            self.em.set_button_mask(held, 0)
            self.em.step()
        accepted = bool(self.em.set_state(snapshot))
        self.drawing.settle()
        return accepted

    def take(self, player: Player) -> None:
        """Begins a player's turn, unless it is that player's turn already. This method runs once per step."""
        previous = self._player and self._player()
        if previous is player:
            return
        if previous:
            previous.put_aside()
        self._player = weakref.ref(player)
        self.players.add(player)
        player.take_up()

    def leave(self, player: Player) -> None:
        """Ends the last turn of a player, without saving its game."""
        self.players.discard(player)
        if self._player and self._player() is player:
            self._player = None
