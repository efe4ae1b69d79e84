"""Episodes in worker processes, which are really killed and interrupted."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import psutil
import pytest
from conftest import GAME
from training_runs import clean_children, wait_until

from kart_rewards.drives import load_drive
from kart_rewards.env import KartEnv
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import Contestant, EpisodeResult, Evaluator, Policy, drivers
from kart_rewards.evaluation.courses import checkpoint_times, split_times
from kart_rewards.integrations import INTEGRATIONS

OPTIONS = {"game": "HomebrewKart-Snes"}


def straight_on(env: KartEnv, observation: np.ndarray) -> Any:
    return env.action_space.sample() * 0


def make_straight_on(env: KartEnv, state: str, seed: int) -> Policy:
    return straight_on


def make_error(env: KartEnv, state: str, seed: int) -> Policy:
    raise KartRewardsError(f"no policy for {state}")


def make_bug(env: KartEnv, state: str, seed: int) -> Policy:
    raise ZeroDivisionError("a bug")


def make_with_full_disk(env: KartEnv, state: str, seed: int) -> Policy:
    """Limits the files that this process and its encoder write, which has the effect of a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return straight_on


def contestants() -> list[Contestant]:
    return [*drivers(OPTIONS)[:2], Contestant("agent", make_straight_on, OPTIONS)]


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    """The tests that end its processes leave it to the next one to start others."""
    with Evaluator(workers=2) as evaluator:
        yield evaluator


def workers() -> list[psutil.Process]:
    """The evaluator's processes."""
    return clean_children(os.getpid())


def test_episodes_do_not_depend_on_the_workers(evaluator: Evaluator, tmp_path: Path) -> None:
    play: dict[str, Any] = {"states": ["Level1", "Level2"], "episodes": 2, "seed": 7, "max_episode_frames": 120}
    two = list(evaluator.play(contestants(), **play))
    with Evaluator(workers=1) as alone:
        assert list(alone.play(contestants(), **play)) == two
    assert [episode.policy for episode in two] == ["random"] * 4 + ["full-throttle"] * 4 + ["agent"] * 4
    assert [episode.state for episode in two] == ["Level1", "Level1", "Level2", "Level2"] * 3
    seeds = [episode.seed for episode in two]
    assert seeds == seeds[:2] * 6
    assert seeds[0] != seeds[1]
    assert [episode.length_steps for episode in two] == [120] * 8 + [30] * 4
    assert two[0] != two[1]
    # Driving straight on is what the full-throttle driver does, and a return does not depend on the frame skip.
    assert [episode.off_road_seconds for episode in two[4:8]] == [episode.off_road_seconds for episode in two[8:]]
    assert [episode.episode_return for episode in two[4:8]] == pytest.approx([e.episode_return for e in two[8:]])

    before = workers()
    again = list(evaluator.play(contestants()[1:2], ["Level1"], 2, 7, max_episode_frames=120, video_folder=tmp_path))
    assert again == two[4:6]
    [video] = tmp_path.iterdir()
    reader: Any = imageio.get_reader(video)
    assert (video.name, reader.count_frames()) == ("Level1-full-throttle.mp4", 121), "one after the reset and each step"
    assert workers() == before, "the processes are kept"
    assert next(evaluator.play(contestants()[1:2], ["Level1"], 1, 8, max_episode_frames=4)).seed not in seeds


def test_a_contestant_skips_courses_that_it_can_not_play(evaluator: Evaluator) -> None:
    reference = drivers(OPTIONS)[2]
    assert list(evaluator.play([reference], ["another/Level1.state"], 3, 1)) == []


def test_errors_of_a_worker_are_raised_here() -> None:
    evaluator = Evaluator(workers=1)

    def play(make_policy: Any, **options: Any) -> list[EpisodeResult]:
        contestant = Contestant("agent", make_policy, {**OPTIONS, **options})
        return list(evaluator.play([contestant], ["Level1"], 3, 1, max_episode_frames=40))

    with pytest.raises(KartRewardsError, match=r"^no policy for Level1$"):
        play(make_error)
    with pytest.raises(KartRewardsError, match="unknown action mode 'sideways'"):
        play(make_straight_on, action_mode="sideways")
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*make_bug.*ZeroDivisionError: a bug"):
        play(make_bug)
    assert len(play(make_straight_on)) == 3
    evaluator.close()


