"""``kart-rewards watch``: an agent in a real window under Xvfb, and in video files."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import imageio.v2 as imageio
import numpy as np
import pytest
import straight_on
from xvfb import Display, virtual_display, wait_until

from kart_rewards.defaults import DEFAULT_FRAME_SKIP
from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.env import KartEnv, panel
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import Policy, PolicyMaker
from kart_rewards.evaluation.agents import DEFAULT_LOADER
from kart_rewards.look import watch as look
from kart_rewards.splits import splits_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent that drives straight on, whose episodes are truncated after two seconds."""
    return straight_on.save_agent(tmp_path_factory.mktemp("agent") / "agent.json")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "kart_rewards", "watch", *map(str, arguments)]


def watch(
    *arguments: str | Path, loader: str = straight_on.LOADER, modules: tuple[str, ...] = forks.COMMANDS
) -> subprocess.CompletedProcess[str]:
    """Runs the command without a display."""
    without = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment = without | straight_on.ENVIRONMENT
    return forks.run([*command(*arguments), "--loader", loader], modules, cwd=ROOT, env=environment)


def test_a_video_shows_the_game_and_the_terms(agent: Path, tmp_path: Path) -> None:
    done = watch(agent, "--output", tmp_path / "drive.mp4", "--scale", "2", "--state", "Level2")
    assert done.returncode == 0, done.stderr
    assert "Level2, seed 1: 0 laps, ended by the time limit, return " in done.stdout
    assert f"wrote {tmp_path / 'drive.mp4'}" in done.stdout
    frames = list(imageio.get_reader(tmp_path / "drive.mp4").iter_data())
    assert len(frames) == 120 + 90, "each emulated frame, and the last one for a second and a half more"
    assert [path.name for path in tmp_path.iterdir()] == ["drive.mp4"]
    game, panel = frames[100][:, :512].astype(int), frames[100][:, 512:].astype(int)
    assert np.abs(game - frames[0][:, :512]).mean() > 3, "the picture moves"
    assert np.abs(panel - frames[0][:, 512:]).max() > 60, "a term's total changed"
    assert (panel.mean(axis=-1) > 150).sum() > 500, "there is text"


def test_the_episodes_are_recorded_as_drives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json", steps=77))
    look.watch(agent, state="Level2", output=tmp_path / "drive.mp4", scale=1, seconds=0.5, seed=7)
    [path] = (tmp_path / "drives" / "watch").iterdir()
    drive = load_drive(path)
    assert path.name == "Level2-agent-7.drive"
    assert (drive.info.state, drive.info.driver, drive.info.steps_before) == ("Level2", "agent", 77)
    assert (len(drive), drive.info.truncated) == (1 + 28, True), "seven steps"
    assert all("B" in held for held in drive.buttons[1:])
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    capsys.readouterr()
    for seed in (7, 8):
        look.watch(agent, output=tmp_path / "drive.mp4", scale=1, seconds=0.1, seed=seed)
    printed = capsys.readouterr().out
    notice = f"{path.parent}: can't be written: Not a directory: the episodes are not recorded"
    assert printed.count("can't be written") == printed.count(notice) == 1


def test_a_gif_may_be_short(agent: Path, tmp_path: Path) -> None:
    done = watch(agent, "--output", tmp_path / "drive.gif", "--scale", "1", "--seconds", "0.5", "--sampled")
    assert done.returncode == 0, done.stderr
    assert len(imageio.mimread(tmp_path / "drive.gif")) in (19, 20, 21)


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as display:
        yield display


