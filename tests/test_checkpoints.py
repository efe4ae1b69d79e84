"""Checkpoints: reading any file safely, writing atomically, and whether a run can go on from one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_runs import (
    GAME,
    RESUME,
    SCRIPT,
    SMALL,
    TrainedRun,
    assert_refused,
    only_run,
    scalars,
    train_here,
)

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation.agents import EvalOptions
from kart_rewards.files import UnwritableError
from kart_rewards.scenario import Scoring
from kart_rewards.training.checkpoints import (
    Checkpoint,
    Resumption,
    find_checkpoint,
    load_weights,
    newest_checkpoint,
    save_atomically,
    save_checkpoint,
)
from kart_rewards.training.options import to_plain_options
from kart_rewards.training.run import RunOptions
from kart_rewards.training.sources import RunRewards, keep_sources

SCORING = {"term wall": "weight -10.0, code abc", "rule wall_hits": "code def"}
SCORING_OF_0_1 = {"term wall": "weight -10.0, source 123", "rule wall_hits": "source 456"}
GROUPS = {"env": ppo.EnvOptions, "ppo": ppo.PPOOptions, "eval": EvalOptions, "run": RunOptions}


def content(**changes: Any) -> dict[str, Any]:
    """The fields of a checkpoint after 3 updates, 96 of 200 steps, by two ranks with two environments each."""
    return {
        "agent": nn.Linear(2, 1).state_dict(),
        "updates": 3,
        "steps": 96,
        "options": to_plain_options(ppo.Args(ppo=ppo.PPOOptions(total_timesteps=200, num_envs=4))),
        "scoring": SCORING,
        "optimizer": torch.optim.Adam(nn.Linear(2, 1).parameters()).state_dict(),
        "rng_states": [{"torch": torch.Generator().manual_seed(seed).get_state()} for seed in (11, 12)],
        "env_states": [{"env": number} for number in range(4)],
        "best_score": [0.5, -60.0, 12.0],
    } | changes


def saved(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content(**changes), path)
    return path


# ------------------------------------------------------------------------------------------------------------- reading
def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    expected = content()
    path = tmp_path / "agent.pt"
    torch.save(expected, path)
    for to_resume in (False, True):
        checkpoint = Checkpoint.load(path, to_resume)
        assert checkpoint.path == path
        assert torch.equal(checkpoint.agent["weight"], expected["agent"]["weight"])
        assert torch.equal(checkpoint.rng_states[1]["torch"], expected["rng_states"][1]["torch"])
        for name in ("updates", "steps", "options", "scoring", "optimizer", "env_states", "best_score"):
            assert getattr(checkpoint, name) == expected[name], name


def test_an_agent_alone_is_read_but_not_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({key: content()[key] for key in ("agent", "updates", "steps", "options", "scoring")}, path)
    checkpoint = Checkpoint.load(path)
    assert (checkpoint.steps, checkpoint.optimizer) == (96, {})
    assert (checkpoint.rng_states, checkpoint.env_states, checkpoint.best_score) == ([], [], [])
    with pytest.raises(KartRewardsError, match=r"best\.pt: holds only an agent.*resume an agent\.pt"):
        Checkpoint.load(path, to_resume=True)


def test_the_best_agent_of_a_run_can_not_be_resumed(trained: TrainedRun) -> None:
    best = trained.folder / "best.pt"
    finished = train_here("--resume", best, check=False)
    assert_refused(finished, "best.pt: holds only an agent, to evaluate or watch", "resume an agent.pt")


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


# harvard-edge/cs249r_book#2050: an empty or damaged checkpoint, or one that lacks a key, gave a raw EOFError,
# UnpicklingError or KeyError.
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "can't be read: No such file"),
        (lambda path: path.mkdir(), "can't be read: Is a directory"),
        (lambda path: path.write_text("not torch"), "is not a checkpoint, or is damaged"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint, or is damaged"),
        (lambda path: damage(saved(path)), "is not a checkpoint, or is damaged"),
        (lambda path: torch.save([1, 2], path), "is not a checkpoint of this script"),
        (lambda path: torch.save({"agent": {}, "steps": 1}, path), "is not a checkpoint of this script"),
    ],
    ids=["missing", "folder", "text", "empty", "damaged", "a list", "other keys"],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.pt"
    make(path)
    with pytest.raises(KartRewardsError, match=f"^{path}: {message}"):
        Checkpoint.load(path)


# voicepaw/so-vits-svc-fork#193: loading a model that somebody else made can run any code.
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = saved(tmp_path / "agent.pt", agent=Payload())
    assert_refused(train_here("--resume", path, check=False), "is not a checkpoint, or is damaged")
    assert not (tmp_path / "ran").exists()


def test_options_are_restored_with_their_types(tmp_path: Path) -> None:
    args = ppo.Args(env=ppo.EnvOptions(integrations_path=Path("games"), size=(42, 42)))
    checkpoint = Checkpoint.load(saved(tmp_path / "agent.pt", options=to_plain_options(args)))
    assert ppo.Args(**checkpoint.restore_options(GROUPS)) == args


@pytest.mark.parametrize("wrong", [{"env": {"colour": True}}, {"ppo": {}}], ids=["option", "group"])
def test_options_of_another_version_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(saved(tmp_path / "agent.pt", options=wrong))
    with pytest.raises(KartRewardsError, match=r"agent\.pt: is of another version of this script"):
        checkpoint.restore_options(GROUPS)


# ------------------------------------------------------------------------------------------------------------- writing
def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    for steps in (32, 64, 96):
        save_checkpoint(tmp_path, content(steps=steps), kept=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent-64.pt", "agent-96.pt", "agent.pt"]
    assert Checkpoint.load(tmp_path / "agent.pt", to_resume=True).steps == 96
    assert Checkpoint.load(tmp_path / "agent-64.pt", to_resume=True).steps == 64


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, content(steps=32), kept=1)

    def full(path: Path, data: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UnwritableError, match="No space left on device"):
        save_checkpoint(tmp_path, content(steps=64), kept=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent-32.pt", "agent.pt"]
    assert Checkpoint.load(tmp_path / "agent.pt").steps == 32


def test_each_path_gets_the_content(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "a.pt", tmp_path / "b.pt"]
    save_atomically(content(steps=7), *paths)
    assert [Checkpoint.load(path).steps for path in paths] == [7, 7]


def test_weights_of_another_network_are_refused() -> None:
    agent = nn.Linear(2, 1)
    load_weights(agent, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    assert agent.weight.tolist() == [[1.0, 2.0]]
    with pytest.raises(KartRewardsError, match="for other observations or actions than these options make"):
        load_weights(agent, nn.Linear(3, 1).state_dict())


# ---------------------------------------------------------------------------------------------------------- the newest
def test_the_newest_complete_checkpoint_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(run: str, name: str, age_seconds: int) -> Path:
        path = saved(tmp_path / run / name)
        os.utime(path, (10_000 - age_seconds, 10_000 - age_seconds))
        return path

    newest = of("A-Snes__mine__1__200", "agent-96.pt", 5)
    of("A-Snes__mine__1__100", "agent.pt", 6)
    of("A-Snes__mine__2__300", "agent.pt", 1)
    of("A-Snes__other__1__300", "agent.pt", 1)
    of("A-Snes__mine__1__2__300", "agent.pt", 1)  # seed 2 of the name mine__1
    of("C-Snes__mine__1__300", "agent.pt", 1)
    of("A-Snes__mine__1__200", "best.pt", 1)

    def found(*games: str, exp_name: str = "mine") -> Path | None:
        checkpoint = newest_checkpoint(tmp_path, games, exp_name, 1)
        return checkpoint.path if checkpoint else None

    assert found("A-Snes", "B-Snes") == newest
    assert not capsys.readouterr().out
    newer = of("B-Snes__mine__1__100", "agent.pt", 4)
    assert found("A-Snes", "B-Snes") == newer
    damage(newer)
    assert found("A-Snes", "B-Snes") == newest
    assert f"skipped: {newer}: is not a checkpoint, or is damaged" in capsys.readouterr().out
    assert found("D-Snes") is None
    brackets = of("A-Snes__a[1]*__1__100", "agent.pt", 5)
    of("A-Snes__a1x__1__100", "agent.pt", 1)
    assert found("A-Snes", exp_name="a[1]*") == brackets
    assert newest_checkpoint(tmp_path / "nowhere", ["A-Snes"], "mine", 1) is None


def test_a_checkpoint_that_another_run_removes_meanwhile_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = saved(tmp_path / "A-Snes__mine__1__200" / "agent-96.pt")
    removed = newest.with_name("agent-64.pt")
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [removed, *listed(folder, pattern)])
    checkpoint = newest_checkpoint(tmp_path, ["A-Snes"], "mine", 1)
    assert checkpoint
    assert checkpoint.path == newest
    save_checkpoint(newest.parent, content(steps=128), kept=1)
    assert not newest.exists()


def test_the_checkpoint_to_resume_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "A-Snes__mine__1__200" / "agent.pt")
    reads: list[Path] = []
    read = Path.read_bytes

    def noted(file: Path) -> bytes:
        reads.append(file)
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", noted)
    for resume in ("auto", str(path)):
        checkpoint = find_checkpoint(resume, tmp_path, ["A-Snes"], "mine", 1)
        assert checkpoint
        assert checkpoint.path == path
    assert reads == [path, path]
    assert find_checkpoint("auto", tmp_path, ["B-Snes"], "mine", 1) is None


# --------------------------------------------------------------------------------------------------------- resumptions
@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """The newest checkpoint of a run, which has an evaluated best agent, too."""
    saved(tmp_path / "run" / "best.pt")
    return Checkpoint.load(saved(tmp_path / "run" / "agent.pt"), to_resume=True)


def options_of(checkpoint: Checkpoint, **changes: Any) -> dict[str, Any]:
    """The checkpoint's options, with changes such as ``env={"stack": 2}``."""
    return {name: group | changes.get(name, {}) for name, group in checkpoint.options.items()}


