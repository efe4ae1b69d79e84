from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kart_rewards.drives import SHIPPED, Drive, DriveInfo, load_drive, smallest
from kart_rewards.env import KartEnv
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.errors import KartRewardsError
from kart_rewards.lab.replay import DepartedError, replay

GAME = "HomebrewKart-Snes"


@pytest.fixture(scope="module")
def drive() -> Drive:
    """Five seconds of an agent's drive with a random start, four frames per step."""
    env = KartEnv(GAME, state="Level2", action_mode="driving", random_start_steps=10, sticky_actions=0.25)
    env.recorder = DriveRecorder("agent", steps_before=4096)
    env.action_space.seed(3)
    env.reset(seed=3)
    for _ in range(75):
        env.step(env.action_space.sample())
    recorded = env.recorder.drive(env)
    env.close()
    return recorded


def same(one: Drive, other: Drive) -> bool:
    arrays = ("masks", "lead", "step_frames", "actions", "rewards")
    return (
        replace(one.info, label="") == replace(other.info, label="")
        and list(one) == list(other)
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and one.start == other.start
    )


def test_a_drive_is_the_same_after_its_file(drive: Drive, tmp_path: Path) -> None:
    for path in (tmp_path / "a.drive", tmp_path / "new" / "b.drive"):
        drive.save(path)
        assert same(load_drive(path), drive)
    assert (tmp_path / "a.drive").read_bytes() == (tmp_path / "new" / "b.drive").read_bytes()
    assert load_drive(tmp_path / "a.drive").info.label == "a"
    assert (len(drive), drive.info.seed, drive.info.steps_before, drive.info.state) == (301, 3, 4096, "Level2")
    assert drive.info.driver == "agent"


def test_a_drive_knows_the_input_of_each_frame(drive: Drive) -> None:
    assert len(drive.buttons) == len(drive.frame_actions) == len(drive)
    assert drive.frame_actions[0] is None
    assert drive.frame_actions[1:9] == [int(action) for action in drive.actions[:2] for _ in range(4)]
    assert all("B" in buttons for buttons in drive.buttons[1:])
    assert {"LEFT", "RIGHT", "L"} <= frozenset().union(*drive.buttons)


def test_a_replay_is_the_drive_bit_for_bit(drive: Drive) -> None:
    screens = list(replay(drive))
    assert len(screens) == len(drive)
    assert screens[0].shape == (224, 256, 3)
    masks = drive.masks.copy()
    masks[100:] ^= 1  # the throttle
    with pytest.raises(
        DepartedError, match=r"the replay departs on frame 10\d: speed is \d+, and \d+ in the drive$"
    ) as error:
        list(replay(replace(drive, masks=masks)))
    assert 101 <= error.value.frame <= 110
    other = replace(drive.info, fingerprints=drive.info.fingerprints | {"ROM": "0"})
    with pytest.raises(DepartedError, match=r"in the drive: it was recorded with another ROM$"):
        list(replay(replace(drive, masks=masks, info=other)))
    with pytest.raises(KartRewardsError, match="has no start state"):
        list(replay(replace(drive, start=b"")))


@pytest.mark.slow
def test_the_drives_of_the_package_are_replayed() -> None:
    drives = sorted(SHIPPED.glob("*.drive"))
    assert len(drives) == 30
    for path in drives[::10]:
        drive = load_drive(path)
        assert sum(1 for _ in replay(drive)) == len(drive)


def test_a_term_that_fails_leaves_the_frame_in_the_drive() -> None:
    class Broken:
        calls = 0

        def __call__(self, ram: Any) -> float:
            self.calls += 1
            return 1.0 / (6 - self.calls)

    env = KartEnv(GAME, rewards=[Broken])
    env.recorder = DriveRecorder("agent")
    try:
        env.reset(seed=1)
        first = env.ram.current_frame
        env.step([0.0])
        with pytest.raises(KartRewardsError, match="ZeroDivisionError"):
            env.step([0.0])
        recorded = env.recorder.drive(env)
    finally:
        env.close()
    assert recorded[-1].current_frame == first + 5
    assert recorded.step_frames.tolist() == [4, 1]


