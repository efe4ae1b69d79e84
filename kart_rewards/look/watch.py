"""Watching a trained agent in a window or as a video, with the payments of each reward term beside the game.

The episodes are recorded as drives, in the folder ``drives/watch`` beside the agent.

* ``watch`` - shows episodes of a ``kart_rewards.evaluation.TrainedAgent``
* ``command`` - the command line
"""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from kart_rewards.drives import DRIVES_FOLDER, SUFFIX
from kart_rewards.env import KartEnv
from kart_rewards.env.panel import Panel, fitting
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.video import VideoWriter, to_gif
from kart_rewards.env.window import LARGEST_SCALE, Window, compose
from kart_rewards.env.wrappers import make_wrapped
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.evaluation import EpisodeResult, PolicyMaker, TrainedAgent, load_agent, play_episode
from kart_rewards.evaluation.agents import DEFAULT_LOADER
from kart_rewards.files import UnwritableError, atomic_write
from kart_rewards.integrations import state_labels
from kart_rewards.look.ghost import Chase, Ghost, load_ghost
from kart_rewards.notices import notice
from kart_rewards.splits import SPLIT_VARIABLES, has_checkpoints

_GIF_FRAMES_PER_SECOND, _GIF_WIDTH = 10, 600  # about 200 KB per second, small enough for a web page
_SECONDS_AFTER_EPISODE = 1.5  # for which the last picture stays


class _ClosedError(Exception):
    """The user closed the window."""


