"""Evaluation of trained agents, whatever trained them.

* ``TrainedAgent`` - an agent from a file, with the environment it was trained in
* ``load_agent`` - loads one with a loader, ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``
* ``agent_file`` - the agent of a run's folder
* ``evaluate_agents`` - plays agents beside the scripted drivers, prints tables and writes a report
* ``EvalOptions`` - the options of evaluation in a training script
* ``command`` - the command line

A loader is a function ``load(path: Path) -> TrainedAgent``. ``examples/sb3_agent.py`` has one for Stable-Baselines3.
"""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Ge, Interval
from tqdm import tqdm

from kart_rewards.defaults import DEFAULT_MAX_EPISODE_FRAMES
from kart_rewards.drives import DRIVES_FOLDER
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.evaluation.contestants import Contestant, drivers, left_out
from kart_rewards.evaluation.episodes import EpisodeResult, PolicyMaker
from kart_rewards.evaluation.evaluator import DEFAULT_RANDOM_START_FRAMES, Evaluator
from kart_rewards.evaluation.sectors import reference_lap, time_lost
from kart_rewards.evaluation.statistics import across_seeds, summarise
from kart_rewards.evaluation.tables import lost_table, seeds_table, table, write_json
from kart_rewards.imports import load_function
from kart_rewards.integrations import find_game
from kart_rewards.training.options import Names, check_bounds

DEFAULT_LOADER = "ppo_continuous_single_file:load_agent"
"""Loads the agents that ``ppo_continuous_single_file.py`` saved."""


@dataclass
class EvalOptions:
    """Evaluation: complete episodes with a seed of their own, separate from training."""

    evaluate: Names = ()
    """Evaluate these agents instead of training: files such as runs/NAME/agent.pt, or folders of runs, whose best.pt
    or else agent.pt is meant. Several agents must differ only in the seed of their training. Prints tables, and writes
    evaluation.json beside the first agent."""
    loader: str | None = None
    """With --evaluate: the function that loads the agents, MODULE:FUNCTION or FILE.py:FUNCTION. By default the agents
    are this program's own."""
    output: Path | None = None
    """With --evaluate: the JSON file to write; an existing file is replaced. By default evaluation.json beside the
    first agent, which does not replace the result of another evaluation."""
    eval_interval: Annotated[int, Ge(0)] = 50
    """Number of updates from one evaluation of training to the next. The last update is evaluated, too. 0: never."""
    eval_episodes: Annotated[int, Ge(1)] = 5
    """Episodes per course."""
    eval_states: Names = ()
    """Courses to evaluate on: start states, as for --state. By default the courses of training; with --evaluate, all of
    the game."""
    eval_seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 1000
    """Seed of the random starts. --evaluate uses the next seed, because best.pt was chosen by this one."""
    eval_max_episode_steps: Annotated[int | None, Ge(1)] = None
    """Agent steps after which an episode of an evaluation is truncated. By default those of training."""
    capture_video: bool = False
    """Write the first episode of each course as MP4, into videos/ beside the agent. Evaluations of training are also
    shown in TensorBoard."""
    video_gif: bool = False
    """With --capture-video: keep the GIFs that TensorBoard shows, the first 20 seconds, beside the MP4s."""

    def __post_init__(self) -> None:
        self.evaluate = tuple(str(agent_file(Path(path))) for path in self.evaluate)

    def check(self) -> None:
        """Raises KartRewardsError if the options do not fit together."""
        for option, value, reason in (
            ("--loader", self.loader, "training loads no agents"),
            ("--output", self.output, "training writes no such file"),
        ):
            if value and not self.evaluate:
                raise KartRewardsError(f"{option} {value}: {reason}: use it with --evaluate")

    def of_next_start(self, resuming: bool) -> EvalOptions:
        """Returns the options of a checkpoint that the next start takes over: all but ``evaluate`` to resume; to
        evaluate, only the seed."""
        return replace(self, evaluate=()) if resuming else EvalOptions(eval_seed=self.eval_seed)

    def max_episode_frames(self, training_steps: int, frame_skip: int) -> int:
        """Returns the emulated frames after which an episode of an evaluation is truncated."""
        return (self.eval_max_episode_steps or training_steps) * frame_skip

    @property
    def final_seed(self) -> int:
        """The seed of ``evaluate``. Training chose its best agent by another seed, so this comparison is fair."""
        return self.eval_seed + 1


