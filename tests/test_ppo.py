"""The training script: its stages on small cases, and the whole through the command line, in the real emulator."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_continuous_single_file as ppo
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.training.vector import EnvGroups

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "ppo_continuous_single_file.py"
GAME = "HomebrewKart-Snes"
SMALL = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "2", "--update-epochs", "1"]
SMALL += ["--device", "cpu", "--eval-interval", "0"]
RESUME = ["--eval-interval", "0", "--resume"]
IMAGES = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)


class Counter(gym.Env):
    """Shows the number of steps taken, pays ``reward``, and ends an episode after ``length`` steps."""

    def __init__(self, length: int, reward: float = 0.0, truncates: bool = False) -> None:
        self.observation_space = IMAGES
        self.action_space = gym.spaces.Discrete(2)
        self.length, self.reward, self.truncates = length, reward, truncates

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ended = self.steps == self.length
        return self.observation(), self.reward, ended and not self.truncates, ended and self.truncates, {}

    def observation(self) -> np.ndarray:
        return np.full(IMAGES.shape, self.steps, np.uint8)


class ValueIsBrightness(ppo.Agent):
    """An agent whose value of an observation is its first pixel."""

    def get_value(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.flatten(1)[:, 0].float()


def play(env: Counter, num_steps: int, gamma: float = 0.5) -> ppo.Rollout:
    with closing(EnvGroups([lambda: env])) as envs:
        rollout = ppo.Rollout.empty(envs, num_steps, torch.device("cpu"))
        rollout.next_observation = torch.as_tensor(envs.reset(seed=1))
        agent = ValueIsBrightness(envs.single_observation_space, envs.single_action_space)
        ppo.collect(agent, envs, rollout, gamma, 1, ppo.Stopwatch())
    return rollout


def test_a_truncated_episode_is_paid_the_value_of_its_real_final_observation() -> None:
    rollout = play(Counter(length=3, reward=1.0, truncates=True), num_steps=7)
    bootstrapped = 1.0 + 0.5 * 3  # the final observation shows 3, the one after the reset 0
    assert rollout.rewards[:, 0].tolist() == [1, 1, bootstrapped, 1, 1, bootstrapped, 1]
    assert rollout.dones[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 1]


def test_a_terminated_episode_is_paid_nothing_more() -> None:
    rollout = play(Counter(length=3, reward=1.0), num_steps=7)
    assert rollout.rewards[:, 0].tolist() == [1] * 7


def test_an_episode_that_terminates_at_the_step_limit_is_paid_nothing_more() -> None:
    class Both(Counter):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, reward, ended, _, info = super().step(action)
            return observation, reward, ended, ended, info

    assert play(Both(length=3, reward=1.0), num_steps=4).rewards[:, 0].tolist() == [1] * 4


def test_autoreset_wastes_no_step() -> None:
    rollout = play(Counter(length=3), num_steps=7)
    assert rollout.observations[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert rollout.next_observation[0, 0, 0, 0] == 1


def test_gae_against_the_sums_it_stands_for() -> None:
    generator = torch.Generator().manual_seed(1)
    steps, gamma, gae_lambda = 12, 0.9, 0.8
    rollout = play(Counter(length=99), num_steps=steps)
    rollout.rewards = torch.randn(steps, 1, generator=generator)
    rollout.values = torch.randn(steps, 1, generator=generator)
    rollout.dones = torch.zeros(steps, 1)
    rollout.dones[5] = 1.0
    rollout.next_done = torch.zeros(1)
    next_value = torch.randn(1, generator=generator)
    advantages, returns = ppo.gae(rollout, next_value, gamma, gae_lambda)

    values = [*rollout.values[:, 0].tolist(), next_value.item()]
    rewards = rollout.rewards[:, 0].tolist()
    for start in range(steps):
        end = 5 if start < 5 else steps  # the episode's last step, plus one
        expected = 0.0
        for t in range(start, end):
            following = 0.0 if t == 4 else values[t + 1]
            expected += (gamma * gae_lambda) ** (t - start) * (rewards[t] + gamma * following - values[t])
        assert advantages[start, 0].item() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(returns, advantages + rollout.values)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1, 1, (1,), np.float32),
        gym.spaces.Box(-1, 1, (3,), np.float32),
        gym.spaces.Discrete(4),
        gym.spaces.MultiDiscrete([3, 3, 13, 4]),
        gym.spaces.MultiBinary(12),
    ],
    ids=str,
)
def test_every_action_space_has_its_head(space: gym.Space) -> None:
    torch.manual_seed(1)
    agent = ppo.Agent(IMAGES, space)
    observation = torch.zeros(7, *IMAGES.shape, dtype=torch.uint8)
    action, log_prob, entropy, value = agent.get_action_and_value(observation)
    assert action.shape == (7, *space.shape)
    assert log_prob.shape == entropy.shape == value.shape == (7,)
    again = agent.get_action_and_value(observation, action)
    assert torch.equal(again[1], log_prob)
    if not isinstance(space, gym.spaces.Box):
        assert all(choice.astype(space.dtype) in space for choice in action.numpy())


@pytest.mark.parametrize("shape", [(4, 84, 84), (1, 84, 84), (84, 84, 3), (4, 84, 84, 3), (224, 256, 3)])
def test_every_observation_shape_is_encoded(shape: tuple[int, ...]) -> None:
    agent = ppo.Agent(gym.spaces.Box(0, 255, shape, np.uint8), gym.spaces.Discrete(2))
    assert agent.get_value(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2,)


def test_an_update_makes_rewarded_actions_likelier() -> None:
    torch.manual_seed(1)
    rollout = play(Counter(length=99), num_steps=64)
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    options = ppo.PPOOptions(num_envs=1, num_steps=64, num_minibatches=2, ent_coef=0.0, norm_adv=False)
    with torch.no_grad():
        _, log_probs, _, values = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    rollout.log_probs, rollout.values = log_probs[:, None], values[:, None]
    advantages = rollout.actions.float() * 2 - 1  # action 1 was good, action 0 was bad
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    losses = ppo.update(agent, optimizer, rollout, advantages, rollout.values.clone(), options, ppo.Ranks())
    with torch.no_grad():
        after = agent.get_action_and_value(rollout.observations[:, 0], torch.ones(64))[1].exp().mean()
        before = log_probs[rollout.actions[:, 0] == 1].exp().mean()
    assert after > before + 0.02
    assert set(losses) >= {"value_loss", "policy_loss", "entropy", "approx_kl", "clipfrac", "explained_variance"}


def test_an_update_is_ppos_formula() -> None:
    """One minibatch, one epoch, plain gradient descent: the step is that of the loss written down once more here."""
    torch.manual_seed(3)
    size = 16
    options = ppo.PPOOptions(
        num_envs=1, num_steps=size, num_minibatches=1, update_epochs=1, ent_coef=0.3, vf_coef=0.7, clip_coef=0.1,
        max_grad_norm=0.05,
    )  # fmt: skip
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    rollout = play(Counter(length=99), num_steps=size)
    rollout.observations = torch.randint(0, 255, rollout.observations.shape, dtype=torch.uint8)
    advantages, returns = torch.randn(size, 1), torch.randn(size, 1) * 3
    with torch.no_grad():
        _, log_probs, _, values = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    rollout.log_probs = (log_probs + torch.randn(size) * 0.2)[:, None]  # an older policy, in part beyond the clip range
    rollout.values = (values + torch.randn(size) * 0.5)[:, None]

    _, log_prob, entropy, value = agent.get_action_and_value(rollout.observations[:, 0], rollout.actions[:, 0])
    normalised = (advantages[:, 0] - advantages.mean()) / (advantages.std() + 1e-8)
    surrogate, value_losses = [], []
    for i in range(size):
        ratio = (log_prob[i] - rollout.log_probs[i, 0]).exp()
        clipped = min(max(ratio, torch.tensor(0.9)), torch.tensor(1.1))
        surrogate.append(min(ratio * normalised[i], clipped * normalised[i]))
        old, target = rollout.values[i, 0], returns[i, 0]
        near = old + min(max(value[i] - old, torch.tensor(-0.1)), torch.tensor(0.1))
        value_losses.append(max((value[i] - target) ** 2, (near - target) ** 2))
    loss = -sum(surrogate) / size - 0.3 * entropy.mean() + 0.7 * 0.5 * sum(value_losses) / size
    gradients = torch.autograd.grad(loss, list(agent.parameters()))
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    assert norm > 0.05, "the gradient is clipped, too"
    before = [parameter.detach().clone() for parameter in agent.parameters()]

    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    losses = ppo.update(agent, optimizer, rollout, advantages, returns, options, ppo.Ranks())
    for start, gradient, parameter in zip(before, gradients, agent.parameters(), strict=True):
        assert torch.allclose(parameter, start - gradient * 0.05 / norm, atol=1e-5)
    assert losses["policy_loss"] == pytest.approx(-sum(surrogate).item() / size, abs=1e-5)
    assert losses["value_loss"] == pytest.approx(0.5 * sum(value_losses).item() / size, rel=1e-4)


def test_an_update_stops_at_the_target_kl() -> None:
    def policy_after(target_kl: float | None) -> torch.Tensor:
        torch.manual_seed(1)
        rollout = play(Counter(length=99), num_steps=16)
        agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
        options = ppo.PPOOptions(num_envs=1, num_steps=16, num_minibatches=1, update_epochs=5, target_kl=target_kl)
        rollout.log_probs = torch.full((16, 1), -0.7)
        optimizer = torch.optim.SGD(agent.parameters(), lr=0.1)
        ppo.update(agent, optimizer, rollout, torch.randn(16, 1), torch.zeros(16, 1), options, ppo.Ranks())
        return agent.actor.weight.detach()

    assert torch.equal(policy_after(None), policy_after(1e9))
    assert not torch.equal(policy_after(None), policy_after(-1.0))


def test_durations_read_well() -> None:
    assert [ppo.duration(seconds) for seconds in (20, 61, 5025)] == ["1 min", "2 min", "1 h 24 min"]


# Through the command line.


def train(*arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def only_run(runs: Path) -> Path:
    [run] = runs.iterdir()
    return run


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars of a run: tag -> (step, value)."""
    log = EventAccumulator(str(run))
    log.Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def assert_told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The script ended as it should on a mistake of the user's: exit code 2, one message, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def children(process: int) -> list[int]:
    """The process ids of a process's children."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)  # noqa: S607
    return [int(line) for line in found.stdout.split()]


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)  # noqa: S607
    return found.stdout.strip() not in ("", "Z", "Zs", "Z+")


def wait_until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A short run of the retail game without a dump, with a term of one's own: its runs folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "my_rewards.py").write_text(
        "from kart_rewards import reward_term\n\n\n@reward_term(weight=0.02)\ndef top_speed(ram):\n"
        '    """Pay for speed."""\n    return float(ram.speed > 300)\n'
    )
    done = train(
        "--env-id", "MarioKart-Snes", *SMALL, "--total-timesteps", 96, "--max-episode-steps", 40,
        "--eval-interval", 2, "--eval-episodes", 2, "--capture-video", "--video-gif",
        "--rewards", folder / "my_rewards.py", "--reward-weights", "wall=-5", "--runs-path", folder / "runs",
    )  # fmt: skip
    return folder / "runs", done


def test_without_a_dump_the_free_game_is_trained_and_named(trained: tuple[Path, Any]) -> None:
    runs, done = trained
    assert "MarioKart-Snes has no ROM" in done.stdout
    assert "python -m kart_rewards import PATH" in done.stdout
    assert "Training HomebrewKart-Snes instead" in done.stdout
    run = only_run(runs)
    assert run.name.startswith("HomebrewKart-Snes__ppo_continuous_single_file__1__")
    assert ppo.load_checkpoint(run / "agent.pt")["options"]["env"]["env_id"] == GAME


def test_the_terms_in_force_are_shown(trained: tuple[Path, Any]) -> None:
    _, done = trained
    assert "top_speed        0.02  Pay for speed." in done.stdout
    assert "wall               -5  Charge every frame" in done.stdout


def test_the_log_tells_rewards_by_term_race_losses_and_rates(trained: tuple[Path, Any]) -> None:
    logged = scalars(only_run(trained[0]))
    assert logged["rewards/top_speed"][0][1] > 0
    for table in ("rewards", "rewards_transformed", "rewards_share", "rewards_count"):
        assert {f"{table}/{term}" for term in ("wall", "checkpoint", "terrain", "time", "backwards")} <= logged.keys()
    assert {"race/laps_completed", "race/finished", "race/off_road_seconds", "race/wall_hits"} <= logged.keys()
    assert {"charts/episodic_return", "charts/episodic_length", "charts/learning_rate", "charts/SPS"} <= logged.keys()
    assert [step for step, _ in logged["losses/value_loss"]] == [32, 64, 96]
    rates = [value for _, value in logged["charts/learning_rate"]]
    assert rates == pytest.approx([5e-4, 5e-4 * 2 / 3, 5e-4 / 3])
    assert logged["charts/episodic_length"][0][1] <= 40


def test_the_log_holds_the_options_and_the_terms(trained: tuple[Path, Any]) -> None:
    log = EventAccumulator(str(only_run(trained[0])))
    log.Reload()
    [options] = log.Tensors("hyperparameters/text_summary")
    assert b"|gae_lambda|0.95|" in options.tensor_proto.string_val[0]
    [terms] = log.Tensors("reward_terms/text_summary")
    assert b"|top_speed|0.02|" in terms.tensor_proto.string_val[0]


def test_the_log_tells_where_time_and_memory_go(trained: tuple[Path, Any]) -> None:
    logged = scalars(only_run(trained[0]))
    parts = ["emulator", "scoring", "observation", "transfer", "policy", "update"]
    for part in parts:
        assert len(logged[f"time/{part}_ms_per_step"]) == 3
    assert all(value > 0 for part in parts if part != "transfer" for _, value in logged[f"time/{part}_ms_per_step"])
    assert logged["memory/trainer_mb"][0][1] > 100
    assert logged["memory/children_mb"][0][1] > 100


def test_training_evaluates_the_agent_and_keeps_the_best(trained: tuple[Path, Any]) -> None:
    run = only_run(trained[0])
    logged = scalars(run)
    assert [step for step, _ in logged["eval/Level1/finish_rate"]] == [64, 96]
    assert logged["eval/Level1/episodes"] == [(64, 2.0), (96, 2.0)]
    assert "eval/Level1/median_return" in logged
    best = ppo.load_checkpoint(run / "best.pt", ppo.AGENT_KEYS)
    assert best["steps"] in (64, 96)
    assert max(score for _, score in logged["eval/Level1/median_return"]) == pytest.approx(
        dict(logged["eval/Level1/median_return"])[best["steps"]]
    ), "nobody finishes in 40 steps, so that the return decides"
    assert (run / "best.pt").stat().st_size < 8e6


def test_evaluation_leaves_training_as_it_is(trained: tuple[Path, Any], tmp_path: Path) -> None:
    options = ppo.options_of(ppo.load_checkpoint(only_run(trained[0]) / "agent.pt"))
    done = train(
        "--env-id", GAME, *SMALL, "--total-timesteps", 96, "--max-episode-steps", 40,
        "--rewards", *options.env.rewards, "--reward-weights", "wall=-5", "--runs-path", tmp_path,
    )  # fmt: skip
    assert done.stderr == ""
    expected = weights(only_run(trained[0]) / "agent.pt")
    assert all(torch.equal(value, expected[name]) for name, value in weights(only_run(tmp_path) / "agent.pt").items())


def test_the_videos_are_videos_of_the_evaluation(trained: tuple[Path, Any]) -> None:
    import imageio.v2 as imageio

    run = only_run(trained[0])
    video = imageio.get_reader(run / "videos" / "96" / "Level1-agent.mp4")
    assert video.get_meta_data()["size"] == (256, 224)
    frames = list(video.iter_data())
    assert len(frames) == 41, "the reset and 40 steps"
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).mean() > 1, "the picture moves"
    gif = imageio.mimread(run / "videos" / "96" / "Level1-agent.gif")
    assert len(gif) > 20
    log = EventAccumulator(str(run))
    log.Reload()
    shown = log.Images("eval/Level1-agent")
    assert [image.step for image in shown] == [64, 96]
    assert shown[0].encoded_image_string.startswith(b"GIF89a")


def test_agents_are_evaluated_against_the_drivers(trained: tuple[Path, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(only_run(trained[0]), run)
    done = train(
        "--evaluate", run / "agent.pt", run / "best.pt", "--eval-episodes", 2, "--eval-states", "Level1", "Level2"
    )
    report = json.loads((run / "evaluation.json").read_text())
    assert [Path(agent["file"]).name for agent in report["agents"]] == ["agent.pt", "best.pt"]
    for agent in report["agents"]:
        assert set(agent["summary"]) == {"Level1", "Level2"}
        policies = agent["summary"]["Level1"]
        assert {"agent, likeliest", "agent, drawn", "random", "full-throttle", "reference"} == set(policies)
        assert policies["agent, drawn"]["episodes"] == 2
        assert len(agent["episodes"]) == 2 * 5 * 2
    assert set(report["across_seeds"]["Level1"]["reference"]["median_return"]) >= {"median", "lower_quartile"}
    for words in ("HomebrewKart-Snes, 96 steps with seed 1", "full-throttle", f"wrote {run / 'evaluation.json'}"):
        assert words in done.stdout


def test_an_agent_alone_can_be_evaluated_but_not_resumed(trained: tuple[Path, Any]) -> None:
    best = only_run(trained[0]) / "best.pt"
    assert_told(train("--resume", best, check=False), "best.pt: holds an agent alone", "resume an agent.pt")


@pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(4), gym.spaces.MultiDiscrete([3, 3]), gym.spaces.MultiBinary(12)], ids=str
)
def test_the_deterministic_action_is_the_likeliest(space: gym.Space) -> None:
    torch.manual_seed(1)
    agent = ppo.Agent(IMAGES, space)
    nn_init = torch.nn.init.normal_(agent.actor.weight)  # far from uniform
    assert nn_init.std() > 0.5
    observation = torch.randint(0, 255, (5, *IMAGES.shape), dtype=torch.uint8)
    likeliest = agent.act(observation, deterministic=True)
    assert torch.equal(likeliest, agent.act(observation, deterministic=True))
    with torch.no_grad():
        best = agent.get_action_and_value(observation, likeliest)[1]
        for _ in range(50):
            assert (agent.get_action_and_value(observation)[1] <= best + 1e-5).all()


def test_bfloat16_computes_nearly_what_float32_does() -> None:
    observation = torch.randint(0, 255, (16, 4, 84, 84), dtype=torch.uint8)
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    agents = []
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        agents.append(ppo.Agent(space, gym.spaces.Box(-1, 1, (1,), np.float32), precision))
    with torch.no_grad():
        exact, near = (agent.encode(observation) for agent in agents)
    assert near.dtype == torch.float32
    assert not torch.equal(exact, near)
    assert (exact - near).abs().mean() < 0.02 * exact.abs().mean()
    assert all(parameter.dtype == torch.float32 for parameter in agents[1].parameters())


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for ability, wanted in (("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda ability=ability: {ability: True})
        assert ppo.choose_precision("auto", cpu) == wanted
        assert ppo.choose_precision("float32", cpu) == torch.float32
        assert ppo.choose_precision("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_either_precision_trains(tmp_path: Path, precision: str) -> None:
    arguments = [*SMALL, "--total-timesteps", 32, "--precision", precision, "--runs-path", tmp_path]
    done = train("--env-id", GAME, *arguments)
    assert f"on cpu in {precision}" in done.stdout
    assert scalars(only_run(tmp_path))["losses/value_loss"]


def test_without_a_compiler_compile_is_left_out(tmp_path: Path) -> None:
    arguments = [*SMALL, "--total-timesteps", 32, "--compile", "--runs-path", tmp_path / "runs"]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(tmp_path / "no-compiler"), "PATH": ""}
    done = train("--env-id", GAME, *arguments, env=os.environ | cache)
    assert "--compile is left out: torch.compile does not work here" in done.stdout
    assert ppo.load_checkpoint(only_run(tmp_path / "runs") / "agent.pt")["steps"] == 32


def test_resuming_goes_on_in_the_same_run(trained: tuple[Path, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained[0], runs)
    agent = only_run(runs) / "agent.pt"
    done = train(*RESUME, agent, "--total-timesteps", 160)
    assert f"logging to {agent.parent}" in done.stdout
    assert "top_speed        0.02" in done.stdout  # the options of the run hold
    assert [step for step, _ in scalars(only_run(runs))["losses/value_loss"]] == [32, 64, 96, 128, 160]
    checkpoint = ppo.load_checkpoint(agent)
    assert (checkpoint["updates"], checkpoint["steps"]) == (5, 160)


def weights(agent: Path) -> dict[str, torch.Tensor]:
    return ppo.load_checkpoint(agent)["agent"]


def test_resuming_is_bit_for_bit_what_going_on_would_have_been(tmp_path: Path) -> None:
    """Four updates in one go, against two, a new process, and two more: the same weights, the same log."""
    arguments = ["--env-id", GAME, *SMALL, "--total-timesteps", 256, "--num-steps", 32, "--checkpoint-interval", 2]
    arguments += ["--random-start-steps", 3, "--runs-path", tmp_path / "runs"]
    train(*arguments)
    whole = only_run(tmp_path / "runs")
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(whole / "agent-128.pt", resumed)
    train(*RESUME, resumed / "agent-128.pt")
    assert ppo.load_checkpoint(resumed / "agent.pt")["steps"] == 256
    expected = weights(whole / "agent.pt")
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed / "agent.pt").items())
    assert any(not torch.equal(value, expected[name]) for name, value in weights(whole / "agent-128.pt").items())
    for tag in ("losses/value_loss", "losses/entropy"):
        assert scalars(resumed)[tag] == scalars(whole)[tag][2:]


def test_the_last_checkpoints_are_kept_and_auto_finds_the_newest_whole_one(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained[0], runs)
    run = only_run(runs)
    train(*RESUME, run / "agent.pt", "--total-timesteps", 192, "--checkpoint-interval", 1, "--checkpoints-kept", 2)
    assert sorted(path.name for path in run.glob("agent*.pt")) == ["agent-160.pt", "agent-192.pt", "agent.pt"]
    newest = run / "agent-192.pt"
    for damaged in (newest, run / "agent.pt"):
        damaged.write_bytes(damaged.read_bytes()[:5000])
    arguments = ["--env-id", GAME, *RESUME, "auto", "--runs-path", runs, "--total-timesteps", 192]
    done = train(*arguments)
    assert f"passed over: {newest}: is not a checkpoint, or a damaged one" in done.stdout
    assert "Resuming after 5 updates, 160 steps." in done.stdout
    assert f"saved {run / 'agent.pt'} after 6 updates" in done.stdout
    assert ppo.load_checkpoint(run / "agent.pt")["steps"] == 192


def test_an_older_checkpoint_goes_on_in_a_folder_of_its_own(trained: tuple[Path, Any], tmp_path: Path) -> None:
    run = only_run(trained[0])
    shutil.copytree(run, tmp_path / "run")
    old, newest = tmp_path / "run" / "old.pt", tmp_path / "run" / "agent.pt"
    checkpoint = ppo.load_checkpoint(newest)
    torch.save({**checkpoint, "steps": 32, "updates": 1}, old)
    done = train(*RESUME, old, "--total-timesteps", 64, "--runs-path", tmp_path / "runs")
    assert "is ahead of" in done.stdout
    assert ppo.load_checkpoint(newest)["steps"] == 96
    assert ppo.load_checkpoint(only_run(tmp_path / "runs") / "agent.pt")["steps"] == 64


def test_auto_resumes_the_free_game_that_stood_in(trained: tuple[Path, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained[0], runs)
    done = train("--env-id", "MarioKart-Snes", *RESUME, "auto", "--runs-path", runs, "--total-timesteps", 128)
    assert "Resuming after 3 updates, 96 steps." in done.stdout
    assert ppo.load_checkpoint(only_run(runs) / "agent.pt")["steps"] == 128


def test_resuming_says_nothing_of_a_missing_dump_of_another_game(trained: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(only_run(trained[0]), tmp_path / "run")
    done = train(*RESUME, tmp_path / "run" / "agent.pt", "--total-timesteps", 128, "--no-fallback")
    assert "has no ROM" not in done.stdout


def test_a_memory_that_no_checkpoint_can_hold_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "hoarder.py").write_text(
        "from kart_rewards import reward_term\n@reward_term\nclass Hoarder:\n    def __init__(self):\n"
        "        self.treasure = object()\n    def __call__(self, ram):\n        return 0.0\n"
    )
    arguments = [*SMALL, "--rewards", tmp_path / "hoarder.py", "--runs-path", tmp_path / "runs"]
    assert_told(train("--env-id", GAME, *arguments, check=False), "'hoarder' (", "can't be saved: it holds a object")


def test_resuming_a_finished_run_is_told(trained: tuple[Path, Any]) -> None:
    agent = only_run(trained[0]) / "agent.pt"
    assert_told(train("--resume", agent, check=False), "is done: 96 of 96 steps", "--total-timesteps")


def test_two_runs_in_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    args = ppo.Args(run=ppo.RunOptions(runs_path=tmp_path))
    first = ppo.run_folder(args, None)
    first.mkdir()
    assert first.name.endswith("__1__1000")
    assert ppo.run_folder(args, None).name.endswith("__1__1000-2")


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path) -> None:
    arguments = ["--env-id", GAME, *SMALL, "--total-timesteps", 96, "--learning-rate", "1e30", "--runs-path", tmp_path]
    assert_told(train(*arguments, check=False), "are no longer finite: resume an earlier checkpoint")
    assert all(value.isfinite().all() for value in weights(only_run(tmp_path) / "agent.pt").values())


def test_auto_begins_anew_where_there_is_nothing(tmp_path: Path) -> None:
    train("--env-id", GAME, *SMALL, "--total-timesteps", 32, "--resume", "auto", "--runs-path", tmp_path)
    assert ppo.load_checkpoint(only_run(tmp_path) / "agent.pt")["steps"] == 32


def test_resuming_under_other_rewards_needs_a_flag(trained: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(trained[0], tmp_path / "runs")
    agent = only_run(tmp_path / "runs") / "agent.pt"
    arguments = [*RESUME, agent, "--total-timesteps", 128, "--reward-weights", "wall=-7"]
    words = ["other reward terms", "  term wall: weight -5.0", "-> weight -7.0", "--allow-changed-rewards"]
    assert_told(train(*arguments, check=False), *words)
    done = train(*arguments, "--allow-changed-rewards")
    assert "Resuming under other reward terms" in done.stdout
    assert "wall               -7" in done.stdout
    again = [*RESUME, agent, "--total-timesteps", 160, "--reward-weights", "wall=-9"]
    assert_told(train(*again, check=False), "-> weight -9.0")  # the flag was for that time only


def test_resuming_under_an_edited_rewards_file_needs_a_flag(tmp_path: Path) -> None:
    terms = tmp_path / "terms.py"
    terms.write_text("from kart_rewards import reward_term\n@reward_term()\ndef gift(ram):\n    return 1.0\n")
    train("--env-id", GAME, *SMALL, "--total-timesteps", 32, "--rewards", terms, "--runs-path", tmp_path / "runs")
    agent = only_run(tmp_path / "runs") / "agent.pt"
    terms.write_text(terms.read_text().replace("1.0", "-1.0"))
    assert_told(train("--resume", agent, "--total-timesteps", 64, check=False), "  term gift: weight 1.0, source ")


@pytest.mark.parametrize("mode", ["driving", "multi-discrete", "filtered"])
def test_other_heads_train_too(tmp_path: Path, mode: str) -> None:
    colour = ["--no-grey", "--crop", "None", "--size", "42", "42"] if mode == "filtered" else []
    train(
        "--env-id", GAME, *SMALL, "--total-timesteps", 32, "--action-mode", mode, *colour, "--runs-path", tmp_path
    )  # fmt: skip
    assert "losses/entropy" in scalars(only_run(tmp_path))


def test_with_a_dump_the_retail_game_is_trained(tmp_path: Path) -> None:
    """A stand-in: a ROM of ours under the retail game's name, with its SHA-1 in that folder's rom.sha."""
    folder = tmp_path / "games" / "MarioKart-Snes"
    shutil.copytree(INTEGRATIONS / GAME, folder)
    rom = bytearray((folder / "rom.sfc").read_bytes())
    rom[0x7FDB] += 1  # the header's version number
    (folder / "rom.sfc").unlink()
    (folder / "rom.sha").write_text(hashlib.sha1(rom).hexdigest())  # noqa: S324 - what rom.sha holds
    (tmp_path / "my dump.sfc").write_bytes(rom)
    imported = [sys.executable, "-m", "kart_rewards", "import", tmp_path / "my dump.sfc", "--integrations-path"]
    subprocess.run([*imported, folder.parent], check=True, capture_output=True)

    done = train(
        *SMALL, "--total-timesteps", 32, "--integrations-path", folder.parent, "--runs-path", tmp_path / "runs"
    )
    assert "has no ROM" not in done.stdout
    assert done.stdout.startswith("MarioKart-Snes on cpu")
    assert only_run(tmp_path / "runs").name.startswith("MarioKart-Snes__")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env-id", "MarioKart-Snes", "--no-fallback"], ["MarioKart-Snes has no ROM", "kart_rewards import"]),
        (["--env-id", "MarioCart-Snes"], ["unknown game 'MarioCart-Snes'", "did you mean 'MarioKart-Snes'"]),
        (["--state", "Level99"], ["Level99.state: no such start state", "Level1"]),
        (["--scenario", "sprint"], ["sprint.json: no such file"]),
        (["--reward-weights", "wal=3"], ["no reward term 'wal'"]),
        (["--reward-weights", "wall"], ["'wall' is not NAME=NUMBER"]),
        (["--rewards", "lost.py"], ["lost.py: no such file"]),
        (["--num-minibatches", "5"], ["does not split into 5 equal minibatches"]),
        (["--num-minibatches", "32"], ["minibatches of 1 step"]),
        (["--learning-rate", "-1"], ["--learning-rate must be 0 or more, not -1.0"]),
        (["--gamma", "2"], ["--gamma must be between 0 and 1, not 2.0"]),
        (["--seed", "-1"], ["--seed must be between 0 and 4294967295, not -1"]),
        (["--max-episode-steps", "0"], ["--max-episode-steps must be 1 or more, not 0"]),
        (["--total-timesteps", "9"], ["is less than one rollout"]),
        (["--resume", "lost.pt"], ["lost.pt: can't be read: No such file"]),
        (["--resume", "pyproject.toml"], ["pyproject.toml: is not a checkpoint"]),
        (["--runs-path", "pyproject.toml"], ["can't be written: Not a directory"]),
        (["--eval-states", "Level99"], ["Level99.state: no such start state"]),
        (["--eval-episodes", "0"], ["--eval-episodes must be 1 or more, not 0"]),
        (["--size", "20", "20"], ["too small for the network"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_mistakes_are_told(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    where = [] if "--runs-path" in arguments else ["--runs-path", tmp_path]
    assert_told(train("--env-id", GAME, *SMALL, *where, *arguments, check=False, cwd=ROOT), *words)
    assert not list(tmp_path.iterdir()), "and no run is left behind"


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"agent": Payload()}, tmp_path / "agent.pt")
    assert_told(train("--resume", tmp_path / "agent.pt", check=False), "is not a checkpoint, or a damaged one")
    assert not (tmp_path / "ran").exists()


def test_a_term_that_fails_in_mid_run_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\ndef moody(ram):\n    return 1 / (ram.speed < 200)\n"
    )
    arguments = [*SMALL, "--rewards", tmp_path / "moody.py", "--runs-path", tmp_path / "runs"]
    done = train("--env-id", GAME, *arguments, check=False)
    assert_told(done, "'moody' (", "moody.py:2", "raised ZeroDivisionError", "moody.py:4", "speed=")
    assert ppo.load_checkpoint(only_run(tmp_path / "runs") / "agent.pt")["options"]["env"]["env_id"] == GAME


def test_a_disk_that_is_full_from_the_start_is_told(tmp_path: Path) -> None:
    """A limit on the size of files makes the kernel refuse the write, as a full disk does, with no disk to mount."""
    code = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        f"sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    arguments = [sys.executable, "-c", code, "--env-id", GAME, *SMALL, "--runs-path", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert_told(done, "can't be written: File too large")
    assert [path.suffix for path in only_run(tmp_path).iterdir() if "tfevents" not in path.name] == []


needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small disk"
)


@needs_mount
def test_a_read_only_runs_folder_is_told(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", tmp_path], check=True)  # noqa: S607
    try:
        arguments = ["--env-id", GAME, *SMALL, "--runs-path", tmp_path]
        assert_told(train(*arguments, check=False), f"{tmp_path}/{GAME}", "can't be written: Read-only file system")
    finally:
        subprocess.run(["umount", tmp_path], check=True)  # noqa: S607


@needs_mount
def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)  # noqa: S607
    try:
        arguments = [SCRIPT, "--env-id", GAME, *SMALL, "--checkpoint-interval", "1", "--runs-path", disk]
        with subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            agent = wait_until(lambda: list(disk.glob("*/agent.pt")), 60)[0]
            with suppress(OSError), (disk / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(2**12))
                    filler.flush()
            stdout, stderr = process.communicate(timeout=60)
        assert_told(subprocess.CompletedProcess([], process.returncode, stdout, stderr), "No space left on device")
        assert ppo.load_checkpoint(agent)["updates"] >= 0
        assert [path.name for path in agent.parent.iterdir() if "partial" in path.name] == []
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: S607


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """A long run that has begun to train, and its environments' processes."""
    arguments = [SCRIPT, "--env-id", GAME, *SMALL, "--checkpoint-interval", "1", "--runs-path", tmp_path]
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def has_updated() -> bool:
        assert process.poll() is None, process.communicate()
        agents = list(tmp_path.glob("*/agent.pt"))
        return bool(agents) and ppo.load_checkpoint(agents[0])["updates"] >= 1

    wait_until(has_updated, 60)
    yield process, [pid for pid in children(process.pid) if alive(pid)]
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_leaves_no_process_behind(running: Any, tmp_path: Path, number: signal.Signals) -> None:
    process, workers = running
    assert len(workers) >= 2
    os.killpg(process.pid, number)  # as a terminal does: to the trainer and its children alike
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert stderr == "\nstopping after this update... (again: at once)\n"
    agent = only_run(tmp_path) / "agent.pt"
    assert f"--resume {agent}" in stdout
    assert "update" in stdout
    assert ppo.load_checkpoint(agent)["updates"] >= 1
    wait_until(lambda: not any(map(alive, workers)), 10)


