"""Checkpoints: what a training run saves, and whether a run can go on from it.

* ``Checkpoint`` - one file's content, checked
* ``find_checkpoint``, ``newest_checkpoint`` - the one to resume; the latest complete one of a run
* ``Resumption`` - what a run takes over from a checkpoint; every question of whether one fits is decided here
* ``save_checkpoint``, ``save_atomically``, ``steps_of`` - writing; how far a file's agent was trained
* ``load_weights`` - an agent's weights

A file holds tensors and plain values alone, and is read without unpickling anything else. ``best.pt`` holds an agent;
``agent.pt`` holds the optimizer, the random numbers and the environments' states as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from kart_rewards.errors import KartRewardsError, NothingToDo
from kart_rewards.files import atomic_write
from kart_rewards.notices import notice
from kart_rewards.training.sources import RunRewards, changed_sources, changed_wrappers

_AGENT_KEYS = {"agent", "updates", "steps", "options", "scoring"}
_RESUME_KEYS = {"optimizer", "rng_states", "env_states", "best_score"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Args:
        path: The file.
        agent: The agent's weights by name, on the CPU.
        updates: Updates done so far.
        steps: Agent steps done so far.
        options: Group of options -> option -> value, as the run was started.
        scoring: What decides the run's rewards: see ``RunRewards``.
        optimizer: The optimizer's state.
        rng_states: The state of each rank's random numbers, see ``Run``; empty after a failure.
        env_states: The state of each environment, in order; empty after a failure.
        best_score: The score of the best evaluation so far; empty if there was none.
        signature: Says whose run it was, see ``kart_rewards.training.trust``; empty in checkpoints of version 0.1.
    """

    path: Path
    agent: dict[str, Tensor]
    updates: int
    steps: int
    options: dict[str, Any]
    scoring: dict[str, str]
    optimizer: dict[str, Any]
    rng_states: list[dict[str, Any]]
    env_states: list[dict[str, Any]]
    best_score: list[float]
    signature: str = ""

    @classmethod
    def load(cls, path: Path, to_resume: bool = False) -> Checkpoint:
        """Reads a checkpoint from any source: nothing but tensors and plain values is unpickled.

        Args:
            path: The file.
            to_resume: Whether it must hold what a run needs to go on, and not an agent alone.

        Raises:
            KartRewardsError: The file can't be read, is damaged, or is not such a checkpoint.
        """
        try:
            file = path.read_bytes()
        except OSError as error:
            hint = ": name the file of an agent, such as agent.pt in it" if path.is_dir() else ""
            raise KartRewardsError(f"{path}: can't be read: {error.strerror}{hint}") from None
        try:
            content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged or foreign file
            raise KartRewardsError(f"{path}: is not a checkpoint, or is damaged ({type(error).__name__})") from None
        if not isinstance(content, dict) or _AGENT_KEYS - content.keys():
            raise KartRewardsError(f"{path}: is not a checkpoint of this script")
        if _RESUME_KEYS - content.keys():
            if to_resume:
                raise KartRewardsError(f"{path}: holds only an agent, to evaluate or watch: resume an agent.pt")
            content |= {"optimizer": {}, "rng_states": [], "env_states": [], "best_score": []}
        known = {name: kind for name, kind in get_type_hints(cls).items() if name in content}
        for name, kind in known.items():
            _check_type(content[name], kind, f"{path}: is damaged: {name}")
        if content["steps"] < 0 or content["updates"] < 0:
            raise KartRewardsError(f"{path}: is damaged: steps and updates must be 0 or more")
        return cls(path, **{name: content[name] for name in known})

    def restore_options(self, groups: Mapping[str, type]) -> dict[str, Any]:
        """Returns the options that the run was started with.

        Args:
            groups: Name of each group of options -> its dataclass.

        Raises:
            KartRewardsError: The checkpoint has other options than these dataclasses.
        """
        restored = {}
        for name, group in groups.items():
            try:
                options = group(**self.options[name])
            except (KeyError, TypeError) as error:
                raise KartRewardsError(f"{self.path}: is of another version of this script: {error}") from None
            for option, kind in get_type_hints(group).items():
                value = getattr(options, option)
                if isinstance(value, str) and kind in (Path, Path | None):
                    value = Path(value)
                    setattr(options, option, value)
                _check_type(value, kind, f"{self.path}: is damaged: the option {option}")
            restored[name] = options
        return restored


