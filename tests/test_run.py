"""One training run: steps, logs, evaluations and checkpoints; and what happens when it is stopped, killed or fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import forks
import numpy as np
import pytest
import torch
from torch import nn
from training_runs import (
    GAME,
    RESUME,
    SCRIPT,
    SMALL,
    Finished,
    alive,
    assert_refused,
    children,
    equal_weights,
    finish,
    only_run,
    scalars,
    started,
    train,
    train_here,
    wait_until,
    weights,
)

from kart_rewards.errors import KartRewardsError
from kart_rewards.files import use_copies
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.rewards import EpisodeRewards
from kart_rewards.scenario import load_scoring
from kart_rewards.training.checkpoints import Checkpoint, Resumption
from kart_rewards.training.log import Evaluation
from kart_rewards.training.ranks import Ranks
from kart_rewards.training.run import (
    DivergedError,
    EndedEpisode,
    Run,
    RunOptions,
    held,
    make_run_folder,
    stop_on_signals,
)
from kart_rewards.training.sources import RunRewards, kept_sources

PER_UPDATE = 20
GAME_FOLDER = INTEGRATIONS / GAME
SCORING = load_scoring(GAME_FOLDER / "scenario.json")
REWARDS = RunRewards(SCORING, {"term wall": "code abc"}, {}, [GAME_FOLDER / "scenario.json"])
STOPPING = (
    "\nstopping after this update (a second Ctrl-C stops at once, and loses the steps since the last checkpoint)\n"
)
LOSSES = {"value_loss": 0.5}
ALONE = Ranks()


# -------------------------------------------------------------------------- a run around environments that do not exist
@dataclass
class Envs:
    """Two environments that do nothing, in one process that uses 3 seconds between two calls of ``seconds``."""

    num_envs: int = 2
    drawing: str = "Each frame is drawn"
    resets: list[tuple[int, Any]] = field(default_factory=list)
    calls: int = 0
    fingerprints: dict[str, str] = field(default_factory=SCORING.fingerprints)

    def reset(self, seed: int, options: Any) -> np.ndarray:
        self.resets.append((seed, options))
        return np.zeros((self.num_envs, 1, 36, 36), np.uint8)

    def call(self, name: str) -> list[dict[str, Any]]:
        if name == "fingerprints":
            return [self.fingerprints] * self.num_envs
        assert name == "get_state"
        return [{"env": number} for number in range(self.num_envs)]

    def seconds(self) -> list[dict[str, float]]:
        self.calls += 1
        parts = {part: float(self.calls) for part in ("emulator", "scoring", "observation")}
        return [parts | {"processor": 3.0 * self.calls}]


@dataclass
class Evaluations:
    """Evaluations with given results: a score, None, or an error. There is one after each update."""

    results: list[Any] = field(default_factory=list)
    asked: list[tuple[int, bool]] = field(default_factory=list)
    cards: list[tuple[int, list[float], str]] = field(default_factory=list)

    def is_due(self, updates: int, last: bool) -> bool:
        self.asked.append((updates, last))
        return bool(self.results)

    def __call__(self, agent: nn.Module, folder: Path, steps: int, stop: threading.Event) -> Evaluation | None:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result and Evaluation({"Level1": {"median_return": 1.0}}, result)

    def write_card(
        self, folder: Path, agent: Any, evaluation: Evaluation, meanings: Mapping[str, str], command: Sequence[str]
    ) -> None:
        assert Checkpoint.load(folder / "best.pt").steps == agent["steps"], "the card is written after its agent"
        self.cards.append((agent["steps"], evaluation.score, meanings["wall"]))


class OneOf(Ranks):
    """One of several ranks, without the others: what it gathers is its own, as if the others had the same."""

    def gather(self, item: Any) -> list[Any]:
        return [item] * self.world_size

    def agree(self, agent: nn.Module, steps: int) -> None:
        pass


@dataclass
class Training:
    """A run and what it works with."""

    run: Run
    agent: nn.Linear
    optimizer: torch.optim.Optimizer
    envs: Envs

    def start(self) -> Any:
        return self.run.started(self.agent, self.optimizer, "a game on cpu")

    def update(self, *episodes: EndedEpisode) -> None:
        for stage in ("rollout", "policy", "update"):
            self.run.stopwatch.seconds[stage] = 1.0
        self.run.after_update(LOSSES, episodes)

    def fail(self, error: Exception) -> None:
        """Raises an error after an update that changed the weights to 7."""
        with self.start():
            self.update()
            nn.init.constant_(self.agent.weight, 7.0)
            raise error

    def checkpoint(self, name: str = "agent.pt") -> Checkpoint:
        return Checkpoint.load(self.run.folder / name)


def make(
    runs: Path,
    total_steps: int = 5 * PER_UPDATE,
    evaluate: Evaluations | None = None,
    ranks: Ranks = ALONE,
    resumption: Resumption | None = None,
    **options: Any,
) -> Training:
    torch.manual_seed(1)
    agent = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.25)
    envs: Any = Envs()
    settings: dict[str, dict[str, Any]] = {"env": {"env_id": "A-Snes"}, "run": {"seed": 5}}
    run = Run(
        RunOptions(runs_path=runs, exp_name="mine", seed=5, **options),
        settings,
        REWARDS,
        envs,
        ranks,
        torch.device("cpu"),
        total_steps,
        PER_UPDATE,
        evaluate or Evaluations(),
        threading.Event(),
        resumption,
    )
    return Training(run, agent, optimizer, envs)


def resumed(runs: Path, checkpoint: Checkpoint, ranks: Ranks = ALONE, **fields: Any) -> Training:
    known: dict[str, Any] = {"folder": checkpoint.path.parent, "env_states": checkpoint.env_states}
    known |= {"best_score": [], "notices": []}
    return make(runs, ranks=ranks, resumption=Resumption(checkpoint, **known | fields))


@pytest.fixture(autouse=True)
def own_files() -> Iterator[None]:
    """A run makes its process read its copies of the rewards' files."""
    yield
    use_copies({})


