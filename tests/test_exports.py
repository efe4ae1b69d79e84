from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run

from kart_rewards import KartEnv, KartRewardsError, ObservationConfig
from kart_rewards.drives import SHIPPED, Drive, load_drive
from kart_rewards.env.movie import save_movie
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.games.console import Console
from kart_rewards.integrations import find_game
from kart_rewards.lab.exports import drive_of_movie, minari_dataset

try:
    import minari
except ImportError:
    minari = None

GAME = "HomebrewKart-Snes"
stores_exactly = minari and "jpeg_encoding" in inspect.signature(minari.create_dataset_from_buffers).parameters
needs_minari = pytest.mark.skipif(not stores_exactly, reason="it needs Minari 0.5.4, which needs Python 3.11")


def recorded(steps: int, seed: int, **options: Any) -> tuple[Drive, list[np.ndarray]]:
    """A drive with random actions, and its observations."""
    env = KartEnv(GAME, **options)
    env.recorder = DriveRecorder("agent")
    try:
        env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed, options={"random_start_frames": 40})
        observations = [observation]
        for _ in range(steps):
            observation, *_ = env.step(env.action_space.sample())
            observations.append(observation)
        return env.recorder.drive(env), observations
    finally:
        env.close()


def test_a_drive_is_the_same_after_a_movie(tmp_path: Path) -> None:
    drive = load_drive(SHIPPED / "walls.drive")
    console = Console(find_game(GAME).rom())
    save_movie(drive, tmp_path / "walls.bk2", console.em)
    del console
    again = drive_of_movie(tmp_path / "walls.bk2", GAME)
    length = len(again)
    assert (again.info.ended_by, length) == ("wall_hits", 388), "the scenario ends the episode"
    assert list(again) == drive[:length]
    assert again.buttons == drive.buttons[:length]
    assert (again.start, again.info.state) == (drive.start, "walls")


@needs_minari
def test_a_minari_that_changes_observations_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari below 0.5.4, the newest one for Python 3.10, has no choice."""
    monkeypatch.setattr(minari, "create_dataset_from_buffers", lambda dataset_id, buffer: None)
    with pytest.raises(KartRewardsError, match=r"stores images as JPEG, which changes them: use Minari 0\.5\.4"):
        minari_dataset([load_drive(SHIPPED / "standing.drive")], "kart/test-v0")


@needs_minari
@pytest.mark.parametrize("max_pool", [False, True])
def test_a_minari_dataset_loads_back_equal(max_pool: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    config = ObservationConfig(max_pool=max_pool)
    drives = [recorded(12, seed, observation=config, sticky_actions=0.25) for seed in (1, 2)]
    minari_dataset([drive for drive, _ in drives], "kart/test-v0", config)
    dataset = minari.load_dataset("kart/test-v0")
    for episode, (drive, observations) in zip(dataset.iterate_episodes(), drives, strict=True):
        assert np.array_equal(episode.observations, observations)
        assert np.array_equal(episode.actions, drive.actions)
        assert np.array_equal(episode.rewards, drive.rewards)
        assert episode.truncations.tolist() == [False] * 11 + [True]
        assert not episode.terminations.any()
    with pytest.raises(KartRewardsError, match=r"kart/test-v0: "):
        minari_dataset([drives[0][0]], "kart/test-v0", config)


@needs_minari
def test_drives_of_two_kinds_are_no_dataset() -> None:
    one, _ = recorded(2, 1)
    other, _ = recorded(2, 1, action_mode="driving")
    with pytest.raises(KartRewardsError, match=r"driving, frame skip 4: a dataset has one kind, and  is of Homebrew"):
        minari_dataset([one, other], "kart/test-v0")


@needs_minari
def test_the_command_lists_checks_and_converts(tmp_path: Path) -> None:
    environment = {"MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    done = run(
        "drives", "reverse", "--replay", "--bk2", "movies", "--minari", "kart/one-v0",
        folder=tmp_path, environment=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header, row, *lines = done.stdout.splitlines()
    assert header.split() == ["drive", "game", "start", "driver", "outcome", "seconds", "steps", "return"]
    assert row.split() == ["reverse", GAME, "Level1", "reverse", "0", "laps,", "stopped", "10.0", "600", "-3.1"]
    assert lines[:2] == ["reverse: 601 frames, equal", "wrote movies/reverse.bk2"]
    assert lines[-1] == "wrote the Minari dataset kart/one-v0: 1 episode"
    done = run("drives", "movies/reverse.bk2", "--game", GAME, "--output", "back", folder=tmp_path)
    assert done.stdout.splitlines()[0] == "wrote back/reverse.drive"
    assert len(load_drive(tmp_path / "back" / "reverse.drive")) == 472
    metadata = next((tmp_path / "minari").rglob("metadata.json"))
    assert json.loads(metadata.read_text())["total_steps"] == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.bk2"], "a.bk2: is a movie: name its game, --game, and a folder for its drive, --output"),
        (["a.bk2", "--game", GAME, "--output", "x"], "a.bk2: no such file"),
        (["a.drive"], "a.drive: no such drive."),
        (["damaged.drive"], "damaged.drive: is not a drive: File is not a zip file"),
        (["kept/a.bk2", "--game", GAME, "--output", "kept"], "kept/a.drive: exists already: choose another folder"),
        (["kept", "--bk2", "x"], "have the same name, and both would be written to x/a.bk2"),
        (["reverse", "--bk2", "damaged.drive"], "damaged.drive/reverse.bk2: can't be written: Not a directory"),
        pytest.param(["race", "walls", "--minari", "no name!"], "no name!: ", marks=needs_minari),
    ],
)
def test_mistakes_end_with_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.drive").write_text("x")
    for name in ("kept/a.drive", "kept/b/a.drive"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SHIPPED / "reverse.drive", tmp_path / name)
    (tmp_path / "kept/a.bk2").touch()
    done = run("drives", *arguments, folder=tmp_path, environment={"MINARI_DATASETS_PATH": str(tmp_path)})
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
