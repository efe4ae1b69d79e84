"""Device, precision, compilation and threads of the agent."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from training_runs import GAME, SMALL, only_run, train, train_here, weights

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.devices import choose_computing, choose_device, compile_encoder, has_bfloat16
from kart_rewards.training.processes import processor_count
from kart_rewards.training.ranks import Ranks
from kart_rewards.training.run import RunOptions

CPU = torch.device("cpu")
IMAGES = gym.spaces.Box(0, 255, (4, 42, 42), np.uint8)
TWO_RANKS = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretends that there are two GPUs, and notes which one a process chooses as its own."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_auto_is_the_gpu_if_there_is_one(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("auto", Ranks()) == torch.device("cuda")
    assert choose_device("cpu", Ranks()) == CPU
    assert not gpus, "without torchrun, PyTorch's own choice stays"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", Ranks()) == CPU


def test_each_rank_has_a_gpu_of_its_own(gpus: list[int]) -> None:
    assert choose_device("auto", TWO_RANKS) == torch.device("cuda", 1)
    assert gpus == [1]
    assert choose_device("cpu", TWO_RANKS) == CPU


def test_more_ranks_than_gpus_are_refused(gpus: list[int]) -> None:
    third = Ranks(rank=2, world_size=3, local_rank=2, local_world_size=3)
    with pytest.raises(KartRewardsError, match="starts 3 processes here, for 2 GPUs: lower --nproc-per-node"):
        choose_device("cuda", third)


def test_a_device_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "mps"):
        with pytest.raises(KartRewardsError, match=f"--device {name}: .* does not have one: use --device auto"):
            choose_device(name, Ranks())


def test_several_ranks_can_not_share_apples_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps", Ranks()) == torch.device("mps")
    with pytest.raises(KartRewardsError, match="several processes can't share it"):
        choose_device("mps", TWO_RANKS)


def test_bfloat16_needs_instructions_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for ability, wanted in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda ability=ability: {ability: True}, raising=False)
        assert has_bfloat16(CPU) == wanted
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bfloat16(CPU), "without oneDNN, PyTorch's bfloat16 is slow"


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_needs_instructions_of_the_gpu(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert has_bfloat16(torch.device("cuda")) == supported


class SlowAgent(torch.nn.Linear):
    """An agent whose passes take longer in one precision."""

    observation_shape = (3,)
    threads = 1

    def __init__(self, precision: torch.dtype, slow: torch.dtype) -> None:
        super().__init__(3, 1)
        self.seconds = 0.01 if precision == slow else 0.0

    def get_value(self, observation: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self(observation.float())


@pytest.mark.parametrize(("slow", "wanted"), [(torch.float32, "bfloat16"), (torch.bfloat16, "float32")])
def test_auto_precision_is_the_faster_one(
    slow: torch.dtype, wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    chosen = choose_computing(RunOptions(), lambda precision: SlowAgent(precision, slow), 8, CPU, Ranks())
    assert (chosen.precision, chosen.compile, chosen.threads) == (wanted, "off", processor_count())
    assert re.search(r"samples/s: float32 [\d,]+, bfloat16 [\d,]+\n", capsys.readouterr().out)


def test_what_is_given_is_not_measured() -> None:
    given = RunOptions(precision="bfloat16", compile="off", threads=3)
    assert choose_computing(given, lambda precision: 1 / 0, 8, CPU, Ranks()) == given


def test_a_gpu_needs_one_thread() -> None:
    options = RunOptions(precision="float32")
    assert choose_computing(options, lambda precision: 1 / 0, 8, torch.device("cuda"), Ranks()).threads == 1


def test_a_resumed_run_keeps_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    options = ["--precision", "auto", "--total-timesteps", 64, "--checkpoint-interval", 1, "--runs-path", folder]
    first = train_here("--env-id", GAME, *SMALL, *options)
    measured = "measured forward and backward passes" in first.stdout
    assert measured == has_bfloat16(torch.device("cpu")), "a processor with one precision leaves nothing to measure"
    [checkpoint] = folder.glob("*/agent-32.pt")
    saved = Checkpoint.load(checkpoint).options["run"]
    assert saved["precision"] in ("float32", "bfloat16")
    assert saved["threads"] == processor_count()
    resumed = train_here("--resume", checkpoint)
    assert "measured" not in resumed.stdout
    assert f"on cpu in {saved['precision']}" in resumed.stdout


needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler, such as g++"
)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_encoder_trains_under_its_old_names(tmp_path: Path) -> None:
    arguments = [*SMALL, "--total-timesteps", 64, "--precision", "float32", "--runs-path", tmp_path / "runs"]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    finished = train("--env-id", GAME, *arguments, "--compile", "on", env=os.environ | cache)
    assert "--compile is ignored" not in finished.stdout
    assert list((tmp_path / "cache").rglob("*.so")), "kernels were compiled"
    agent = only_run(tmp_path / "runs") / "agent.pt"
    assert Checkpoint.load(agent).steps == 64
    eager = ppo.Agent(IMAGES, gym.spaces.Box(-1, 1, (1,), np.float32))
    eager.load_state_dict(weights(agent))  # the names are those of an agent that is not compiled


def test_without_a_compiler_compile_is_ignored(tmp_path: Path) -> None:
    arguments = [*SMALL, "--total-timesteps", 32, "--compile", "auto", "--runs-path", tmp_path / "runs"]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(tmp_path / "no-compiler"), "PATH": ""}
    finished = train("--env-id", GAME, *arguments, env=os.environ | cache)
    assert "--compile is ignored: torch.compile does not work here" in finished.stdout
    assert Checkpoint.load(only_run(tmp_path / "runs") / "agent.pt").steps == 32


def test_an_agent_is_the_same_if_it_can_not_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(module: torch.nn.Module, mode: str | None) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    encoder, before = agent.encoder, {name: value.clone() for name, value in agent.state_dict().items()}
    compile_encoder(agent, torch.zeros(1, *IMAGES.shape, dtype=torch.uint8))
    assert agent.encoder is encoder
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert "--compile is ignored: torch.compile does not work here (OSError)" in capsys.readouterr().out


def test_compiling_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, mode: module)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: None)
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    compile_encoder(agent, torch.zeros(1, *IMAGES.shape, dtype=torch.uint8))
    assert all(parameter.grad is None for parameter in agent.parameters())