def checkpoints(run: Run) -> list[str]:
    return sorted(path.name for path in run.folder.glob("*.pt"))


class StoppedBeside(OneOf):
    """One of two ranks, the other of which was told to stop."""

    def gather(self, item: Any) -> list[Any]:
        return [item, True] if isinstance(item, bool) else super().gather(item)


def test_a_run_ends_if_another_rank_was_told_to_stop(tmp_path: Path) -> None:
    training = make(tmp_path, ranks=StoppedBeside(1, 2, 1, 2), total_steps=4 * PER_UPDATE)
    with training.start():
        training.update()
        assert training.run.over


def test_a_run_counts_its_updates_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = make(tmp_path)
    with training.start() as observations:
        assert observations.shape == (2, 1, 36, 36)
        counts = []
        while not training.run.over:
            training.update()
            counts.append((training.run.updates, training.run.steps))
    assert counts == [(number, number * PER_UPDATE) for number in range(1, 6)]
    printed = capsys.readouterr().out
    assert printed.startswith(f"a game on cpu, logging to {training.run.folder}\n  wall ")
    assert "\nEach frame is drawn\n" in printed
    assert f"saved {training.run.folder / 'agent.pt'} after 5 updates" in printed
    assert "Training ends after" not in printed
    assert "resume with" not in printed


def test_steps_that_make_no_complete_update_are_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = make(tmp_path, total_steps=2 * PER_UPDATE + 19)
    with training.start():
        while not training.run.over:
            training.update()
    assert training.run.updates == 2
    printed = capsys.readouterr().out
    assert "Training ends after 40 steps, not 59: each rollout is complete, with 20 steps.\n" in printed
    assert "40/40 steps" in printed
    assert "resume with" not in printed


@pytest.mark.parametrize(
    ("interval", "kept", "names"),
    [
        (2, 9, ["agent-0.pt", "agent-100.pt", "agent-40.pt", "agent-80.pt", "agent.pt"]),
        (2, 2, ["agent-100.pt", "agent-80.pt", "agent.pt"]),
        (0, 9, ["agent-0.pt", "agent-100.pt", "agent.pt"]),
    ],
)
def test_checkpoints_are_saved_at_the_interval_and_at_the_end(
    tmp_path: Path, interval: int, kept: int, names: list[str]
) -> None:
    training = make(tmp_path, checkpoint_interval=interval, checkpoints_kept=kept)
    with training.start():
        while not training.run.over:
            training.update()
    assert checkpoints(training.run) == names


