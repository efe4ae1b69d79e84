"""Studies: which reward terms and options of the trainer help. Trains with all terms, and with each of some changes.

* ``Arm``, ``make_arms`` - a variant of the rewards or of the trainer's options
* ``Plan`` - what a study trains, in which order
* ``Study`` - a study in its folder: starts the trainers, and goes on where it stopped
* ``Remaining`` - the remaining time of a study
* ``make_plan``, ``open_study``, ``locked``, ``share_cores`` - parts of a study's start
* ``check_trainer_options``, ``follow_study`` - the options of a trainer, and its tie to the study
* ``command`` - the command ``kart-rewards ablate``

A study's folder holds ``study.json`` (the plan), ``progress.json`` (the runs that are finished), ``sources/`` (the text
of rewards files and scenarios that the study uses), ``runs/``, ``logs/`` and the results, see
``kart_rewards.lab.ablation.study_report``.

The trainer is a process of its own, ``kart-rewards train``. It ends when the study ends, for any reason.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from kart_rewards.errors import KartRewardsError, counted, did_you_mean
from kart_rewards.evaluation.tables import write_json
from kart_rewards.files import use_copies
from kart_rewards.imports import source_files
from kart_rewards.integrations import Game, find_game
from kart_rewards.lab.ablation.study_report import write_report
from kart_rewards.rewards import RewardTerm, parse_weights
from kart_rewards.training.checkpoints import Checkpoint, run_folders
from kart_rewards.training.game import resolved_options
from kart_rewards.training.options import GamesFolder, Names
from kart_rewards.training.run import stop_on_signals
from kart_rewards.training.sources import RunRewards, keep_sources, kept_sources

_STUDIES = Path("studies")
_PLAN, _PROGRESS = "study.json", "progress.json"
_VERSION = 1

_DEFAULTS = {"--precision": "float32", "--eval-interval": "29", "--eval-episodes": "3"}
_DEFAULTS |= {"--checkpoint-interval": "5", "--checkpoints-kept": "1"}
"""Options of the trainer that have other defaults in a study. The precision is not measured, because two runs could
measure different ones. 60,000 steps are 58 updates, so they are evaluated in the middle and at the end."""

_OWN = {"env-id", "fallback", "no-fallback", "integrations-path", "scenario", "rewards", "reward-weights", "help"}
_OWN |= {"info", "total-timesteps", "seed", "runs-path", "exp-name", "resume", "evaluate", "loader", "output"}
_OWN |= {"allow-changed-rewards", "no-allow-changed-rewards"}
"""Options of the trainer that a study sets itself."""

_SECONDS_FOR_OTHERS_TO_END = 15.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Arm:
    """A variant of the rewards or of the trainer's options.

    Args:
        name: The name of the arm, which is also the ``--exp-name`` of its runs.
        kind: ``all`` is the arm with all terms, which the others are compared with.
        scenario: The scenario, as the trainer takes it.
        weights: Term -> weight, of the terms whose weight is not the scenario's.
        options: Options of the trainer that replace those of all arms, as words.
    """

    name: str
    kind: Literal["all", "drop", "set", "scenario", "options"]
    scenario: str | None
    weights: dict[str, float]
    options: tuple[str, ...] = ()


def make_arms(
    terms: Sequence[RewardTerm],
    scenario: str | None,
    weights: Mapping[str, float],
    drop: Iterable[str] = (),
    sets: Iterable[str] = (),
    scenarios: Iterable[str] = (),
    options: Iterable[str] = (),
) -> list[Arm]:
    """Returns the arms of a study, the arm with all terms first.

    A term is left out by the weight 0: it pays nothing, and everything else is equal. It is still measured. A term that
    is also a done rule still ends episodes.

    Args:
        terms: The terms of the arm with all terms, with their final weights.
        scenario: The scenario of this arm.
        weights: The user's weights in all arms.
        drop: Terms, each of which is left out in an arm of its own.
        sets: ``NAME=WEIGHT``, each an arm of its own.
        scenarios: Scenarios, each an arm of its own.
        options: ``NAME=WORDS`` with options of the trainer, each an arm of its own.

    Raises:
        KartRewardsError: There is no such term, an arm equals another one, or there is nothing to compare.
    """
    now = {term.name: term.weight for term in terms}
    arms = [Arm("all", "all", scenario, dict(weights))]
    for name in drop:
        _check_term("--drop", name, now)
        if not now[name]:
            raise KartRewardsError(f"--drop {name}: its weight is 0 already, so leaving it out would change nothing")
        arms.append(Arm(f"without-{name}", "drop", scenario, {**weights, name: 0.0}))
    for text in sets:
        try:
            [(name, weight)] = parse_weights([text]).items()
        except KartRewardsError as error:
            raise KartRewardsError(str(error).replace("--reward-weights", "--set", 1)) from None
        _check_term("--set", name, now)
        if not math.isfinite(weight):
            raise KartRewardsError(f"--set {text}: the weight must be a finite number")
        if weight == now[name]:
            raise KartRewardsError(f"--set {text}: this is its weight already, so the arm would change nothing")
        arms.append(Arm(f"{name}={weight:g}", "set", scenario, {**weights, name: weight}))
    for other in scenarios:
        if other == scenario:
            raise KartRewardsError(f"--scenarios {other}: is the scenario of the arm with all terms already")
        label = Path(other).name.removesuffix(".json")
        arms.append(Arm(f"scenario-{label}", "scenario", other, dict(weights)))
    for text in options:
        name, _, words = text.partition("=")
        if not re.fullmatch(r"[\w.-]+", name) or not words.strip().startswith("--"):
            raise KartRewardsError(
                f"--options {text!r}: is not NAME='--OPTION VALUE', such as --options \"slow=--learning-rate 1e-4\""
            )
        try:
            of_arm = tuple(shlex.split(words))
        except ValueError as error:
            raise KartRewardsError(f"--options {text!r}: {str(error).lower()}") from None
        check_trainer_options(of_arm)
        if evaluation := next((word for word in of_arm if _option(word).startswith("eval-")), None):
            raise KartRewardsError(f"--options {text!r}: all arms are evaluated equally: give {evaluation} after --")
        arms.append(Arm(name, "options", scenario, dict(weights), of_arm))
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise KartRewardsError(f"two arms are named {name}: name each change once")
    if len(arms) == 1:
        raise KartRewardsError(
            "nothing to compare: name terms with --drop, weights with --set, --scenarios, or options of the trainer "
            "with --options"
        )
    return arms


def _check_term(option: str, name: str, weights: Mapping[str, float]) -> None:
    if name not in weights:
        raise KartRewardsError(
            f"{option}: there is no reward term {name!r} in this study; there are {', '.join(weights) or 'none'}."
            f"{did_you_mean(name, weights)}"
        )


@dataclass(frozen=True)
class Run:
    """One training run of a study.

    Args:
        arm: The arm.
        seed: The seed.
    """

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The name of its log, and its key in ``progress.json``."""
        return f"{self.arm.name}__{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a study trains.

    Args:
        game: The name of the game.
        integrations: The folder of games; None: the standard folders.
        rewards: Files and modules with reward terms and done rules.
        arms: The arms.
        total_timesteps: Agent steps of each run.
        options: All other options of the trainer, as words.
        scoring: Arm -> its reward terms, done rules and variables, with what identifies each.
        seeds: The number of seeds: 1, 2 and so on.
        threads: The threads of each trainer: another number changes the last digits of what is learned.
    """

    game: str
    integrations: str | None
    rewards: tuple[str, ...]
    arms: list[Arm]
    total_timesteps: int
    options: tuple[str, ...]
    scoring: dict[str, dict[str, str]]
    seeds: int
    threads: int

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a study that is stopped has equally many runs of each arm."""
        return [Run(arm, seed) for seed in range(1, self.seeds + 1) for arm in self.arms]

    def trainer_options(self, run: Run, runs_path: Path) -> list[str]:
        """Returns the options of the trainer for a run. They start the run, or resume it."""
        weights = [f"{name}={weight!r}" for name, weight in run.arm.weights.items()]
        words = ["--env-id", self.game, "--no-fallback", "--seed", str(run.seed), "--exp-name", run.arm.name]
        words += ["--total-timesteps", str(self.total_timesteps), "--runs-path", str(runs_path), "--resume", "auto"]
        words += ["--scenario", str(run.arm.scenario)]
        words += ["--integrations-path", self.integrations] if self.integrations else []
        words += ["--rewards", *self.rewards] if self.rewards else []
        words += ["--reward-weights", *weights] if weights else []
        options = {"threads": ["--threads", str(self.threads)]}
        return [*words, *_merged(options, _by_option(self.options), _by_option(run.arm.options))]

    def changes(self, saved: Mapping[str, Any]) -> list[str]:
        """Returns what differs from a saved plan. Numbers of seeds and threads may differ.

        Args:
            saved: The content of ``study.json``.
        """
        now = json.loads(json.dumps(asdict(self)))
        found = []
        for name in ("game", "integrations", "rewards", "total_timesteps", "options"):
            if now[name] != saved[name]:
                found.append(f"{name.replace('_', ' ')}: {_shown(saved[name])} -> {_shown(now[name])}")
        arms_then, arms_now = ({arm["name"]: arm for arm in plan["arms"]} for plan in (saved, now))
        if arms_then != arms_now:
            found.append(
                f"arms: {', '.join(map(_arm_text, saved['arms']))} -> {', '.join(map(_arm_text, now['arms']))}"
            )
        scoring: dict[str, str] = {}
        for arm in [name for name in arms_now if name in arms_then]:
            then, today = saved["scoring"][arm], now["scoring"][arm]
            for each in sorted({*then, *today}):
                if then.get(each) != today.get(each):
                    text = f"{each}: {then.get(each, 'was not there')} -> {today.get(each, 'is not there')}"
                    scoring.setdefault(each, text)
        found += scoring.values()
        return found


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"


def _arm_text(arm: Mapping[str, Any]) -> str:
    weights = ", ".join(f"{name}={weight:g}" for name, weight in arm["weights"].items())
    return f"{arm['name']} ({'; '.join(filter(None, [str(arm['scenario']), weights, ' '.join(arm['options'])]))})"


def _option(word: str) -> str:
    """The name of an option, without dashes and value; an empty text if the word is none."""
    if not word.startswith("--"):
        return ""
    return word[2:].partition("=")[0].replace("_", "-").rpartition(".")[2]


def _by_option(words: Iterable[str]) -> dict[str, list[str]]:
    """Returns option -> its words, for words that begin with an option."""
    found: dict[str, list[str]] = {}
    for word in words:
        option = _option(word).removeprefix("no-")
        if option:
            group = found[option] = []
        group.append(word)
    return found


def _merged(*options: Mapping[str, list[str]]) -> list[str]:
    """Returns the words of options, of which the later ones replace those of the same name."""
    merged: dict[str, list[str]] = {}
    for each in options:
        merged = {name: words for name, words in merged.items() if name not in each} | {**each}
    return [word for words in merged.values() for word in words]


def check_trainer_options(words: Sequence[str]) -> None:
    """Refuses options for the trainer that a study decides itself, and words that are no options.

    Raises:
        KartRewardsError: See above.
    """
    if words and not words[0].startswith("-"):
        raise KartRewardsError(f"{words[0]!r}: options of the trainer follow after --, such as -- --state Level1")
    for place, word in enumerate(words):
        option = _option(word)
        if re.match("-[A-Za-z]", word) and word != "-h":
            raise KartRewardsError(f"{word}: is not an option of the trainer: they begin with two dashes")
        if option in _OWN or word == "-h":
            raise KartRewardsError(
                f"{word}: the study decides this itself; options of the study stand before --, and its options "
                "are in kart-rewards ablate --help"
            )
        value = word.partition("=")[2] or "".join(words[place + 1 : place + 2])
        if option == "eval-interval" and value == "0":
            raise KartRewardsError(
                "--eval-interval 0: the outcome of a study is measured by evaluations: use 1 or more"
            )


def follow_study() -> None:
    """Makes this process end when the study ends, and read files from the study's copies. A trainer calls it first.

    ``sys.argv`` has the file descriptor of a pipe, of which the study holds the other end, the processor cores to use,
    the study's folder, and the options of the trainer; afterwards, it has the command line of the trainer.
    """
    pipe, cores, folder, *options = sys.argv[1:]

    def exit_with_study() -> None:
        os.read(int(pipe), 1)  # returns when the other end is closed
        os._exit(1)

    threading.Thread(target=exit_with_study, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    use_copies(kept_sources(Path(folder)))
    sys.argv = ["kart-rewards", "train", *options]


_TRAINER = """
from kart_rewards.lab.ablation.ablate import follow_study
follow_study()
from kart_rewards.__main__ import main
main()
"""


@dataclass
class _Trainer:
    """A trainer at work.

    Args:
        run: The run.
        slot: Which part of the cores it uses.
        process: The process.
        pipe: The study's end of the pipe.
        began: When it started, by ``time.time``.
        steps_at_start: Agent steps that were done before.
        log_at_start: The length of its log before, in bytes.
    """

    run: Run
    slot: int
    process: subprocess.Popen[bytes]
    pipe: int
    began: float
    steps_at_start: int
    log_at_start: int


@dataclass
class Study:
    """A study in its folder.

    Args:
        plan: What it trains.
        folder: Its folder.
        cores: The processor cores of each trainer that runs at the same time; empty: not restricted.
        seconds: Run -> how long its training took, of the runs that are finished.
    """

    plan: Plan
    folder: Path
    cores: list[list[int]]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def runs_path(self) -> Path:
        """The folder of its training runs."""
        return self.folder / "runs"

    def log_path(self, run: Run) -> Path:
        """The file that has what the trainer printed."""
        return self.folder / "logs" / f"{run.name}.log"

    def folders(self, run: Run) -> list[Path]:
        """Returns the folders of a run. There is more than one only if a trainer was killed at its start."""
        return run_folders(self.runs_path, self.plan.game, run.arm.name, run.seed)

    def folder_of(self, run: Run) -> Path:
        """Returns the folder of a run that has begun."""
        return next(folder for folder in self.folders(run) if (folder / "agent.pt").exists())

    def steps(self, run: Run) -> int:
        """Returns the agent steps of the newest checkpoint of a run."""
        names = (path.stem.partition("-")[2] for each in self.folders(run) for path in each.glob("agent-*.pt"))
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def complete_seeds(self) -> list[int]:
        """Returns the seeds of which all arms are finished."""
        return [
            seed
            for seed in range(1, self.plan.seeds + 1)
            if all(Run(arm, seed).name in self.seconds for arm in self.plan.arms)
        ]

    def finished(self) -> list[float]:
        """Returns how long each finished run of the plan took, in seconds."""
        return [self.seconds[run.name] for run in self.plan.runs if run.name in self.seconds]

    def work(self, stop: threading.Event) -> None:
        """Trains all runs that are not finished, and writes the report after each complete seed.

        Args:
            stop: Set it to end the study: the trainers save what they have learned.

        Raises:
            KartRewardsError: A trainer failed.
        """
        waiting = [run for run in self.plan.runs if run.name not in self.seconds]
        free = list(range(len(self.cores)))
        at_work: list[_Trainer] = []
        remaining = Remaining(self)
        reported = len(self.complete_seeds())
        stopping = False
        line = tqdm(total=1, bar_format="{desc}", disable=None, leave=False, dynamic_ncols=True)
        try:
            while at_work or (waiting and not stop.is_set()):
                while waiting and free and not stop.is_set():
                    at_work.append(self._start(waiting.pop(0), free.pop(0)))
                if stop.is_set() and not stopping:
                    stopping = True
                    for trainer in at_work:
                        trainer.process.terminate()  # it saves a checkpoint after the current update
                for trainer in [each for each in at_work if each.process.poll() is not None]:
                    at_work.remove(trainer)
                    os.close(trainer.pipe)
                    free.append(trainer.slot)
                    if self._ended(trainer, stopping):
                        tqdm.write(f"{remaining.text(at_work, waiting)}; finished {trainer.run.name}")
                    elif not stopping:
                        waiting.insert(0, trainer.run)
                if len(self.complete_seeds()) > reported:
                    reported = len(self.complete_seeds())
                    write_report(self)
                line.set_description_str(remaining.text(at_work, waiting))
                time.sleep(_POLL_SECONDS)
        finally:
            line.close()
            for trainer in at_work:
                _kill(trainer.process)
                os.close(trainer.pipe)

    def _start(self, run: Run, slot: int) -> _Trainer:
        for folder in self.folders(run):
            if not any(folder.glob("agent*.pt")):  # a trainer was killed before its first checkpoint
                shutil.rmtree(folder, ignore_errors=True)
        log = self.log_path(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        theirs, ours = os.pipe()
        cores = ",".join(map(str, self.cores[slot]))
        options = self.plan.trainer_options(run, self.runs_path)
        began, steps = time.time(), self.steps(run)
        try:
            with log.open("ab") as output:
                log_at_start = output.tell()
                process = subprocess.Popen(  # noqa: S603 - this program
                    [sys.executable, "-c", _TRAINER, str(theirs), cores, str(self.folder), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs, *_lock_of(self.folder)],
                    start_new_session=True,  # Ctrl-C goes to the study alone, which stops its trainers
                )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return _Trainer(run, slot, process, ours, began, steps, log_at_start)

    def _ended(self, trainer: _Trainer, stopping: bool) -> bool:
        """Returns whether a run is finished after its trainer ended. False: it can be resumed.

        Raises:
            KartRewardsError: The trainer failed.
        """
        code, run = trainer.process.returncode, trainer.run
        if not code and any((folder / "agent.pt").exists() for folder in self.folders(run)):
            checkpoint = Checkpoint.load(self.folder_of(run) / "agent.pt")
            ppo = checkpoint.options["ppo"]
            if checkpoint.steps + ppo["num_envs"] * ppo["num_steps"] > self.plan.total_timesteps:
                self._finish(trainer, checkpoint)
                return True
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if stopping:
            return False
        if code <= 0 and self.steps(run) > trainer.steps_at_start:  # somebody stopped it: its work goes on
            tqdm.write(f"{run.name}: the trainer {how} before its last step; it is resumed")
            return False
        printed = self.log_path(run).read_bytes()[trainer.log_at_start :]
        lines = printed.decode("utf-8", errors="replace").splitlines()
        errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        said = "\n  ".join(lines[errors[-1] :] if errors else lines[-15:])
        raise KartRewardsError(
            f"{run.name}: the trainer {how}. It printed into {self.log_path(run)}:\n  {said}\nThe same command resumes "
            "the study"
        )

    def _finish(self, trainer: _Trainer, checkpoint: Checkpoint) -> None:
        run = trainer.run
        wanted = self.plan.scoring[run.arm.name]
        if checkpoint.scoring != wanted:  # for example, a scenario's data file has changed meanwhile
            changed = [
                name for name in {**wanted, **checkpoint.scoring} if wanted.get(name) != checkpoint.scoring.get(name)
            ]
            raise KartRewardsError(
                f"{run.name}: was trained with other rewards than the study: {', '.join(sorted(changed))} changed "
                f"meanwhile: remove {checkpoint.path.parent}, and start the command again"
            )
        share = 1 - trainer.steps_at_start / max(checkpoint.steps, 1)
        took = time.time() - trainer.began
        known = list(self.seconds.values()) or [took]
        self.seconds[run.name] = took / share if share else fmean(known)  # 0: it was finished, but not noted
        write_json(self.folder / _PROGRESS, {"seconds": self.seconds})


class Remaining:
    """The remaining time of a study, from the measured speed of its runs. It includes start-ups and evaluations.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    def text(self, at_work: Sequence[_Trainer], waiting: Sequence[Run]) -> str:
        """Returns how much is done, and about how long the rest takes.

        Args:
            at_work: The trainers at work.
            waiting: The runs that are not at work and not finished.
        """
        study = self._study
        total = study.plan.total_timesteps
        runs = study.plan.runs
        finished = study.finished()
        seconds, steps = sum(finished), total * len(finished)
        left = 0
        for trainer in at_work:
            done = study.steps(trainer.run)
            left += total - done
            if done > trainer.steps_at_start:
                with suppress(FileNotFoundError, StopIteration):  # it is written again just now
                    newest = (study.folder_of(trainer.run) / f"agent-{done}.pt").stat().st_mtime
                    seconds, steps = seconds + newest - trainer.began, steps + done - trainer.steps_at_start
        left += sum(total - study.steps(run) for run in waiting)
        parts = [f"{len(finished)} of {counted(len(runs), 'run')}"]
        parts += [f"{trainer.run.name} at {study.steps(trainer.run):,} steps" for trainer in at_work]
        if steps and left:
            side_by_side = min(len(study.cores), len(at_work) + len(waiting)) or 1
            parts.append(f"about {_duration(left * seconds / steps / side_by_side)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return counted(minutes, "minute") if minutes < 120 else f"{seconds / 3600:.1f} hours"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


_locks: dict[Path, int] = {}


def _lock_of(folder: Path) -> list[int]:
    return [_locks[folder]] if folder in _locks else []


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one study at a time work in a folder. Its trainers hold the lock, too, so it is free when all have ended.

    Raises:
        KartRewardsError: Another study works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _SECONDS_FOR_OTHERS_TO_END
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KartRewardsError(
                        f"{folder}: another study is at work there: choose another --output"
                    ) from None
                time.sleep(_POLL_SECONDS)
        _locks[folder] = lock
        yield
    finally:
        _locks.pop(folder, None)
        os.close(lock)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise KartRewardsError(f"{path}: can't be read: {error}: choose another --output") from None
    if not isinstance(content, dict) or content.get("version", _VERSION) != _VERSION:
        raise KartRewardsError(f"{path}: is not a file of this version's studies: choose another --output")
    return content


def open_study(folder: Path, plan: Plan, cores: list[list[int]], resume: bool, keep: Callable[[], None]) -> Study:
    """Begins a study in its folder, or goes on with the study that is there.

    Args:
        folder: The folder, which is locked.
        plan: The plan. A study that has begun keeps its number of threads.
        cores: See ``Study``.
        resume: There must be a study.
        keep: Copies the sources into the folder.

    Raises:
        KartRewardsError: The study in the folder is another one, or ``resume`` and there is none.
    """
    saved = _read(folder / _PLAN)
    begun = any((folder / "runs").glob("*/agent*.pt"))
    if saved is None or not begun:
        if resume:
            raise KartRewardsError(f"{folder}: no study has begun there: leave out --resume, or name its --output")
        if saved is None and any(each.name != ".lock" for each in folder.iterdir()):
            raise KartRewardsError(f"{folder}: is not empty, and holds no study: choose another --output")
        keep()
        write_json(folder / _PLAN, {"version": _VERSION, **asdict(plan)})
        return Study(plan, folder, cores)
    try:
        changes = plan.changes(saved)
        threads = int(saved["threads"])
    except (LookupError, TypeError, ValueError, AttributeError):
        raise KartRewardsError(f"{folder / _PLAN}: is damaged: choose another --output") from None
    if changes:
        listed = "".join(f"\n  {change}" for change in changes)
        raise KartRewardsError(
            f"{folder}: the study there is another one:{listed}\nName another --output for a new study, or undo the "
            f"change; the study's own text of its files is in {folder / 'sources'}"
        )
    plan = Plan(**{**vars(plan), "threads": threads})
    write_json(folder / _PLAN, {"version": _VERSION, **asdict(plan)})  # the number of seeds
    keep()  # the copies are code that runs, so they are those of the files that were just compared
    progress = _read(folder / _PROGRESS) or {}
    study = Study(plan, folder, cores)
    kept = {run.name for run in plan.runs if any((each / "agent.pt").exists() for each in study.folders(run))}
    study.seconds |= {name: seconds for name, seconds in progress.get("seconds", {}).items() if name in kept}
    return study


def make_plan(
    game: str,
    integrations: Path | None,
    rewards: Sequence[str],
    scenario: str | None,
    weights: Mapping[str, float],
    changes: Callable[[Sequence[RewardTerm], str | None], list[Arm]],
    total_timesteps: int,
    options: Sequence[str],
    seeds: int,
    threads: int,
) -> tuple[Plan, list[Path]]:
    """Returns a plan, and the files whose text the study keeps.

    Args:
        game: The name of the game. Where the retail game has no ROM, the free one takes its place, with a notice.
        integrations: See ``Plan``.
        rewards, scenario, weights: The rewards of the arm with all terms, as the trainer takes them.
        changes: Returns the arms, from the terms and the scenario of the arm with all terms.
        total_timesteps, seeds, threads: See ``Plan``.
        options: The user's options of the trainer in all arms. They replace the defaults of a study.

    Raises:
        KartRewardsError: The game or a file is missing or wrong.
    """
    asked = {"env_id": game, "integrations_path": integrations, "fallback": True, "scenario": scenario, "info": "data"}
    resolved = resolved_options({**asked, "state": (), "rewards": tuple(rewards), "wrappers": ()})
    found: Game = find_game(resolved["env_id"], resolved["integrations_path"])
    rewards, scenario = resolved["rewards"], resolved["scenario"]

    def load(which: str | None, of_arm: Mapping[str, float]) -> RunRewards:
        return RunRewards.load(found, which, "data", rewards, of_arm)

    base = load(scenario, weights)
    arms = changes(base.scoring.terms, scenario)
    for arm in arms:
        for option, of_evaluations, what in (
            ("state", "eval-states", "on other courses: name those"),
            ("max-episode-steps", "eval-max-episode-steps", "with episodes of another length: give that"),
        ):
            if option in _by_option(arm.options) and of_evaluations not in _by_option(options):
                raise KartRewardsError(
                    f"{arm.name} trains {what} of the evaluations for all arms, after --, with --{of_evaluations}"
                )
    loaded = {arm.name: load(arm.scenario, arm.weights) for arm in arms}
    files = dict.fromkeys([file for each in loaded.values() for file in each.files] + source_files())
    plan = Plan(
        resolved["env_id"],
        resolved["integrations_path"] and str(resolved["integrations_path"]),
        tuple(rewards),
        arms,
        total_timesteps,
        tuple(_merged(_by_option(word for pair in _DEFAULTS.items() for word in pair), _by_option(options))),
        {name: each.fingerprints for name, each in loaded.items()},
        seeds,
        threads,
    )
    return plan, list(files)


def share_cores(jobs: int) -> list[list[int]]:
    """Returns the processor cores of each of several trainers that run at the same time.

    Returns:
        A list per trainer. It is empty where the platform can't assign cores.

    Raises:
        KartRewardsError: There are fewer cores than trainers.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise KartRewardsError(
            f"--jobs {jobs}: this process may use {counted(len(cores), 'core')}: use at most as many"
        )
    return [cores[i * len(cores) // jobs : (i + 1) * len(cores) // jobs] for i in range(jobs)]


def command(
    game: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GAME")],
    trainer: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[-- TRAINER OPTIONS]", help_behavior_hint="")
    ] = (),
    /,
    rewards: Names = (),
    drop: Names = (),
    sets: Annotated[Names, tyro.conf.arg(name="set")] = (),
    scenarios: Names = (),
    options: Names = (),
    seeds: int = 3,
    total_timesteps: int = 60_000,
    jobs: int = 1,
    scenario: str | None = "scenario",
    reward_weights: Names = (),
    integrations_path: GamesFolder = None,
    output: Path | None = None,
    resume: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Trains with all reward terms and with some left out, and reports whether each term helps.

    The outcome is what rewards can't change: races finished, laps, race time, off-road time and wall hits. The same
    command goes on with a study that was stopped. Options of the trainer follow after --, such as -- --state Level1.

    Args:
        game: The game: the name of a folder of integrations.
        trainer: More options of "kart-rewards train", for all runs.
        rewards: Python files or modules with reward terms and done rules to add.
        drop: Terms to leave out, each in an arm of its own: the term gets the weight 0, so it is measured but not paid.
            A term that is also a done rule still ends episodes.
        sets: Weights to try, as NAME=NUMBER, each in an arm of its own: --set wall=-5 wall=-50.
        scenarios: Scenarios to try, each in an arm of its own.
        options: Options of the trainer to try, as NAME='--OPTION VALUE', each in an arm of its own: --options
            "slow=--learning-rate 1e-4" "buttons=--action-mode driving".
        seeds: Number of runs of each arm, with the seeds 1, 2 and so on. A finished study can be continued with more.
        total_timesteps: Agent steps of each run.
        jobs: Number of runs at the same time. They share the processor cores equally.
        scenario: Reward terms and done rules of the other arms: the name of a file in the game's folder, or a .json
            path. None: none.
        reward_weights: Weights in all arms that override the scenario's, as NAME=NUMBER.
        output: Folder of the study. By default studies/GAME.
        resume: Refuse to begin a new study: there must be one to go on with.
    """
    for name, number in (("--seeds", seeds), ("--total-timesteps", total_timesteps), ("--jobs", jobs)):
        if number < 1:
            raise KartRewardsError(f"{name} must be 1 or more, not {number}")
    check_trainer_options(trainer)
    cores, weights = share_cores(jobs), parse_weights(reward_weights)
    others = [
        str(Path(each).resolve()) if each.endswith(".json") and Path(each).is_file() else each for each in scenarios
    ]
    plan, files = make_plan(
        game,
        integrations_path,
        rewards,
        scenario,
        weights,
        lambda terms, of_all: make_arms(terms, of_all, weights, drop, sets, others, options),
        total_timesteps,
        trainer,
        seeds,
        max(len(cores[0]), 1),
    )
    folder = (output or _STUDIES / plan.game).resolve()
    stop = stop_on_signals()
    with locked(folder):
        study = open_study(folder, plan, cores, resume, lambda: keep_sources(folder, files))
        arms = ", ".join(arm.name for arm in plan.arms)
        print(f"{plan.game}: {counted(len(plan.arms), 'arm')} ({arms}), {counted(seeds, 'seed')}, in {folder}")
        study.work(stop)
        text = write_report(study)
    if text:
        print(text)
    if stop.is_set():
        done = f"{len(study.finished())} of {counted(len(plan.runs), 'run')}"
        print(f"stopped after {done}: the same command goes on")