@pytest.mark.parametrize("how", ["Escape", "Ctrl-C", pytest.param("close button", marks=pytest.mark.slow)])
def test_a_window_shows_one_episode_after_the_other(agent: Path, display: Display, how: str) -> None:
    environment = os.environ | straight_on.ENVIRONMENT | {"DISPLAY": display.name, "PYTHONUNBUFFERED": "1"}
    with forks.Fork(
        command(agent, "--loader", straight_on.LOADER, *(["--ghost", "race"] if how == "Escape" else [])),
        forks.COMMANDS,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("Level1, seed 1: ")
        wait_until(lambda: not display.is_dark(), "the window shows the next episode")
        before = display.picture().astype(int)
        wait_until(lambda: np.abs(display.picture() - before).mean() > 1, "the picture moves")
        if how == "Escape":
            display.xdotool("key", "Escape")
        elif how == "close button":
            display.press_close_button()
        else:
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert stderr == ""
    assert process.returncode == (130 if how == "Ctrl-C" else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "is set. To write a video instead: --output drive.mp4"),
        (["--output", "drive.avi"], "drive.avi: must end in .mp4 or .gif"),
        (["--output", "pyproject.toml/drive.mp4"], "pyproject.toml/drive.mp4: can't be written: Not a directory"),
        (
            ["--output", "pyproject.toml/drive.gif", "--seconds", "0.1", "--scale", "1"],
            "pyproject.toml/drive.gif: can't be written: Not a directory",
        ),
        (["--state", "Level9", "--output", "drive.mp4"], "Level9.state: no such start state"),
        (["--scale", "17", "--output", "drive.mp4"], "--scale must be between 1 and 16, not 17"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_reported(agent: Path, arguments: list[str], words: str) -> None:
    done = watch(agent, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "drive.mp4").exists()


# FOSDEM/video#48: a recording whose process was killed left a broken MP4 file.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "--seconds must be a finite number above 0, not 0"),
        ({"seconds": -1}, "--seconds must be a finite number above 0, not -1"),
        ({"seconds": math.nan}, "--seconds must be a finite number above 0, not nan"),
        ({"seconds": math.inf}, "--seconds must be a finite number above 0, not inf"),
        ({"seed": -1}, "--seed must be 0 or more, not -1"),
        ({"random_start_frames": -4}, "--random-start-frames must be 0 or more, not -4"),
    ],
)
def test_a_number_out_of_its_range_is_reported_by_its_own_option(
    agent: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(KartRewardsError, match=f"^{message}$"):
        look.watch(straight_on.load_agent(agent), output=tmp_path / "drive.mp4", **options)
    assert not list(tmp_path.iterdir())


def test_the_help_says_for_how_long_the_last_picture_stays() -> None:
    said = f"last picture then stays for {look._SECONDS_AFTER_EPISODE} seconds"
    assert said in " ".join((look.command.__doc__ or "").split())


def test_a_wrapper_that_truncates_the_episode_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "limits.py").write_text(
        "from gymnasium.wrappers import TimeLimit\n\n\ndef short(env):\n    return TimeLimit(env, 5)\n"
    )
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json"))

    def make_policy(env: Any, state: str, seed: int) -> Policy:
        return lambda wrapped, observation: [False] * len(env.unwrapped.buttons)

    options = {**agent.env_options, "wrappers": (f"{tmp_path / 'limits.py'}:short",)}
    limited = replace(agent, env_options=options, make_policy=lambda deterministic: make_policy)
    look.watch(limited, output=tmp_path / "drive.mp4", scale=1)
    assert capsys.readouterr().out.startswith("Level1, seed 1: 0 laps, ended by the time limit, return ")
    frames = list(imageio.get_reader(tmp_path / "drive.mp4").iter_data())
    assert len(frames) == 5 * DEFAULT_FRAME_SKIP + 90, "five steps, and the last picture for a second and a half more"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["drive.mp4", "drive.gif"])
def test_a_command_that_is_killed_leaves_no_video(agent: Path, tmp_path: Path, name: str, number: int) -> None:
    arguments = command(agent, "--loader", straight_on.LOADER, "--output", tmp_path / name, "--scale", "4")
    environment = os.environ | straight_on.ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with forks.Fork(arguments, forks.COMMANDS, cwd=ROOT, env=environment, **pipes) as process:
        wait_until(lambda: any(tmp_path.rglob("*.partial.*")), "the video begins")
        process.send_signal(number)
        process.communicate(timeout=30)
    complete = process.returncode == 0  # the signal came a moment too late
    assert (tmp_path / name).exists() == complete


def test_an_episode_starts_on_the_course_of_training_unless_another_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json", max_episode_frames=8))
    trained_on = replace(agent, env_options={**agent.env_options, "state": ("Level3", "Level4")})
    for state, expected in ((None, "Level3"), ("Level5", "Level5")):
        look.watch(trained_on, state=state, output=tmp_path / "drive.mp4", scale=1, seed=7)
        assert capsys.readouterr().out.startswith(f"{expected}, seed 7: ")


def test_actions_are_deterministic_unless_they_are_to_be_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json"))
    asked: list[bool] = []

    def make_policy(deterministic: bool) -> PolicyMaker:
        asked.append(deterministic)
        return agent.make_policy(deterministic)

    for sampled in (False, True):
        look.watch(
            replace(agent, make_policy=make_policy),
            output=tmp_path / "drive.mp4",
            scale=1,
            seconds=0.1,
            sampled=sampled,
        )
    assert asked == [True, False]