def test_a_checkpoint_holds_what_the_rest_of_the_run_depends_on(tmp_path: Path) -> None:
    training = make(tmp_path, total_steps=PER_UPDATE)
    with training.start():
        training.agent(torch.ones(1, 2)).sum().backward()
        training.optimizer.step()
        torch.manual_seed(9)
        training.update()
    checkpoint = Checkpoint.load(training.run.folder / "agent.pt", to_resume=True)
    assert (checkpoint.updates, checkpoint.steps) == (1, PER_UPDATE)
    assert torch.equal(checkpoint.agent["weight"], training.agent.weight)
    assert checkpoint.optimizer["state"][0]["step"] == 1
    assert torch.equal(checkpoint.rng_states[0]["torch"], torch.Generator().manual_seed(9).get_state())
    assert checkpoint.env_states == [{"env": 0}, {"env": 1}]
    assert checkpoint.options["env"] == {"env_id": "A-Snes"}
    assert checkpoint.scoring == REWARDS.fingerprints


def test_a_stopped_run_says_how_to_resume_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = make(tmp_path)
    with training.start():
        training.run.stop.set()
        training.update()
        assert training.run.over
    assert training.checkpoint().env_states
    printed = capsys.readouterr().out
    assert f"--resume {training.run.folder / 'agent.pt'}" in printed
    assert f"no evaluation has ended, so there is no best.pt: {training.run.folder / 'agent.pt'} is" in printed


def test_a_run_ends_with_the_commands_that_show_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make(tmp_path, total_steps=PER_UPDATE)
    scoring = {"scenario": None, "rewards": ("my.py",), "reward_weights": (), "reward_transform": "scale"}
    training.run.settings["env"].update(scoring)  # type: ignore[attr-defined]
    with training.start():
        (training.run.folder / "drives").mkdir()
        training.update()
    folder = training.run.folder
    printed = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    assert [re.split(r":\s+", line.strip()) for line in printed] == [
        ["the curves", f"tensorboard --logdir {folder.parent}"],
        ["the agent plays", f"kart-rewards watch {folder}"],
        ["beside scripted players", f"kart-rewards evaluate {folder}"],
        ["what the rewards pay for", f"kart-rewards score {folder / 'drives'} --rewards my.py --scenario None"],
        ["and where", f"kart-rewards lab {folder / 'drives'} --rewards my.py --scenario None"],
    ]


def test_a_second_ctrl_c_names_the_last_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = make(tmp_path, checkpoint_interval=2)

    def interrupt() -> None:
        with training.start():
            for _ in range(3):
                training.update()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    agent = training.run.folder / "agent.pt"
    stopped, resume = capsys.readouterr().out.splitlines()[-2:]
    assert stopped == f"stopped at once: {agent} is of the last checkpoint, after 2 updates"
    assert resume.startswith("resume with: ")
    assert resume.endswith(f" --resume {agent}")
    assert training.checkpoint().updates == 2


@pytest.mark.parametrize(
    ("program", "ranks", "command"),
    [
        ("train.py", ALONE, "python train.py"),
        ("kart-rewards train", ALONE, "kart-rewards train"),
        ("train.py", OneOf(0, 2, 0, 2), "torchrun --nproc-per-node=2 train.py"),
        ("kart-rewards train", OneOf(0, 2, 0, 2), "torchrun --nproc-per-node=2 -m kart_rewards train"),
        ("train.py", OneOf(0, 4, 0, 2), "torchrun OPTIONS train.py"),
    ],
)
def test_the_command_that_resumes_begins_like_the_one_that_started_the_run(
    tmp_path: Path, program: str, ranks: Ranks, command: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [program])
    training = make(tmp_path, ranks=ranks)
    with training.start():
        training.run.stop.set()
        training.update()
    printed = capsys.readouterr().out
    assert f"resume with: {command} --resume {training.run.folder / 'agent.pt'}\n" in printed
    assert ("OPTIONS are torchrun's" in printed) == ("OPTIONS" in command)