# Observed: the videos of Zone.Act1 and Zone.Act2 were one file, which two processes wrote at once.
# DLR-RM/stable-baselines3#2061: each video replaced the one before, because all had one name.
def test_each_state_has_a_video_of_its_own(evaluator: Evaluator, tmp_path: Path) -> None:
    shutil.copytree(INTEGRATIONS / GAME, tmp_path / "games" / GAME)
    folder = tmp_path / "games" / GAME
    for copy in (folder / "Zone.Act1.state", folder / "Zone.Act2.state", tmp_path / "Level1.state"):
        shutil.copy(folder / "Level1.state", copy)
    states = ["Zone.Act1", "Zone.Act2", "Level1", str(tmp_path / "Level1.state"), "Level1"]
    agent = Contestant("agent", make_straight_on, OPTIONS | {"integrations": tmp_path / "games"})
    play: dict[str, Any] = {"seed": 1, "max_episode_frames": 40, "video_folder": tmp_path / "videos"}
    results = list(evaluator.play([agent], states, 2, **play))
    assert [result.state for result in results] == [state for state in states[:-1] for _ in range(2)]
    videos = ["Level1-agent.mp4", "Zone.Act1-agent.mp4", "Zone.Act2-agent.mp4", f"{tmp_path.name}-Level1-agent.mp4"]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(videos)
    for video in videos:
        reader: Any = imageio.get_reader(tmp_path / "videos" / video)
        assert reader.count_frames() == 11
        picture = reader.get_data(5)
        assert picture.shape[1] > 500, "a panel is beside the game"
        assert (picture[:, 256:].mean(axis=-1) > 150).sum() > 500, "with text"


