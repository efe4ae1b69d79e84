"""Programs of one rank; test_two_machines.py starts them under torchrun.

ranks_of_two_machines.py weights FOLDER [OPTIONS]   trains, and saves the agent's weights as FOLDER/RANK
ranks_of_two_machines.py busy                       rank 1 is killed while rank 0 is busy for ten minutes
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import ppo_continuous_single_file as ppo
from kart_rewards.training.ranks import Ranks, joined


def weights(folder: str, *options: str) -> None:
    """Trains as the script does."""
    agents: list[torch.nn.Module] = []

    class KeptAgent(ppo.Agent):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            agents.append(self)

    ppo.Agent = KeptAgent  # type: ignore[misc, assignment]
    sys.argv = [ppo.__file__, *options]
    ppo.main()
    torch.save(agents[0].state_dict(), Path(folder) / os.environ["RANK"])


def busy() -> None:
    """Does not come back to what the ranks compute together."""
    ranks = Ranks.from_torchrun()
    with joined(ranks, torch.device("cpu")):
        ranks.gather(None)
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


if __name__ == "__main__":
    if sys.argv[1] == "weights":
        weights(*sys.argv[2:])
    else:
        busy()