def test_the_time_of_each_update_is_logged(tmp_path: Path) -> None:
    """In each of Envs.seconds' three seconds a third is the emulator's; the policy and the update took one each."""
    training = make(tmp_path, total_steps=2 * PER_UPDATE)
    with training.start():
        training.update()
        training.update()
    logged = scalars(training.run.folder)
    assert logged["time/emulator_ms_per_step"] == [(20, 1000 / PER_UPDATE), (40, 1000 / PER_UPDATE)]
    assert logged["time/update_ms_per_step"] == [(20, 1000 / PER_UPDATE), (40, 1000 / PER_UPDATE)]
    assert logged["losses/value_loss"] == [(20, 0.5), (40, 0.5)]
    assert logged["charts/learning_rate"] == [(20, 0.25), (40, 0.25)]


def episode(step: int, env: int, episode_return: float) -> EndedEpisode:
    rewards = EpisodeRewards(SCORING.terms).episode_summary()
    return EndedEpisode(
        step, env, {"episode": {"r": episode_return, "l": 7, "seconds": 0.5}, "episode_rewards": rewards}
    )


# mworchel/svbrdf-estimation#27: several values of one step were logged, and TensorBoard showed the last one alone.
def test_an_episode_is_logged_at_the_step_of_the_run_at_which_it_ended(tmp_path: Path) -> None:
    training = make(tmp_path)
    with training.start():
        training.update(episode(0, 1, 1.0), episode(9, 0, 2.0))
        training.update(episode(3, 1, 3.0))
        training.run.stop.set()
        training.update()
    assert scalars(training.run.folder)["charts/episodic_return"] == [(2, 1.0), (19, 2.0), (20 + 3 * 2 + 2, 3.0)]


def test_the_best_agent_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = Evaluations([[0.0, 1.0], [0.5, 0.0], [0.5, -1.0], [0.0, 9.0], [0.5, 0.0]])
    training = make(tmp_path, evaluate=evaluate)
    best = []
    with training.start():
        while not training.run.over:
            training.update()
            best.append(training.checkpoint("best.pt").steps)
    assert best == [20, 40, 40, 40, 40]
    what = next(term.summary for term in SCORING.terms if term.name == "wall")
    assert evaluate.cards == [(20, [0.0, 1.0], what), (40, [0.5, 0.0], what)]
    assert evaluate.asked == [(1, False), (2, False), (3, False), (4, False), (5, True)]
    assert [step for step, _ in scalars(training.run.folder)["eval/Level1/median_return"]] == [20, 40, 60, 80, 100]
    with pytest.raises(KartRewardsError, match="holds only an agent"):
        Checkpoint.load(training.run.folder / "best.pt", to_resume=True)
    assert training.checkpoint().best_score == [0.5, 0.0]
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("evaluation after")]
    assert [line.endswith(" -> best.pt") for line in lines] == [True, True, False, False, False]
    assert printed.count("100/100 steps") == 1, "the last line is not repeated after the evaluation"
    assert f"the best agent of all evaluations is {training.run.folder / 'best.pt'}\n" in printed


def test_an_evaluation_that_fails_or_is_stopped_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make(tmp_path, evaluate=Evaluations([KartRewardsError("no memory"), None, [1.0]]))
    with training.start():
        for updates in (1, 2):
            training.update()
            assert training.run.updates == updates
            assert not (training.run.folder / "best.pt").exists()
        training.update()
        training.run.stop.set()
        training.update()
    assert training.checkpoint("best.pt").steps == 60
    assert "this evaluation is skipped: no memory" in capsys.readouterr().out


def test_an_error_saves_what_was_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = make(tmp_path)
    with pytest.raises(ZeroDivisionError):
        training.fail(ZeroDivisionError())
    checkpoint = training.checkpoint()
    assert checkpoint.agent["weight"].tolist() == [[7.0, 7.0]]
    assert (checkpoint.steps, checkpoint.env_states, checkpoint.rng_states) == (20, [], [])
    printed = capsys.readouterr().out
    assert f"saved {training.run.folder / 'agent.pt'} after 1 update\n" in printed
    assert "resume with" not in printed


def test_an_error_replaces_no_checkpoint_that_has_the_environments(tmp_path: Path) -> None:
    training = make(tmp_path, checkpoint_interval=1)
    with pytest.raises(ZeroDivisionError):
        training.fail(ZeroDivisionError())
    assert training.checkpoint().env_states == [{"env": 0}, {"env": 1}]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, number: float, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make(tmp_path)

    def diverge() -> None:
        with training.start():
            training.update()
            nn.init.constant_(training.agent.bias, number)
            training.update()

    with pytest.raises(DivergedError, match="weights are no longer finite"):
        diverge()
    assert checkpoints(training.run) == ["agent-0.pt", "agent.pt"]
    assert training.checkpoint().agent["bias"].isfinite().all()
    assert "saved" not in capsys.readouterr().out


