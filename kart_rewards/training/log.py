"""What a training run reports: its TensorBoard log and its line on the terminal.

* ``Log`` - options, reward terms, scalars, maps and videos in TensorBoard
* ``Progress`` - one line on the terminal
* ``Evaluation`` - the result of an evaluation, as ``Log`` takes it
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from kart_rewards.env.video import to_gif
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.rewards import rates, unweighted
from kart_rewards.scenario import Scoring
from kart_rewards.scripting import Script

_TENSORBOARD_GIF: dict[str, Any] = {"frames_per_second": 10, "seconds": 20, "colours": 64, "most_bytes": 1_000_000}

_LAYOUT = {
    "rewards": {
        "what each term paid per minute, weighted": ["^rewards_per_minute/"],
        "what each term paid per lap, weighted": ["^rewards_per_lap/"],
        "values of each term per minute, unweighted": ["^values_per_minute/"],
        "share of each term in what the agent got": ["^rewards_share/"],
        "frames on which each term fired": ["^rewards_count/"],
    },
    "rewards in evaluations": {
        "what each term paid per minute, weighted": ["^eval/.+/rewards_per_minute/"],
        "what each term paid per lap, weighted": ["^eval/.+/rewards_per_lap/"],
        "values of each term per minute, unweighted": ["^eval/.+/values_per_minute/"],
        "share of each term in what the agent got": ["^eval/.+/rewards_share/"],
    },
    "race": {
        "evaluation: part of the races that were finished": ["^eval/.+/finish_rate$"],
        "evaluation: median lap, seconds": ["^eval/.+/median_lap_time_seconds$"],
        "evaluation: median lap / reference lap": ["^eval/.+/ratio_to_reference$"],
        "evaluation: split times of a lap, seconds": ["^eval/.+/split_"],
        "training: laps completed": ["^race/laps_completed$"],
        "training: best lap of an episode, seconds": ["^race/best_lap_time_seconds$"],
        "training: seconds off the road": ["^race/off_road_seconds$"],
        "training: wall hits": ["^race/wall_hits$"],
    },
    "time": {
        "steps per second": ["^charts/SPS$"],
        "parts of a step, milliseconds": ["^time/"],
        "memory, MiB": ["^memory/"],
    },
}
"""TensorBoard's custom scalars: page -> chart -> patterns of tags, for all runs."""

_COMPARED = (
    "finish_rate",
    "median_lap_time_seconds",
    "ratio_to_reference",
    "median_race_time_seconds",
    "median_return",
)
"""The metrics of the best evaluation, by which runs are compared."""