def test_a_video_that_fails_leaves_no_file(tmp_path: Path) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json"))

    def make_policy(env: KartEnv, state: str, seed: int) -> Policy:
        def policy(env: KartEnv, observation: np.ndarray) -> list[bool]:
            raise KartRewardsError("the policy failed")

        return policy

    for name in ("drive.mp4", "drive.gif"):
        with pytest.raises(KartRewardsError, match="the policy failed"):
            look.watch(replace(agent, make_policy=lambda deterministic: make_policy), output=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.json"]


def test_a_video_that_can_not_be_written_is_reported_before_the_episode(tmp_path: Path) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json"))

    def make_policy(env: KartEnv, state: str, seed: int) -> Policy:
        raise AssertionError("the episode begins")

    for name in ("drive.mp4", "drive.gif"):
        output = tmp_path / "agent.json" / name
        with pytest.raises(KartRewardsError, match=f"^{re.escape(str(output))}: can't be written: Not a directory$"):
            look.watch(replace(agent, make_policy=lambda deterministic: make_policy), output=output)


def test_the_default_loader_loads_agents_of_the_training_script(tmp_path: Path) -> None:
    arguments = ("--output", tmp_path / "drive.mp4", "--seconds", "0.5", "--scale", "1")
    shutil.copy(ROOT / "agents" / "HomebrewKart.pt", tmp_path / "best.pt")
    done = watch(tmp_path, *arguments, loader=DEFAULT_LOADER, modules=forks.TRAINING)
    assert done.returncode == 0, done.stderr
    assert "Level1, seed 1: 0 laps, ended by the time limit, return " in done.stdout
    (tmp_path / "agent.pt").write_bytes(b"nothing")
    done = watch(tmp_path / "agent.pt", *arguments, loader=DEFAULT_LOADER, modules=forks.TRAINING)
    assert (done.returncode, done.stdout) == (2, "")
    assert "agent.pt: " in done.stderr
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------------------- ghosts
def test_a_ghost_is_on_the_map_and_the_panel_shows_the_latest_split_on_the_clock_of_the_race(tmp_path: Path) -> None:
    """After a random start, and with the frame skip of an agent: the split is that of the recorded drive."""
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json", max_episode_frames=150))
    shown: list[list[str]] = []

    def fitting(blocks: list[list[str]]) -> list[str]:
        shown.append(panel.fitting(blocks))
        return shown[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "fitting", fitting)
        look.watch(agent, output=tmp_path / "drive.mp4", scale=1, random_start_frames=60, seed=3, ghost="race")
    [path] = (tmp_path / "drives" / "watch").iterdir()
    drive = load_drive(path)
    found, ghost = splits_of(drive), splits_of(load_drive(SHIPPED / "race.drive"))
    assert found and ghost and len(found.reached) >= 3 and len(drive.lead) > 1
    [lap] = found.laps
    rate, number = drive.info.frames_per_second, len(lap)
    seconds, behind = (lap[-1] or 0) / rate, ((lap[-1] or 0) - (ghost.laps[0][number - 1] or 0)) / rate
    words = [line.split() for line in shown[-1]]
    assert ["split", f"{number}/24", "(s)", f"{seconds:.2f}"] in words
    assert ["behind", "ghost", "(s)", f"{behind:+.2f}"] in words
    frames = list(imageio.get_reader(tmp_path / "drive.mp4").iter_data())
    height, width = frames[0].shape[:2]
    assert width > 256 + 300 + height // 2, "the map is beside the panel"
    first, later = (frame[:, -(height // 2) :].astype(int) for frame in (frames[0], frames[140]))
    assert np.abs(first - later)[: height // 2].max() > 80, "the karts move on the map"
    yellow, blue = later[..., 0] - later[..., 2] > 100, later[..., 2] - later[..., 0] > 80
    assert yellow.sum() > 30 and blue.sum() > 30, "both karts, and the legend"


@pytest.mark.parametrize(
    ("ghost", "message"),
    [
        ("race", r"race\.drive: is a drive on Level1, and the agent drives on Level2: name a drive on Level2 with"),
        ("rase", r"^rase: no such drive\. Did you mean 'race'"),
    ],
)
def test_a_ghost_that_does_not_fit_is_reported_before_the_episode(tmp_path: Path, ghost: str, message: str) -> None:
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json"))
    with pytest.raises(KartRewardsError, match=message):
        look.watch(agent, state="Level2", output=tmp_path / "drive.mp4", ghost=ghost)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.json"]


def test_a_game_without_checkpoints_is_watched_without_a_ghost(own_game: Path, tmp_path: Path) -> None:
    data = own_game / "HomebrewKart-Snes" / "data.json"
    variables = json.loads(data.read_text())
    del variables["info"]["num_checkpoints"]
    data.write_text(json.dumps(variables))
    agent = straight_on.load_agent(straight_on.save_agent(tmp_path / "agent.json", max_episode_frames=8))
    options = {**agent.env_options, "integrations": own_game, "scenario": None}
    without = replace(agent, env_options=options)
    look.watch(without, output=tmp_path / "drive.mp4", scale=1)
    assert (tmp_path / "drive.mp4").is_file()
    with pytest.raises(KartRewardsError, match=r"^--ghost reference: HomebrewKart-Snes has no checkpoints"):
        look.watch(without, output=tmp_path / "other.mp4", ghost="reference")
