"""One training run: it counts steps, logs, evaluates, saves, and stops.

* ``RunOptions`` - where a run goes, how it is logged and saved
* ``Run`` - the run at work, around the loop of an algorithm
* ``make_run_folder`` - a folder for a new run
* ``held`` - keeps other trainings out of a run's folder
* ``stop_on_signals`` - Ctrl-C and SIGTERM end the run after the current update
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import nn

from kart_rewards.drives import DRIVES_FOLDER
from kart_rewards.errors import KartRewardsError, counted
from kart_rewards.files import UnwritableError, copies_in_use, use_copies
from kart_rewards.imports import source_files
from kart_rewards.training.checkpoints import Resumption, load_policy, save_atomically, save_checkpoint, steps_of
from kart_rewards.training.log import Evaluation, Log, check_wandb
from kart_rewards.training.ranks import Ranks
from kart_rewards.training.sources import RunRewards, keep_sources, kept_sources
from kart_rewards.training.timing import Stopwatch, split_of_a_step
from kart_rewards.training.trust import signature
from kart_rewards.training.vector import EnvGroups


@dataclass
class RunOptions:
    """The run: where it goes, how it is logged and saved."""

    exp_name: str = "ppo_continuous_single_file"
    """Part of the run's name: runs/{env-id}__{exp-name}__{seed}__{time}."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 1
    """Seed of the agent, the rollouts and the environments."""
    runs_path: Path = Path("runs")
    """Folder for runs: each has a folder of its own there, for its TensorBoard log, checkpoints and videos."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the agent runs. auto: cuda if there is one, else cpu."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the network computes with while it trains; weights, heads and losses are float32. auto: what is faster on
    this machine, measured at the start."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile the network with torch.compile, which takes up to a minute at the start. Without a compiler on this
    machine, training goes on uncompiled. auto: measure whether it is faster."""
    threads: Annotated[Literal["auto"] | int, Ge(1)] = "auto"
    """Processor threads that compute an update. auto: one per core."""
    torch_deterministic: bool = True
    """Use only deterministic algorithms in cuDNN."""
    resume: str | None = None
    """Checkpoint to resume, such as runs/NAME/agent.pt. Its options apply, except those given here. auto: the newest
    complete checkpoint of a run with this game, name and seed, if there is any."""
    initial_agent: Path | None = None
    """Begin with the policy of this agent, a checkpoint such as agents/NAME.pt, instead of a random one. The value
    function begins at 0, because the rewards may be others. A resumed run ignores it."""
    trust: bool = False
    """Run the reward scripts that a checkpoint names, even if another user or another computer made it."""
    allow_changed_rewards: bool = False
    """Resume although the reward terms or done rules differ from those of the checkpoint."""
    checkpoint_interval: Annotated[int, Ge(0)] = 20
    """Number of updates from one checkpoint to the next. The last update is saved, too. 0: only the last."""
    checkpoints_kept: Annotated[int, Ge(1)] = 3
    """Keep this many of the last checkpoints, as agent-STEPS.pt. agent.pt is the newest."""
    record_drives: Annotated[int, Ge(0)] = 0
    """Record one of this many episodes of each environment as a drive, in drives/ of the run's folder. 0: none. All
    episodes of evaluations are recorded."""
    track: bool = False
    """Mirror the log to Weights & Biases (needs pip install 'kart_rewards[wandb]')."""
    wandb_project_name: str = "kart_rewards"
    """The Weights & Biases project."""
    wandb_entity: str | None = None
    """The Weights & Biases team."""

    def __post_init__(self) -> None:
        if isinstance(self.compile, bool):  # from a checkpoint of version 0.1
            self.compile = "on" if self.compile else "off"

    def of_next_start(self) -> RunOptions:
        """Returns the options of a checkpoint that the next start takes over: all but those of one start."""
        return replace(self, resume=None, allow_changed_rewards=False, trust=False)


