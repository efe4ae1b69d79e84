from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import needs_setpriv, ordinary

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import UnwritableError, atomic_write
from kart_rewards.imports import import_source
from kart_rewards.ram import load_json


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB with the file old.txt."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)  # noqa: S607
    (disk / "old.txt").write_text("old")
    yield disk
    subprocess.run(["umount", disk], check=True)  # noqa: S607


def test_a_file_appears_with_its_folder_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.json"
    with atomic_write(path) as temporary:
        temporary.write_text("{}")
        assert (temporary.parent, temporary.suffix) == (path.parent, ".json")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert files_in(path.parent) == ["report.json"]


def test_readers_find_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")
    with path.open() as reader:
        with atomic_write(str(path)) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old", "an open file stays as it was"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_an_exception_inside_the_block_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["report.txt"]


def test_a_full_disk_is_reported_and_keeps_the_old_file(small_disk: Path) -> None:
    with pytest.raises(UnwritableError) as raised, atomic_write(small_disk / "old.txt") as temporary:
        temporary.write_bytes(bytes(100_000))
    assert str(raised.value) == f"{small_disk}/old.txt: can't be written: No space left on device"
    assert raised.value.strerror == "No space left on device"
    assert (small_disk / "old.txt").read_text() == "old"
    assert files_in(small_disk) == ["old.txt"]


def test_a_read_only_disk_is_reported(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)  # noqa: S607
    with pytest.raises(UnwritableError, match=r"old\.txt: can't be written: Read-only file system"):
        write(small_disk / "old.txt")
    assert (small_disk / "old.txt").read_text() == "old"


@needs_setpriv
def test_a_folder_without_write_permission_is_reported_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")
    tmp_path.chmod(0o555)
    try:
        code = "import sys; from test_files import write; write(sys.argv[1])"
        command = [*ordinary(), sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    finally:
        tmp_path.chmod(0o755)
    assert done.stderr.splitlines()[-1].endswith(f"UnwritableError: {path}: can't be written: Permission denied")
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["report.txt"]


def write(path: str | Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("new")


def test_a_path_that_can_not_be_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnwritableError, match=r"file/new\.txt: can't be written: Not a directory"):
        write(tmp_path / "file" / "new.txt")
    with pytest.raises(UnwritableError, match="folder: can't be written: Is a directory"):
        write(tmp_path / "folder")
    assert files_in(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(("name", "read"), [("mine.py", import_source), ("data.json", load_json)])
def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(KartRewardsError, match=f"{name}: can't be read: it is a pipe, not a file"):
        read(tmp_path / name)
