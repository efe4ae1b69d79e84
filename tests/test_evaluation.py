"""Episodes in the real emulator, in processes that are really killed, and what tables make of them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import psutil
import pytest
import stable_retro

from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import (
    Contestant,
    DriverPolicy,
    Episode,
    Evaluator,
    Policy,
    across_seeds,
    drivers,
    left_out,
    play_episode,
    seeds_table,
    summarise,
    table,
    write_json,
)

OPTIONS = {"game": "HomebrewKart-Snes"}


def straight_on(env: KartEnv, observation: np.ndarray) -> Any:
    return env.action_space.sample() * 0


def make_straight_on(env: KartEnv, state: str, seed: int) -> Policy:
    return straight_on


def make_bad_luck(env: KartEnv, state: str, seed: int) -> Policy:
    raise KartRewardsError(f"no luck on {state}")


def make_bug(env: KartEnv, state: str, seed: int) -> Policy:
    raise ZeroDivisionError("a bug")


@pytest.fixture
def make() -> Iterator[Callable[..., KartEnv]]:
    """Makes an environment, and closes the one before: stable-retro has one emulator a process."""
    made: list[KartEnv] = []

    def make(**options: Any) -> KartEnv:
        while made:
            made.pop().close()
        made.append(KartEnv(**{**OPTIONS, **options}))
        return made[-1]

    yield make
    while made:
        made.pop().close()


def frame_by_frame(make: Callable[..., KartEnv], **options: Any) -> KartEnv:
    return make(action_mode="all", frame_skip=1, observation=ObservationConfig.raw(), **options)


# ------------------------------------------------------------------------------------------------------------ episodes
def test_a_whole_race_by_the_games_own_clock(make: Callable[..., KartEnv]) -> None:
    """The reference driver, after a random start of half a second, which the clocks count and nothing else does."""
    env = frame_by_frame(make)
    rewards = []
    episode = play_episode(
        env,
        DriverPolicy(CentrelineDriver(centreline("Level1"))),
        "Level1",
        1,
        label="reference",
        random_start_frames=60,
        on_step=lambda action, reward, info: rewards.append(reward),
    )
    assert episode.length_steps == len(rewards) - 1  # one look after the reset
    started_after_frames = env.race.frames - episode.length_steps
    assert 20 < started_after_frames <= 60
    ram = env.ram
    own_clock = 60 * ram.race_minutes + ram.race_seconds + ram.race_centiseconds / 100
    assert episode.race_time_seconds == pytest.approx(own_clock, abs=0.15)  # a state begins a few frames into the race
    assert sum(episode.lap_times_seconds or ()) == pytest.approx(episode.race_time_seconds)
    assert (episode.finished, episode.laps_completed, len(episode.lap_times_seconds or ())) == (True, 5, 5)
    assert (episode.state, episode.seed, episode.policy) == ("Level1", 1, "reference")
    assert (episode.done_rule, episode.wall_hits, episode.off_road_seconds) == ("race_finished", 0, 0.0)
    assert episode.episode_return == pytest.approx(sum(rewards))
    assert episode.episode_return == pytest.approx(sum(episode.reward_sums.values()) * 0.01)


def test_a_start_follows_from_state_and_seed_in_every_action_mode(make: Callable[..., KartEnv]) -> None:
    def start(env: KartEnv, state: str, seed: int, random_start_frames: int = 60) -> Any:
        starts: list[Any] = []
        play_episode(
            env,
            straight_on,
            state,
            seed,
            max_episode_frames=1,
            random_start_frames=random_start_frames,
            on_step=lambda action, reward, info: starts.append(env.ram),
        )
        return starts[0]

    starts = [
        [start(env, "Level1", seed) for seed in (1, 2, 3)] + [start(env, "Level2", 1)]
        for options in ({"action_mode": "all", "frame_skip": 1}, {}, {"action_mode": "discrete", "frame_skip": 3})
        for env in [make(**options)]
    ]
    assert starts[0] == starts[1] == starts[2]
    assert len(set(starts[0])) == 4
    env = make()
    assert start(env, "Level1", 1, 0) == start(env, "Level1", 2, 0)
    assert len({start(env, "Level1", seed).current_frame for seed in range(10)}) > 5


def test_an_episode_ends_at_its_limit_of_emulated_frames(make: Callable[..., KartEnv]) -> None:
    for options, steps in (({"frame_skip": 4}, 10), ({"frame_skip": 8}, 5)):
        episode = play_episode(make(**options), straight_on, "Level1", 1, max_episode_frames=41)
        assert (episode.length_steps, episode.done_rule, episode.finished) == (steps, None, False)
        assert episode.lap_times_seconds == ()
        assert episode.race_time_seconds is None


def test_a_game_without_a_race_has_returns(make: Callable[..., KartEnv], tmp_path: Path) -> None:
    """Airstriker, the free Mega Drive game that stable-retro ships."""
    shipped = stable_retro.data.get_file_path(
        "Airstriker-Genesis-v0", "data.json", stable_retro.data.Integrations.STABLE
    )
    folder = shutil.copytree(Path(shipped).parent, tmp_path / "Airstriker-Genesis")
    (folder / "own.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef alive(ram):\n    return ram.lives > 0\n"
    )
    (folder / "scenario.json").write_text(
        json.dumps({"kart_rewards": {"modules": ["own.py"], "rewards": {"alive": 1}, "done": []}})
    )
    options = {"game": "Airstriker-Genesis", "integrations": tmp_path, "reward_transform": "none"}
    random_driver, _, reference = drivers(options)
    assert left_out([random_driver, reference], ["Level1"]) == (
        "left out: reference on Level1: Airstriker-Genesis has no centreline of the road there"
    )
    env = KartEnv(**random_driver.env_options)
    try:
        policy = random_driver.make_policy(env, "Level1", 1)
        episode = play_episode(env, policy, "Level1", 1, max_episode_frames=300, random_start_frames=60)
    finally:
        env.close()
    assert episode.episode_return == episode.reward_sums["alive"] == 300
    assert (episode.finished, episode.laps_completed, episode.lap_times_seconds) == (None, None, None)
    assert (episode.race_time_seconds, episode.off_road_seconds, episode.wall_hits) == (None, None, None)
    summary = summarise([episode])
    assert summary["Level1"][""]["finish_rate"] is None
    assert table(summary).splitlines()[1].split() == ["episodes", "return"]


# ----------------------------------------------------------------------------------------------------------- processes
def contestants() -> list[Contestant]:
    return [*drivers(OPTIONS)[:2], Contestant("agent", make_straight_on, OPTIONS)]


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(workers=2) as evaluator:
        yield evaluator


def workers() -> list[psutil.Process]:
    """The evaluator's processes; the other child is multiprocessing's resource tracker."""
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_episodes_do_not_depend_on_the_workers(evaluator: Evaluator, tmp_path: Path) -> None:
    play = {"states": ["Level1", "Level2"], "episodes": 2, "seed": 7, "max_episode_frames": 240}
    two = list(evaluator.play(contestants(), **play))
    with Evaluator(workers=1) as alone:
        assert list(alone.play(contestants(), **play)) == two
    assert [episode.policy for episode in two] == ["random"] * 4 + ["full-throttle"] * 4 + ["agent"] * 4
    assert [episode.state for episode in two] == ["Level1", "Level1", "Level2", "Level2"] * 3
    seeds = [episode.seed for episode in two]
    assert seeds == seeds[:2] * 6
    assert seeds[0] != seeds[1]
    assert [episode.length_steps for episode in two] == [240] * 8 + [60] * 4
    assert two[0] != two[1]
    # Steering straight on is the full throttle, and an agent's return does not depend on its frame skip.
    assert [episode.off_road_seconds for episode in two[4:8]] == [episode.off_road_seconds for episode in two[8:]]
    assert [episode.episode_return for episode in two[4:8]] == pytest.approx([e.episode_return for e in two[8:]])

    before = workers()
    again = list(evaluator.play(contestants()[1:2], ["Level1"], 2, 7, max_episode_frames=240, video_folder=tmp_path))
    assert again == two[4:6]
    assert [(video.name, imageio.get_reader(video).count_frames()) for video in tmp_path.iterdir()] == [
        ("Level1-full-throttle.mp4", 241)  # a look after the reset, and one after each step
    ]
    assert workers() == before  # they are kept
    assert next(evaluator.play(contestants()[1:2], ["Level1"], 1, 8, max_episode_frames=4)).seed not in seeds


def test_a_contestant_leaves_out_what_it_can_not_play(evaluator: Evaluator) -> None:
    reference = drivers(OPTIONS)[2]
    assert left_out(contestants(), ["Level1", "Level9"]) == ""
    assert left_out([reference], ["Level1"]) == ""
    path = "elsewhere/Level1.state"
    assert left_out([reference], ["Level1", path]).startswith(f"left out: reference on {path}: ")
    assert list(evaluator.play([reference], [path], 3, 1)) == []


def test_errors_of_a_worker_arrive() -> None:
    evaluator = Evaluator(workers=1)

    def play(make_policy: Any, **options: Any) -> list[Episode]:
        contestant = Contestant("agent", make_policy, {**OPTIONS, **options})
        return list(evaluator.play([contestant], ["Level1"], 3, 1, max_episode_frames=40))

    with pytest.raises(KartRewardsError, match=r"^no luck on Level1$"):
        play(make_bad_luck)
    with pytest.raises(KartRewardsError, match="unknown action mode 'sideways'"):
        play(make_straight_on, action_mode="sideways")
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*make_bug.*ZeroDivisionError: a bug"):
        play(make_bug)
    assert len(play(make_straight_on)) == 3
    evaluator.close()


def test_a_killed_worker_is_told_and_replaced(evaluator: Evaluator) -> None:
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
    os.waitid(os.P_PID, idle.pid, os.WEXITED | os.WNOWAIT)
    assert len(list(evaluator.play(contestants()[:1], ["Level1"], 1, 1, max_episode_frames=40))) == 1


def test_leaving_early_ends_the_episodes(evaluator: Evaluator) -> None:
    for _ in evaluator.play(contestants()[:2], ["Level1"], 50, 1):
        assert len(workers()) == 2
        break
    assert workers() == []
    assert len(list(evaluator.play(contestants()[:1], ["Level1"], 1, 1, max_episode_frames=40))) == 1


def test_a_process_that_can_not_be_started_is_told(evaluator: Evaluator) -> None:
    playing = evaluator.play(contestants()[:1], ["Level1"], 1, 1)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
    try:
        with pytest.raises(KartRewardsError, match="a process could not be started: Too many open files"):
            next(playing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


PLAYS = """
import sys
from kart_rewards.evaluation import Evaluator, drivers
if __name__ == "__main__":
    playing = Evaluator(workers=2).play(drivers({"game": "HomebrewKart-Snes"})[:2], ["Level1"], 50, 1)
    print("begins", flush=True)
    try:
        next(playing)
        print("plays", flush=True)
        if sys.argv[1:] == ["leave"]:
            sys.exit(3)
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
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], line: str) -> list[psutil.Process]:
    """Reads what a script prints up to a line; returns its children."""
    assert process.stdout
    assert line in iter(lambda: process.stdout.readline().rstrip(), ""), process.communicate()
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.mark.parametrize("moment", ["begins", "plays"])
def test_ctrl_c_is_left_to_the_parent(script: Any, moment: str) -> None:
    process = script()
    read_until(process, moment)
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and its children alike
    stdout, stderr = process.communicate(timeout=60)
    assert (stdout.splitlines()[-1:], stderr, process.returncode) == (["interrupted"], "", 0)
    assert_gone(children)