def test_an_environment_that_got_another_state_has_no_drive(drive: Drive) -> None:
    env = KartEnv(GAME)
    env.recorder = DriveRecorder("agent")
    try:
        env.reset(seed=1)
        assert not env.recorder.has_drive
        env.step([0.0])
        assert env.recorder.has_drive
        env.set_state(env.get_state())
        env.step([0.0])
        assert not env.recorder.has_drive
        env.reset()
        env.step([0.0])
        assert env.recorder.has_drive
    finally:
        env.close()


def damage(path: Path, changes: dict[str, bytes | None]) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()} | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)


def npy(array: Any, allow_pickle: bool = False) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asarray(array), allow_pickle=allow_pickle)
    return content.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"info.json": b"{"}, "is not a drive: "),
        ({"info.json": None}, "is not a drive: .*info.json"),
        ({"info.json": b'{"version": 99}'}, "it has version 99, and this program reads version 1"),
        ({"masks.npy": None}, "is not a drive: .*masks.npy"),
        ({"masks.npy": npy(np.zeros(3, np.uint32))}, "the parts of the drive have different numbers of frames"),
        ({"masks.npy": b"\x93NUMPY"}, "is not a drive: "),
        ({"actions.npy": npy([{}], allow_pickle=True)}, "is not a drive: Object arrays cannot be loaded"),
        ({"ram/speed.npy": npy(np.zeros(7, np.int16))}, "the parts of the drive have different numbers of frames"),
    ],
)  # fmt: skip
def test_damaged_files_are_reported(drive: Drive, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    drive.save(tmp_path / "a.drive")
    damage(tmp_path / "a.drive", changes)
    with pytest.raises(KartRewardsError, match=rf"a\.drive: .*{message}"):
        load_drive(tmp_path / "a.drive")


def test_files_that_are_no_drives_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.drive").write_text("no archive")
    with pytest.raises(KartRewardsError, match=r"a\.drive: is not a drive: File is not a zip file"):
        load_drive(tmp_path / "a.drive")
    with pytest.raises(KartRewardsError, match=r"b\.drive: no such drive"):
        load_drive(tmp_path / "b.drive")
    with pytest.raises(KartRewardsError, match=r"can't be read: Is a directory"):
        load_drive(tmp_path)


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.drive")
    with pytest.raises(KartRewardsError, match=r"a\.drive: can't be read: it is a pipe, not a file"):
        load_drive(tmp_path / "a.drive")


def test_a_file_that_unpacks_to_gigabytes_is_refused(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive.save(tmp_path / "a.drive")
    monkeypatch.setattr("kart_rewards.drives._MOST_BYTES", 10_000)
    with pytest.raises(KartRewardsError, match="its content is larger than"):
        load_drive(tmp_path / "a.drive")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 255], "uint8"), ([-1, 255], "int16"), ([0, 65536], "uint32"), ([-1, 2**40], "int64"), ([0.5, 1], "float64"),
     ([True, False], "float64"), ([(1, -2), (3, 4)], "int8"), ([2**63], "uint64")],
)  # fmt: skip
def test_numbers_are_kept_in_the_smallest_type(values: list[Any], dtype: str) -> None:
    array = smallest(values)
    assert array.dtype == dtype
    assert array.tolist() == [list(value) if isinstance(value, tuple) else value for value in values]


def test_a_drive_of_a_file_with_other_facts_of_a_later_version_is_read(drive: Drive, tmp_path: Path) -> None:
    drive.save(tmp_path / "a.drive")
    with zipfile.ZipFile(tmp_path / "a.drive") as archive:
        info = json.loads(archive.read("info.json"))
    damage(tmp_path / "a.drive", {"info.json": json.dumps(info | {"weather": "rain"}).encode()})
    assert load_drive(tmp_path / "a.drive").info == replace(drive.info, label="a")
    assert DriveInfo().driver == ""


def test_a_race_begun_in_the_middle_has_no_time(drive: Drive) -> None:
    info = replace(drive.info, race={"laps_completed": 1, "finished": True})
    assert replace(drive, info=info).outcome == "finished, from a start in the middle of the race"


RACE = {"laps_completed": 1, "finished": True, "race_time_seconds": 50.0}


