"""Many episodes in worker processes.

* ``Evaluator`` - plays the episodes of several contestants on several courses
* ``DEFAULT_RANDOM_START_FRAMES`` - length of the random drive before an episode

The seed of an episode also decides the random drive before it, so all contestants get the same starts.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.defaults import DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.drives import SUFFIX
from kart_rewards.env import KartEnv
from kart_rewards.env.panel import Panel, fitting
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.video import OptionalVideo
from kart_rewards.env.window import compose
from kart_rewards.env.wrappers import make_wrapped
from kart_rewards.errors import counted
from kart_rewards.evaluation.contestants import Contestant
from kart_rewards.evaluation.courses import Marks, checkpoint_times, split_times
from kart_rewards.evaluation.episodes import EpisodeResult, PolicyMaker, play_episode
from kart_rewards.files import UnwritableError, copies_in_use, use_copies
from kart_rewards.integrations import state_labels
from kart_rewards.training.processes import Workers, processor_count

DEFAULT_RANDOM_START_FRAMES = 60
"""One second: after it the kart is still on the first straight of each course of HomebrewKart."""


@dataclass(frozen=True)
class _Task:
    """One episode for a worker process.

    Args:
        env_options: The argument of ``make_wrapped``, pickled.
        copies: The files to read from copies, see ``kart_rewards.files.use_copies``.
        make_policy: The contestant's ``PolicyMaker``, pickled.
        label: The contestant's label.
        state: The start state.
        seed: The episode's seed.
        max_episode_frames: Number of emulated frames after which the episode is truncated.
        random_start_frames: The reset first drives 0 to this many emulated frames at random.
        video: The MP4 file to write. None: no video.
        drive: The drive to write. None: no drive.
        steps: Agent steps that the contestant had trained.
    """

    env_options: bytes
    copies: dict[Path, Path]
    make_policy: bytes
    label: str
    state: str
    seed: int
    max_episode_frames: int
    random_start_frames: int
    video: Path | None
    drive: Path | None
    steps: int | None


class Evaluator:
    """Plays episodes in worker processes, one emulator each. The processes are kept for the next evaluation.

    The workers ignore Ctrl-C and SIGTERM, which this process handles. They end when this process ends, even if it is
    killed.

    Args:
        workers: Number of processes at most. None: as many as there are processor cores.

    Example:
        >>> from kart_rewards.evaluation import drivers, summarise, table
        >>> options = {"game": "HomebrewKart-Snes"}
        >>> with Evaluator(workers=1) as evaluator:
        ...     played = evaluator.play(drivers(options)[:2], ["Level1"], episodes=1, seed=1, max_episode_frames=600)
        ...     episodes = list(played)
        >>> print(table(summarise(episodes)).splitlines()[2])
        Level1
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = Workers(workers or processor_count())

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def play(
        self,
        contestants: Iterable[Contestant],
        states: Sequence[str],
        episodes: int,
        seed: int,
        *,
        max_episode_frames: int = DEFAULT_MAX_EPISODE_FRAMES,
        random_start_frames: int = DEFAULT_RANDOM_START_FRAMES,
        video_folder: Path | None = None,
        drive_folder: Path | None = None,
    ) -> Iterator[EpisodeResult]:
        """Yields the results by contestant and course, in an order that depends only on the arguments.

        A video or drive that can't be written is left out. A message after the last result says so.

        If the caller stops before the last result, the processes end. The next evaluation starts new ones.

        Args:
            contestants: Who plays.
            states: The courses, by their start states. A contestant skips the courses that it can't play.
            episodes: Number of episodes of each contestant on each course.
            seed: The episodes' seeds are derived from it. They are the same for all contestants and courses.
            max_episode_frames: Number of emulated frames after which an episode is truncated.
            random_start_frames: Each reset first drives 0 to this many emulated frames at random.
            video_folder: Folder for a video of each contestant's first episode on each course, with the payments of
                each reward term beside the game: COURSE-LABEL.mp4, where COURSE is the label of ``state_labels``. None:
                no videos.
            drive_folder: Folder for a drive of each episode, COURSE-LABEL-NUMBER.drive. None: no drives.

        Raises:
            KartRewardsError: An environment or policy failed, or a worker process was killed or can't be started.
        """
        labels = state_labels(states)
        seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(episodes)]
        tasks = []
        for contestant in contestants:
            # Pickled once per contestant, not once per task. Plain pickle also copies torch's tensors, which the
            # pickler of multiprocessing would move to shared memory.
            env_options = pickle.dumps({**contestant.env_options, "state": tuple(states)})
            make_policy = pickle.dumps(contestant.make_policy)
            for state in filter(contestant.plays, labels):
                for number, episode_seed in enumerate(seeds):
                    name = f"{labels[state]}-{contestant.label}"
                    task = _Task(
                        env_options,
                        copies_in_use(),
                        make_policy,
                        contestant.label,
                        state,
                        episode_seed,
                        max_episode_frames,
                        random_start_frames,
                        video_folder / f"{name}.mp4" if video_folder and number == 0 else None,
                        drive_folder / f"{name}-{number + 1}{SUFFIX}" if drive_folder else None,
                        contestant.steps,
                    )
                    tasks.append((task,))
        return _without_trouble(self._workers.map(_play_task, tasks))

    def close(self) -> None:
        """Ends the processes."""
        self._workers.close()