@dataclass(frozen=True)
class TrainedAgent:
    """An agent from a file, ready to be watched and evaluated.

    Args:
        path: Its file.
        make_policy: Returns the ``PolicyMaker`` of the agent: ``make_policy(deterministic)``. A deterministic policy
            takes the most probable action; the other samples actions, as in training. The result must be picklable.
        env_options: The arguments of ``KartEnv`` by name, including ``game``. ``state`` has the courses of training.
        max_episode_frames: Number of emulated frames after which its episodes are truncated.
        seed: Seed of its training, if known.
        steps: Agent steps of its training, if known.
    """

    path: Path
    make_policy: Callable[[bool], PolicyMaker]
    env_options: Mapping[str, Any]
    max_episode_frames: int = DEFAULT_MAX_EPISODE_FRAMES
    seed: int | None = None
    steps: int | None = None


def agent_file(path: Path) -> Path:
    """Returns the agent of a run's folder: ``best.pt``, or else ``agent.pt``. Other paths are returned as they are."""
    files = (path / name for name in ("best.pt", "agent.pt"))
    return next((file for file in files if file.is_file()), path)


def load_agent(path: Path, loader: str = DEFAULT_LOADER, trust: bool = False) -> TrainedAgent:
    """Loads an agent with a loader.

    Args:
        path: The agent's file, or the folder of its run; see ``agent_file``.
        loader: The loader's name; see ``kart_rewards.imports.load_function``.
        trust: Run the code that the file names, even if another user or computer made it. It is passed to loaders with
            an argument of this name.

    Raises:
        KartRewardsError: The loader can't be imported, or it failed.
    """
    load = load_function(loader, "loader", importable=True)  # worker processes unpickle its policies
    path = agent_file(path)
    if not path.exists():
        raise KartRewardsError(f"{path}: no such file")
    takes_trust = "trust" in inspect.signature(load).parameters
    try:
        agent = load(path, trust=trust) if takes_trust else load(path)
    except KartRewardsError:
        raise
    except Exception as error:  # libraries report damaged files by errors of many types
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise KartRewardsError(
            f"{path}: {loader} can't load this agent: it raised {type(error).__name__}: {error}\n"
            f"  at {frame.filename}:{frame.lineno}: {frame.line}"
        ) from error
    if not isinstance(agent, TrainedAgent):
        raise KartRewardsError(
            f"{loader} returned a {type(agent).__name__}: a loader must return a kart_rewards.evaluation.TrainedAgent"
        )
    return agent