_SCORING_OPTIONS: dict[str, Any] = {
    "rewards": [],
    "scenario": "scenario",
    "reward_weights": [],
    "reward_transform": "scale",
    "reward_scale": 0.01,
    "integrations_path": None,
}
"""The options that decide what drives are paid, with their defaults."""


class EndedEpisode(NamedTuple):
    """An episode that ended in a rollout.

    Args:
        step: The step of the rollout, from 0 on.
        env: The environment, from 0 on, among those of this rank.
        info: The last info.
    """

    step: int
    env: int
    info: dict[str, Any]


class DivergedError(KartRewardsError):
    """The agent has numbers that are not finite. It must not replace the agent of a checkpoint."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the agent's {what} are no longer finite: resume an earlier checkpoint with a lower --learning-rate, or "
            "check what the reward terms pay"
        )


class Evaluate(Protocol):
    """Evaluates the agent during training."""

    def is_due(self, updates: int, last: bool) -> bool:
        """Whether to evaluate after so many updates; ``last`` says that the run ends after them."""

    def __call__(self, agent: nn.Module, folder: Path, steps: int, stop: threading.Event) -> Evaluation | None:
        """Returns the result; None if ``stop`` was set meanwhile.

        Args:
            agent: The agent as it is.
            folder: The run's folder.
            steps: Agent steps done so far.
            stop: Set it to end the evaluation after the current episode.
        """

    def write_card(
        self,
        folder: Path,
        agent: Mapping[str, Any],
        evaluation: Evaluation,
        meanings: Mapping[str, str],
        command: Sequence[str],
    ) -> None:
        """Writes the model card of ``best.pt``.

        Args:
            folder: The run's folder.
            agent: The content of ``best.pt``.
            evaluation: The evaluation that chose it.
            meanings: Reward term or done rule -> what it is for.
            command: The words that started the run.

        Raises:
            UnwritableError: The card can't be written.
        """


@dataclass
class Run:
    """One training run at work, around the loop of an algorithm.

    The run goes on until all steps are done or ``stop`` is set. However it ends, what was learned is saved.

    Args:
        options: The run's own options.
        settings: Group of options -> option -> value, of all groups: what the log shows and checkpoints hold.
        rewards: The reward terms and done rules, with their files.
        envs: This rank's environments.
        ranks: This process among all.
        device: The agent's.
        total_steps: Agent steps of the run, over all ranks.
        steps_per_update: Agent steps of one update, over all ranks.
        evaluate: Evaluates the agent.
        stop: Set it to end the run after the current update.
        resumption: What to take over from a checkpoint. None: begin at step 0.

    Attributes:
        folder: The run's folder, once the run has started.
        steps: Agent steps done so far, over all ranks.
        updates: Updates done so far.
        over: Whether the loop should end.
        stopwatch: The loop times the stages ``rollout``, ``policy`` (a part of it) and ``update`` of each update.

    Raises:
        KartRewardsError: ``--track`` was given without Weights & Biases.

    The loop of an algorithm stands inside ``started``::

        with run.started(agent, optimizer) as observations:
            while not run.over:
                losses, episodes = ...
                run.after_update(losses, episodes)
    """

    options: RunOptions
    settings: Mapping[str, Mapping[str, Any]]
    rewards: RunRewards
    envs: EnvGroups
    ranks: Ranks
    device: torch.device
    total_steps: int
    steps_per_update: int
    evaluate: Evaluate
    stop: threading.Event
    resumption: Resumption | None = None

    def __post_init__(self) -> None:
        options = self.options
        if options.track:
            check_wandb()
        self.folder = Path()
        self.steps = self.updates = 0
        self.over = False
        self.stopwatch = Stopwatch()
        self._agent: nn.Module
        self._optimizer: torch.optim.Optimizer
        self._best_score: list[float] = []
        self._log: Log | None = None
        self._episodes = 0
        self._has_drive_trouble = False
        self._saved: tuple[int, int] | None = None  # updates and steps of the last checkpoint
        self._seconds_before: list[dict[str, float]] = []

    @contextmanager
    def started(self, agent: nn.Module, optimizer: torch.optim.Optimizer, title: str) -> Iterator[np.ndarray]:
        """Starts or resumes the run for the body of the ``with`` statement, which holds the loop, and ends it.

        Args:
            agent: The agent, on its device. It takes over the weights of the checkpoint, if there is one.
            optimizer: Its optimizer, likewise.
            title: What is trained, and on what: the first words that the run prints.

        Yields:
            The environments' first observations, uint8, shape (environments, ...).

        Raises:
            KartRewardsError: The run can't go on. What was learned is saved first, if possible.
        """
        self._agent, self._optimizer = agent, optimizer
        self._take_over()
        observations, rank_states = self._first_frames()  # a term that fails there leaves no folder behind
        if self.ranks.rank == 0:
            self.folder = (self.resumption and self.resumption.folder) or make_run_folder(
                self.options.runs_path, self.settings["env"]["env_id"], self.options.exp_name, self.options.seed
            )
        with held(self.folder) if self.ranks.rank == 0 else nullcontext():
            print(f"{title}, logging to {self.folder}\n{self.rewards.scoring.table()}\n")
            for text in self._notices():
                print(f"{text}\n")
            failure: Exception | None = None
            copies_before = copies_in_use()
            try:
                self._start(rank_states)
                yield observations
            except KeyboardInterrupt:
                self._end_at_once()
                raise
            except (OSError, UnwritableError) as error:
                failure = _unwritable(self.folder, error)
            except Exception as error:  # an internal error must not lose what was learned either
                failure = error
            finally:
                use_copies(copies_before)
            self._end(failure)

    def _take_over(self) -> None:
        """Loads the checkpoint, if there is one, and seeds the random numbers of the rollouts."""
        if self.resumption:
            print("\n\n".join(self.resumption.notices), end="\n\n")
            self.resumption.restore(self._agent, self._optimizer)
            self.steps, self.updates = self.resumption.checkpoint.steps, self.resumption.checkpoint.updates
            self._best_score = self.resumption.best_score
        elif self.options.initial_agent:
            load_policy(self._agent, self.options.initial_agent, self.settings["env"])
        self._last_step = self.total_steps - (self.total_steps - self.steps) % self.steps_per_update
        self.ranks.agree(self._agent, self.steps)
        # Each rank samples other actions, and a resumed run other ones than at its beginning.
        torch.manual_seed((self.options.seed + self.ranks.rank + self.steps) % 2**63)
        if self.resumption:
            self.resumption.restore_random_numbers(self.ranks.rank, self.ranks.world_size, self.device)

    def _notices(self) -> Iterator[str]:
        if self.envs.drawing:
            yield self.envs.drawing
        yield from self.rewards.scoring.notices()
        env = {**_SCORING_OPTIONS, **self.settings["env"]}
        if env["reward_transform"] != "scale" and env["reward_scale"] != _SCORING_OPTIONS["reward_scale"]:
            transform = env["reward_transform"]
            yield f"--reward-scale {env['reward_scale']:g} has no effect with --reward-transform {transform}."
        if self._last_step < self.total_steps:
            yield (
                f"Training ends after {self._last_step:,} steps, not {self.total_steps:,}: each rollout is complete, "
                f"with {counted(self.steps_per_update, 'step')}."
            )

    def _first_frames(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Resets the environments. Returns their observations, and the state of each rank."""
        if any(each != self.rewards.scoring.fingerprints() for each in self.envs.call("fingerprints")):
            raise KartRewardsError(
                "a file of reward terms has changed while the run started: start the run again. Or a term or rule "
                "reads a constant that differs in each process, such as time.time(): compute it when the term is called"
            )
        if self.options.record_drives and self.ranks.rank == 0:
            self.envs.call("record_drives", self.options.record_drives)
        states = self.resumption.env_states if self.resumption else None
        seed = self.options.seed + self.steps + self.ranks.rank * self.envs.num_envs
        observations = self.envs.reset(seed=seed, options=None if states is None else {"states": states})
        return observations, self.ranks.gather(self._rank_state())

    def _start(self, rank_states: Sequence[Mapping[str, Any]]) -> None:
        if self.ranks.rank == 0:
            keep_sources(self.folder, [*self.rewards.files, *source_files()])
            use_copies(kept_sources(self.folder))
            wandb = {"project": self.options.wandb_project_name, "entity": self.options.wandb_entity}
            self._log = Log(
                self.folder,
                {name: value for group in self.settings.values() for name, value in group.items()},
                self.rewards.scoring,
                self._last_step,
                self.steps,
                wandb if self.options.track else None,
                self._compared_options(),
            )
            if self.options.record_drives:
                self.envs.call("keep_drives", self.folder / DRIVES_FOLDER)
            self._log.writer.add_text("drawing", self.envs.drawing, self.steps)
        self._save(rank_states)  # a disk that is full should be reported before the first step
        self._seconds_before = self.envs.seconds()

    def after_update(self, losses: Mapping[str, float], episodes: Sequence[EndedEpisode]) -> None:
        """Counts the update's steps; logs, evaluates and saves; and sets ``over`` when the run is to end.

        Args:
            losses: Losses and diagnostics by name.
            episodes: The episodes of this rank that ended in the rollout.

        Raises:
            DivergedError: The agent's weights are no longer finite.
        """
        if not all(parameter.isfinite().all() for parameter in self._agent.parameters()):
            raise DivergedError("weights")
        # The environments of a step count one after the other, so that no two episodes share a place in the curves.
        own, of_all = self.envs.num_envs, self.envs.num_envs * self.ranks.world_size
        first = self.steps + self.ranks.rank * own + 1
        counted_episodes = [(first + step * of_all + env, info) for step, env, info in episodes]
        of_all_ranks = [episode for part in self.ranks.gather(counted_episodes) for episode in part]
        self._episodes += len(of_all_ranks)
        for trouble in (info["drive_trouble"] for _, info in of_all_ranks if "drive_trouble" in info):
            self._warn_once(trouble)
        self.steps += self.steps_per_update
        self.updates += 1
        last = self.steps >= self._last_step
        if self._log:
            self._log.update(
                self.steps,
                losses,
                sorted(of_all_ranks, key=lambda episode: episode[0]),
                self._milliseconds(),
                self._optimizer.param_groups[0]["lr"],
            )
            if self.evaluate.is_due(self.updates, last):
                self._evaluate(self._log)
        self.over = any(self.ranks.gather(last or self.stop.is_set()))
        interval = self.options.checkpoint_interval
        if self.over or (interval and self.updates % interval == 0):
            self._save(self.ranks.gather(self._rank_state()))
        self.stopwatch = Stopwatch()
        self._seconds_before = self.envs.seconds()

    def _warn_once(self, trouble: str) -> None:
        if not self._has_drive_trouble:
            self._has_drive_trouble = True
            print(f"\n{trouble}. Training goes on, and further drives that can't be written are not reported.")

    def _milliseconds(self) -> dict[str, float]:
        seconds = [
            {part: after[part] - before[part] for part in after}
            for before, after in zip(self._seconds_before, self.envs.seconds(), strict=True)
        ]
        return split_of_a_step(self.stopwatch.seconds, seconds, self.ranks.share(self.steps_per_update))

    def _evaluate(self, log: Log) -> None:
        """Evaluates the agent, and writes the best so far as best.pt, with a card. A failure does not end training."""
        try:
            log.progress.end_line()
            evaluation = self.evaluate(self._agent, self.folder, self.steps, self.stop)
            if evaluation is None:
                return
            is_best = evaluation.score > self._best_score
            log.evaluation(evaluation, self.steps, is_best)
        except KartRewardsError as error:
            log.progress.print(f"this evaluation is skipped: {error}")
            return
        if is_best:
            best = self.folder / "best.pt"
            if not self._best_score and best.exists():
                kept = best.rename(self.folder / f"best-{steps_of(best)}.pt")
                log.progress.print(
                    f"{kept} is the best agent of the evaluations before, which do not compare with these"
                )
            self._best_score = evaluation.score
            agent, scoring = self._agent_content(), self.rewards.scoring
            save_atomically(agent, best)
            meanings = {script.name: script.summary for script in (*scoring.terms, *scoring.done)}
            command = [*_this_command(self.ranks), *sys.argv[1:]]
            self.evaluate.write_card(self.folder, agent, evaluation, meanings, command)

    def _agent_content(self) -> dict[str, Any]:
        return {
            "agent": self._agent.state_dict(),
            "updates": self.updates,
            "steps": self.steps,
            "options": self.settings,
            "scoring": self.rewards.fingerprints,
            "signature": signature(self.settings["env"]),
        }

    def _rank_state(self) -> dict[str, Any]:
        """What this rank's part of the rest of the run depends on: its random numbers and its environments."""
        rng = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"rng": rng, "envs": self.envs.call("get_state")}

    def _compared_options(self) -> dict[str, Any]:
        """Returns the options that decide what is learned."""
        groups = (values for group, values in self.settings.items() if group not in ("eval", "run"))
        compared = {name: value for values in groups for name, value in values.items()} | {"seed": self.options.seed}
        compared.pop("reward_weights", None)  # the log has all weights
        return compared

    def _save(self, rank_states: Sequence[Mapping[str, Any]]) -> None:
        """Writes a checkpoint. After a failure there are no ``rank_states``."""
        if self.ranks.rank == 0:
            content = self._agent_content() | {
                "optimizer": self._optimizer.state_dict(),
                "rng_states": [state["rng"] for state in rank_states],
                "env_states": [env for state in rank_states for env in state["envs"]],
                "best_score": self._best_score,
            }
            save_checkpoint(self.folder, content, self.options.checkpoints_kept)
            self._saved = (self.updates, self.steps)

    def _end(self, failure: Exception | None) -> None:
        if self._log:
            self._log.close()
        # A failure loses the environments' states: a checkpoint of this update that has them is better.
        saved = (self.folder / f"agent-{self.steps}.pt").exists()
        if failure and not (isinstance(failure, DivergedError) or saved):
            try:
                self._save([])
            except (OSError, UnwritableError):
                raise failure from None
        path, best = self.folder / "agent.pt", self.folder / "best.pt"
        if self.updates and not isinstance(failure, DivergedError) and path.exists():
            print(f"saved {path} after {counted(self.updates, 'update')}")
        if failure:
            raise failure
        if best.exists():
            print(f"the best agent of all evaluations is {best}")
        else:
            print(f"no evaluation has ended, so there is no best.pt: {path} is the agent to watch")
        if not self._episodes:
            print("no episode ended, so there are no curves of episodes: train longer, or lower --max-episode-steps")
        if self.updates:
            self._say_what_is_next()
        if self.steps < self._last_step:
            self._say_how_to_resume(path)

    def _end_at_once(self) -> None:
        """Prints what is left after a second Ctrl-C."""
        if self._log:
            self._log.close()
        if self._saved:
            path, (updates, steps) = self.folder / "agent.pt", self._saved
            print(f"stopped at once: {path} is of the last checkpoint, after {counted(updates, 'update')}")
            if steps < self._last_step:
                self._say_how_to_resume(path)

    def _say_what_is_next(self) -> None:
        """Prints the commands that show what was learned."""
        folder, drives = str(self.folder), self.folder / DRIVES_FOLDER
        scoring: list[str] = []
        for option, default in _SCORING_OPTIONS.items():
            value = self.settings["env"].get(option, default)
            values = list(value) if isinstance(value, list | tuple) else [value]
            if value != default and values:
                scoring += [f"--{option.replace('_', '-')}", *map(str, values)]
        commands = {
            "the curves": ["tensorboard", "--logdir", str(self.options.runs_path)],
            "the agent plays": ["kart-rewards", "watch", folder],
            "beside scripted players": ["kart-rewards", "evaluate", folder],
        }
        if drives.is_dir():
            commands["what the rewards pay for"] = ["kart-rewards", "score", str(drives), *scoring]
            commands["and where"] = ["kart-rewards", "lab", str(drives), *scoring]
        print("next:")
        for what, words in commands.items():
            print(f"  {what + ':':<31}{shlex.join(words)}")

    def _say_how_to_resume(self, path: Path) -> None:
        print(f"resume with: {shlex.join([*_this_command(self.ranks), '--resume', str(path)])}")
        if self.ranks.world_size > self.ranks.local_world_size:
            print("OPTIONS are torchrun's, as at this start, on each machine")


