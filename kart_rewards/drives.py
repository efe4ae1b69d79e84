"""Drives: recorded episodes.

* ``Drive`` - the snapshots, buttons, actions and rewards of an episode, and how to play it again
* ``load_drive`` - reads a file
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

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write
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
        of_steps = [plain_action(action) for action in self.actions]
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
            return f"finished in {race['race_time_seconds']:.2f} s"
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


def load_drive(path: str | Path) -> Drive:
    """Reads a drive.

    Raises:
        KartRewardsError: The file does not exist, or it is not a drive.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"its content is larger than {_MOST_BYTES // 2**20} MiB")
            info: Any = json.loads(archive.read("info.json"))
            if info["version"] != _VERSION:
                raise ValueError(f"it has version {info['version']}, and this program reads version {_VERSION}")

            def array(name: str) -> np.ndarray:
                content = io.BytesIO(archive.read(f"{name}.npy"))
                loaded: np.ndarray = np.lib.format.read_array(content, allow_pickle=False)
                return loaded

            known = {each.name for each in fields(DriveInfo)}
            facts = {name: value for name, value in info.items() if name in known}
            facts |= {"buttons": tuple(facts["buttons"]), "label": path.name.removesuffix(SUFFIX)}
            return Drive(
                DriveInfo(**facts),
                {str(name): _sums(array(f"{_COLUMN}{name}")) for name in info["variables"]},
                _sums(array("masks")),
                array("lead"),
                _sums(array("step_frames")),
                array("actions"),
                array("rewards"),
                array("start").tobytes(),
            )
    except FileNotFoundError:
        raise KartRewardsError(f"{path}: no such drive") from None
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    except KartRewardsError as error:
        raise KartRewardsError(f"{path}: is not a drive: {error}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, EOFError, NotImplementedError) as error:
        why = f"its {error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise KartRewardsError(f"{path}: is not a drive: {why}") from None


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
