"""Drives: recorded episodes.

* ``Drive`` - the snapshots, buttons, actions and rewards of an episode, and how to play it again
* ``load_drive``, ``drive_file`` - reads a file; the file of a drive that a person named
* ``DriveInfo`` - who drove, where, and how it ended
* ``SUFFIX`` - the suffix of the files
* ``SHIPPED``, ``DRIVES_FOLDER`` - the folder with the drives of the package; the folder of drives in that of a run

A drive is read and scored without an emulator. It also holds the start state and the buttons of every frame, so the
emulator can play it again, see ``kart_rewards.lab.replay``.

A file is a zip archive of NumPy arrays (``numpy.load`` opens it) and of ``info.json``. Columns of integers hold the
differences between consecutive frames, which are compressed better. Nothing in a file is code.

This module imports no emulator.

Example:
    >>> from kart_rewards.testing import load_trace, score
    >>> from kart_rewards.rewards import wall
    >>> drive = load_trace("walls")
    >>> score(drive, [wall])["wall"] < 0
    True
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import keyword
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.files import atomic_write, read_file
from kart_rewards.ram import snapshot_class
from kart_rewards.scripting import plain_action

SUFFIX = ".drive"
"""The suffix of a drive's file."""

DRIVES_FOLDER = "drives"
"""The folder of drives in a run's folder."""

SHIPPED = Path(__file__).parent / "shipped_drives"
"""The folder with the drives of the package: good, bad and odd drives of every course of HomebrewKart.

``homebrew/record_drives.py`` records them.
"""

_VERSION = 1
_MOST_BYTES = 2**30  # of a file's content: an hour of a hundred variables is less
_COLUMN = "ram/"
_NUMBERS = "biuf"  # kinds of dtypes
_UNSIGNED = "u"


@dataclass(frozen=True)
class DriveInfo:
    """Facts about a drive.

    Args:
        game: The game's folder name.
        state: The name of the start state.
        driver: Who chose the actions: ``player``, ``agent``, ``training`` or the label of a scripted driver.
        ended_by: The name of the done rule that ended the episode. None: the step limit, or the player.
        terminated, truncated: How the last step ended the episode; both False if the player stopped.
        buttons: The names of the console's buttons, in the order of the bits in ``Drive.masks``.
        frame_skip: Emulated frames per step.
        action_mode: The action mode of ``KartEnv`` that the actions are of.
        frames_per_second: Of the console.
        race: The metrics of ``RaceMetrics.summary`` at the end; None for games without race variables.
        fingerprints: Hashes of the ROM and of the emulator's core: what decides how a game runs, beside the buttons.
        versions: Package -> version.
        seed: The seed of the episode, if it is known.
        steps_before: Agent steps that the driver had trained, if it is an agent.
        label: A name for people: the name of the file without its suffix.
    """

    game: str = ""
    state: str = ""
    driver: str = ""
    ended_by: str | None = None
    terminated: bool = False
    truncated: bool = False
    buttons: tuple[str | None, ...] = ()
    frame_skip: int = 1
    action_mode: str = "all"
    frames_per_second: float = 60.0
    race: dict[str, Any] | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    steps_before: int | None = None
    label: str = ""