def decide(
    checkpoint: Checkpoint, scoring: dict[str, str] = SCORING, allow: bool = False, **changes: Any
) -> Resumption:
    rewards = RunRewards(Scoring([], []), scoring, SCORING_OF_0_1, [])
    return Resumption.decide(checkpoint, options_of(checkpoint, **changes), rewards, 32, allow)


def test_the_same_options_take_over_everything(checkpoint: Checkpoint) -> None:
    resumption = decide(checkpoint)
    assert resumption.folder == checkpoint.path.parent
    assert resumption.env_states == checkpoint.env_states
    assert resumption.best_score == checkpoint.best_score
    assert resumption.notices == ["Resuming after 3 updates, 96 steps."]


CHANGED = {"term wall": "weight -7.0, code abc", "term gift": "weight 1.0, code xyz"}


def test_other_rewards_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(KartRewardsError, match="was trained with other reward terms and done rules:\n") as raised:
        decide(checkpoint, CHANGED)
    for line in (
        "  term wall: weight -10.0, code abc -> weight -7.0, code abc",
        "  term gift: was not there -> weight 1.0, code xyz",
        "  rule wall_hits: code def -> is not there",
        "--allow-changed-rewards",
    ):
        assert line in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"term wall": "weight 1.0"}, "other reward terms"),
        ({"rule wall_hits": "code xyz"}, "other done rules"),
        ({"variable speed": "address 1"}, "other variables"),
        ({"ROM": "abc", "core": "def"}, "other ROM and core"),
        (
            {"term wall": "weight 1.0", "variable speed": "address 1", "core": "def"},
            "other reward terms, variables and core",
        ),
        ({"something": "else"}, "other rewards"),
    ],
)
def test_only_what_differs_is_named(checkpoint: Checkpoint, changes: dict[str, str], words: str) -> None:
    with pytest.raises(KartRewardsError, match=f"was trained with {words}:\n"):
        decide(checkpoint, SCORING | changes)