_ONE_TERM_IS_ALL = 0.999  # share of one term from which the other terms do not matter
_FIRST_EPISODES = 10  # after so many, a warning is more than chance


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating the agent during training.

    Args:
        metrics: Course -> metric -> value.
        score: What makes one evaluation better than another, the most important number first; compared as lists are.
        videos: MP4 files of it.
        keep_gifs: Whether to keep the GIFs that TensorBoard shows.
        shares: Reward term -> its part of everything that was paid and charged, -1 to 1: the mean over the episodes.
        maps: Course -> PNG of its map, with where each term fired.
        time_lost: Course -> PNG of where laps lose time to the reference lap.
    """

    metrics: Mapping[str, Mapping[str, float]]
    score: list[float]
    videos: list[Path] = field(default_factory=list)
    keep_gifs: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, bytes] = field(default_factory=dict)
    time_lost: Mapping[str, bytes] = field(default_factory=dict)

    def text(self) -> str:
        """Returns the result in a few words: races and laps; without a race, the return."""

        def known(metric: str) -> list[float]:
            return [course[metric] for course in self.metrics.values() if metric in course]

        where = f" on {len(self.metrics)} courses" if len(self.metrics) > 1 else ""
        returns, laps = known("median_return"), known("median_lap_time_seconds")
        if not known("finish_rate"):
            return f"median return {sum(returns) / max(len(returns), 1):.1f}{where}"
        finished = sum(course.get("finish_rate", 0) * course.get("episodes", 0) for course in self.metrics.values())
        text = f"{finished:.0f} of {counted(int(sum(known('episodes'))), 'race')} finished{where}"
        if not laps or where:
            return text
        ratios = known("ratio_to_reference")
        reference = f" ({ratios[0]:.2f} x the reference lap)" if ratios else ""
        return f"{text}, median lap {laps[0]:.2f} s{reference}"

    def shares_text(self) -> str:
        """Returns the share of each term in a few words, the largest first. Empty if the shares are not known."""
        paying = {name: share for name, share in self.shares.items() if share}
        if not paying:
            return "no reward term paid or charged anything" if self.shares else ""
        largest = sorted(paying, key=lambda name: -abs(paying[name]))
        silent = [name for name in self.shares if name not in paying]
        text = f"share of the reward: {', '.join(f'{name} {_percent(paying[name])}' for name in largest)}"
        return f"{text}; nothing: {', '.join(silent)}" if silent else text


def _percent(share: float) -> str:
    return f"{share:+.1%}" if abs(share) >= 0.0005 else f"{'+' if share > 0 else '-'}<0.1%"


class Progress:
    """One line on the terminal, renewed in place. Where the output is not a terminal, a new line every 10 seconds.

    Args:
        total_steps: Agent steps that the run, with its resumed parts, will have done at its end.
        steps: Agent steps done before this process started.
    """

    def __init__(self, total_steps: int, steps: int) -> None:
        tqdm.set_lock(threading.RLock())  # its default is shared between processes, only one of which prints
        tqdm.monitor_interval = 0  # without a thread that watches the line
        self._terminal = terminal = sys.stdout.isatty()
        self._ended_at: float = steps  # tqdm's numbers may be floats
        self._returns: deque[float] = deque(maxlen=20)
        self._finished: deque[bool] = deque(maxlen=10)
        self._best_lap_seconds = math.inf
        self._line: tqdm[Any] = tqdm(
            total=total_steps,
            initial=steps,
            mininterval=0.5 if terminal else 10.0,
            miniters=1,
            smoothing=0,  # the mean rate since the start
            file=sys.stdout if terminal else _Lines(),
            bar_format="{n:,}/{total:,} steps  {rate_noinv_fmt}  {remaining} left{desc}",
            unit=" steps",
            delay=1e-3,  # no line before the first update
        )

    def episode(self, episode_return: float, race: Mapping[str, Any]) -> None:
        """Takes in an episode that ended.

        Args:
            episode_return: Its return.
            race: Its metrics, see ``RaceMetrics``; empty if the game is no race.
        """
        self._returns.append(episode_return)
        if race:
            self._finished.append(race["finished"])
            self._best_lap_seconds = min(self._best_lap_seconds, race.get("best_lap_time_seconds", math.inf))

    def print(self, text: str) -> None:
        """Prints a message below the line, which goes on in a new line."""
        self.end_line()
        _Lines().write(text)

    def update(self, steps: int) -> None:
        """Shows how many agent steps are done, if the last line is old enough."""
        parts = ["", f"return {sum(self._returns) / len(self._returns):.1f}"] if self._returns else []
        if any(self._finished):
            parts.append(f"finished {sum(self._finished)} of {len(self._finished)}")
        if self._best_lap_seconds < math.inf:
            parts.append(f"best lap {self._best_lap_seconds:.2f} s")
        self._line.set_description_str("  ".join(parts), refresh=False)
        self._line.update(steps - self._line.n)

    def steps_per_second(self) -> float:
        """Returns the mean rate since this process started."""
        numbers = self._line.format_dict
        return float(numbers["n"] - numbers["initial"]) / max(float(numbers["elapsed"]), 1e-9)

    def end_line(self) -> None:
        """Shows the latest numbers, unless a line has them already. On a terminal, what follows is in a new line."""
        line = self._line
        if line.n == self._ended_at:
            return
        if line.n > line.last_print_n:
            line.refresh()
        if self._terminal:
            print(flush=True)
        self._ended_at = line.n

    def close(self) -> None:
        """Shows the latest numbers and ends the line."""
        self.end_line()
        self._line.delay = math.inf  # so that tqdm does not show it a second time
        self._line.close()


class _Lines:
    """A file for tqdm that prints separate lines, for a standard output that is not a terminal."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if not line:
            return
        try:
            print(line, flush=True)
        except BrokenPipeError:  # the program that read the output has ended; training goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def flush(self) -> None:
        """Every line is flushed when it is written."""