@dataclass(frozen=True, eq=False)
class Drive(Sequence[Any]):
    """A recorded episode: the sequence of its snapshots, one per emulated frame.

    Frame 0 is the frame of the reset, which is not paid. Frame i, from 1 on, is the result of the buttons
    ``masks[i - 1]``.

    Args:
        info: Facts about the drive.
        columns: Variable -> its values, shape (frames,), or (frames, count) for an array; in the order of snapshots.
        masks: The buttons of each frame from frame 1 on: a bit per button, uint32, shape (frames - 1,).
        lead: The buttons of the frames from the start state up to frame 0, uint32. They are not scored.
        step_frames: The number of frames of each step, uint16, shape (steps,). Their sum is frames - 1.
        actions: The agent's action in each step, shape (steps, ...).
        rewards: The reward of each step, as the agent got it: float64, shape (steps,).
        start: The emulator's snapshot before the first frame of ``lead``. Empty if the drive can't be played again.

    Raises:
        KartRewardsError: The parts do not fit each other.
    """

    info: DriveInfo
    columns: dict[str, np.ndarray]
    masks: np.ndarray
    lead: np.ndarray
    step_frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    start: bytes = b""

    def __post_init__(self) -> None:
        frames, steps = len(self.masks) + 1, len(self.step_frames)
        fits = bool(self.columns) and all(len(column) == frames for column in self.columns.values())
        fits = fits and len(self.actions) == len(self.rewards) == steps and int(self.step_frames.sum()) == frames - 1
        fits = fits and int(self.step_frames.max(initial=0)) < frames  # otherwise the sum may have wrapped
        if not fits:
            raise KartRewardsError("the parts of the drive have different numbers of frames or steps")

    @classmethod
    def of_snapshots(cls, snapshots: Sequence[Any], label: str = "") -> Drive:
        """Returns a drive without buttons, actions and start state.

        Args:
            snapshots: One per frame.
            label: See ``DriveInfo``.

        Raises:
            KartRewardsError: There is no snapshot.
        """
        columns = map(smallest, zip(*snapshots, strict=True))
        frames = len(snapshots) - 1
        return cls(
            DriveInfo(label=label),
            dict(zip(snapshots[0]._fields if snapshots else (), columns, strict=True)),
            np.zeros(max(frames, 0), np.uint32),
            np.zeros(0, np.uint32),
            np.ones(max(frames, 0), np.uint16),
            np.zeros(max(frames, 0), np.uint8),
            np.zeros(max(frames, 0)),
        )

    def __len__(self) -> int:
        return len(self.masks) + 1

    def __getitem__(self, index: Any) -> Any:
        return self._snapshots[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._snapshots)

    @cached_property
    def _snapshots(self) -> list[Any]:
        make = snapshot_class(tuple(self.columns))
        lists = (
            column.tolist() if column.ndim == 1 else list(map(tuple, column.tolist()))
            for column in self.columns.values()
        )
        return list(map(make, *lists))

    @cached_property
    def all_buttons(self) -> list[frozenset[str]]:
        """The buttons that are held on each frame after ``start``: those of ``lead`` and those of ``masks``."""
        masks = [*self.lead.tolist(), *self.masks.tolist()]
        names = self.info.buttons
        held = {
            mask: frozenset(name for bit, name in enumerate(names) if name and mask >> bit & 1) for mask in {*masks}
        }
        return [held[mask] for mask in masks]

    @property
    def buttons(self) -> list[frozenset[str]]:
        """The buttons that are held on each frame, as terms get them."""
        before = max(len(self.lead) - 1, 0)
        return self.all_buttons[before:] if len(self.lead) else [frozenset(), *self.all_buttons]

    @cached_property
    def frame_actions(self) -> list[Any]:
        """The action that is held on each frame, as terms get it; None on frame 0."""
        plain = tuple if self.actions.ndim == 2 else plain_action  # of lists, which is much faster than of arrays
        of_steps = map(plain, self.actions.tolist())
        repeated = zip(of_steps, self.step_frames.tolist(), strict=True)
        return [None, *(action for action, frames in repeated for _ in range(frames))]

    @property
    def seconds(self) -> float:
        """The duration of the scored frames."""
        return (len(self) - 1) / self.info.frames_per_second

    @property
    def outcome(self) -> str:
        """How the drive ended, as text for a person."""
        race = self.info.race
        if race and race.get("finished"):
            seconds = race.get("race_time_seconds")
            return f"finished in {seconds:.2f} s" if seconds else "finished, from a start in the middle of the race"
        ended = self.info.ended_by or ("step limit" if self.info.truncated else "stopped")
        return f"{race['laps_completed']} laps, {ended}" if race else ended

    def save(self, path: str | Path) -> None:
        """Writes the drive to a file. The write is atomic. Equal drives give equal bytes.

        Raises:
            UnwritableError: The file can't be written.
        """
        arrays: dict[str, np.ndarray] = {
            "masks": _differences(self.masks),
            "lead": self.lead,
            "step_frames": _differences(self.step_frames),
            "actions": self.actions,
            "rewards": self.rewards,
            "start": np.frombuffer(self.start, np.uint8),
        }
        arrays |= {_COLUMN + name: _differences(column) for name, column in self.columns.items()}
        text = json.dumps({"version": _VERSION, "variables": list(self.columns), **asdict(self.info)}, indent=1)
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr(zipfile.ZipInfo("info.json"), text, zipfile.ZIP_DEFLATED)
            for name, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)