def test_a_second_ctrl_c_ends_a_run_that_is_stuck(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "from kart_rewards import reward_term\n@reward_term()\n"
        "def stuck(ram):\n    while ram.speed > 50:\n        pass\n    return 0.0\n"
    )
    arguments = [SCRIPT, "--env-id", GAME, *SMALL, "--rewards", tmp_path / "stuck.py", "--runs-path", tmp_path / "runs"]
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: list(tmp_path.glob("runs/*/agent.pt")), 60)
        time.sleep(3)  # into the endless loop
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 130
    wait_until(lambda: not any(map(alive, workers)), 10)


def test_killing_the_trainer_leaves_no_process_behind(running: Any, tmp_path: Path) -> None:
    process, workers = running
    process.kill()
    wait_until(lambda: not any(map(alive, workers)), 10)
    assert ppo.load_checkpoint(only_run(tmp_path) / "agent.pt")["updates"] >= 1


def test_killing_an_environment_ends_the_run_with_a_checkpoint(running: Any, tmp_path: Path) -> None:
    process, workers = running
    os.kill(workers[-1], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=30)
    done = subprocess.CompletedProcess([], process.returncode, stdout, stderr)
    assert_told(done, "an environment's process ended unexpectedly", "(killed by signal 9)")
    assert ppo.load_checkpoint(only_run(tmp_path) / "agent.pt")["updates"] >= 1
    wait_until(lambda: not any(map(alive, workers)), 10)


