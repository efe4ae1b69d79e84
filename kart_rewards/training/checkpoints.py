"""Checkpoints: what a training run saves, and whether a run can go on from it.

* ``Checkpoint`` - one file's content, checked
* ``newest_checkpoint`` - the latest complete one of a run
* ``Resumption`` - what a run takes over from a checkpoint; every question of whether one fits is decided here
* ``save_checkpoint``, ``save_atomically`` - writing
* ``load_weights`` - an agent's weights

A file holds tensors and plain values alone, and is read without unpickling anything else. ``best.pt`` holds an agent;
``agent.pt`` holds the optimizer, the random numbers and the environments' states as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import atomic_write
from kart_rewards.scenario import Scoring

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
        scoring: The run's reward terms and done rules, as ``Scoring.fingerprints`` returns them.
        optimizer: The optimizer's state.
        rng_states: The state of each rank's random numbers, see ``Run``; empty after a failure.
        env_states: The state of each environment, in order; empty after a failure.
        best_score: The score of the best evaluation so far; empty if there was none.
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
            raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
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
        return cls(path, **{item.name: content[item.name] for item in fields(cls) if item.name != "path"})

    def restore_options(self, groups: Mapping[str, type]) -> dict[str, Any]:
        """Returns the options that the run was started with.

        Args:
            groups: Name of each group of options -> its dataclass.

        Raises:
            KartRewardsError: The checkpoint has other options than these dataclasses.
        """
        try:
            restored = {name: group(**self.options[name]) for name, group in groups.items()}
        except (KeyError, TypeError) as error:
            raise KartRewardsError(f"{self.path}: is of another version of this script: {error}") from None
        for options in restored.values():
            for name in ("integrations_path", "runs_path"):
                if getattr(options, name, None) is not None:
                    setattr(options, name, Path(getattr(options, name)))
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
        scoring: Scoring,
        steps_per_update: int,
        allow_changed_rewards: bool = False,
    ) -> Resumption:
        """Compares a checkpoint with the run that is to go on from it.

        Args:
            checkpoint: The checkpoint, loaded ``to_resume``.
            options: Group of options -> option -> value, of the new run.
            scoring: Its reward terms and done rules.
            steps_per_update: Agent steps of one update.
            allow_changed_rewards: Whether the terms and rules may differ.

        Raises:
            KartRewardsError: The terms or rules differ and may not, or the run has done all its steps.
        """
        then = checkpoint.options
        notices = []
        of_0_1 = any("source " in value for value in checkpoint.scoring.values())
        changed = _changes(checkpoint.scoring, scoring.fingerprints_of_0_1() if of_0_1 else scoring.fingerprints())
        if changed and not allow_changed_rewards:
            raise KartRewardsError(
                f"{checkpoint.path}: was trained with other reward terms or done rules (code: a hash of it):\n"
                f"{changed}\nResume with the old ones, or add --allow-changed-rewards"
            )
        if changed:
            notices.append(f"Resuming with other reward terms or done rules:\n{changed}")
        total = options["ppo"]["total_timesteps"]
        if checkpoint.steps + steps_per_update > total:
            raise KartRewardsError(
                f"{checkpoint.path}: the run is finished: {checkpoint.steps} of {total} steps are done: raise "
                "--total-timesteps to train further"
            )

        folder: Path | None = checkpoint.path.parent
        assert folder is not None
        if then["env"]["env_id"] != options["env"]["env_id"]:
            folder = None
        elif _steps_of(folder / "agent.pt") > checkpoint.steps:
            notices.append(f"{folder / 'agent.pt'} is ahead of {checkpoint.path}: this run gets a folder of its own.")
            folder = None

        new_episodes = ""
        if not checkpoint.env_states:
            new_episodes = "the checkpoint does not hold their states"
        elif not _same(options["env"], then["env"]) or options["ppo"]["num_envs"] != then["ppo"]["num_envs"]:
            new_episodes = "their options differ from the checkpoint's"
        elif changed:
            new_episodes = "the reward terms or done rules differ from the checkpoint's"
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
            KartRewardsError: See ``load_weights``.
        """
        load_weights(agent, self.checkpoint.agent)
        optimizer.load_state_dict(self.checkpoint.optimizer)
        optimizer.param_groups[0]["fused"] = True  # also if the checkpoint's was not

    def rng_state(self, rank: int, world_size: int) -> dict[str, Any]:
        """Returns the state of a rank's random numbers; empty if the checkpoint is of another number of ranks."""
        states = self.checkpoint.rng_states
        return states[rank] if len(states) == world_size else {}


def _same(options: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether options equal those of a checkpoint, which may be older than an option."""
    return all(options[name] == value for name, value in saved.items())


def _changes(saved: Mapping[str, str], current: Mapping[str, str]) -> str:
    """The terms and rules that differ, a line each."""
    return "\n".join(
        f"  {name}: {saved.get(name, 'was not there')} -> {current.get(name, 'is not there')}"
        for name in {**saved, **current}
        if saved.get(name) != current.get(name)
    )


def _steps_of(path: Path) -> int:
    try:
        return Checkpoint.load(path).steps
    except KartRewardsError:  # there is no checkpoint, or it is damaged
        return 0


def load_weights(agent: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives an agent its weights.

    Raises:
        KartRewardsError: The weights are for other observations or actions.
    """
    try:
        agent.load_state_dict(weights)
    except RuntimeError:
        raise KartRewardsError(
            "the checkpoint's agent is for other observations or actions than these options make"
        ) from None


def newest_checkpoint(runs_path: Path, games: Iterable[str], exp_name: str, seed: int) -> Path | None:
    """Returns the newest complete checkpoint of a run with this game, name and seed; None if there is none.

    Prints the damaged checkpoints that it skips.

    Args:
        runs_path: The folder of runs.
        games: The names that the run's game may have.
        exp_name: The run's name.
        seed: The run's seed.
    """
    found = [path for game in games for path in runs_path.glob(f"{game}__{exp_name}__{seed}__*/agent*.pt")]
    for path in _newest_first(found):
        try:
            Checkpoint.load(path, to_resume=True)
            return path
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
            file.write_bytes(buffer.getbuffer())


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