@pytest.mark.parametrize(
    ("facts", "arrays", "message"),
    [
        ({"version": "1"}, {}, "it has version '1', and this program reads version 1"),
        ({"frames_per_second": 0}, {}, "its frames_per_second must be a finite number above 0, not 0"),
        ({"frames_per_second": float("nan")}, {}, "its frames_per_second must be a finite number above 0, not nan"),
        ({"frame_skip": 0}, {}, "its frame_skip must be at least 1, not 0"),
        ({"frame_skip": "4"}, {}, "its frame_skip must be int, not '4'"),
        ({"ended_by": 7}, {}, "its ended_by must be str | None, not 7"),
        ({"buttons": [["a"]]}, {}, "its buttons must be list[str | None], not [['a']]"),
        ({"state": "\x1b[31m"}, {},
         "its info.json has the text '\\x1b[31m', which has characters that can't be printed"),
        ({"game": "../elsewhere"}, {}, "its game must be the name of a folder, not '../elsewhere'"),
        ({"race": [1]}, {}, "its race must be dict[str, Any] | None, not [1]"),
        ({"race": {"finished": False}}, {}, "its race has no laps_completed"),
        ({"race": RACE | {"race_time_seconds": "x"}}, {}, "its race's race_time_seconds must be float, not 'x'"),
        ({"race": RACE | {"race_time_seconds": float("inf")}}, {},
         "its race's race_time_seconds must be a finite number, not inf"),
        ({"variables": ["class"]}, {}, "its variable 'class' has a name that is not valid"),
        ({"variables": ["speeed"]}, {}, "it has no ram/speeed.npy"),
        ({}, {"ram/speed": np.array(["x"] * 301)},
         "its ram/speed is an array of <U1 with 1 dimension, which is not valid"),
        ({}, {"ram/speed": np.zeros((301, 2, 2))},
         "its ram/speed is an array of float64 with 3 dimensions, which is not valid"),
        ({}, {"masks": np.zeros((300, 2), np.uint32)},
         "its masks is an array of uint32 with 2 dimensions, which is not valid"),
        ({}, {"lead": np.zeros(2)}, "its lead is an array of float64 with 1 dimension, which is not valid"),
        ({}, {"step_frames": np.full(75, 4, np.int16)},
         "its step_frames is an array of int16 with 1 dimension, which is not valid"),
    ],
)  # fmt: skip
def test_a_file_from_elsewhere_is_refused_in_one_message(
    drive: Drive, tmp_path: Path, facts: dict[str, Any], arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "a.drive"
    drive.save(path)
    with zipfile.ZipFile(path) as archive:
        info = json.loads(archive.read("info.json"))
    changes: dict[str, bytes | None] = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    damage(path, changes | {"info.json": json.dumps(info | facts).encode()})
    with pytest.raises(KartRewardsError) as error:
        load_drive(path)
    assert str(error.value) == f"{path}: is not a drive: {message}"


def test_a_header_that_claims_terabytes_is_refused_before_memory_is_reserved(drive: Drive, tmp_path: Path) -> None:
    drive.save(tmp_path / "a.drive")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2 * 10**12,)})
    damage(tmp_path / "a.drive", {"start.npy": header.getvalue()})
    with pytest.raises(KartRewardsError, match="is not a drive: its start has another size than its header says"):
        load_drive(tmp_path / "a.drive")


def test_archives_that_this_program_does_not_write_are_refused(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "a.drive"
    damaged = {
        "info.json": (b"[" * 200_000, ""),
        "masks.npy": (npy(drive.masks)[:10] + b"(" * 118, "its masks has a damaged header"),
    }
    for name, (content, message) in damaged.items():
        drive.save(path)
        damage(path, {name: content})
        with pytest.raises(KartRewardsError, match=rf"a\.drive: is not a drive: {message}"):
            load_drive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("info.json", "{}")
    with pytest.raises(KartRewardsError, match="is not a drive: it is compressed in another way than Deflate"):
        load_drive(path)
    drive.save(path)
    archived = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        archived[archived.find(mark) + flags] |= 1  # "is encrypted"
    path.write_bytes(archived)
    with pytest.raises(KartRewardsError, match=r"is not a drive: File 'info\.json' is encrypted"):
        load_drive(path)