def watch(
    agent: TrainedAgent,
    *,
    state: str | None = None,
    output: Path | None = None,
    seconds: float | None = None,
    sampled: bool = False,
    seed: int = 1,
    random_start_frames: int = 0,
    scale: int = 3,
    ghost: str | None = None,
) -> None:
    """Shows episodes of an agent in a window, one after the other until it is closed; or writes one as a video file.

    Each episode is recorded as a drive, in the folder ``drives/watch`` beside the agent. If it can't be written, a
    notice says so, and nothing is recorded.

    Args:
        agent: The agent.
        state: The course, by its start state. None: the first course of the agent's training.
        output: Video file to write, .mp4 or .gif. None: open a window.
        seconds: Length of an episode at most, in seconds of the console. None: the agent's frame limit. The last
            picture stays for 1.5 seconds more.
        sampled: Sample the actions, as in training. False: take the most probable action.
        seed: Seed of the first episode. Each further episode has the next seed.
        random_start_frames: Each reset first drives 0 to this many emulated frames at random.
        scale: Width and height, in pixels of the picture, of a pixel of the game.
        ghost: A drive that the agent is compared with, see ``kart_rewards.look.ghost.load_ghost``. None: there is none.

    Raises:
        KartRewardsError: An argument is out of its range, the start state or the ghost can't be used, the video can't
            be written, or there is no display.
    """
    if output and output.suffix not in (".mp4", ".gif"):
        raise KartRewardsError(f"{output}: must end in .mp4 or .gif")
    if not 1 <= scale <= LARGEST_SCALE:
        raise KartRewardsError(f"--scale must be between 1 and {LARGEST_SCALE}, not {scale}")
    for option, number in (("--seed", seed), ("--random-start-frames", random_start_frames)):
        if number < 0:
            raise KartRewardsError(f"{option} must be 0 or more, not {number}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise KartRewardsError(f"--seconds must be a finite number above 0, not {seconds:g}")
    with closing(make_wrapped(agent.env_options)) as env:
        core: Any = env.unwrapped
        core.recorder = DriveRecorder("agent", agent.steps)
        frames = agent.max_episode_frames
        if seconds:
            frames = min(frames, round(seconds * core.frames_per_second))
        course = state or core.states[0]
        if ghost and not SPLIT_VARIABLES.issubset(core.layout.names):
            raise KartRewardsError(f"--ghost {ghost}: {core.game.name} has no checkpoints to compare a ghost by")
        play = functools.partial(
            _play,
            env,
            agent.make_policy(not sampled),
            course,
            Ghost(load_ghost(ghost, core.game, course), core.game) if ghost else None,
            agent.path.parent / DRIVES_FOLDER / "watch",
            "-sampled" if sampled else "",
            max_episode_frames=frames,
            random_start_frames=random_start_frames,
        )
        if output:
            with ExitStack() as stack:
                video = output
                if output.suffix == ".gif":
                    video = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "video.mp4"
                    gif = stack.enter_context(atomic_write(output))
                    gif.touch()  # a folder that can't be written to is reported before the episode, not after it
                with VideoWriter(video, core.frames_per_second) as writer:
                    play(seed, lambda picture, lines, aside: writer.append(compose(picture, lines, scale, aside=aside)))
                if video != output:
                    to_gif(video, gif, _GIF_FRAMES_PER_SECOND, _GIF_WIDTH)
            print(f"wrote {output}")
            return
        instead = "To write a video instead: --output drive.mp4"
        with Window(f"{agent.path}: {core.game.name}", scale, instead) as window:

            def show(picture: np.ndarray, lines: list[str], aside: np.ndarray | None) -> None:
                window.show(picture, [*lines, "", f"{'Escape':<8}end"], core.frames_per_second, aside)
                if window.closed:
                    raise _ClosedError

            with suppress(_ClosedError):
                for number in itertools.count(seed):
                    play(number, show)


def _play(
    env: Any,
    make_policy: PolicyMaker,
    course: str,
    ghost: Ghost | None,
    drives: Path,
    kind: str,
    seed: int,
    show: Callable[[np.ndarray, list[str], np.ndarray | None], object],
    **limits: Any,
) -> None:
    """Plays an episode, shows each emulated frame of it, prints its result, and records it.

    Args:
        env: The environment.
        make_policy: Makes the policy.
        course: The start state.
        ghost: The drive that the agent is compared with. None: there is none.
        drives: The folder of the drive.
        kind: A part of the drive's name.
        seed: The seed of the episode.
        show: Shows a picture with lines of text, and the map of the ghost.
        limits: Arguments of ``play_episode``.
    """
    core: KartEnv = env.unwrapped
    panel: Panel | None = None
    chase: Chase | None = None
    frames = -1  # on the race clock: without the frame of the reset, and with a random start
    read = core.layout.reader(core.data)  # ``core.ram`` is the frame before

    def show_frame() -> None:
        if panel:
            blocks = panel.blocks()
            if chase:
                blocks[1] += chase.lines()
            aside = chase.picture() if chase else None
            show(core.em.get_screen(), fitting([[f"{core.game.name}, {course}"], *blocks]), aside)

    def on_frame() -> None:
        nonlocal frames
        frames += 1
        if chase:
            chase.update(read())
        show_frame()

    def on_step(action: Any, reward: float, info: dict[str, Any]) -> None:
        nonlocal panel, chase
        if panel:
            panel.step(info)
        else:
            panel = Panel(core, info)
            if has_checkpoints(core.ram):
                chase = Chase(core.ram, frames, core.frames_per_second, ghost)

    core.on_frame = on_frame
    drive = drives / f"{state_labels([course])[course]}-agent-{seed}{kind}{SUFFIX}"
    try:
        result = play_episode(env, make_policy(env, course, seed), course, seed, on_step=on_step, **limits)
    except _ClosedError:
        _record(core, drive, limited=False)
        raise
    _record(core, drive, limited=True)
    for _ in range(round(_SECONDS_AFTER_EPISODE * core.frames_per_second)):
        show_frame()
    print(_in_words(result))


def _record(env: KartEnv, path: Path, limited: bool) -> None:
    """Writes the episode so far. ``limited`` says that a limit ended it, if no done rule did."""
    if env.recorder and env.recorder.has_drive:
        try:
            env.recorder.drive(env, limited).save(path)
        except UnwritableError as error:
            notice(f"{path.parent}: can't be written: {error.strerror}: the episodes are not recorded")


def _in_words(result: EpisodeResult) -> str:
    words = [f"{result.state}, seed {result.seed}:"]
    if result.race_time_seconds is not None:
        best = min(result.lap_times_seconds or [0.0])
        words.append(f"all laps in {result.race_time_seconds:.2f} s, the best in {best:.2f} s,")
    elif result.laps_completed is not None:
        ending = f"ended by {result.done_rule}" if result.done_rule else "ended by the time limit"
        words.append(f"{counted(result.laps_completed, 'lap')}, {ending},")
    return " ".join([*words, f"return {result.episode_return:.1f}"])


def command(
    agent: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AGENT")],
    /,
    loader: str = DEFAULT_LOADER,
    state: str | None = None,
    output: Path | None = None,
    seconds: float | None = None,
    sampled: bool = False,
    seed: int = 1,
    random_start_frames: int = 0,
    scale: int = 3,
    ghost: str | None = None,
    trust: bool = False,
) -> None:
    """Shows a trained agent drive, with the payments of its reward terms: in a window, or as a video file.

    Each episode is also recorded as a drive for "kart-rewards score", in drives/watch/ beside the agent.

    Args:
        agent: The agent's file, such as runs/NAME/best.pt, or the folder of its run: best.pt there, or else agent.pt.
        loader: The function that loads the agent, MODULE:FUNCTION or FILE.py:FUNCTION. The default loads agents of
            ppo_continuous_single_file.py.
        state: The course, by its start state. By default the first course of the agent's training.
        output: Video file to write instead of opening a window: .mp4, or a smaller .gif with 10 pictures per second.
        seconds: Length of an episode at most. By default the limit of the agent's evaluations. Its last picture then
            stays for 1.5 seconds, also in a video.
        sampled: Sample the actions, as in training, instead of taking the most probable one.
        seed: Seed of the first episode. Each further episode has the next seed.
        random_start_frames: Drive 0 to this many emulated frames at random before each episode.
        scale: Width and height, in pixels of the picture, of a pixel of the game.
        ghost: A drive that the agent is compared with: reference, the file of a drive, or the name of a drive of the
            package. A map shows where both are, and the panel how far the agent is behind at each checkpoint.
        trust: Run the reward scripts that an agent's file names, even if another user or another computer made it.
    """
    watch(
        load_agent(agent, loader, trust),
        state=state,
        output=output,
        seconds=seconds,
        sampled=sampled,
        seed=seed,
        random_start_frames=random_start_frames,
        scale=scale,
        ghost=ghost,
    )