class Log:
    """The TensorBoard log in a run's folder: options and reward terms at the start, then scalars, maps and videos.

    For each reward term, ``rewards_per_minute/TERM`` and ``rewards_per_lap/TERM`` are what it paid, weighted. They lead
    in the custom scalars, because they do not grow with the length of the episodes as the sums ``rewards/TERM`` do.
    ``values_per_minute/TERM`` is the same without the weight. It measures terms that are not paid, such as ``x`` with
    ``--reward-weights x=0``, and it compares runs with different weights.

    Args:
        folder: The run's folder.
        options: Option -> value, of all groups.
        scoring: The run's reward terms and done rules.
        total_steps: Agent steps that the run, with its resumed parts, will have done at its end.
        steps: Agent steps done so far. Later entries of an earlier process are dropped from the curves.
        wandb_options: Arguments of ``wandb.init``, to mirror the log to Weights & Biases. None: do not.
        compared: The options by which TensorBoard's HParams tab compares runs. It also has the terms' weights.

    Raises:
        OSError: The folder can't be written to.
        KartRewardsError: Weights & Biases is not installed.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        scoring: Scoring,
        total_steps: int,
        steps: int,
        wandb_options: Mapping[str, Any] | None = None,
        compared: Mapping[str, Any] | None = None,
    ) -> None:
        _report_writer_errors_once()
        if wandb_options is not None:
            check_wandb()
            import wandb

            number = hashlib.sha256(folder.name.encode()).hexdigest()[:16]  # so that a resumed run continues its own
            wandb.init(
                id=number,
                resume="allow",
                name=folder.name,
                config=dict(options),
                sync_tensorboard=True,
                allow_val_change=True,
                **wandb_options,
            )
        self.writer = SummaryWriter(str(folder), purge_step=steps + 1)
        self.progress = Progress(total_steps, steps)
        rows = "\n".join(f"|{name}|{value}|" for name, value in options.items())
        self.writer.add_text("hyperparameters", f"|option|value|\n|-|-|\n{rows}", steps)
        scripts: list[tuple[Script, str]] = [(term, f"{term.weight:g}") for term in scoring.terms]
        scripts += [(rule, "ends the episode") for rule in scoring.done]
        rows = "\n".join(
            f"|{script.name}|{weight}|{script.summary}|{script.where}|{script.fingerprint}|"
            for script, weight in scripts
        )
        head = "|name|weight|what|defined at|hash of the code|\n|-|-|-|-|-|\n"
        self.writer.add_text("reward_terms", head + rows, steps)
        self.writer.add_custom_scalars(_layout(scoring))
        values = {
            name: value if type(value) in (int, float) else str(value) for name, value in (compared or {}).items()
        }
        values |= {f"weight of {term.name}": term.weight for term in scoring.terms}
        # SummaryWriter.add_hparams writes a second file in another folder, as another run. Without the summary of the
        # experiment, which names hyperparameters and metrics, TensorBoard itself finds those of all runs, and shows
        # first which hyperparameters differ, and the metrics that come first in the alphabet, such as best/.
        _, start, self._session_end = hparams(values, {})
        self._add(start)
        self._terms = scoring.terms
        self._warns = steps == 0  # a resumed run has not seen the episodes of the untrained agent
        self._episodes = self._early_ends = 0  # the latter ended on their first step, by a done rule
        self._moved = dict.fromkeys((term.name for term in scoring.terms), 0.0)  # by each term, paid or charged
        self._warned: set[str] = set()

    def _add(self, summary: SummaryProto, steps: int | None = None) -> None:
        self.writer._get_file_writer().add_summary(summary, steps)

    def _warn(self, kind: str, warning: str) -> None:
        """Prints a warning, unless one of its kind was printed."""
        if kind not in self._warned:
            self._warned.add(kind)
            self.progress.print(f"warning: {warning}")

    def _warn_of_one_term(self) -> None:
        """Warns if one term was almost everything from the untrained agent on, although others fired."""
        everything = sum(self._moved.values())
        name = max(self._moved, key=self._moved.__getitem__, default="")
        if everything and _ONE_TERM_IS_ALL <= self._moved[name] / everything < 1:
            self._warn(
                "one term",
                f"{name} is {self._moved[name] / everything:.2%} of everything that the agent was paid and charged in "
                f"{counted(self._episodes, 'episode')}: the other terms hardly count at these weights "
                "(--reward-weights changes them)",
            )

    def scalars(self, group: str, values: Mapping[str, float], steps: int) -> None:
        """Writes each value as ``group/name``."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, steps)

    def update(
        self,
        steps: int,
        losses: Mapping[str, float],
        episodes: Iterable[tuple[int, dict[str, Any]]],
        milliseconds: Mapping[str, float],
        learning_rate: float,
    ) -> None:
        """Writes the results of a rollout and its update, and renews the line on the terminal.

        Args:
            steps: Agent steps done so far.
            losses: Losses and diagnostics by name.
            episodes: The episodes that ended: agent steps of the run until then, and the last info.
            milliseconds: See ``kart_rewards.training.timing.split_of_a_step``.
            learning_rate: The optimizer's.
        """
        for episode_steps, info in episodes:
            self._episode(info, episode_steps)
        self.scalars("losses", losses, steps)
        self.scalars("time", milliseconds, steps)
        self.scalars("memory", memory_mb(), steps)
        self.progress.update(steps)
        self.scalars("charts", {"learning_rate": learning_rate, "SPS": self.progress.steps_per_second()}, steps)

    def _episode(self, info: dict[str, Any], steps: int) -> None:
        episode, race = info["episode"], info.get("race", {})
        self.progress.episode(float(episode["r"]), race)
        self.scalars("charts", {"episodic_return": episode["r"], "episodic_length": episode["l"]}, steps)
        rewards = info["episode_rewards"]
        for kind in ("sum", "transformed", "share", "count"):
            self.scalars("rewards" if kind == "sum" else f"rewards_{kind}", rewards[kind], steps)
        laps = race.get("laps_driven", 0.0)
        values = unweighted(rewards, self._terms)
        for group, by_term in rates(rewards["sum"], values, episode["seconds"], laps).items():
            self.scalars(group, by_term, steps)
        self.scalars("race", race, steps)
        self._episodes += 1
        self._early_ends += episode["l"] == 1 and "done_rule" in info
        for name, paid in rewards["transformed"].items():
            self._moved[name] += abs(paid)
        if self._warns and self._episodes == self._early_ends == _FIRST_EPISODES:
            self._warn(
                "early ends",
                f"each of the first {_FIRST_EPISODES} episodes ended on its first step, the last by the done rule "
                f"{info['done_rule']}: the agent can learn nothing",
            )

    def evaluation(self, evaluation: Evaluation, steps: int, is_best: bool = False) -> None:
        """Prints an evaluation in a few lines, and writes it: ``eval/COURSE/METRIC``, its maps, and GIFs of its videos.

        The best evaluation so far is also written as ``best/METRIC``, the mean over the courses. Prints why a GIF can't
        be made.

        Args:
            evaluation: The evaluation.
            steps: Agent steps done so far.
            is_best: Whether it is the best one so far, so that the run keeps its agent.
        """
        self.progress.print(f"evaluation after {counted(steps, 'step')}: {evaluation.text()}{' -> best.pt' * is_best}")
        if shares := evaluation.shares_text():
            self.progress.print(shares)
        if self._warns and self._episodes >= _FIRST_EPISODES:
            self._warn_of_one_term()
        for course, metrics in evaluation.metrics.items():
            self.scalars(f"eval/{course}", metrics, steps)
        for tag, pictures in (("map", evaluation.maps), ("time_lost", evaluation.time_lost)):
            for course, picture in pictures.items():
                self._image(f"eval/{course}/{tag}", picture, steps)
        if is_best:
            courses = evaluation.metrics.values()
            for metric in _COMPARED:
                known = [metrics[metric] for metrics in courses if metric in metrics]
                if known and len(known) == len(courses):
                    self.scalars("best", {metric: sum(known) / len(known)}, steps)
            self.scalars("best", {"steps": steps}, steps)
        for video in evaluation.videos:
            gif = video.with_suffix(".gif")
            try:
                to_gif(video, gif, **_TENSORBOARD_GIF)
            except KartRewardsError as error:
                print(f"\n{error}. The run continues without this video.", file=sys.stderr)
                continue
            # SummaryWriter.add_video needs an old version of moviepy
            self._image(f"eval/{video.stem}", gif.read_bytes(), steps)
            if not evaluation.keep_gifs:
                gif.unlink()

    def _image(self, tag: str, encoded: bytes, steps: int) -> None:
        image = SummaryProto.Image(encoded_image_string=encoded)
        self._add(SummaryProto(value=[SummaryProto.Value(tag=tag, image=image)]), steps)

    def close(self) -> None:
        """Ends the line on the terminal, and closes the TensorBoard log; a full disk loses what is not yet written."""
        self.progress.close()
        with suppress(OSError):
            self._add(self._session_end)
            self.writer.close()