def test_the_runs_own_text_of_a_changed_file_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    terms, same = tmp_path / "terms.py", tmp_path / "same.py"
    terms.write_text("old")
    same.write_text("same")
    keep_sources(checkpoint.path.parent, [same, terms])
    terms.write_text("new")
    with pytest.raises(KartRewardsError) as raised:
        decide(checkpoint, CHANGED)
    copy = checkpoint.path.parent / "sources" / "0" / "terms.py"
    assert str(raised.value).endswith(f"--allow-changed-rewards\n  {terms}: the run's own text of it is {copy}")


def test_other_rewards_that_are_allowed_begin_new_episodes_and_comparisons(checkpoint: Checkpoint) -> None:
    resumption = decide(checkpoint, CHANGED, allow=True)
    assert resumption.folder == checkpoint.path.parent
    assert resumption.env_states is None
    assert resumption.best_score == []
    first, second, _ = resumption.notices
    assert first.startswith("Resuming although this has changed:\n  term wall: ")
    assert second == "The environments begin new episodes: what decides the rewards has changed."


def test_the_rewards_of_an_older_checkpoint_are_compared_as_it_holds_them(checkpoint: Checkpoint) -> None:
    assert decide(replace(checkpoint, scoring=SCORING_OF_0_1), CHANGED).env_states == checkpoint.env_states
    edited = {**SCORING_OF_0_1, "rule wall_hits": "source 789"}
    with pytest.raises(KartRewardsError, match="rule wall_hits: source 789 -> source 456"):
        decide(replace(checkpoint, scoring=edited), CHANGED)