# Observed: a full disk, or a folder that may not be written to, ended the evaluation and with it the training.
# verl-project/verl-omni#437, openai/gym#35: a video that could not be written ended the training, or the step of the
# environment.
def test_videos_that_fail_cost_only_the_videos(
    evaluator: Evaluator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").write_text("")
    play: dict[str, Any] = {"states": ["Level1", "Level2"], "episodes": 2, "seed": 7, "max_episode_frames": 240}
    agent = contestants()[-1:]
    expected = list(evaluator.play(agent, **play))
    assert list(evaluator.play(agent, **play, video_folder=tmp_path / "videos")) == expected
    assert capfd.readouterr().err == (
        f"\n{tmp_path}/videos/Level1-agent.mp4: can't be written: Not a directory. 1 other file can't be written "
        "either. The evaluation goes on without.\n"
    )


def test_a_disk_that_becomes_full_costs_only_the_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    play: dict[str, Any] = {"states": ["Level1"], "episodes": 2, "seed": 7, "max_episode_frames": 240}
    agent = contestants()[-1]
    with Evaluator(workers=1) as evaluator:
        list(evaluator.play([replace(agent, make_policy=make_with_full_disk)], **play))
        results = list(evaluator.play([agent], **play, video_folder=tmp_path))
    assert len(results) == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    assert f"{tmp_path}/Level1-agent.mp4: can't be written: " in line
    assert list(tmp_path.iterdir()) == []


def test_each_episode_is_recorded(evaluator: Evaluator, tmp_path: Path) -> None:
    play: dict[str, Any] = {"states": ["Level1", "Level2"], "episodes": 2, "seed": 7, "max_episode_frames": 120}
    results = list(evaluator.play(contestants()[-1:], **play, drive_folder=tmp_path / "drives"))
    paths = [tmp_path / "drives" / f"{each.state}-agent-{number}.drive" for each, number in zip(results, [1, 2] * 2)]  # noqa: B905
    assert sorted(paths) == sorted((tmp_path / "drives").iterdir())
    for path, result in zip(paths, results, strict=True):
        drive = load_drive(path)
        assert (drive.info.driver, drive.info.seed, drive.info.truncated) == ("agent", result.seed, True)
        assert drive.rewards.sum() == pytest.approx(result.episode_return)
        assert len(drive.rewards) == result.length_steps
        assert result.marks
        assert len(result.marks.path) == result.length_steps + 1
        assert result.marks.path[-1] == (drive[-1].kart_x, drive[-1].kart_y)
        assert set(result.marks.fired) == set(result.value_sums) == set(result.reward_sums)
        assert result.reward_sums["time"] == -result.value_sums["time"] < 0
        assert len(result.marks.fired["time"]) == sum(ram.current_frame % 30 == 0 for ram in drive[1:])
        assert result.split_times_seconds == split_times(drive)
        assert result.checkpoint_times_seconds == checkpoint_times(drive) != ()
        assert result.laps_driven == pytest.approx(drive[-1].checkpoint / drive[-1].num_checkpoints)


def test_drives_that_fail_cost_only_the_drives(
    evaluator: Evaluator, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drives").write_text("")
    play: dict[str, Any] = {"states": ["Level1"], "episodes": 1, "seed": 7, "max_episode_frames": 40}
    assert len(list(evaluator.play(contestants()[-1:], **play, drive_folder=tmp_path / "drives"))) == 1
    assert f"{tmp_path}/drives/Level1-agent-1.drive: can't be written: Not a directory" in capfd.readouterr().err


def test_a_killed_worker_is_reported_and_replaced(evaluator: Evaluator) -> None:
    playing = evaluator.play(contestants()[:2], ["Level1"], 50, 1)
    next(playing)
    killed, other = workers()
    killed.send_signal(signal.SIGKILL)
    with pytest.raises(KartRewardsError, match=r"a worker process ended unexpectedly \(killed by signal 9\)"):
        list(playing)
    assert not other.is_running()
    assert len(list(evaluator.play(contestants()[:1], ["Level1"], 1, 1, max_episode_frames=40))) == 1
    idle = workers()[0]
    idle.send_signal(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(idle.pid), 10)  # a zombie's threads may still hold its connection
    assert len(list(evaluator.play(contestants()[:1], ["Level1"], 1, 1, max_episode_frames=40))) == 1


def test_stopping_early_ends_the_episodes(evaluator: Evaluator) -> None:
    for _ in evaluator.play(contestants()[:2], ["Level1"], 50, 1):
        assert len(workers()) == 2
        break
    assert workers() == []
    assert len(list(evaluator.play(contestants()[:1], ["Level1"], 1, 1, max_episode_frames=40))) == 1


def test_a_process_that_can_not_be_started_is_reported() -> None:
    playing = Evaluator(workers=2).play(contestants()[:1], ["Level1"], 1, 1)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(KartRewardsError, match="a process could not be started: Too many open files"):
            next(playing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


PLAYS = """
from kart_rewards.evaluation import Evaluator, drivers
if __name__ == "__main__":
    playing = Evaluator(workers=2).play(drivers({"game": "HomebrewKart-Snes"})[:2], ["Level1"], 50, 1)
    try:
        next(playing)
        print("plays", flush=True)
        list(playing)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script that evaluates, in a session of its own."""
    (tmp_path / "plays.py").write_text(PLAYS)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "plays.py"), *arguments]
        started.append(
            subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], line: str) -> list[psutil.Process]:
    """Reads what a script prints up to a line; returns its children."""
    output = process.stdout
    assert output
    assert line in iter(lambda: output.readline().rstrip(), ""), process.communicate()
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_only_the_parent_handles_ctrl_c(script: Any) -> None:
    process = script()
    children = read_until(process, "plays")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and its children
    stdout, stderr = process.communicate(timeout=60)
    assert (stdout.splitlines()[-1:], stderr, process.returncode) == (["interrupted"], "", 0)
    assert_gone(children)


def test_killing_the_parent_leaves_no_process_behind(script: Any) -> None:
    process = script()
    children = read_until(process, "plays")
    assert len(children) >= 2
    process.kill()
    assert_gone(children)