def shipped_drive(name: str) -> Path | None:
    """Returns the file of a drive of the package; None if it has none of this name.

    Args:
        name: The name, such as ``race`` or ``race-Level2``. Without a course, it is on Level1, ``walls`` on Level3 and
            ``wander`` on Level4.
    """
    kind, _, course = name.partition("-")
    path = SHIPPED / f"{kind if course == _COURSES.get(kind, 'Level1') else name}{SUFFIX}"
    return path if path.is_file() else None


_COURSES = {"walls": "Level3", "wander": "Level4"}


def drive_file(name: str | Path) -> Path:
    """Returns the file of a drive.

    Args:
        name: A path, or the name of a drive of the package, such as ``race``.

    Raises:
        KartRewardsError: There is no such file.
    """
    path, shipped = Path(name), shipped_drive(str(name))
    if path.exists():
        return path
    if not shipped:
        known = [each.name.removesuffix(SUFFIX) for each in SHIPPED.glob(f"*{SUFFIX}")]
        hint = did_you_mean(str(name), known) or " The package's are: kart-rewards drives. Others need their path"
        raise KartRewardsError(f"{name}: no such drive.{hint}")
    return shipped


def load_drive(path: str | Path) -> Drive:
    """Reads a drive.

    Raises:
        KartRewardsError: The file does not exist, or it is not a drive.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
            return _read(archive, path.name.removesuffix(SUFFIX))
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such drive") from None
    except OSError as error:
        if error.strerror:
            raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
        why: object = error
    except _DAMAGE as error:
        why = error
    raise KartRewardsError(f"{path}: is not a drive: {str(why).splitlines()[0] if str(why) else type(why).__name__}")


_DAMAGE = (
    KartRewardsError, ValueError, LookupError, TypeError, EOFError, RuntimeError, MemoryError, OverflowError,
    struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises."""


def _read(archive: zipfile.ZipFile, label: str) -> Drive:
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise ValueError(f"its content is larger than {_MOST_BYTES // 2**20} MiB")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise ValueError("it is compressed in another way than Deflate")
    names = {entry.filename for entry in entries}

    def content(name: str) -> bytes:
        if name not in names:
            raise ValueError(f"it has no {name}")
        return archive.read(name)

    def array(name: str, kinds: str, dimensions: Collection[int] = (1,)) -> np.ndarray:
        return _array(name, content(f"{name}.npy"), kinds, dimensions)

    facts: Any = json.loads(content("info.json"))
    if not isinstance(facts, dict):
        raise ValueError("its info.json is not an object")
    if facts.get("version", _VERSION) != _VERSION:
        raise ValueError(f"it has version {facts['version']!r:.40}, and this program reads version {_VERSION}")
    for name in ("version", "variables", "buttons"):
        if name not in facts:
            raise ValueError(f"its info.json has no {name}")
    variables = facts["variables"]
    _check_type("variables", variables, list[str])
    for name in variables:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ValueError(f"its variable {name!r:.40} has a name that is not valid")
    if len({*variables}) < len(variables):
        raise ValueError("its info.json names a variable twice")
    return Drive(
        _info(facts | {"label": label}),
        {name: _sums(array(f"{_COLUMN}{name}", _NUMBERS, (1, 2))) for name in variables},
        _sums(array("masks", _UNSIGNED)),
        array("lead", _UNSIGNED),
        _sums(array("step_frames", _UNSIGNED)),
        array("actions", _NUMBERS, range(1, 33)),
        array("rewards", _NUMBERS),
        array("start", _UNSIGNED).tobytes(),
    )