def _this_command(ranks: Ranks) -> list[str]:
    """The words that started this program."""
    script = Path(sys.argv[0])
    if ranks.world_size > 1:
        one_machine = ranks.world_size == ranks.local_world_size
        options = f"--nproc-per-node={ranks.local_world_size}" if one_machine else "OPTIONS"
        program = [str(script)] if script.suffix == ".py" else ["-m", "kart_rewards", "train"]
        return ["torchrun", options, *program]
    return ["python", str(script)] if script.suffix == ".py" else sys.argv[0].split(" ")


def make_run_folder(runs_path: Path, game: str, exp_name: str, seed: int) -> Path:
    """Makes the folder of a new run, GAME__EXP-NAME__SEED__TIME, which no other run has, and returns its path.

    Raises:
        KartRewardsError: It can't be made.
    """
    name = f"{game}__{exp_name}__{seed}__{int(time.time())}"
    if Path(name).name != name:
        raise KartRewardsError(f"--exp-name {exp_name}: becomes a part of a folder's name: write it without /")
    if runs_path.exists() and not runs_path.is_dir():
        raise KartRewardsError(f"{runs_path}: is a file, not a folder: choose another --runs-path")
    try:
        runs_path.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = runs_path / (f"{name}-{number}" if number > 1 else name)
            with suppress(FileExistsError):  # a run that began in the same second has it
                folder.mkdir()
                return folder
    except OSError as error:
        raise _unwritable(runs_path, error) from None
    raise AssertionError("numbers do not end")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of the folder of a run. The lock ends with the process, however that ends.

    Raises:
        KartRewardsError: Another training has the folder.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KartRewardsError(
                f"{folder}: another training writes to this folder: wait until it ends, or stop it with Ctrl-C"
            ) from None
        except OSError:  # this file system has no locks
            pass
        yield
    finally:
        os.close(lock)