def _without_trouble(results: Iterator[tuple[EpisodeResult, str]]) -> Iterator[EpisodeResult]:
    """Yields the results, and prints why videos or drives are missing."""
    troubles = []
    for result, trouble in results:
        troubles += [trouble] if trouble else []
        yield result
    if troubles:
        others = f" {counted(len(troubles) - 1, 'other file')} can't be written either." if troubles[1:] else ""
        print(f"\n{troubles[0]}.{others} The evaluation goes on without.", file=sys.stderr)


def _play_task(task: _Task) -> tuple[EpisodeResult, str]:
    """Plays an episode in a worker process. Returns its result, and why its video or drive failed."""
    env = _kept_environment(task.env_options, task.copies)
    core: KartEnv = env.unwrapped
    core.recorder = DriveRecorder(task.label, task.steps) if task.drive else None
    marks, panel, panel_lines = Marks(), None, 0
    with OptionalVideo(task.video, env.metadata["render_fps"]) as video:

        def on_step(action: Any, reward: float, info: dict[str, Any]) -> None:
            nonlocal panel, panel_lines
            marks.step(info)
            if not task.video:
                return
            if panel:
                panel.step(info)
            else:
                panel = Panel(core, info)
            lines = fitting([[f"{task.label}, {task.state}"], *panel.blocks()])
            panel_lines = panel_lines or len(lines) + 1
            video.append(compose(core.em.get_screen(), lines, 1, panel_lines))

        result = play_episode(
            env,
            _kept_maker(task.make_policy)(env, task.state, task.seed),
            task.state,
            task.seed,
            label=task.label,
            max_episode_frames=task.max_episode_frames,
            random_start_frames=task.random_start_frames,
            on_step=on_step,
        )
    result, trouble = replace(result, marks=marks), video.trouble
    if core.recorder and task.drive:
        drive = core.recorder.drive(core, limited=True)
        result = replace(
            result, split_times_seconds=split_times(drive), checkpoint_times_seconds=checkpoint_times(drive)
        )
        try:
            drive.save(task.drive)
        except UnwritableError as error:
            trouble = trouble or str(error)
    return result, trouble


_kept: tuple[tuple[bytes, dict[Path, Path]], Any] | None = None


def _kept_environment(options: bytes, copies: dict[Path, Path]) -> Any:
    """Returns this process's environment. If the options changed, closes the old environment and makes a new one."""
    global _kept
    if _kept and _kept[0] != (options, copies):
        _kept[1].close()
        _kept = None
    if not _kept:
        use_copies(copies)
        _kept = (options, copies), make_wrapped(pickle.loads(options))  # noqa: S301 - pickled by the parent process
    return _kept[1]


@functools.lru_cache(maxsize=1)
def _kept_maker(make_policy: bytes) -> PolicyMaker:
    return pickle.loads(make_policy)  # noqa: S301 - pickled by the parent process
