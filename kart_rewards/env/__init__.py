"""One environment: a game in the emulator, with what the agent may press and what it sees.

* ``KartEnv``, ``make_env`` - the Gymnasium environment
* ``ScriptRewards`` - a wrapper for environments of stable-retro
"""

from kart_rewards.env.kart_env import KartEnv, make_env
from kart_rewards.env.script_rewards import ScriptRewards

__all__ = ["KartEnv", "ScriptRewards", "make_env"]
