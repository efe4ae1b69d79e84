"""Evaluation: whole episodes, what came of them, and tables of it.

* ``Policy``, ``PolicyMaker`` - whoever plays an episode, and what makes one for each
* ``play_episode`` -> ``Episode`` - one episode, in this process
* ``Contestant``, ``drivers`` - who is compared: an agent; random, full-throttle and reference drivers
* ``Evaluator`` - many episodes, in processes of its own
* ``summarise``, ``table`` - statistics by course and policy
* ``across_seeds``, ``seeds_table`` - statistics over several training seeds
* ``write_json``

Spread is the interquartile range: between the values at 25 % and at 75 % lies the middle half. Lap times are those of
all completed laps, in episodes that did not finish too; race times are those of finished episodes. Times are in seconds
of the console, from the start state on.

An episode follows from its policy, start state and seed alone. The seed also draws how many frames are driven at random
before the episode, and how, so that all contestants get the same starts.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kart_rewards.defaults import DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.drivers import CentrelineDriver, Driver, RandomDriver, centreline, full_throttle
from kart_rewards.env import KartEnv
from kart_rewards.env.observations import ObservationConfig
from kart_rewards.env.video import VideoWriter
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.ram import load_json
from kart_rewards.training.processes import Workers, processor_count

COURSES_FILE = "courses.json"
"""In a game's folder: where the road runs on its courses."""

DEFAULT_RANDOM_START_FRAMES = 60
"""A second: the kart is still on the straight, on all of HomebrewKart's courses."""

Policy = Callable[[KartEnv, np.ndarray], Any]
"""Chooses an action: ``policy(env, observation)``. An agent needs the observation alone, a driver the environment."""

PolicyMaker = Callable[[KartEnv, str, int], Policy]
"""Makes an episode's policy: ``make_policy(env, state, seed)``. It must be picklable, and what it makes must follow
from the arguments alone. A process unpickles it once for all its episodes: it may keep what is costly to make."""

OnStep = Callable[[Any, float, dict[str, Any]], None]
"""Looks on: ``on_step(action, reward, info)`` after each step, and after the reset with None and 0."""

Metrics = dict[str, Any]
Summary = dict[str, dict[str, Metrics]]
"""Course -> policy -> metric -> value."""
SeedStatistics = dict[str, dict[str, dict[str, Metrics]]]
"""Course -> policy -> metric -> statistic -> value."""


# ------------------------------------------------------------------------------------------------------------ episodes
@dataclass(frozen=True)
class Episode:
    """What came of one episode. For games without race variables, what is said of a race is None.

    Args:
        state: The course: its start state.
        seed: Seed of the episode.
        policy: Who played.
        finished: Whether all laps of the race were done.
        laps_completed: How many were.
        lap_times_seconds: Of each completed lap; the first is timed from the start state.
        race_time_seconds: None if the race was not finished.
        off_road_seconds: Time spent off the road.
        wall_hits: How often the kart ran into a wall.
        episode_return: Sum of the rewards, after the transform.
        length_steps: Environment steps.
        done_rule: What ended the episode; None: the step limit.
        reward_sums: Reward term -> weighted sum, before the transform.
    """

    state: str
    seed: int
    policy: str
    finished: bool | None
    laps_completed: int | None
    lap_times_seconds: tuple[float, ...] | None
    race_time_seconds: float | None
    off_road_seconds: float | None
    wall_hits: int | None
    episode_return: float
    length_steps: int
    done_rule: str | None
    reward_sums: dict[str, float]


