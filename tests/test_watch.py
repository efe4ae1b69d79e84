"""``python -m kart_rewards watch``: an agent in a real window under Xvfb, and in video files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from xvfb import Display, virtual_display, wait_until

import ppo_continuous_single_file as ppo
from kart_rewards.env import KartEnv

GAME = "HomebrewKart-Snes"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an agent that has learned nothing, whose episodes end after two seconds."""
    path = tmp_path_factory.mktemp("agent") / "best.pt"
    args = ppo.Args(env=ppo.EnvOptions(env_id=GAME, max_episode_steps=30))
    env = KartEnv(**args.env.of_kart_env())
    torch.manual_seed(1)
    weights = ppo.Agent(env.observation_space, env.action_space).state_dict()
    env.close()
    torch.save(
        {"agent": weights, "updates": 0, "steps": 0, "options": ppo.plain(asdict(args)), "scoring": {}},
        path,
    )
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "kart_rewards", "watch", *map(str, arguments)]


def watch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.run(command(*arguments), cwd=ROOT, env=without, capture_output=True, text=True, check=False)


def test_a_video_shows_the_game_and_the_terms(agent: Path, tmp_path: Path) -> None:
    done = watch(agent, "--output", tmp_path / "drive.mp4", "--scale", "2", "--state", "Level2")
    assert done.returncode == 0, done.stderr
    assert "Level2, seed 1: 0 laps until it was cut off, return " in done.stdout
    assert f"wrote {tmp_path / 'drive.mp4'}" in done.stdout
    frames = list(imageio.get_reader(tmp_path / "drive.mp4").iter_data())
    assert len(frames) == 30 * 4 + 90, "every emulated frame, and the last one for a second and a half more"
    game, panel = frames[100][:, :512].astype(int), frames[100][:, 512:].astype(int)
    assert np.abs(game - frames[0][:, :512]).mean() > 3, "the picture moves"
    assert np.abs(panel - frames[0][:, 512:]).max() > 60, "a term's total changed"
    assert (panel.mean(axis=-1) > 150).sum() > 500, "there is text"


def test_a_gif_may_be_short(agent: Path, tmp_path: Path) -> None:
    done = watch(agent, "--output", tmp_path / "drive.gif", "--scale", "1", "--seconds", "0.5", "--sampled")
    assert done.returncode == 0, done.stderr
    assert len(imageio.mimread(tmp_path / "drive.gif")) in (19, 20, 21)


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as display:
        yield display


@pytest.mark.parametrize("how", ["Escape", "close button", "Ctrl-C"])
def test_a_window_shows_one_episode_after_the_other(agent: Path, display: Display, how: str) -> None:
    environment = os.environ | {"DISPLAY": display.name, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command(agent), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
        ([], "a window needs a display, and there is none"),
        (["--output", "drive.avi"], "drive.avi: must end in .mp4 or .gif"),
        (["--output", "pyproject.toml/drive.mp4"], "pyproject.toml/drive.mp4: the video can't be written"),
        (["--output", "pyproject.toml/drive.gif"], "pyproject.toml/drive.gif: can't be made"),
        (["--state", "Level9", "--output", "drive.mp4"], "Level9.state: no such start state"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told(agent: Path, arguments: list[str], words: str) -> None:
    done = watch(agent, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "drive.mp4").exists()


def test_a_file_that_holds_no_agent_is_told(tmp_path: Path) -> None:
    (tmp_path / "agent.pt").write_bytes(b"nothing")
    done = watch(tmp_path / "agent.pt", "--output", tmp_path / "drive.mp4")
    assert (done.returncode, done.stdout) == (2, "")
    assert "agent.pt: is not a checkpoint, or a damaged one" in done.stderr