# ibab/tensorflow-wavenet#151: resuming a training that has done all its steps ended in a Python exception.
@pytest.mark.parametrize(("total", "possible"), [(96, False), (127, False), (128, True)])
def test_a_finished_run_is_not_resumed(checkpoint: Checkpoint, total: int, possible: bool) -> None:
    if possible:
        assert decide(checkpoint, ppo={"total_timesteps": total}).env_states
    else:
        with pytest.raises(KartRewardsError, match=f"is finished: 96 of {total} steps are done. Raise --total"):
            decide(checkpoint, ppo={"total_timesteps": total})


# mlfoundations/open_clip#413: after more epochs were asked for, the learning rate of the resumed training was another
# one than at its end, without a word.
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"total_timesteps": 400},
            "goes on at 0.00038 instead of 0.00026: it falls to 0 over 400 steps, no longer over 200",
        ),
        ({"total_timesteps": 400, "learning_rate": 1e-3}, "goes on at 0.00076 instead of 0.00026: "),
        ({"total_timesteps": 400, "anneal_lr": False}, ""),
        ({"learning_rate": 1e-3}, ""),
    ],
)
def test_a_jump_of_the_learning_rate_is_announced(
    checkpoint: Checkpoint, changes: dict[str, Any], sentence: str
) -> None:
    found = [notice for notice in decide(checkpoint, ppo=changes).notices if "learning rate" in notice]
    assert [sentence in notice for notice in found] == [True] * bool(sentence)


def test_another_game_gets_a_folder_of_its_own(checkpoint: Checkpoint) -> None:
    resumption = decide(checkpoint, env={"env_id": "Other-Snes"})
    assert resumption.folder is None
    assert resumption.env_states is None
    assert resumption.best_score == []


def test_a_checkpoint_behind_the_newest_one_gets_a_folder_of_its_own(checkpoint: Checkpoint) -> None:
    folder = checkpoint.path.parent
    old = Checkpoint.load(saved(folder / "agent-64.pt", steps=64, updates=2), to_resume=True)
    resumption = decide(old)
    assert resumption.folder is None
    assert resumption.env_states == old.env_states, "the episodes go on in the new folder"
    assert resumption.best_score == [], "best.pt is in the old folder"
    assert resumption.notices == [
        f"{folder / 'agent.pt'} is ahead of {old.path}: this run gets a folder of its own.",
        "Resuming after 2 updates, 64 steps.",
    ]


def test_a_damaged_newest_checkpoint_is_not_ahead(checkpoint: Checkpoint) -> None:
    folder = checkpoint.path.parent
    old = Checkpoint.load(saved(folder / "agent-64.pt", steps=64), to_resume=True)
    damage(folder / "agent.pt")
    assert decide(old).folder == folder


@pytest.mark.parametrize("changes", [{"env": {"stack": 2}}, {"ppo": {"num_envs": 8}}], ids=["env", "num_envs"])
def test_other_environments_begin_new_episodes(checkpoint: Checkpoint, changes: dict[str, Any]) -> None:
    resumption = decide(checkpoint, **changes)
    assert resumption.folder == checkpoint.path.parent
    assert resumption.env_states is None
    assert resumption.notices[0] == "The environments begin new episodes: their options differ from the checkpoint's."


def test_a_checkpoint_without_states_begins_new_episodes(checkpoint: Checkpoint) -> None:
    resumption = decide(replace(checkpoint, env_states=[]))
    assert resumption.env_states is None
    assert resumption.notices[0] == "The environments begin new episodes: the checkpoint does not hold their states."


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"ppo": {"learning_rate": 1e-5, "num_envs": 8}, "run": {"checkpoint_interval": 1}}, True),
        ({"eval": {"eval_seed": 7}}, False),
        ({"env": {"max_episode_steps": 7}}, False),
    ],
    ids=["algorithm", "evaluation", "environment"],
)
def test_the_best_score_is_kept_if_evaluations_compare(
    checkpoint: Checkpoint, changes: dict[str, Any], kept: bool
) -> None:
    assert decide(checkpoint, **changes).best_score == (checkpoint.best_score if kept else [])


def test_the_best_score_goes_with_the_best_agent(checkpoint: Checkpoint) -> None:
    (checkpoint.path.parent / "best.pt").unlink()
    assert decide(checkpoint).best_score == []