def _array(name: str, content: bytes, kinds: str, dimensions: Collection[int]) -> np.ndarray:
    """Returns an array of a file, after a check of what its header claims."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError):
        raise ValueError(f"its {name} has a damaged header") from None
    if version != (1, 0):
        raise ValueError(f"its {name} has an unknown version of NumPy's format")
    if not dtype.hasobject:  # otherwise NumPy refuses it
        if dtype.kind not in kinds or dtype.itemsize > 8 or len(shape) not in dimensions:
            size = counted(len(shape), "dimension")
            raise ValueError(f"its {name} is an array of {dtype!s:.40} with {size}, which is not valid")
        if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise ValueError(f"its {name} has another size than its header says")
    stream.seek(0)
    array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _info(facts: dict[str, Any]) -> DriveInfo:
    """Returns the facts that this version knows, after a check of each."""
    kinds = _kinds()
    _check_type("buttons", facts["buttons"], list[str | None])
    facts = {name: facts[name] for name in kinds if name in facts} | {"buttons": tuple(facts["buttons"])}
    for name, value in facts.items():
        _check_type(name, value, kinds[name])
    info = DriveInfo(**facts)
    texts = [info.game, info.state, info.driver, info.ended_by or "", info.action_mode, *filter(None, info.buttons)]
    for text in [*texts, *info.fingerprints, *info.fingerprints.values(), *info.versions, *info.versions.values()]:
        if not text.isprintable():
            raise ValueError(f"its info.json has the text {text!r:.40}, which has characters that can't be printed")
    if info.game in (".", "..") or "/" in info.game or "\\" in info.game:
        raise ValueError(f"its game must be the name of a folder, not {info.game!r:.40}")
    if not (math.isfinite(info.frames_per_second) and info.frames_per_second > 0):
        raise ValueError(f"its frames_per_second must be a finite number above 0, not {info.frames_per_second}")
    if info.frame_skip < 1:
        raise ValueError(f"its frame_skip must be at least 1, not {info.frame_skip}")
    if info.race is not None:
        _check_race(info.race)
    return info


@functools.cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(DriveInfo)


def _check_race(race: dict[str, Any]) -> None:
    """Checks what ``RaceMetrics.summary`` returned. Other metrics may be there."""
    kinds = {"laps_completed": int, "finished": bool, "race_time_seconds": float}
    for name, kind in kinds.items():
        if name == "race_time_seconds" and name not in race:  # not finished, or begun in the middle of the race
            continue
        if name not in race:
            raise ValueError(f"its race has no {name}")
        _check_type(f"race's {name}", race[name], kind)
        if not math.isfinite(race[name]):
            raise ValueError(f"its race's {name} must be a finite number, not {race[name]}")


def _check_type(name: str, value: object, kind: Any) -> None:
    try:
        check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        text = inspect.formatannotation(kind).replace("typing.", "")
        raise ValueError(f"its {name} must be {text}, not {value!r:.40}") from None


def _differences(column: np.ndarray) -> np.ndarray:
    """Returns the first value and the changes from frame to frame. Integers wrap, so nothing is lost."""
    if column.dtype.kind not in "iu" or not len(column):
        return column
    with np.errstate(over="ignore"):
        return np.diff(column, axis=0, prepend=np.zeros_like(column[:1]))


def _sums(differences: np.ndarray) -> np.ndarray:
    """Returns the column whose ``_differences`` are given."""
    if differences.dtype.kind not in "iu":
        return differences
    with np.errstate(over="ignore"):
        return np.cumsum(differences, axis=0, dtype=differences.dtype)


def smallest(values: Sequence[Any]) -> np.ndarray:
    """Returns numbers as an array of the smallest type of integers that holds them, or of float64.

    Args:
        values: Numbers, or tuples of numbers of one length.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or not array.size:
        return array.astype(np.float64) if array.dtype.kind in "fb" else array
    low, high = int(array.min()), int(array.max())
    if low >= 0:
        return array.astype(np.min_scalar_type(high))
    signed = (np.int8, np.int16, np.int32, np.int64)
    return array.astype(next(kind for kind in signed if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))