def test_a_log_that_can_not_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    training = make(tmp_path)
    with pytest.raises(KartRewardsError, match="can't be written: No space left on device: free space"):
        training.fail(OSError(28, "No space left on device"))
    assert training.checkpoint().steps == PER_UPDATE


def test_a_run_keeps_the_files_of_its_rewards(tmp_path: Path) -> None:
    training = make(tmp_path)
    with training.start():
        training.run.stop.set()
        training.update()
    scenario = GAME_FOLDER / "scenario.json"
    assert kept_sources(training.run.folder)[scenario].read_bytes() == scenario.read_bytes()


def test_environments_with_other_rewards_than_the_run_are_refused(tmp_path: Path) -> None:
    training = make(tmp_path)
    training.envs.fingerprints = {"term wall": "edited meanwhile"}
    with pytest.raises(KartRewardsError, match="has changed while the run started"):
        training.fail(ZeroDivisionError())


def test_only_the_first_rank_logs_and_saves(tmp_path: Path) -> None:
    training = make(tmp_path, ranks=OneOf(1, 2, 1, 2), total_steps=PER_UPDATE)
    with training.start():
        training.update()
        assert training.run.over
    assert not list(tmp_path.iterdir())


def test_the_first_rank_saves_the_states_of_all(tmp_path: Path) -> None:
    training = make(tmp_path, ranks=OneOf(0, 2, 0, 2), total_steps=PER_UPDATE)
    with training.start():
        training.update(episode(4, 1, 1.0))
    checkpoint = training.checkpoint()
    assert len(checkpoint.env_states) == 4
    assert len(checkpoint.rng_states) == 2
    assert scalars(training.run.folder)["charts/episodic_return"][0] == (4 * 4 + 2, 1.0)


def test_each_rank_has_its_own_seeds(tmp_path: Path) -> None:
    seeds = []
    for rank in range(3):
        training = make(tmp_path / str(rank), ranks=OneOf(rank, 3, rank, 3))
        with training.start():
            seeds.append((torch.initial_seed(), *training.envs.resets))
            training.run.stop.set()
            training.update()
    assert seeds == [(5, (5, None)), (6, (7, None)), (7, (9, None))]


@pytest.fixture
def first_half(tmp_path: Path) -> Training:
    """A run that was stopped after two of its five updates."""
    training = make(tmp_path)
    with training.start():
        training.update()
        training.run.stop.set()
        torch.manual_seed(123)
        training.update()
    return training


def test_a_resumed_run_takes_over_the_checkpoint(first_half: Training, tmp_path: Path) -> None:
    nn.init.constant_(first_half.agent.weight, 7.0)  # not in the checkpoint
    training = resumed(tmp_path, first_half.checkpoint(), notices=["Notice one.", "Notice two."])
    with training.start():
        assert (training.run.updates, training.run.steps) == (2, 40)
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(123))
        assert training.envs.resets[0][1] == {"states": [{"env": 0}, {"env": 1}]}
        assert not training.agent.weight.eq(7.0).any()
        while not training.run.over:
            training.update()
    assert only_run(tmp_path) == first_half.run.folder
    assert (training.run.updates, training.checkpoint().steps) == (5, 100)
    assert [step for step, _ in scalars(training.run.folder)["losses/value_loss"]] == [20, 40, 60, 80, 100]


def test_a_resumed_run_with_another_number_of_ranks_has_new_random_numbers(
    first_half: Training, tmp_path: Path
) -> None:
    seeds = []
    checkpoint = first_half.checkpoint()
    for rank in range(2):
        training = resumed(tmp_path, checkpoint, OneOf(rank, 2, rank, 2), env_states=None)
        with training.start():
            seeds.append((torch.initial_seed(), *training.envs.resets))
            training.run.stop.set()
            training.update()
    assert seeds == [(5 + 40, (45, None)), (5 + 40 + 1, (47, None))], "others than at the beginning of the run"