@dataclass(frozen=True)
class Resumption:
    """What a run takes over from a checkpoint.

    Args:
        checkpoint: The checkpoint.
        folder: The run's folder. None: the run needs a folder of its own.
        env_states: The environments' states. None: the environments begin new episodes.
        best_score: The score of ``best.pt`` in ``folder``; empty if later evaluations do not compare with it.
        notices: What the user should know, in sentences.
    """

    checkpoint: Checkpoint
    folder: Path | None
    env_states: list[dict[str, Any]] | None
    best_score: list[float]
    notices: list[str]

    @classmethod
    def decide(
        cls,
        checkpoint: Checkpoint,
        options: Mapping[str, Mapping[str, Any]],
        rewards: RunRewards,
        steps_per_update: int,
        allow_changed_rewards: bool = False,
        auto: bool = False,
    ) -> Resumption:
        """Compares a checkpoint with the run that is to go on from it.

        Args:
            checkpoint: The checkpoint, loaded ``to_resume``.
            options: Group of options -> option -> value, of the new run.
            rewards: Its reward terms and done rules.
            steps_per_update: Agent steps of one update.
            allow_changed_rewards: Whether the terms and rules may differ.
            auto: Whether the checkpoint was found automatically, so that a finished run is not a mistake.

        Raises:
            KartRewardsError: The terms or rules differ and may not; or the run has done all its steps.
            NothingToDo: The run has done all its steps, with ``auto``.
        """
        then = checkpoint.options
        notices = []
        of_0_1 = any("source " in value for value in checkpoint.scoring.values())
        changed = _changes(checkpoint.scoring, rewards.fingerprints_of_0_1 if of_0_1 else rewards.fingerprints)
        if changed and not allow_changed_rewards:
            copies = changed_sources(checkpoint.path.parent)
            old = "".join(f"\n  {file}: the run's own text of it is {copy}" for file, copy in copies.items())
            if not copies and re.search(r"code \w+ -> .*code ", changed):
                old = (
                    ". No file of the run has changed: if a term or rule reads a constant that differs in each "
                    "process, such as time.time() or a random number, compute it when the term is called"
                )
            raise KartRewardsError(
                f"{checkpoint.path}: was trained with {_kinds(changed)}:\n{changed}\nResume with the old ones, or add "
                f"--allow-changed-rewards{old}"
            )
        if changed:
            notices.append(f"Resuming although this has changed:\n{changed}")
        for file in changed_wrappers(checkpoint.path.parent, options["env"]["wrappers"]):
            notices.append(f"{file}: has changed since the run began: its wrappers are used as they are now.")
        total = options["ppo"]["total_timesteps"]
        if checkpoint.steps + steps_per_update > total:
            finished = (
                f"the run of {checkpoint.path} is finished: {checkpoint.steps:,} of {total:,} steps are done. Raise "
                "--total-timesteps to train further"
            )
            raise NothingToDo(finished) if auto else KartRewardsError(finished)
        planned = then["ppo"]["total_timesteps"]
        if options["ppo"]["anneal_lr"] and then["ppo"]["anneal_lr"] and total != planned:
            before = then["ppo"]["learning_rate"] * (1 - checkpoint.steps / planned)
            now = options["ppo"]["learning_rate"] * (1 - checkpoint.steps / total)
            notices.append(
                f"The learning rate goes on at {now:.2g} instead of {before:.2g}: it falls to 0 over {total:,} steps, "
                f"no longer over {planned:,}."
            )

        folder: Path | None = checkpoint.path.parent
        if then["env"]["env_id"] != options["env"]["env_id"]:
            folder = None
        elif steps_of(newest := checkpoint.path.parent / "agent.pt") > checkpoint.steps:
            notices.append(f"{newest} is ahead of {checkpoint.path}: this run gets a folder of its own.")
            folder = None

        new_episodes = ""
        if not checkpoint.env_states:
            new_episodes = "the checkpoint does not hold their states"
        elif not _same(options["env"], then["env"]) or options["ppo"]["num_envs"] != then["ppo"]["num_envs"]:
            new_episodes = "their options differ from the checkpoint's"
        elif changed:
            new_episodes = "what decides the rewards has changed"
        if new_episodes:
            notices.append(f"The environments begin new episodes: {new_episodes}.")
        notices.append(f"Resuming after {checkpoint.updates} updates, {checkpoint.steps:,} steps.")

        same_evaluation = all(_same(options[group], then[group]) for group in ("env", "eval")) and not changed
        keeps_best = same_evaluation and folder is not None and (folder / "best.pt").exists()
        return cls(
            checkpoint=checkpoint,
            folder=folder,
            env_states=None if new_episodes else checkpoint.env_states,
            best_score=checkpoint.best_score if keeps_best else [],
            notices=notices,
        )

    def restore(self, agent: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Loads the checkpoint's weights and optimizer state.

        Raises:
            KartRewardsError: See ``load_weights``; or the optimizer's state is not one of this agent's optimizer.
        """
        load_weights(agent, self.checkpoint.agent)
        _check_optimizer(self.checkpoint, optimizer)
        optimizer.load_state_dict(self.checkpoint.optimizer)
        optimizer.param_groups[0]["fused"] = True  # also if the checkpoint's was not

    def restore_random_numbers(self, rank: int, world_size: int, device: torch.device) -> None:
        """Continues the random numbers of a rank, if the checkpoint is of the same number of ranks.

        Raises:
            KartRewardsError: The checkpoint holds no such state.
        """
        states = self.checkpoint.rng_states
        if len(states) != world_size:
            return
        try:
            torch.set_rng_state(states[rank]["torch"])
            if "cuda" in states[rank] and device.type == "cuda":
                torch.cuda.set_rng_state(states[rank]["cuda"], device)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise KartRewardsError(f"{self.checkpoint.path}: is damaged: rng_states: {_first_line(error)}") from None


def _check_type(value: object, kind: Any, what: str) -> None:
    try:
        check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise KartRewardsError(f"{what}: {_first_line(error)}") from None


def _check_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Compares a saved state with that of the optimizer: a tensor of the wrong shape would crash the process."""
    saved, own = checkpoint.optimizer, optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    damaged = KartRewardsError(f"{checkpoint.path}: is damaged: the optimizer's state does not fit the agent")
    try:
        groups_fit = [group["params"] for group in saved["param_groups"]] == [
            group["params"] for group in own["param_groups"]
        ]
        for group, own_group in zip(saved["param_groups"], own["param_groups"], strict=True):
            kinds_fit = all(_kind(group[name]) == _kind(value) for name, value in own_group.items() if name != "fused")
            groups_fit = groups_fit and kinds_fit
        if not groups_fit or saved["state"].keys() - set(range(len(parameters))):
            raise damaged
        for i, moments in saved["state"].items():
            if not isinstance(moments, dict):  # a tensor would take the names below as indices
                raise damaged
            shapes = {"step": torch.Size([]), "exp_avg": parameters[i].shape, "exp_avg_sq": parameters[i].shape}
            for name, shape in shapes.items():
                if moments[name].shape != shape or moments[name].dtype != torch.float32:
                    raise damaged
    except (LookupError, TypeError, ValueError, AttributeError):
        raise damaged from None


def _kind(value: object) -> object:
    """The type of an optimizer's option; integers pass for other numbers, and tuples count item by item."""
    if isinstance(value, (list, tuple)):
        return [_kind(item) for item in value]
    return float if type(value) is int else type(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _same(options: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether options equal those of a checkpoint, which may be older than an option."""
    return all(options[name] == value for name, value in saved.items())


_WHOLE_WEIGHT = re.compile(r"^(weight -?\d+)(?=,)")  # as older versions saved some weights: 1 beside 1.0


def _changes(saved: Mapping[str, str], current: Mapping[str, str]) -> str:
    """The terms and rules that differ, a line each."""
    saved = {name: _WHOLE_WEIGHT.sub(r"\1.0", text) for name, text in saved.items()}
    return "\n".join(
        f"  {name}: {saved.get(name, 'was not there')} -> {current.get(name, 'is not there')}"
        for name in {**saved, **current}
        if saved.get(name) != current.get(name)
    )


def _kinds(changes: str) -> str:
    """What the lines of ``_changes`` are about, in words."""
    words = {"term ": "reward terms", "rule ": "done rules", "variable ": "variables", "ROM:": "ROM", "core:": "core"}
    found = [word for kind, word in words.items() if f"\n  {kind}" in f"\n{changes}"] or ["rewards"]
    return "other " + " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))


def steps_of(path: Path) -> int:
    """Returns the agent steps of a file's agent; 0 if there is no such file, or if it is damaged."""
    try:
        return Checkpoint.load(path).steps
    except KartRewardsError:
        return 0


def load_weights(agent: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives an agent its weights. An agent on PyTorch's meta device, without memory, takes over these tensors.

    Raises:
        KartRewardsError: The weights are for other observations or actions.
    """
    own = agent.state_dict()
    try:
        fitting = {name: value.to(own[name].dtype) for name, value in weights.items()}
        agent.load_state_dict(fitting, assign=any(tensor.is_meta for tensor in own.values()))
    except (LookupError, RuntimeError, TypeError, AttributeError):
        raise KartRewardsError(
            "the checkpoint's agent is for other observations or actions than these options make"
        ) from None


_SEEN_AND_PRESSED = ("action_mode", "frame_skip", "crop", "max_pool", "grey", "size", "stack")
"""The options of an environment that decide what an agent sees, and what its actions do."""


def load_policy(agent: nn.Module, path: Path, env_options: Mapping[str, Any]) -> None:
    """Gives an agent the weights of another one. The layer ``critic`` gets zeros, because the rewards may be others.

    Prints a notice of each option that made the other agent see or do something else.

    Args:
        agent: The agent.
        path: A checkpoint with the other one.
        env_options: The options of the agent's environments.

    Raises:
        KartRewardsError: The file is not a checkpoint, or its agent is for other observations or actions.
    """
    checkpoint = Checkpoint.load(path)
    critic = {name: torch.zeros_like(value) for name, value in checkpoint.agent.items() if name.startswith("critic.")}
    try:
        load_weights(agent, checkpoint.agent | critic)
    except KartRewardsError as error:
        raise KartRewardsError(f"--initial-agent {path}: {error}") from None
    before = checkpoint.options.get("env", {})
    for name in _SEEN_AND_PRESSED:
        was, now = (
            tuple(value) if isinstance(value, list) else value for value in (before.get(name), env_options[name])
        )
        if name in before and was != now:
            notice(f"{path}: was trained with --{name.replace('_', '-')} {was}, which is {now} now\n")


def find_checkpoint(resume: str, runs_path: Path, games: Iterable[str], exp_name: str, seed: int) -> Checkpoint | None:
    """Loads the checkpoint to resume; None if there is none.

    Args:
        resume: A file; the folder of a run, whose ``agent.pt`` is meant; or ``auto``, which is the newest complete
            checkpoint of a run, see ``newest_checkpoint``.
        runs_path: The folder of runs.
        games: The names that the run's game may have.
        exp_name: The run's name.
        seed: The run's seed.

    Raises:
        KartRewardsError: See ``Checkpoint.load``.
    """
    if resume == "auto":
        return newest_checkpoint(runs_path, games, exp_name, seed)
    path = Path(resume)
    return Checkpoint.load(path / "agent.pt" if path.is_dir() else path, to_resume=True)


def run_folders(runs_path: Path, game: str, exp_name: str, seed: int) -> list[Path]:
    """Returns the folders of the runs with this game, name and seed, sorted. ``make_run_folder`` names them."""
    name = f"{game}__{exp_name}__{seed}__"
    folders = sorted(runs_path.glob(f"{escape(name)}*"))
    return [folder for folder in folders if re.fullmatch(r"\d+(-\d+)?", folder.name.removeprefix(name))]


def newest_checkpoint(runs_path: Path, games: Iterable[str], exp_name: str, seed: int) -> Checkpoint | None:
    """Loads the newest complete checkpoint of a run with this game, name and seed; None if there is none.

    Prints the damaged checkpoints that it skips.

    Args:
        runs_path: The folder of runs.
        games: The names that the run's game may have.
        exp_name: The run's name.
        seed: The run's seed.
    """
    folders = (folder for game in games for folder in run_folders(runs_path, game, exp_name, seed))
    found = [path for folder in folders for path in folder.glob("agent*.pt")]
    for path in _newest_first(found):
        try:
            return Checkpoint.load(path, to_resume=True)
        except KartRewardsError as error:
            print(f"skipped: {error}")
    return None


def save_checkpoint(folder: Path, content: Mapping[str, Any], kept: int) -> None:
    """Writes a checkpoint as ``agent-STEPS.pt`` and ``agent.pt``, and removes all but the newest ``kept``.

    Args:
        folder: The run's folder.
        content: The fields of ``Checkpoint`` but ``path``, by name.
        kept: How many checkpoints to keep.

    Raises:
        UnwritableError: The disk is full or read-only. The old checkpoints are still there.
    """
    save_atomically(content, folder / f"agent-{content['steps']}.pt", folder / "agent.pt")
    for old in _newest_first(folder.glob("agent-*.pt"))[kept:]:
        old.unlink(missing_ok=True)


def save_atomically(content: Mapping[str, Any], *paths: Path) -> None:
    """Writes the content to each path, each of which holds a complete file at every moment.

    Raises:
        UnwritableError: The disk is full or read-only. Earlier files are still there.
    """
    buffer = io.BytesIO()  # torch.save raises RuntimeError on a full disk; a plain write raises OSError with the reason
    torch.save(dict(content), buffer)
    for path in paths:
        with atomic_write(path) as file:
            file.write_bytes(buffer.getvalue())  # with getbuffer, Python 3.12.1 crashes when it collects the error


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    ages = []
    for path in paths:
        with suppress(FileNotFoundError):  # another run of this name has just removed it
            ages.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(ages, key=lambda age: age[0], reverse=True)]