def _unwritable(folder: Path, error: OSError | UnwritableError) -> KartRewardsError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free space there, or choose another --runs-path" if full else "choose another --runs-path"
    return KartRewardsError(f"{folder}: can't be written: {error.strerror or error}: {remedy}")


_STOPPING = """
stopping after this update (a second Ctrl-C stops at once, and loses the steps since the last checkpoint)
"""


def stop_on_signals(announce: bool = True) -> threading.Event:
    """Returns an event that Ctrl-C or SIGTERM sets. A second signal raises KeyboardInterrupt.

    Signals within half a second are one: ``timeout`` sends a signal twice, and torchrun passes on a terminal's Ctrl-C.

    Args:
        announce: Print at the first signal what it does.
    """
    stop = threading.Event()
    first_at_seconds: float | None = None

    def on_signal(number: int, frame: Any) -> None:
        nonlocal first_at_seconds
        if first_at_seconds is not None:  # not stop.is_set(): a second signal can interrupt stop.set()
            if time.monotonic() - first_at_seconds > 0.5:
                raise KeyboardInterrupt
            return
        first_at_seconds = time.monotonic()
        stop.set()
        if announce:
            with suppress(OSError):  # print is not safe in a signal handler
                os.write(sys.stderr.fileno(), _STOPPING.encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop
