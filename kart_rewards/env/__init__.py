"""One environment: a game in the emulator, with what the agent may press and what it sees.

* ``KartEnv``, ``make_env`` - the Gymnasium environment
"""

from kart_rewards.env.kart_env import KartEnv, make_env

__all__ = ["KartEnv", "make_env"]