def test_a_resumed_run_may_have_a_folder_of_its_own(first_half: Training, tmp_path: Path) -> None:
    training = resumed(tmp_path / "other", first_half.checkpoint(), folder=None)
    with training.start():
        training.run.stop.set()
        training.update()
    assert only_run(tmp_path / "other") == training.run.folder != first_half.run.folder
    assert Checkpoint.load(first_half.run.folder / "agent.pt").steps == 40


@pytest.mark.parametrize(
    ("best_score", "agents"), [([2.0], ["best.pt"]), ([0.5], ["best.pt"]), ([], ["best-20.pt", "best.pt"])]
)
def test_a_resumed_run_replaces_the_best_agent_only_by_a_better_one(
    first_half: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str], best_score: list[float], agents: list[str]
) -> None:
    """If the evaluations before do not compare with those of now, their best agent is kept beside the new one."""
    folder = first_half.run.folder
    torch.save(torch.load(folder / "agent.pt", weights_only=True) | {"steps": 20}, folder / "best.pt")
    before = (folder / "best.pt").read_bytes()
    training = resumed(tmp_path, first_half.checkpoint(), best_score=best_score)
    training.run.evaluate = Evaluations([[1.0]])
    with training.start():
        training.run.stop.set()
        training.update()
    assert [path.name for path in sorted(folder.glob("best*"))] == agents
    assert ((folder / "best.pt").read_bytes() == before) == (best_score == [2.0])
    if not best_score:
        assert (folder / "best-20.pt").read_bytes() == before
        assert f"{folder / 'best-20.pt'} is the best agent of the evaluations before" in capsys.readouterr().out


