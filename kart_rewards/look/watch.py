"""Watch a trained agent drive, in a window or as a video, with what its rewards pay beside the game.

* ``watch`` - the command's work
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.env import KartEnv
from kart_rewards.env.video import VideoWriter, to_gif
from kart_rewards.env.window import LARGEST_SCALE, Window, compose
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import Episode, PolicyMaker, play_episode
from kart_rewards.look.panel import Panel, fitting

_GIF_FRAMES_PER_SECOND, _GIF_WIDTH = 10, 600  # some 200 KB a second, for a web page
_SECONDS_AFTER = 1.5  # for which the last picture stays


class _ClosedError(Exception):
    """The window was closed."""


def watch(
    agent: Path,
    *,
    state: str | None = None,
    output: Path | None = None,
    seconds: float | None = None,
    sampled: bool = False,
    seed: int = 1,
    random_start_frames: int = 0,
    scale: int = 3,
) -> None:
    """Shows episodes of a trained agent in a window, one after the other until it is closed; or one, in a video file.

    Args:
        agent: What ``ppo_continuous_single_file.py`` saved: agent.pt, or best.pt.
        state: The course. None: the one the agent was trained on.
        output: Video file to write, .mp4 or .gif. None: open a window.
        seconds: Show so much of an episode. None: all of it.
        sampled: Draw the actions, as in training, instead of taking the likeliest.
        seed: Seed of the first episode; the next have the next.
        random_start_frames: 0 to this many emulated frames are driven at random before each.
        scale: Pixels of the picture, in each direction, for one of the game's.

    Raises:
        KartRewardsError: The agent can't be read, the video can't be written, or there is no display.
    """
    import ppo_continuous_single_file as ppo  # here: whoever does not watch should not wait for PyTorch

    if output and output.suffix not in (".mp4", ".gif"):
        raise KartRewardsError(f"{output}: must end in .mp4 or .gif")
    if not 1 <= scale <= LARGEST_SCALE:
        raise KartRewardsError(f"--scale must be between 1 and {LARGEST_SCALE}, not {scale}")
    if seed < 0 or random_start_frames < 0 or (seconds is not None and seconds <= 0):
        raise KartRewardsError("--seed and --random-start-frames must be 0 or more, --seconds more than 0")
    content = ppo.load_checkpoint(agent, ppo.AGENT_KEYS)
    args = ppo.options_of(content)
    args.env = ppo.choose_game(args.env)
    make_policy = ppo.AgentPolicy(content["agent"], deterministic=not sampled)
    course = state or args.courses()[0]
    with closing(KartEnv(**args.env.of_kart_env())) as env:
        frames = args.env.episode_limit * args.env.frame_skip
        if seconds:
            frames = min(frames, round(seconds * env.frames_per_second))
        play = functools.partial(
            _play, env, make_policy, course, max_episode_frames=frames, random_start_frames=random_start_frames
        )
        if output:
            with tempfile.TemporaryDirectory() as folder:
                video = Path(folder) / "video.mp4" if output.suffix == ".gif" else output
                with VideoWriter(video, env.frames_per_second) as writer:
                    play(seed, lambda picture, lines: writer.append(compose(picture, lines, scale)))
                if video != output:
                    to_gif(video, output, _GIF_FRAMES_PER_SECOND, _GIF_WIDTH)
            print(f"wrote {output}")
            return
        with Window(f"{agent}: {env.game.name}", scale) as window:

            def show(picture: np.ndarray, lines: list[str]) -> None:
                window.show(picture, [*lines, "", f"{'Escape':<8}end"], env.frames_per_second)
                if window.closed:
                    raise _ClosedError

            with suppress(_ClosedError):
                for number in itertools.count(seed):
                    play(number, show)


def _play(
    env: KartEnv,
    make_policy: PolicyMaker,
    course: str,
    seed: int,
    show: Callable[[np.ndarray, list[str]], object],
    *,
    max_episode_frames: int,
    random_start_frames: int,
) -> None:
    """Plays an episode, shows every emulated frame of it, and prints what came of it."""
    panel: Panel | None = None

    def on_frame() -> None:
        if panel:
            show(env.em.get_screen(), fitting([[f"{env.game.name}, {course}"], *panel.blocks()]))

    def on_step(action: Any, reward: float, info: dict[str, Any]) -> None:
        nonlocal panel
        if panel:
            panel.step(info)
        else:
            panel = Panel(env, info)

    env.on_frame = on_frame
    episode = play_episode(
        env,
        make_policy(env, course, seed),
        course,
        seed,
        on_step=on_step,
        max_episode_frames=max_episode_frames,
        random_start_frames=random_start_frames,
    )
    for _ in range(round(_SECONDS_AFTER * env.frames_per_second)):
        on_frame()
    print(_in_words(episode))


def _in_words(episode: Episode) -> str:
    words = [f"{episode.state}, seed {episode.seed}:"]
    if episode.race_time_seconds is not None:
        best = min(episode.lap_times_seconds or [0.0])
        words.append(f"all laps in {episode.race_time_seconds:.2f} s, the best in {best:.2f} s,")
    elif episode.laps_completed is not None:
        laps = "1 lap" if episode.laps_completed == 1 else f"{episode.laps_completed} laps"
        words.append(f"{laps}, ended by {episode.done_rule}," if episode.done_rule else f"{laps} until it was cut off,")
    return " ".join([*words, f"return {episode.episode_return:.1f}"])