def numbers_of(resumption: Resumption, rank: int, world_size: int) -> list[float]:
    """The random numbers of a rank after it took over a checkpoint's."""
    torch.manual_seed(0)
    resumption.restore_random_numbers(rank, world_size, torch.device("cpu"))
    return torch.rand(2).tolist()


def numbers_from(seed: int) -> list[float]:
    return torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()


def test_each_rank_goes_on_with_its_own_random_numbers(checkpoint: Checkpoint) -> None:
    resumption = decide(checkpoint)
    assert [numbers_of(resumption, rank, 2) for rank in (0, 1)] == [numbers_from(11), numbers_from(12)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_random_numbers_of_another_number_of_ranks_are_not_used(checkpoint: Checkpoint, world_size: int) -> None:
    resumption = decide(checkpoint)
    assert [numbers_of(resumption, rank, world_size) for rank in range(world_size)] == [numbers_from(0)] * world_size


def test_after_a_failure_there_are_no_random_numbers_to_take_over(checkpoint: Checkpoint) -> None:
    assert numbers_of(decide(replace(checkpoint, rng_states=[])), 0, 1) == numbers_from(0)


def test_agent_and_optimizer_are_restored(checkpoint: Checkpoint) -> None:
    agent = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.5, fused=True)
    assert not checkpoint.optimizer["param_groups"][0]["fused"]
    decide(checkpoint).restore(agent, optimizer)
    assert torch.equal(agent.weight, checkpoint.agent["weight"])
    assert optimizer.param_groups[0]["lr"] == checkpoint.optimizer["param_groups"][0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["fused"] is True
    with pytest.raises(KartRewardsError, match="for other observations or actions"):
        decide(replace(checkpoint, agent=nn.Linear(3, 1).state_dict())).restore(agent, optimizer)


@pytest.mark.filterwarnings("error")
def test_a_tensor_in_place_of_the_optimizers_moments_is_damage(checkpoint: Checkpoint) -> None:
    agent = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(agent.parameters())
    mutated = {**checkpoint.optimizer, "state": {0: torch.zeros(3)}}
    with pytest.raises(KartRewardsError, match="is damaged: the optimizer's state does not fit the agent"):
        decide(replace(checkpoint, optimizer=mutated)).restore(agent, optimizer)


# ------------------------------------------------------------------------------------------- through the command line
def test_resuming_goes_on_in_the_same_run(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    finished = train_here(*RESUME, run / "agent.pt", "--total-timesteps", 160)
    assert f"logging to {run}" in finished.stdout
    assert "top_speed        0.02" in finished.stdout  # the options of the run apply
    assert [step for step, _ in scalars(run)["losses/value_loss"]] == [32, 64, 96, 128, 160]
    checkpoint = Checkpoint.load(run / "agent.pt", to_resume=True)
    assert (checkpoint.updates, checkpoint.steps) == (5, 160)


def test_auto_resumes_the_newest_complete_checkpoint(trained: TrainedRun, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "runs")
    kept = ["--total-timesteps", 192, "--checkpoint-interval", 1, "--checkpoints-kept", 2]
    train_here(*RESUME, run / "agent.pt", *kept)
    assert sorted(path.name for path in run.glob("agent*.pt")) == ["agent-160.pt", "agent-192.pt", "agent.pt"]
    newest = run / "agent-192.pt"
    for damaged in (newest, run / "agent.pt"):
        damaged.write_bytes(damaged.read_bytes()[:5000])
    arguments = ["--env-id", GAME, *RESUME, "auto", "--runs-path", run.parent, "--total-timesteps", 192]
    finished = train_here(*arguments)
    assert f"skipped: {newest}: is not a checkpoint, or is damaged" in finished.stdout
    assert "Resuming after 5 updates, 160 steps." in finished.stdout
    assert f"saved {run / 'agent.pt'} after 6 updates" in finished.stdout
    assert Checkpoint.load(run / "agent.pt").steps == 192


def test_an_older_checkpoint_goes_on_in_a_folder_of_its_own(trained: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    old, newest = tmp_path / "run" / "old.pt", tmp_path / "run" / "agent.pt"
    torch.save({**torch.load(newest, weights_only=True), "steps": 32, "updates": 1}, old)
    finished = train_here(*RESUME, old, "--total-timesteps", 64, "--runs-path", tmp_path / "runs")
    assert "is ahead of" in finished.stdout
    assert Checkpoint.load(newest).steps == 96
    assert Checkpoint.load(only_run(tmp_path / "runs") / "agent.pt").steps == 64


def test_resuming_a_finished_run_is_refused(trained: TrainedRun) -> None:
    agent = trained.folder / "agent.pt"
    finished = train_here("--resume", agent, check=False)
    assert_refused(finished, f"the run of {agent} is finished: 96 of 96 steps are done. Raise --total-timesteps")


def test_resuming_with_other_rewards_needs_a_flag(trained: TrainedRun, tmp_path: Path) -> None:
    agent = trained.copy(tmp_path / "runs") / "agent.pt"
    arguments = [*RESUME, agent, "--total-timesteps", 128, "--reward-weights", "wall=-7"]
    words = ["other reward terms", "  term wall: weight -5.0", "-> weight -7.0", "--allow-changed-rewards"]
    assert_refused(train_here(*arguments, check=False), *words)
    finished = train_here(*arguments, "--allow-changed-rewards")
    assert "Resuming although this has changed:\n  term wall: " in finished.stdout
    assert "wall               -7" in finished.stdout
    again = [*RESUME, agent, "--total-timesteps", 160, "--reward-weights", "wall=-9"]
    assert_refused(train_here(*again, check=False), "-> weight -9.0")  # the flag was for that time only


BEFORE_THE_ROOMS = "98997fb"  # the last commit with all of the trainer in one file


@pytest.mark.slow
def test_a_run_from_before_the_package_had_rooms_is_resumed(tmp_path: Path) -> None:
    """Its terms have other docstrings, hence --allow-changed-rewards."""
    repository, archive = Path(ppo.__file__).parent, tmp_path / "before.zip"
    git = ["git", "-C", str(repository), "archive", "-o", str(archive), BEFORE_THE_ROOMS]
    if subprocess.run(git, capture_output=True).returncode:
        pytest.skip("a clone with all commits has that version")
    shutil.unpack_archive(archive, tmp_path / "before")
    words = [sys.executable, tmp_path / "before" / SCRIPT.name, "--env-id", GAME, *SMALL, "--total-timesteps", 96]
    words += ["--runs-path", tmp_path / "runs"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "before")}
    subprocess.run([str(word) for word in words], env=environment, check=True, timeout=120)
    agent = only_run(tmp_path / "runs") / "agent.pt"
    before = Checkpoint.load(agent)
    finished = train_here(*RESUME, agent, "--total-timesteps", 160, "--allow-changed-rewards")
    assert "Resuming after 3 updates, 96 steps." in finished.stdout
    checkpoint = Checkpoint.load(agent)
    assert (checkpoint.updates, checkpoint.steps) == (5, 160)
    assert not all(value.equal(before.agent[name]) for name, value in checkpoint.agent.items())


def test_training_can_begin_with_the_policy_of_another_agent(trained: TrainedRun, tmp_path: Path) -> None:
    arguments = ["--env-id", GAME, *SMALL, "--initial-agent", trained.folder / "agent.pt", "--learning-rate", 0]
    arguments += ["--scenario", "course_progress", "--frame-skip", 3, "--total-timesteps", 32, "--runs-path", tmp_path]
    finished = train_here(*arguments)
    assert f"{trained.folder / 'agent.pt'}: was trained with --frame-skip 4, which is 3 now" in finished.stdout
    assert "was trained with --size" not in finished.stdout
    initial = Checkpoint.load(trained.folder / "agent.pt").agent
    began = Checkpoint.load(only_run(tmp_path) / "agent.pt")
    assert (began.updates, began.steps) == (1, 32), "the steps of the other agent do not count"
    equal = {name: value.equal(began.agent[name]) for name, value in initial.items()}
    assert {name for name in equal if not equal[name]} == {"critic.weight", "critic.bias"}
    assert not began.agent["critic.weight"].any() and not began.agent["critic.bias"].any()


def test_an_initial_agent_that_does_not_fit_is_refused(trained: TrainedRun, tmp_path: Path) -> None:
    arguments = ["--env-id", GAME, *SMALL, "--runs-path", tmp_path / "runs", "--initial-agent"]
    agent = trained.folder / "agent.pt"
    fits_not = train_here(*arguments, agent, "--action-mode", "full", check=False)
    assert_refused(fits_not, f"--initial-agent {agent}: the checkpoint's agent is for other observations or actions")
    missing = train_here(*arguments, tmp_path / "none.pt", check=False)
    assert_refused(missing, f"{tmp_path / 'none.pt'}: can't be read: No such file or directory")
    assert not list((tmp_path / "runs").glob("*"))