def test_track_needs_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KartRewardsError, match=r"--track needs Weights & Biases: pip install 'kart_rewards\[wandb\]'"):
        make(tmp_path, track=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("track", [True, False])
def test_a_run_is_mirrored_to_the_project_that_was_asked_for(
    track: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[dict[str, Any]] = []
    wandb = ModuleType("wandb")  # in place of Weights & Biases
    wandb.__spec__ = ModuleSpec("wandb", None)
    vars(wandb)["init"] = lambda **options: tracked.append(options)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    training = make(tmp_path, track=track, wandb_project_name="karts", wandb_entity="a-team")
    with training.start():
        training.run.stop.set()
        training.update()
    assert [(each["project"], each["entity"]) for each in tracked] == [("karts", "a-team")] * track
    assert all(each["config"] == {"env_id": "A-Snes", "seed": 5} for each in tracked)
    assert all(each["name"] == training.run.folder.name and each["sync_tensorboard"] for each in tracked)


# twosixlabs/armory#903: folders are named by the second, and runs that start together would write to the same one.
def test_runs_of_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.5)
    folders = [make_run_folder(tmp_path / "runs", "A-Snes", "mine", 3) for _ in range(3)]
    assert [folder.name for folder in folders] == [f"A-Snes__mine__3__1000{end}" for end in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)
    assert make_run_folder(tmp_path / "runs", "A-Snes", "mine", 4).name == "A-Snes__mine__4__1000"


# gbouras13/pharokka#271: an output folder whose name is that of a file gave the traceback of a FileExistsError.
def test_runs_in_a_folder_that_is_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(KartRewardsError, match="choose another --runs-path"):
        make_run_folder(tmp_path / "runs", "A-Snes", "mine", 3)


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_event_and_the_second_one_interrupts(
    number: signal.Signals, restored_signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = stop_on_signals()
    assert not stop.is_set()
    signal.raise_signal(number)
    assert stop.is_set()
    assert capfd.readouterr().err == STOPPING
    signal.raise_signal(signal.SIGINT)  # at once: `timeout -s INT` sends it to the process, and to its group
    assert capfd.readouterr().err == ""
    time.sleep(0.6)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_while_the_first_one_sets_the_event_does_not_block(
    restored_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(threading.Event):
        """An event with a signal inside ``set``, which holds a lock: a second ``set`` there would wait for ever."""

        times_set = 0

        def set(self) -> None:
            self.times_set += 1
            if self.times_set == 1:
                signal.raise_signal(signal.SIGINT)
            super().set()

    monkeypatch.setattr(threading, "Event", Interrupted)
    stop = stop_on_signals(announce=False)
    signal.raise_signal(signal.SIGINT)
    assert isinstance(stop, Interrupted) and stop.is_set()
    assert stop.times_set == 1


# --------------------------------------------------------------------------------------------------------- real runs
def test_resuming_is_bit_for_bit_what_going_on_would_have_been(tmp_path: Path) -> None:
    """Four updates in one go, against two, a new process, and two more: the same weights, the same log."""
    arguments = ["--env-id", GAME, *SMALL, "--size", 84, 84, "--total-timesteps", 256, "--num-steps", 32]
    arguments += ["--checkpoint-interval", 2, "--random-start-steps", 3, "--runs-path", tmp_path / "runs"]
    train_here(*arguments)
    complete = only_run(tmp_path / "runs")
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(complete / "agent-128.pt", resumed)
    train(*RESUME, resumed / "agent-128.pt")
    assert Checkpoint.load(resumed / "agent.pt").steps == 256
    assert equal_weights(resumed / "agent.pt", complete / "agent.pt")
    assert not equal_weights(complete / "agent-128.pt", complete / "agent.pt")
    for tag in ("losses/value_loss", "losses/entropy"):
        assert scalars(resumed)[tag] == scalars(complete)[tag][2:]


def test_weights_that_diverge_never_reach_a_checkpoint(tmp_path: Path) -> None:
    arguments = ["--env-id", GAME, *SMALL, "--total-timesteps", 96, "--learning-rate", "1e30", "--runs-path", tmp_path]
    finished = train_here(*arguments, check=False)
    assert_refused(finished, "are no longer finite: resume an earlier checkpoint")
    assert all(value.isfinite().all() for value in weights(only_run(tmp_path) / "agent.pt").values())


def test_a_memory_that_no_checkpoint_can_hold_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "hoarder.py").write_text(
        "from kart_rewards import reward_term\n@reward_term\nclass Hoarder:\n    def __init__(self):\n"
        "        self.treasure = object()\n    def __call__(self, ram):\n        return 0.0\n"
    )
    arguments = [*SMALL, "--rewards", tmp_path / "hoarder.py", "--runs-path", tmp_path / "runs"]
    finished = train_here("--env-id", GAME, *arguments, check=False)
    assert_refused(finished, "'hoarder' (", "can't be saved: it holds a value of type object")


def test_a_term_that_fails_in_mid_run_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef moody(ram):\n    return 1 / (ram.speed < 200)\n"
    )
    arguments = [*SMALL, "--rewards", tmp_path / "moody.py", "--runs-path", tmp_path / "runs"]
    finished = train_here("--env-id", GAME, *arguments, check=False)
    assert_refused(finished, "'moody' (", "moody.py:2", "raised ZeroDivisionError", "moody.py:4", "speed=")
    assert Checkpoint.load(only_run(tmp_path / "runs") / "agent.pt").options["env"]["env_id"] == GAME


def test_a_term_that_fails_on_the_first_frame_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef wrong(ram):\n    return 1 / ram.speed\n"
    )
    arguments = [*SMALL, "--rewards", tmp_path / "wrong.py", "--runs-path", tmp_path / "runs"]
    finished = train_here("--env-id", GAME, *arguments, check=False)
    assert_refused(finished, "'wrong' (", "wrong.py:2", "raised ZeroDivisionError", "wrong.py:4")
    assert "saved" not in finished.stdout
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_from_the_start_is_reported(tmp_path: Path) -> None:
    """A limit on the size of files makes the kernel refuse the write, as a full disk does, with no disk to mount."""
    (tmp_path / "limited.py").write_text(
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    arguments = [sys.executable, tmp_path / "limited.py", "--env-id", GAME, *SMALL, "--runs-path", tmp_path / "runs"]
    finished = forks.run(arguments, forks.TRAINING)
    assert_refused(finished, "can't be written: File too large")
    left = [path.name for path in only_run(tmp_path / "runs").iterdir() if "tfevents" not in path.name]
    assert left == ["sources"], "no part of a checkpoint"


needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk"
)


