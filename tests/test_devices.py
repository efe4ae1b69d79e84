"""Device, precision and compilation of the agent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from training_runs import GAME, SMALL, only_run, train, weights

import ppo_continuous_single_file as ppo
from kart_rewards.errors import KartRewardsError
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.devices import choose_device, choose_precision, compile_encoder, one_thread
from kart_rewards.training.ranks import Ranks

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


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for ability, wanted in (("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda ability=ability: {ability: True})
        assert choose_precision("auto", CPU) == wanted
        assert choose_precision("float32", CPU) == torch.float32
        assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_auto_precision_needs_pytorchs_fast_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU) == torch.float32


@pytest.mark.parametrize(("supported", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_follows_the_gpu(supported: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto", torch.device("cuda")) == wanted


def test_one_thread_is_undone() -> None:
    def fail() -> None:
        with one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler, such as g++"
)


@needs_compiler
def test_a_compiled_encoder_trains_under_its_old_names(tmp_path: Path) -> None:
    arguments = [*SMALL, "--total-timesteps", 64, "--precision", "float32", "--runs-path", tmp_path / "runs"]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    finished = train("--env-id", GAME, *arguments, "--compile", env=os.environ | cache)
    assert "--compile is ignored" not in finished.stdout
    assert list((tmp_path / "cache").rglob("*.so")), "kernels were compiled"
    agent = only_run(tmp_path / "runs") / "agent.pt"
    assert Checkpoint.load(agent).steps == 64
    eager = ppo.Agent(IMAGES, gym.spaces.Box(-1, 1, (1,), np.float32))
    eager.load_state_dict(weights(agent))  # the names are those of an agent that is not compiled


def test_without_a_compiler_compile_is_ignored(tmp_path: Path) -> None:
    arguments = [*SMALL, "--total-timesteps", 32, "--compile", "--runs-path", tmp_path / "runs"]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "CXX": str(tmp_path / "no-compiler"), "PATH": ""}
    finished = train("--env-id", GAME, *arguments, env=os.environ | cache)
    assert "--compile is ignored: torch.compile does not work here" in finished.stdout
    assert Checkpoint.load(only_run(tmp_path / "runs") / "agent.pt").steps == 32


def test_an_agent_is_the_same_if_it_can_not_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(module: torch.nn.Module) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    encoder, before = agent.encoder, {name: value.clone() for name, value in agent.state_dict().items()}
    compile_encoder(agent, torch.zeros(1, *IMAGES.shape, dtype=torch.uint8))
    assert agent.encoder is encoder
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert "--compile is ignored: torch.compile does not work here (OSError)" in capsys.readouterr().out


def test_compiling_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    agent = ppo.Agent(IMAGES, gym.spaces.Discrete(2))
    compile_encoder(agent, torch.zeros(1, *IMAGES.shape, dtype=torch.uint8))
    assert all(parameter.grad is None for parameter in agent.parameters())
