"""Evaluation of an agent while it trains."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from episode_results import result
from torch import nn
from training_runs import (
    GAME,
    SMALL,
    TrainedRun,
    clean_children,
    equal_weights,
    events,
    finish,
    only_run,
    scalars,
    started,
    train_here,
    wait_until,
)

import ppo_continuous_single_file as ppo
from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.errors import KartRewardsError
from kart_rewards.evaluation import in_training
from kart_rewards.evaluation.agents import EvalOptions
from kart_rewards.evaluation.contestants import Contestant
from kart_rewards.evaluation.courses import checkpoint_times
from kart_rewards.evaluation.episodes import EpisodeResult
from kart_rewards.evaluation.in_training import EvaluationInTraining, TorchPolicy
from kart_rewards.scenario import Scoring
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.log import Log

IMAGES = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)
ENV: Any = SimpleNamespace(observation_space=IMAGES, action_space=gym.spaces.Discrete(9))
OBSERVATION = np.random.default_rng(1).integers(0, 255, IMAGES.shape, np.uint8)


# ---------------------------------------------------------------------------------------------------------- the policy
@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def agent() -> ppo.Agent:
    torch.manual_seed(1)
    return ppo.Agent(IMAGES, ENV.action_space)


def actions(policy: TorchPolicy, seed: int) -> list[int]:
    act = policy(ENV, "Level1", seed)
    return [int(act(ENV, OBSERVATION)) for _ in range(20)]


def test_a_deterministic_policy_takes_the_most_probable_action(agent: ppo.Agent) -> None:
    policy = TorchPolicy(ppo.Agent, agent.state_dict(), deterministic=True)
    expected = int(agent.act(torch.as_tensor(OBSERVATION)[None], deterministic=True))
    assert actions(policy, seed=1) == [expected] * 20


def test_a_sampled_policy_depends_on_the_seed_of_the_episode(agent: ppo.Agent) -> None:
    policy = TorchPolicy(ppo.Agent, agent.state_dict(), deterministic=False)
    first = actions(policy, seed=1)
    assert len(set(first)) > 3
    assert actions(policy, seed=2) != first
    assert actions(policy, seed=1) == first


def test_a_policy_is_the_same_in_another_process(agent: ppo.Agent) -> None:
    policy = TorchPolicy(ppo.Agent, agent.state_dict(), deterministic=False)
    assert actions(pickle.loads(pickle.dumps(policy)), seed=3) == actions(policy, seed=3)  # noqa: S301


def test_a_policy_initialises_no_weights(agent: ppo.Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large images it takes seconds."""
    initialised = []
    original = nn.init.orthogonal_

    def orthogonal(tensor: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        initialised.append(tensor.is_meta)
        return original(tensor, gain)

    monkeypatch.setattr(nn.init, "orthogonal_", orthogonal)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    assert actions(TorchPolicy(ppo.Agent, agent.state_dict(), deterministic=True), seed=1)
    assert set(initialised) == {True}, "tensors without memory"
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


def test_the_weights_of_another_network_are_refused(agent: ppo.Agent) -> None:
    other: Any = SimpleNamespace(observation_space=IMAGES, action_space=gym.spaces.Discrete(3))
    with pytest.raises(KartRewardsError, match="for other observations or actions"):
        TorchPolicy(ppo.Agent, agent.state_dict(), deterministic=True)(other, "Level1", 1)


# -------------------------------------------------------------------------------------------------------- evaluations
class FakeEvaluator:
    """Notes what is to be played, and returns results that were made before."""

    def __init__(self, results: Sequence[EpisodeResult]) -> None:
        self.results = results
        self.played: list[dict[str, Any]] = []

    def play(
        self, contestants: Sequence[Contestant], states: Sequence[str], episodes: int, seed: int, **options: Any
    ) -> Iterator[EpisodeResult]:
        self.played.append({"states": states, "episodes": episodes, "seed": seed, **options})
        [self.contestant] = contestants
        yield from self.results


RESULTS = [result(laps=(10.0,) * 3, episode_return=4.0), result(laps=(12.0,) * 3, episode_return=8.0)]
RESULTS += [result(state="Level2", episode_return=1.0), result(state="Level2", episode_return=2.0)]


def make(
    monkeypatch: pytest.MonkeyPatch, results: Sequence[EpisodeResult] = RESULTS, **options: Any
) -> tuple[EvaluationInTraining, FakeEvaluator]:
    evaluator = FakeEvaluator(results)
    monkeypatch.setattr(in_training, "Evaluator", lambda: evaluator)
    evaluate = EvaluationInTraining(
        lambda weights, deterministic: TorchPolicy(nn.Linear, weights, deterministic),
        {"game": GAME},
        ["Level1", "Level2"],
        EvalOptions(eval_episodes=2, eval_seed=77, **options),
        max_episode_frames=160,
    )
    return evaluate, evaluator


@pytest.mark.parametrize(
    ("interval", "due"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (50, [7])], ids=lambda value: str(value)
)
def test_evaluations_are_due_at_the_interval_and_at_the_end(
    interval: int, due: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, _ = make(monkeypatch, eval_interval=interval)
    assert [updates for updates in range(1, 8) if evaluate.is_due(updates, last=updates == 7)] == due


def test_an_evaluation_plays_deterministic_episodes_with_its_own_seed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluate, evaluator = make(monkeypatch)
    agent = nn.Linear(2, 1)
    evaluate(agent, tmp_path, 96, threading.Event())
    assert evaluator.played == [
        {
            "states": ["Level1", "Level2"],
            "episodes": 2,
            "seed": 77,
            "max_episode_frames": 160,
            "video_folder": None,
            "drive_folder": tmp_path / "drives" / "96",
        }
    ]
    assert evaluator.contestant.env_options == {"game": GAME}
    policy = evaluator.contestant.make_policy
    assert isinstance(policy, TorchPolicy)
    assert policy.deterministic
    assert torch.equal(policy.weights["weight"], agent.weight)
    assert not policy.weights["weight"].requires_grad


def test_an_evaluation_has_metrics_by_course_and_a_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluate, _ = make(monkeypatch)
    evaluation = evaluate(nn.Linear(2, 1), tmp_path, 96, threading.Event())
    assert evaluation
    assert evaluation.metrics["Level1"]["median_race_time_seconds"] == 33.0
    assert "median_race_time_seconds" not in evaluation.metrics["Level2"], "nobody finished"
    assert evaluation.metrics["Level2"]["median_return"] == 1.5
    assert evaluation.score == [0.5, float("-inf"), 3.75]
    assert evaluation.videos == []


def test_an_evaluation_draws_where_laps_lose_time_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = checkpoint_times(load_drive(SHIPPED / "race.drive"))
    results = [result(checkpoint_times_seconds=times), result(state="Level2")]
    evaluate, _ = make(monkeypatch, results)
    evaluation = evaluate(nn.Linear(2, 1), tmp_path, 96, threading.Event())
    assert evaluation
    assert list(evaluation.time_lost) == ["Level1"], "no lap on Level2 has reached a sector"
    scoring = Scoring([], [])
    log = Log(tmp_path / "log", {}, scoring, total_steps=96, steps=0)
    log.evaluation(evaluation, 96)
    log.close()
    [image] = events(tmp_path / "log").Images("eval/Level1/time_lost")
    assert (image.step, image.encoded_image_string) == (96, evaluation.time_lost["Level1"])
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_an_evaluation_returns_its_videos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluate, evaluator = make(monkeypatch, capture_video=True, video_gif=True)
    folder = tmp_path / "videos" / "96"
    folder.mkdir(parents=True)
    for name in ("Level2-agent.mp4", "Level1-agent.mp4", "notes.txt"):
        (folder / name).touch()
    evaluation = evaluate(nn.Linear(2, 1), tmp_path, 96, threading.Event())
    assert evaluation
    assert evaluator.played[0]["video_folder"] == folder
    assert evaluation.videos == [folder / "Level1-agent.mp4", folder / "Level2-agent.mp4"]
    assert evaluation.keep_gifs


def test_a_stopped_evaluation_has_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop = threading.Event()

    def results() -> Iterator[EpisodeResult]:
        yield RESULTS[0]
        stop.set()
        yield RESULTS[1]
        raise AssertionError("no further episode")

    evaluate, evaluator = make(monkeypatch)
    evaluator.results = results()  # type: ignore[assignment]
    assert evaluate(nn.Linear(2, 1), tmp_path, 96, stop) is None


# ---------------------------------------------------------------------------------------------------------- real runs
def test_training_evaluates_the_agent_and_keeps_the_best(trained: TrainedRun) -> None:
    run = trained.folder
    logged = scalars(run)
    assert [step for step, _ in logged["eval/Level1/finish_rate"]] == [64, 96]
    assert logged["eval/Level1/episodes"] == [(64, 2.0), (96, 2.0)]
    assert "eval/Level1/median_return" in logged
    best = Checkpoint.load(run / "best.pt")
    assert best.steps in (64, 96)
    assert max(score for _, score in logged["eval/Level1/median_return"]) == pytest.approx(
        dict(logged["eval/Level1/median_return"])[best.steps]
    ), "nobody finishes in 40 steps, so that the return decides"
    assert (run / "best.pt").stat().st_size < 0.5 * (run / "agent.pt").stat().st_size, "an agent alone"


def test_evaluation_leaves_training_as_it_is(trained: TrainedRun, tmp_path: Path) -> None:
    """The same training without evaluations gives the same weights."""
    options = ppo.saved_args(Checkpoint.load(trained.folder / "agent.pt"))
    finished = train_here(
        "--env-id", GAME, *SMALL, "--total-timesteps", 96, "--max-episode-steps", 40,
        "--rewards", *options.env.rewards, "--reward-weights", "wall=-5", "--runs-path", tmp_path,
    )  # fmt: skip
    assert finished.stderr == ""
    assert equal_weights(only_run(tmp_path) / "agent.pt", trained.folder / "agent.pt")


def test_the_videos_are_videos_of_the_evaluation(trained: TrainedRun) -> None:
    import imageio.v2 as imageio

    run = trained.folder
    video = imageio.get_reader(run / "videos" / "96" / "Level1-agent.mp4")
    width, height = video.get_meta_data()["size"]
    assert width > 500, "the panel is beside the game"
    assert 224 <= height < 448
    frames = list(video.iter_data())
    assert len(frames) == 41, "the reset and 40 steps"
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 1, "the picture moves"
    gif = imageio.mimread(run / "videos" / "96" / "Level1-agent.gif")
    assert len(gif) > 20
    shown = events(run).Images("eval/Level1-agent")
    assert [image.step for image in shown] == [64, 96]
    assert shown[0].encoded_image_string.startswith(b"GIF89a")


def test_an_evaluation_that_fails_costs_no_training_and_ctrl_c_ends_one(tmp_path: Path) -> None:
    """Each evaluation has more episodes than anybody waits for."""
    arguments = [*SMALL, "--eval-interval", 1, "--eval-episodes", 200, "--max-episode-steps", 60]
    with started("--env-id", GAME, *arguments, "--runs-path", tmp_path) as process:

        def workers() -> list[psutil.Process]:
            assert process.poll() is None, process.communicate()
            return clean_children(process.pid)

        [failing, *_] = wait_until(workers, 120)
        time.sleep(2)  # into the episodes
        failing.kill()
        assert process.stdout
        for line in process.stdout:
            if "this evaluation is skipped: a worker process ended unexpectedly (killed by signal 9)" in line:
                break
        second = wait_until(lambda: [each for each in workers() if each != failing], 120)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        finished = finish(process)
    assert finished.returncode == 0, finished.stderr
    checkpoint = Checkpoint.load(only_run(tmp_path) / "agent.pt")
    assert "after 2 updates" in finished.stdout
    assert checkpoint.updates == 2, "no further update"
    assert len(checkpoint.env_states) == 2
    assert not psutil.wait_procs(second, timeout=30)[1]
