"""``kart-rewards play``: keys are pressed in a real window, and recordings are written."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import stable_retro
from xvfb import Display, virtual_display, wait_until

from kart_rewards.drivers import CentrelineDriver, centreline
from kart_rewards.env import KartEnv
from kart_rewards.env.movie import save_movie
from kart_rewards.env.window import PANEL_LINES, Lit, compose
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.look.play import Recording
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import parse_weights
from kart_rewards.scenario import load_scoring
from kart_rewards.testing import load_trace, score

GAME = "HomebrewKart-Snes"
AIRSTRIKER = "Airstriker-Genesis-v0"
SCRIPT = """
from kart_rewards import done_rule, reward_term

@reward_term(weight=0.1)
def speed(ram):
    return ram.speed / 7

@done_rule()
class TwoSeconds:
    def __init__(self):
        self.frames = 0
    def __call__(self, ram):
        self.frames += 1
        return self.frames > 120
"""


@pytest.fixture(scope="module")
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Display]:
    with virtual_display(tmp_path_factory.mktemp("display")) as display:
        yield display


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(display: Display, tmp_path: Path) -> Iterator[Start]:
    """Starts the command in ``tmp_path``, and waits until its window is open."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        program = forks.Fork(
            [sys.executable, "-m", "kart_rewards", "play", *arguments],
            forks.COMMANDS,
            cwd=tmp_path,
            env=os.environ | {"DISPLAY": display.name, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(program)
        wait_until(lambda: program.poll() is not None or not display.is_dark(), "the window is open")
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


@pytest.fixture
def make() -> Iterator[Callable[..., KartEnv]]:
    """Makes environments as the command does, one after the other."""
    made: list[KartEnv] = []

    def make(game: str = GAME, **options: Any) -> KartEnv:
        for env in made:
            env.close()
        made.append(KartEnv(game, action_mode="all", frame_skip=1, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """A folder of games with Airstriker, the free Mega Drive game of stable-retro, and a reward term for it."""
    shipped = Path(
        stable_retro.data.get_file_path(AIRSTRIKER, "data.json", stable_retro.data.Integrations.STABLE)
    ).parent
    copy = shutil.copytree(shipped, tmp_path / "games" / AIRSTRIKER)
    (copy / "terms.py").write_text(
        "from kart_rewards import done_rule, reward_term\n\n\n"
        "@reward_term(weight=2)\ndef scored(ram, previous):\n    return ram.score - previous.score\n\n\n"
        "@done_rule()\ndef lost(ram):\n    return ram.lives == 0\n"
    )
    scenario = json.loads((copy / "scenario.json").read_text())
    scenario["kart_rewards"] = {"modules": ["terms.py"], "rewards": {"scored": None}, "done": ["lost"]}
    (copy / "scenario.json").write_text(json.dumps(scenario))
    return copy.parent


def play_frames(recording: Recording, frames: int, *held: str) -> None:
    for _ in range(frames):
        recording.step(frozenset(held))


def replayed(movie_path: Path, integrations: Path, data: Path) -> Iterator[Any]:
    """The RAM of each frame of a movie, as stable-retro's own environment plays it back."""
    gc.collect()
    stable_retro.data.Integrations.add_custom_path(str(integrations))
    movie = stable_retro.Movie(str(movie_path))
    movie.step()
    env = stable_retro.make(
        movie.get_game(),
        stable_retro.State.NONE,
        inttype=stable_retro.data.Integrations.CUSTOM,
        use_restricted_actions=stable_retro.Actions.ALL,
        players=movie.players,
        render_mode="rgb_array",
    )
    try:
        layout = RamLayout.from_file(data)
        env.initial_state = movie.get_state()
        env.reset()
        yield layout.decode(env.data.memory.blocks)
        while movie.step():
            env.step([movie.get_key(button, 0) for button in range(env.num_buttons)])
            yield layout.decode(env.data.memory.blocks)
    finally:
        env.close()
        stable_retro.data.Integrations.clear_custom_paths()


# ---------------------------------------------------------------------------------------------------------- the command
PANEL = slice(3 * 256, None)  # the columns of the window right of the picture, at scale 3
BEFORE_PAID, AFTER_PAID = slice(0, 230), slice(340, None)  # the parts of a term's line around its latest payment


def line(text: str) -> np.ndarray:
    """The picture of a line."""
    return compose(np.zeros((224, 256, 3), np.uint8), [text])[:24, PANEL]


def is_on_screen(panel: np.ndarray, text: str) -> bool:
    """Whether a panel has a line, highlighted or not. The column of latest payments is not compared."""
    rows = [panel[top : top + 24] for top in range(0, 672, 24)]
    return any(
        all(np.array_equal(row[:, part], look[:, part]) for part in (BEFORE_PAID, AFTER_PAID))
        for look in (line(text), line(Lit(text)))
        for row in rows
    )


def test_a_recording_agrees_with_what_the_window_showed(start: Start, display: Display, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    program = start("--rewards", "mine.py", "--reward-weights", "speed=0.03", "time=-2.5")
    display.xdotool("keydown", "z", "keydown", "Left")
    wait_until(
        lambda: is_on_screen(display.picture()[:, PANEL], "over: two_seconds"), "the done rule has ended the episode"
    )
    panel = display.picture()[:, PANEL]
    display.xdotool("keyup", "z", "keyup", "Left", "key", "Escape")
    output, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (0, "")

    trace = load_trace(tmp_path / "recordings" / f"{GAME}-Level1-1.drive")
    assert len(trace) == 121
    assert trace[-1].speed > 100, "the throttle was held"
    weights = parse_weights(["speed=0.03", "time=-2.5"])
    scoring = load_scoring(find_game(GAME).json_path("scenario"), [tmp_path / "mine.py"], weights)
    totals = score(trace, scoring.terms)
    assert totals["speed"] > 10
    for name, total in {**totals, "all": sum(totals.values())}.items():
        assert is_on_screen(panel, f"{name:<30}{total:>10.2f}"), f"{name} {total:.2f}"
    assert f"{GAME}-Level1-1.drive, .bk2: 120 frames, reward {sum(totals.values()):.2f}" in output


def test_each_episode_is_recorded_however_the_program_ends(start: Start, display: Display, tmp_path: Path) -> None:
    """It ends by SIGTERM, Ctrl-C and the close button. R begins another episode. No file is overwritten."""
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    (recordings / f"{GAME}-Level2-2.bk2").write_text("another recording")

    def r_was_pressed() -> bool:
        display.xdotool("key", "r")
        return len(list(recordings.glob("*.drive"))) > before

    endings: list[Callable[[subprocess.Popen[str]], None]] = [
        lambda program: program.send_signal(signal.SIGTERM),
        lambda program: program.send_signal(signal.SIGINT),
        lambda program: display.press_close_button(),
    ]
    for end in endings:
        before = len(list(recordings.glob("*.drive")))
        program = start("--state", "Level2")
        wait_until(r_was_pressed, "an episode is recorded")
        end(program)
        output, errors = program.communicate(timeout=20)
        assert (program.returncode, errors) == (0, "")
        names = {Path(text.split(",")[0]).name for text in output.splitlines()}
        assert names, "each recording is reported"
        assert len(list(recordings.glob("*.drive"))) == before + len(names)
    for path in recordings.glob("*.drive"):
        name = path.name.removesuffix(".drive")
        assert zipfile.ZipFile(recordings / f"{name}.bk2").testzip() is None
        assert len(load_trace(path)) >= 2
    assert (recordings / f"{GAME}-Level2-2.bk2").read_text() == "another recording"
    assert not (recordings / f"{GAME}-Level2-2.drive").exists()
    assert not list(recordings.glob(".*")), "no unfinished file is left"


def test_a_term_that_fails_ends_the_episode_and_the_recording_reproduces_the_failure(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "from kart_rewards import reward_term\n@reward_term\ndef bad(ram):\n    return 1 / (ram.current_frame - 400)\n"
    )
    program = start("--rewards", "bad.py")
    _, errors = program.communicate(timeout=20)
    assert program.returncode == 2
    assert errors.startswith("error: ")
    assert "bad.py" in errors
    assert "Traceback" not in errors
    trace = load_trace(tmp_path / "recordings" / f"{GAME}-Level1-1.drive")
    assert trace[-1].current_frame == 400
    with pytest.raises(ZeroDivisionError):
        1 / (trace[-1].current_frame - 400)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_window_has_no_threads_that_must_end_before_the_program(start: Start) -> None:
    program = start()
    assert len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1


def test_games_of_another_console_can_be_played(start: Start, display: Display, games: Path, tmp_path: Path) -> None:
    program = start(AIRSTRIKER, "--integrations-path", str(games), "--output", "drives")
    display.xdotool("keydown", "x", "keydown", "Right")
    wait_until(lambda: is_on_screen(display.picture()[:, 3 * 320 :], f"{'lives':<30}{3:>10}"), "the panel is shown")
    display.xdotool("keyup", "x", "keyup", "Right", "key", "Escape")
    _, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (0, "")
    assert [path.suffix for path in sorted((tmp_path / "drives").iterdir())] == [".bk2", ".drive"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a window needs a display, and there is none: neither DISPLAY nor WAYLAND_DISPLAY is set"),
        (("HomebrewCart-Snes",), "unknown game 'HomebrewCart-Snes'"),
    ],
)
def test_mistakes_end_with_one_message(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    without = {
        key: value
        for key, value in os.environ.items()
        if key not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "XDG_RUNTIME_DIR")
    }
    result = forks.run(
        [sys.executable, "-m", "kart_rewards", "play", *arguments],
        forks.COMMANDS,
        cwd=tmp_path,
        env=without | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- recordings
def test_a_recorded_lap_scores_the_same_and_replays_to_the_same_ram(
    make: Callable[..., KartEnv], tmp_path: Path
) -> None:
    env = make(state="Level2")
    recording = Recording(env, tmp_path)
    driver = CentrelineDriver(centreline("Level2"))
    while env.ram.laps < 129:
        recording.step(driver(env.ram))
    assert env.score
    totals = env.score.info()["episode_rewards"]["sum"]
    terms, last = env.scoring.terms, env.ram
    recording.save()
    trace = load_trace(tmp_path / f"{GAME}-Level2-1.drive")
    assert score(trace, terms) == totals, "to the last bit"
    assert trace[-1] == last
    make().close()  # another emulator in between
    data = INTEGRATIONS / GAME / "data.json"
    assert list(replayed(tmp_path / f"{GAME}-Level2-1.bk2", INTEGRATIONS, data)) == list(trace)


@pytest.mark.slow
def test_the_command_of_stable_retro_plays_a_recording_back(
    make: Callable[..., KartEnv], games: Path, display: Display, tmp_path: Path
) -> None:
    """It needs a display, because it opens a window even with --no-video."""
    env = make(AIRSTRIKER, integrations=games)
    recording = Recording(env, tmp_path)
    for _ in range(20):
        play_frames(recording, 5, "B")
        play_frames(recording, 5)
    lines = recording.lines()
    assert len(lines) <= PANEL_LINES
    assert any(text.split() == ["score", str(env.ram.score)] for text in lines)
    assert "x       B           z       A" in lines
    recording.save()
    env.close()
    command = ("-m", "stable_retro.scripts.playback_movie", "--no-video", "--no-audio", "--info-dict")
    movie = tmp_path / f"{AIRSTRIKER}-Level1-1.bk2"
    environment = os.environ | {"DISPLAY": display.name}
    subprocess.run([sys.executable, *command, str(movie)], env=environment, check=True, capture_output=True)
    frames = json.loads(movie.with_suffix(".json").read_text())
    trace = load_trace(tmp_path / f"{AIRSTRIKER}-Level1-1.drive")
    assert frames == [dict(zip(ram._fields, ram, strict=True)) for ram in trace[1:]]
    assert trace[-1].score > 0


def test_a_full_disk_is_reported_and_leaves_no_incomplete_file(make: Callable[..., KartEnv], tmp_path: Path) -> None:
    recording = Recording(make(), tmp_path)
    play_frames(recording, 60, "B")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(KartRewardsError, match=r"a\.bk2: can't be written: is the disk full\?"):
            save_movie(recording._recorder.drive(recording._env), tmp_path / "a.bk2", recording._env.em)
        with pytest.raises(KartRewardsError, match=f"{tmp_path}: the recording can't be written: File too large"):
            recording.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_to_is_reported_before_the_episode(
    make: Callable[..., KartEnv], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(KartRewardsError, match=r"file: recordings can't be written there"):
        Recording(make(), file)
    with pytest.raises(KartRewardsError, match=r"there: recordings can't be written there"):
        Recording(make(), Path("/proc/there"))


def test_an_episode_without_frames_is_not_recorded(make: Callable[..., KartEnv], tmp_path: Path) -> None:
    Recording(make(), tmp_path).save()
    assert not list(tmp_path.iterdir())


def test_the_text_fits_the_panel_even_with_many_terms(make: Callable[..., KartEnv], tmp_path: Path) -> None:
    from kart_rewards import reward_term

    extra = [reward_term(weight=1, name=f"a_term_with_a_very_long_name_{i}")(lambda ram: 1) for i in range(6)]
    recording = Recording(make(rewards=extra), tmp_path)
    assert len(recording.lines()) <= PANEL_LINES
    assert all(len(text) <= 40 for text in recording.lines())
    recording.save()


# Observed: recordings of the states Zone.Act1 and Zone.Act2 had the same name.
def test_a_recording_has_the_complete_name_of_its_state(tmp_path: Path) -> None:
    shutil.copytree(INTEGRATIONS / GAME, tmp_path / GAME)
    states = ["Zone.Act1", str(tmp_path / GAME / "Zone.Act2.state")]
    for act in (1, 2):
        shutil.copy(tmp_path / GAME / "Level1.state", tmp_path / GAME / f"Zone.Act{act}.state")
    for state in states:
        options: dict[str, Any] = {"integrations": tmp_path, "state": state, "action_mode": "all", "frame_skip": 1}
        with closing(KartEnv(GAME, **options)) as env:
            recording = Recording(env, tmp_path / "recordings")
            recording.step(frozenset())
            recording.save()
    movies = sorted(path.name for path in (tmp_path / "recordings").glob("*.bk2"))
    assert movies == [f"{GAME}-Zone.Act1-1.bk2", f"{GAME}-Zone.Act2-1.bk2"]