def play_episode(
    env: KartEnv,
    policy: Policy,
    state: str,
    seed: int,
    *,
    label: str = "",
    max_episode_frames: int = DEFAULT_MAX_EPISODE_FRAMES,
    random_start_frames: int = 0,
    on_step: OnStep | None = None,
) -> Episode:
    """Plays one episode to its end.

    Args:
        env: Where.
        policy: Who; made for this episode.
        state: Start state.
        seed: Seed of the reset.
        label: The policy's name, for the ``Episode``.
        max_episode_frames: Emulated frames after which the episode is cut off.
        random_start_frames: Before it, 0 to this many emulated frames are driven at random.
        on_step: Looks on.

    Raises:
        KartRewardsError: Whatever the environment or the policy finds wrong.
    """
    options = {"state": state, "random_start_frames": random_start_frames}
    observation, info = env.reset(seed=seed, options=options)
    if on_step:
        on_step(None, 0.0, info)
    episode_return, steps, ended = 0.0, 0, False
    while not ended and steps < max(max_episode_frames // env.frame_skip, 1):
        action = policy(env, observation)
        observation, reward, ended, _, info = env.step(action)
        episode_return += reward
        steps += 1
        if on_step:
            on_step(action, reward, info)
    race = info.get("race", {})
    lap_times = tuple(frames / env.frames_per_second for frames in env.race.lap_frames) if env.race else None
    return Episode(
        state=state,
        seed=seed,
        policy=label,
        finished=race.get("finished"),
        laps_completed=race.get("laps_completed"),
        lap_times_seconds=lap_times,
        race_time_seconds=race.get("race_time_seconds"),
        off_road_seconds=race.get("off_road_seconds"),
        wall_hits=race.get("wall_hits"),
        episode_return=episode_return,
        length_steps=steps,
        done_rule=info.get("done_rule"),
        reward_sums=info["episode_rewards"]["sum"],
    )


# --------------------------------------------------------------------------------------------------------- contestants
@dataclass(frozen=True)
class Contestant:
    """Who is compared, and the environment they play in.

    Args:
        label: A name for tables.
        make_policy: Makes the policy of each episode.
        env_options: ``KartEnv``'s arguments by name, ``game`` among them.
        courses: The start states they can play. None: all.
    """

    label: str
    make_policy: PolicyMaker
    env_options: Mapping[str, Any]
    courses: Sequence[str] | None = None

    def plays(self, state: str) -> bool:
        """Whether they can play this course."""
        return self.courses is None or state in self.courses


class DriverPolicy:
    """Plays as a driver of ``kart_rewards.drivers`` does, in an environment whose actions are all buttons.

    Args:
        driver: Who drives.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __call__(self, env: KartEnv, observation: np.ndarray) -> list[bool]:
        held = self.driver(env.ram)
        return [button in held for button in env.buttons]


def _make_random(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(RandomDriver(seed))


def _make_full_throttle(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(full_throttle)


def _make_reference(env: KartEnv, state: str, seed: int) -> Policy:
    return DriverPolicy(CentrelineDriver(centreline(state, env.game.folder / COURSES_FILE)))


def drivers(env_options: Mapping[str, Any]) -> list[Contestant]:
    """Returns the drivers an agent is compared with: ``random``, ``full-throttle`` and ``reference``.

    They see the RAM and choose buttons on every emulated frame. The reference driver follows the middle of the road,
    and can play the courses that ``courses.json`` in the game's folder describes.

    Args:
        env_options: ``KartEnv``'s arguments by name, ``game`` among them, as the agent's environment has them.

    Raises:
        KartRewardsError: There is no such game, or its ``courses.json`` is damaged.
    """
    frame_by_frame = {"action_mode": "all", "frame_skip": 1, "observation": ObservationConfig.raw()}
    options = {**env_options, **frame_by_frame}
    courses = find_game(options["game"], options.get("integrations", INTEGRATIONS)).folder / COURSES_FILE
    known = [course["state"] for course in load_json(courses)["courses"]] if courses.is_file() else []
    return [
        Contestant("random", _make_random, options),
        Contestant("full-throttle", _make_full_throttle, options),
        Contestant("reference", _make_reference, options, known),
    ]


def left_out(contestants: Iterable[Contestant], states: Sequence[str]) -> str:
    """Says, a line each, who can't play which courses; empty if all can play all."""
    lines = []
    for contestant in contestants:
        missing = [state for state in states if not contestant.plays(state)]
        if missing:
            where = f"{', '.join(missing)}: {contestant.env_options['game']} has no centreline of the road there"
            lines.append(f"left out: {contestant.label} on {where}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- many episodes
class Evaluator:
    """Plays episodes in processes of its own, one emulator each, which are kept from one evaluation to the next.

    They ignore Ctrl-C and SIGTERM, which are this process's to act on, and end with it however it ends.

    Args:
        workers: How many processes at most. By default as many as there are processors.

    Example:
        >>> options = {"game": "HomebrewKart-Snes"}
        >>> with Evaluator(workers=1) as evaluator:
        ...     episodes = list(evaluator.play(drivers(options)[:2], ["Level1"], episodes=3, seed=1))
        >>> print(table(summarise(episodes)))  # doctest: +SKIP
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
    ) -> Iterator[Episode]:
        """Yields the episodes, by contestant and course, in an order that depends on the arguments alone.

        Whoever needs no more of them may stop asking: the processes then end, and others start for the next evaluation.

        Args:
            contestants: Who plays.
            states: The courses, by their start states. A contestant leaves out those that it can't play.
            episodes: How many each contestant plays on each course.
            seed: The seeds of the episodes follow from it; they are the same for all contestants and courses.
            max_episode_frames: Emulated frames after which an episode is cut off.
            random_start_frames: Before each episode, 0 to this many emulated frames are driven at random.
            video_folder: Where each contestant's first episode on each course goes, as COURSE-LABEL.mp4. None: nowhere.

        Raises:
            KartRewardsError: Whatever an environment or policy finds wrong; a process was killed or could not be
                started; a video can't be written.
        """
        seeds = [int(number) for number in np.random.SeedSequence(seed).generate_state(episodes)]
        tasks = []
        for contestant in contestants:
            # Here, not on each way to a process; and as torch's tensors should be, which multiprocessing would share.
            env = pickle.dumps({**contestant.env_options, "state": tuple(states)})
            make_policy = pickle.dumps(contestant.make_policy)
            tasks += [
                (
                    env,
                    make_policy,
                    contestant.label,
                    state,
                    episode_seed,
                    max_episode_frames,
                    random_start_frames,
                    video_folder / f"{Path(state).stem}-{contestant.label}.mp4" if video_folder and not i else None,
                )
                for state in states
                if contestant.plays(state)
                for i, episode_seed in enumerate(seeds)
            ]
        return self._workers.map(_play_task, tasks)

    def close(self) -> None:
        """Ends the processes."""
        self._workers.close()


def _play_task(
    env_options: bytes,
    make_policy: bytes,
    label: str,
    state: str,
    seed: int,
    max_episode_frames: int,
    random_start_frames: int,
    video: Path | None,
) -> Episode:
    """Plays an episode in a worker process."""
    env = _kept_environment(env_options)
    with VideoWriter(video, env.metadata["render_fps"]) if video else nullcontext() as writer:
        return play_episode(
            env,
            _kept_maker(make_policy)(env, state, seed),
            state,
            seed,
            label=label,
            max_episode_frames=max_episode_frames,
            random_start_frames=random_start_frames,
            on_step=(lambda *_: writer.append(env.em.get_screen())) if writer else None,
        )


_kept: tuple[bytes, KartEnv] | None = None


def _kept_environment(options: bytes) -> KartEnv:
    """Returns the process's one environment: the last one again, or, with other options, another in its place."""
    global _kept
    if _kept and _kept[0] != options:
        _kept[1].close()
        _kept = None
    if not _kept:
        _kept = options, KartEnv(**pickle.loads(options))  # noqa: S301 - of our parent's
    return _kept[1]


@functools.lru_cache(maxsize=1)
def _kept_maker(make_policy: bytes) -> PolicyMaker:
    return pickle.loads(make_policy)  # noqa: S301 - of our parent's


# ---------------------------------------------------------------------------------------------------------- statistics
def summarise(episodes: Iterable[Episode]) -> Summary:
    """Returns statistics by course and policy, ready for JSON; see the module on what they count.

    Returns:
        Course -> policy -> metric -> number; None where there is nothing to count. The metrics are ``episodes``,
        ``finish_rate``, ``best_``, ``lower_quartile_``, ``median_`` and ``upper_quartile_`` of ``lap_time_seconds`` and
        ``race_time_seconds``, ``median_off_road_seconds``, ``median_wall_hits``, and ``lower_quartile_``, ``median_``
        and ``upper_quartile_return``.
    """
    groups: dict[str, dict[str, list[Episode]]] = {}
    for episode in episodes:
        groups.setdefault(episode.state, {}).setdefault(episode.policy, []).append(episode)
    return {
        course: {policy: _metrics(played) for policy, played in by_policy.items()}
        for course, by_policy in groups.items()
    }


def _metrics(episodes: list[Episode]) -> Metrics:
    finished = _known(episode.finished for episode in episodes)
    laps = [seconds for episode in episodes for seconds in episode.lap_times_seconds or ()]
    races = _known(episode.race_time_seconds for episode in episodes)
    return {
        "episodes": len(episodes),
        "finish_rate": sum(finished) / len(finished) if finished else None,
        "best_lap_time_seconds": min(laps, default=None),
        **_median_and_quartiles(laps, "_lap_time_seconds"),
        "best_race_time_seconds": min(races, default=None),
        **_median_and_quartiles(races, "_race_time_seconds"),
        "median_off_road_seconds": _percentile(_known(episode.off_road_seconds for episode in episodes), 50),
        "median_wall_hits": _percentile(_known(episode.wall_hits for episode in episodes), 50),
        **_median_and_quartiles([episode.episode_return for episode in episodes], "_return"),
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None


def _median_and_quartiles(values: Sequence[float], of: str = "") -> Metrics:
    parts = {"lower_quartile": 25, "median": 50, "upper_quartile": 75}
    return {f"{part}{of}": _percentile(values, percent) for part, percent in parts.items()}


def across_seeds(summaries: Sequence[Summary]) -> SeedStatistics:
    """Returns statistics over several agents, each trained with a seed of its own.

    Args:
        summaries: What ``summarise`` returned, of each agent.

    Returns:
        Course -> policy -> metric -> ``lower_quartile``, ``median``, ``upper_quartile``, and ``seeds``: of how many
        agents there is a value. An agent that never finished has no race time, and is missing from its median.
    """
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for summary in summaries:
        for course, by_policy in summary.items():
            for policy, metrics in by_policy.items():
                of_policy = values.setdefault(course, {}).setdefault(policy, {})
                for metric, value in metrics.items():
                    of_policy.setdefault(metric, []).extend(_known([value]))
    return {
        course: {
            policy: {metric: {**_median_and_quartiles(known), "seeds": len(known)} for metric, known in metrics.items()}
            for policy, metrics in by_policy.items()
        }
        for course, by_policy in values.items()
    }


# -------------------------------------------------------------------------------------------------------------- output
_COLUMNS = (  # what stands over a column, its header, its metric, how a number is shown
    ("", "episodes", "episodes", "{}"),
    ("", "finished", "finish_rate", "{:.0%}"),
    ("lap time, s", "best", "best_lap_time_seconds", "{:.2f}"),
    ("lap time, s", "25%", "lower_quartile_lap_time_seconds", "{:.2f}"),
    ("lap time, s", "median", "median_lap_time_seconds", "{:.2f}"),
    ("lap time, s", "75%", "upper_quartile_lap_time_seconds", "{:.2f}"),
    ("race time, s", "best", "best_race_time_seconds", "{:.2f}"),
    ("race time, s", "25%", "lower_quartile_race_time_seconds", "{:.2f}"),
    ("race time, s", "median", "median_race_time_seconds", "{:.2f}"),
    ("race time, s", "75%", "upper_quartile_race_time_seconds", "{:.2f}"),
    ("off", "road, s", "median_off_road_seconds", "{:.1f}"),
    ("wall", "hits", "median_wall_hits", "{:.1f}"),
    ("", "return", "median_return", "{:.1f}"),
)
_Column = tuple[str, str, str, str]
_Row = tuple[str, Mapping[str, str]]
"""A label, and what is shown of each metric; a heading has none."""


def _shown(metrics: Metrics) -> dict[str, str]:
    return {name: form.format(metrics[name]) for *_, name, form in _COLUMNS if metrics.get(name) is not None}


def table(summary: Summary) -> str:
    """Returns what ``summarise`` returned as text for a person, up to 120 columns wide."""
    rows: list[_Row] = []
    for course, by_policy in summary.items():
        rows.append((course, {}))
        for policy, metrics in by_policy.items():
            shown, episodes, rate = _shown(metrics), metrics["episodes"], metrics["finish_rate"]
            if rate is not None:
                shown["finish_rate"] = f"{round(rate * episodes)}/{episodes}"
                del shown["episodes"]
            rows.append((f"  {policy}", shown))
    races = "Lap times: all completed laps. Race times: finished episodes. Off road, wall hits, return: medians."
    legend = races if any("finish_rate" in shown for _, shown in rows) else "Return: the median."
    return f"{_layout(_COLUMNS, rows)}\n{legend}"


def seeds_table(statistics: SeedStatistics) -> str:
    """Returns what ``across_seeds`` returned as text for a person: medians, and the quartiles below them.

    A fourth line says of how many seeds there is a value, where that is not the same for all columns.
    """
    columns = [column for column in _COLUMNS if column[1] not in ("episodes", "25%", "75%")]
    rows: list[_Row] = []
    for course, by_policy in statistics.items():
        rows.append((course, {}))
        for policy, metrics in by_policy.items():
            seeds = {name: values["seeds"] for name, values in metrics.items()}
            most = f"{policy}, {max(seeds.values())} seed{'s' * (max(seeds.values()) != 1)}"
            for label, part in ((most, "median"), ("  25%", "lower_quartile"), ("  75%", "upper_quartile")):
                rows.append((f"  {label}", _shown({name: values[part] for name, values in metrics.items()})))
            if len(set(seeds.values()) - {0}) > 1:
                rows.append(("    seeds", {name: str(count) for name, count in seeds.items() if count}))
    legend = "The median over the seeds, and the values at 25% and 75%. Seeds: of how many there is a value."
    return f"{_layout(columns, rows)}\n{legend}"


def _layout(columns: Sequence[_Column], rows: Sequence[_Row]) -> str:
    """Lines up the columns of which there is something to show."""
    columns = [column for column in columns if any(column[2] in shown for _, shown in rows)]
    widths = [max(len(header), *(len(shown.get(name, "")) for _, shown in rows)) for _, header, name, _ in columns]
    label_width = max((len(label) for label, _ in rows), default=0)
    over = " " * label_width
    for text, group in itertools.groupby(range(len(columns)), key=lambda i: columns[i][0]):
        numbers = list(group)
        spans = bool(text) and len(numbers) > 1
        width = sum(widths[i] + 2 for i in numbers) - 2
        missing = max(len(text) + 4 * spans - width, 0)
        widths[numbers[-1]] += missing
        over += "  " + (f" {text} ".center(width + missing, "-") if spans else text.rjust(width + missing))

    def line(label: str, cells: Iterable[str]) -> str:
        return f"{label:<{label_width}}" + "".join(
            f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
        )

    lines = [over, line("", (header for _, header, _, _ in columns))]
    for label, shown in rows:
        lines.append(line(label, (shown.get(name, "-") for _, _, name, _ in columns)) if shown else label)
    return "\n".join(text.rstrip() for text in lines)


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file; one that is there is replaced at a stroke.

    Args:
        path: The file, in a folder that is there.
        content: Dicts, lists, numbers and text; not NaN.

    Raises:
        KartRewardsError: It can't be written; what was there is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise KartRewardsError(f"{path}: can't be written: {error.strerror or error}") from None