@needs_mount
def test_a_read_only_runs_folder_is_reported(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", tmp_path], check=True)  # noqa: S607
    try:
        finished = train_here("--env-id", GAME, *SMALL, "--runs-path", tmp_path, check=False)
        assert_refused(finished, f"{tmp_path}", "can't be written: Read-only file system")
    finally:
        subprocess.run(["umount", tmp_path], check=True)  # noqa: S607


@needs_mount
def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)  # noqa: S607
    try:
        # large checkpoints: the rest of the disk is too small for the next one
        arguments = ["--env-id", GAME, *SMALL, "--size", 84, 84, "--checkpoint-interval", 1, "--runs-path", disk]
        with started(*arguments) as process:
            agent = wait_until(lambda: list(disk.glob("*/agent.pt")), 120)[0]
            with suppress(OSError), (disk / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(2**12))
                    filler.flush()
            finished = finish(process)
        assert_refused(finished, "No space left on device")
        assert Checkpoint.load(agent).updates >= 0
        assert [path.name for path in agent.parent.iterdir() if "partial" in path.name] == []
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A long run that has begun to train, and its environments' processes."""
    with started("--env-id", GAME, *SMALL, "--checkpoint-interval", 1, "--runs-path", tmp_path) as process:

        def has_updated() -> bool:
            assert process.poll() is None, process.communicate()
            agents = list(tmp_path.glob("*/agent.pt"))
            return bool(agents) and Checkpoint.load(agents[0]).updates >= 1

        wait_until(has_updated, 120)
        yield process, children(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_no_process_behind(
    running: tuple[subprocess.Popen[str], list[int]], tmp_path: Path, number: signal.Signals
) -> None:
    process, workers = running
    assert len(workers) >= 2
    os.killpg(process.pid, number)  # as a terminal does: to the trainer and its children alike
    finished = finish(process)
    assert finished.returncode == 0
    assert finished.stderr == STOPPING
    agent = only_run(tmp_path) / "agent.pt"
    assert f"resume with: python {SCRIPT} --resume {agent}" in finished.stdout
    assert "update" in finished.stdout
    assert Checkpoint.load(agent).updates >= 1
    wait_until(lambda: not any(map(alive, workers)), 30)


def test_a_second_ctrl_c_ends_a_run_that_is_stuck(tmp_path: Path) -> None:
    loop = tmp_path / "loop"  # exists as soon as the endless loop runs
    (tmp_path / "stuck.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\n"
        f"def stuck(ram):\n    while ram.speed > 50:\n        open({str(loop)!r}, 'w').close()\n    return 0.0\n"
    )
    arguments = ["--env-id", GAME, *SMALL, "--rewards", tmp_path / "stuck.py", "--runs-path", tmp_path / "runs"]
    with started(*arguments) as process:
        wait_until(lambda: list(tmp_path.glob("runs/*/agent.pt")), 120)
        wait_until(loop.exists, 60)
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(1)  # signals within half a second count as one
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        finished = finish(process)
    assert finished.returncode == 130
    assert "Traceback" not in finished.stdout + finished.stderr
    agent = only_run(tmp_path / "runs") / "agent.pt"
    assert finished.stdout.splitlines()[-2:] == [
        f"stopped at once: {agent} is of the last checkpoint, after 0 updates",
        f"resume with: python {SCRIPT} --resume {agent}",
    ]
    wait_until(lambda: not any(map(alive, workers)), 30)


def test_killing_the_trainer_leaves_neither_a_process_nor_a_lock_behind(
    running: tuple[subprocess.Popen[str], list[int]], tmp_path: Path
) -> None:
    process, workers = running
    folder = only_run(tmp_path)
    with pytest.raises(KartRewardsError, match=f"^{folder}: another training writes to this folder"), held(folder):
        pass
    process.kill()
    wait_until(lambda: not any(map(alive, workers)), 30)
    with held(folder):
        assert Checkpoint.load(folder / "agent.pt").updates >= 1


def test_killing_an_environment_ends_the_run_with_a_checkpoint(
    running: tuple[subprocess.Popen[str], list[int]], tmp_path: Path
) -> None:
    process, workers = running
    os.kill(workers[-1], signal.SIGKILL)
    finished: Finished = finish(process)
    assert_refused(finished, "an environment's process ended unexpectedly", "(killed by signal 9)")
    assert Checkpoint.load(only_run(tmp_path) / "agent.pt").updates >= 1
    wait_until(lambda: not any(map(alive, workers)), 30)