@pytest.fixture
def evaluating(tmp_path: Path) -> Any:
    """A run amid its first evaluation, of more episodes than anybody waits for, and the processes that play them."""
    arguments = [SCRIPT, "--env-id", GAME, *SMALL, "--eval-interval", "1", "--eval-episodes", "200"]
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments), "--max-episode-steps", "60", "--runs-path", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def workers() -> list[psutil.Process]:
        assert process.poll() is None, process.communicate()
        return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]

    wait_until(workers, 60)
    time.sleep(2)  # into the episodes
    yield process, workers()
    process.kill()
    process.wait()


def test_ctrl_c_ends_an_evaluation_too(evaluating: Any, tmp_path: Path) -> None:
    process, workers = evaluating
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "after 1 update" in stdout
    checkpoint = ppo.load_checkpoint(only_run(tmp_path) / "agent.pt")
    assert checkpoint["updates"] == 1, "no further update"
    assert len(checkpoint["env_states"]) == 2
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_an_evaluation_that_fails_costs_no_training(evaluating: Any, tmp_path: Path) -> None:
    process, workers = evaluating
    workers[0].kill()
    for line in process.stdout:
        if "the evaluation is left out: a worker process ended unexpectedly (killed by signal 9)" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert ppo.load_checkpoint(only_run(tmp_path) / "agent.pt")["env_states"]


def test_help_reads_well() -> None:
    done = train("--help", env=os.environ | {"COLUMNS": "100"})
    for words in ("env options", "ppo options", "eval options", "run options", "--env-id", "--evaluate", "--resume"):
        assert words in done.stdout
    assert "(default: MarioKart-Snes)" in " ".join(done.stdout.replace("│", "").split())