def evaluate_agents(
    agents: Sequence[TrainedAgent],
    *,
    states: Sequence[str] = (),
    episodes: int = EvalOptions.eval_episodes,
    seed: int = EvalOptions.eval_seed + 1,
    random_start_frames: int = DEFAULT_RANDOM_START_FRAMES,
    video_folder: Path | None = None,
    drive_folder: Path | None = None,
    output: Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Evaluates trained agents, with deterministic and with sampled actions, beside the scripted drivers.

    Prints tables, and writes the statistics and all episodes as JSON.

    Args:
        agents: The agents. Several agents must differ only in the seed of their training.
        states: The courses, by their start states. By default all start states of the game.
        episodes: Number of episodes of each contestant on each course.
        seed: The episodes' seeds are derived from it.
        random_start_frames: Each reset first drives 0 to this many emulated frames at random.
        video_folder: Folder for a video of each contestant's first episode on each course. None: no videos.
        drive_folder: Folder for a drive of each episode. None: no drives.
        output: The JSON file; an existing file is replaced. None: ``evaluation.json`` beside the first agent, which
            does not replace the result of another evaluation.
        workers: Number of processes at most. None: as many as there are processor cores.

    Returns:
        The content of the JSON file: ``game``, ``eval_seed``, ``options``, ``agents``, and for several agents
        ``across_seeds``. Each agent has ``file``, ``seed``, ``steps``, ``summary`` (see ``summarise``), ``time_lost``
        (see ``kart_rewards.evaluation.sectors.time_lost``) and ``episodes``.

    Raises:
        KartRewardsError: The agents were trained in different environments, there is no such start state, an episode
            failed, the file can't be written, or it holds another evaluation.
    """
    first = agents[0]
    check_comparable(agents)
    options, name = first.env_options, first.env_options["game"]
    game = find_game(name, options.get("integrations"))
    states = game.chosen_states(states) or game.states()
    for state in states:
        game.load_state(state)  # a missing course should be reported before anything is played
    references = {state: lap for state in states if (lap := reference_lap(game.folder, state))}
    identity = {
        "game": name,
        "eval_seed": seed,
        "options": {
            "states": states,
            "episodes": episodes,
            "random_start_frames": random_start_frames,
            "max_episode_frames": first.max_episode_frames,
            "environment": {option: str(value) for option, value in sorted(options.items())},
        },
    }
    seeds = [agent.seed for agent in agents if agent.seed is not None]
    have_own_seeds = len(set(seeds)) == len(agents)
    of_agents = [{"file": str(agent.path), "seed": agent.seed, "steps": agent.steps} for agent in agents]
    if output is None:
        output = first.path.parent / "evaluation.json"
        _check_replaceable(output, identity, of_agents)
    scripted = drivers(options)
    if text := left_out(scripted, states):
        print(text)
    players = len(scripted) + 2 * len(agents)  # an agent plays with deterministic and with sampled actions
    print(
        f"Plays {counted(players * len(states) * episodes, 'episode')}: {counted(players, 'player')}, "
        f"{counted(len(states), 'course')}, {counted(episodes, 'episode')} of each. --eval-states and --eval-episodes "
        "choose fewer"
    )

    with _reporting_ctrl_c(), Evaluator(workers) as evaluator:

        def play(
            label: str, contestants: Sequence[Contestant], videos: Path | None, drives: Path | None
        ) -> list[EpisodeResult]:
            results: Iterator[EpisodeResult] = evaluator.play(
                contestants,
                states,
                episodes,
                seed,
                max_episode_frames=first.max_episode_frames,
                random_start_frames=random_start_frames,
                video_folder=videos,
                drive_folder=drives,
            )
            total = sum(contestant.plays(state) for contestant in contestants for state in states) * episodes
            only_on_a_terminal = None
            return list(tqdm(results, label, total, leave=False, unit="episode", disable=only_on_a_terminal))

        of_drivers = play("drivers", scripted, video_folder, drive_folder)
        reports, summaries = [], []
        for number, (agent, of_agent) in enumerate(zip(agents, of_agents, strict=True), 1):
            contestants = [
                Contestant("agent, deterministic", agent.make_policy(True), options, steps=agent.steps),
                Contestant("agent, sampled", agent.make_policy(False), options, steps=agent.steps),
            ]
            name = "" if len(agents) == 1 else f"seed-{agent.seed}" if have_own_seeds else str(number)
            folders = [folder and folder / name for folder in (video_folder, drive_folder)]
            results = play(str(agent.path), contestants, *folders) + of_drivers
            summary = summarise(sorted(results, key=lambda result: states.index(result.state)))
            lost = time_lost(results, references)
            print(f"{_title(agent)}\n{table(summary)}\n{lost_table(lost, contestants[0].label)}")
            summaries.append(summary)
            episodes_of_agent = [result.plain() for result in results]
            reports.append({**of_agent, "summary": summary, "time_lost": lost, "episodes": episodes_of_agent})
    report: dict[str, Any] = {**identity, "agents": reports}
    if len(agents) > 1 and len(set(seeds)) == len(seeds):  # not of several agents of one run
        report["across_seeds"] = across_seeds(summaries)
        print(f"the {counted(len(agents), 'agent')}: median and quartiles\n{seeds_table(report['across_seeds'])}\n")
    write_json(output, report)
    print(f"wrote {output}")
    return report


@contextmanager
def _reporting_ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: no results were written")
        raise


def _check_replaceable(output: Path, identity: Mapping[str, Any], agents: Sequence[Mapping[str, Any]]) -> None:
    """Raises KartRewardsError if a file is there that is not the result of this evaluation."""
    if not output.exists():
        return
    try:
        old = json.loads(output.read_text(encoding="utf-8"))
        same = {name: old[name] for name in identity} == identity
        same = same and list(map(_known, old["agents"])) == list(map(_known, agents))
    except (OSError, ValueError, LookupError, TypeError):  # it is no result of an evaluation, or of version 0.1
        same = False
    if not same:
        raise KartRewardsError(
            f"{output}: holds another evaluation, which is not replaced: name a file for this one with --output FILE"
        )


def _known(agent: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what says which agent of a result it is."""
    return Path(agent["file"]).resolve(), agent["seed"], agent["steps"]


def evaluate_from_options(
    options: EvalOptions,
    load: Callable[..., TrainedAgent],
    env_options: Mapping[str, Any] | None = None,
    max_episode_frames: int = DEFAULT_MAX_EPISODE_FRAMES,
    trust: bool = False,
) -> None:
    """Evaluates the agents that the options name; see ``evaluate_agents``.

    Args:
        options: Which agents, and how. Their ``loader`` replaces ``load``.
        load: Loads an agent: ``load(path, trust=trust)``.
        env_options: Replaces the agents' own options, after these were compared. None: keep the agents' own.
        max_episode_frames: Replaces the agents' own limit, if ``env_options`` is given.
        trust: See ``load_agent``.

    Raises:
        KartRewardsError: See ``load_agent`` and ``evaluate_agents``.
    """
    paths = [Path(path) for path in options.evaluate]
    if options.loader:
        load = partial(load_agent, loader=options.loader)
    agents = [load(path, trust=trust) for path in paths]
    check_comparable(agents)
    if env_options is not None:
        agents = [replace(agent, env_options=env_options, max_episode_frames=max_episode_frames) for agent in agents]
    evaluate_agents(
        agents,
        states=options.eval_states,
        episodes=options.eval_episodes,
        seed=options.final_seed,
        video_folder=paths[0].parent / "videos" / "evaluation" if options.capture_video else None,
        drive_folder=paths[0].parent / DRIVES_FOLDER / (options.output or Path("evaluation")).stem,
        output=options.output,
    )


def check_comparable(agents: Sequence[TrainedAgent]) -> None:
    """Raises KartRewardsError if agents were trained in different environments."""
    first = agents[0]
    for agent in agents:
        if (agent.env_options, agent.max_episode_frames) != (first.env_options, first.max_episode_frames):
            raise KartRewardsError(
                f"{agent.path}: was trained with other environment options than {first.path}: evaluate it by itself"
            )


def _title(agent: TrainedAgent) -> str:
    title = f"{agent.path}: {agent.env_options['game']}"
    if agent.steps is not None:
        title += f", {counted(agent.steps, 'step')}"
    return title if agent.seed is None else f"{title} with seed {agent.seed}"


def command(
    agents: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="AGENT…", help_behavior_hint="(required)"),
    ],
    /,
    loader: str = DEFAULT_LOADER,
    eval_episodes: int = EvalOptions.eval_episodes,
    eval_states: Names = EvalOptions.eval_states,
    eval_seed: int = EvalOptions.eval_seed,
    capture_video: bool = EvalOptions.capture_video,
    output: Path | None = None,
    trust: bool = False,
) -> None:
    """Evaluates trained agents: plays races beside scripted drivers, and prints tables.

    Also writes a JSON file with the tables and all episodes.

    Args:
        agents: The agents' files, such as runs/NAME/best.pt, or the folders of their runs: best.pt there, or else
            agent.pt. Several agents must differ only in the seed of their training.
        loader: The function that loads an agent, MODULE:FUNCTION or FILE.py:FUNCTION. The default loads agents of
            ppo_continuous_single_file.py.
        eval_episodes: Episodes per course.
        eval_states: Courses to evaluate on: start states, or patterns such as 'Level*'. By default all of the game.
        eval_seed: Seed of training's evaluations. This evaluation uses the next seed, because best.pt was chosen by
            that one.
        capture_video: Write the first episode of each course as MP4, into videos/evaluation/ beside the first agent.
        output: The JSON file to write; an existing file is replaced. By default evaluation.json beside the first agent,
            which does not replace the result of another evaluation.
        trust: Run the reward scripts that an agent's file names, even if another user or another computer made it.
    """
    if not agents:
        raise KartRewardsError("name an agent's file: kart-rewards evaluate AGENT…")
    options = EvalOptions(
        evaluate=tuple(map(str, agents)),
        loader=loader,
        eval_episodes=eval_episodes,
        eval_states=eval_states,
        eval_seed=eval_seed,
        capture_video=capture_video,
        output=output,
    )
    check_bounds(options)
    evaluate_from_options(options, load_agent, trust=trust)