def test_killing_the_parent_leaves_no_process_behind(script: Any) -> None:
    process = script()
    children = read_until(process, "plays")
    assert len(children) >= 2
    process.kill()
    assert_gone(children)


def test_an_evaluator_that_nobody_closed_does_not_hold_up_the_exit(script: Any) -> None:
    process = script("leave")
    children = read_until(process, "plays")
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 3
    assert_gone(children)


# ---------------------------------------------------------------------------------------------------------- statistics
def episode(
    policy: str = "agent",
    state: str = "Level1",
    laps: tuple[float, ...] = (),
    episode_return: float = 0.0,
    **values: Any,
) -> Episode:
    """A race of three laps; with fewer it was not finished."""
    finished = len(laps) == 3
    known = {
        "seed": 1,
        "finished": finished,
        "laps_completed": len(laps),
        "race_time_seconds": sum(laps) if finished else None,
        "off_road_seconds": 0.0,
        "wall_hits": 0,
        "length_steps": 1000,
        "done_rule": "race_finished" if finished else None,
        "reward_sums": {},
    }
    return Episode(
        **{**known, **values}, policy=policy, state=state, lap_times_seconds=laps, episode_return=episode_return
    )


EPISODES = [
    episode(laps=(12.0, 10.0, 10.0), off_road_seconds=1.0, wall_hits=2, episode_return=100.0),
    episode(laps=(13.0, 11.0, 12.0), off_road_seconds=2.0, wall_hits=1, episode_return=90.0),
    episode(laps=(14.0, 10.5), off_road_seconds=6.0, wall_hits=7, episode_return=50.0),
    episode("random", wall_hits=7, off_road_seconds=3.0, episode_return=-5.0),
    episode("agent", "Level2", laps=(20.0, 20.0, 20.0)),
]


def test_statistics_by_course_and_policy() -> None:
    summary = summarise(EPISODES)
    assert {course: list(by_policy) for course, by_policy in summary.items()} == {
        "Level1": ["agent", "random"],
        "Level2": ["agent"],
    }
    assert summary["Level1"]["agent"] == {
        "episodes": 3,
        "finish_rate": 2 / 3,
        "best_lap_time_seconds": 10.0,  # laps: 10, 10, 10.5, 11, 12, 12, 13, 14
        "lower_quartile_lap_time_seconds": 10.375,
        "median_lap_time_seconds": 11.5,
        "upper_quartile_lap_time_seconds": 12.25,
        "best_race_time_seconds": 32.0,
        "lower_quartile_race_time_seconds": 33.0,
        "median_race_time_seconds": 34.0,
        "upper_quartile_race_time_seconds": 35.0,
        "median_off_road_seconds": 2.0,
        "median_wall_hits": 2.0,
        "lower_quartile_return": 70.0,
        "median_return": 90.0,
        "upper_quartile_return": 95.0,
    }
    never = summary["Level1"]["random"]
    assert never["finish_rate"] == 0.0
    assert {never[metric] for metric in never if "_time_" in metric} == {None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summarise([]) == {}


def test_a_table_reads_well() -> None:
    assert table(summarise(EPISODES)).splitlines() == [
        "                    ------- lap time, s -------  ------- race time, s ------      off  wall",
        "          finished   best    25%  median    75%   best    25%  median    75%  road, s  hits  return",
        "Level1",
        "  agent        2/3  10.00  10.38   11.50  12.25  32.00  33.00   34.00  35.00      2.0   2.0    90.0",
        "  random       0/1      -      -       -      -      -      -       -      -      3.0   7.0    -5.0",
        "Level2",
        "  agent        1/1  20.00  20.00   20.00  20.00  60.00  60.00   60.00  60.00      0.0   0.0     0.0",
        "Lap times: all completed laps. Race times: finished episodes. Off road, wall hits, return: medians.",
    ]


def test_a_table_of_long_races_fits_120_columns() -> None:
    slow = episode("agent, deterministic", laps=(39.5, 40.25, 41.0), off_road_seconds=100.0, episode_return=-100.0)
    assert max(map(len, table(summarise([slow])).splitlines())) <= 120


def test_statistics_over_training_seeds() -> None:
    """Three agents, of which two finished."""
    summaries = [
        summarise(EPISODES[:3]),
        summarise([episode(laps=(13.0, 11.0, 12.0), episode_return=90.0)]),
        summarise([episode(wall_hits=7)]),
    ]
    statistics = across_seeds(summaries)
    agent = statistics["Level1"]["agent"]
    assert agent["finish_rate"] == {
        "lower_quartile": 1 / 3,
        "median": 2 / 3,
        "upper_quartile": pytest.approx(5 / 6),
        "seeds": 3,
    }
    assert agent["best_race_time_seconds"] == {
        "lower_quartile": 33.0,
        "median": 34.0,
        "upper_quartile": 35.0,
        "seeds": 2,
    }
    assert json.loads(json.dumps(statistics, allow_nan=False)) == statistics
    assert seeds_table(statistics).splitlines() == [
        "                            - lap time, s -  - race time, s -      off  wall",
        "                  finished   best    median   best     median  road, s  hits  return",
        "Level1",
        "  agent, 3 seeds       67%  10.50     11.75  34.00      35.00      0.0   2.0    90.0",
        "    25%                33%  10.25     11.62  33.00      34.50      0.0   1.0    45.0",
        "    75%                83%  10.75     11.88  35.00      35.50      1.0   4.5    90.0",
        "    seeds                3      2         2      2          2        3     3       3",
        "The median over the seeds, and the values at 25% and 75%. Seeds: of how many there is a value.",
    ]
    assert "time" not in seeds_table(across_seeds(summaries[2:])).splitlines()[0]


# ---------------------------------------------------------------------------------------------------------------- JSON
def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation.json"
    path.parent.mkdir()
    content = {"summary": summarise(EPISODES), "episodes": [asdict(played) for played in EPISODES]}
    write_json(path, content)
    assert json.loads(path.read_text())["episodes"][0]["lap_times_seconds"] == [12.0, 10.0, 10.0]
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # as good as a full disk
    try:
        with pytest.raises(KartRewardsError, match=rf"^{path}: can't be written: File too large$"):
            write_json(path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    with pytest.raises(KartRewardsError, match=rf"^{path.parent}: can't be written: "):
        write_json(path.parent, content)
    with pytest.raises(KartRewardsError, match=r"below\.json: can't be written: Not a directory"):
        write_json(path / "below.json", content)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["evaluation.json"]