def _layout(scoring: Scoring) -> dict[str, dict[str, list[Any]]]:
    """Returns the argument of ``SummaryWriter.add_custom_scalars``.

    A term that pays much hides the others in a common chart, so the terms that charge also have a chart of their own.
    """
    pages = {page: {chart: ["Multiline", tags] for chart, tags in of.items()} for page, of in _LAYOUT.items()}
    (first, chart), *others = pages["rewards"].items()
    charging = "|".join(term.name for term in scoring.terms if term.weight < 0)
    if charging:
        title = "the same, only terms with a weight below 0"
        pages["rewards"] = {first: chart, title: ["Multiline", [f"^rewards_per_minute/({charging})$"]], **dict(others)}
    return pages


def check_wandb() -> None:
    """Raises KartRewardsError if Weights & Biases is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise KartRewardsError("--track needs Weights & Biases: pip install 'kart_rewards[wandb]'")


def memory_mb() -> dict[str, float]:
    """Returns the resident memory of this process and of its children, in MiB. They share a part of it.

    The children are the environments' processes and, from the first evaluation on, the processes that evaluate.
    """
    trainer = psutil.Process()
    children = 0
    for process in trainer.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            children += process.memory_info().rss
    memory = {"trainer_mb": trainer.memory_info().rss / 2**20, "children_mb": children / 2**20}
    if torch.cuda.is_available():
        memory["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _report_writer_errors_once() -> None:
    """TensorBoard writes in a thread of its own. Its error is raised at our next call, too: do not print it twice."""
    threading.excepthook = lambda info: None if issubclass(info.exc_type, OSError) else threading.__excepthook__(info)
