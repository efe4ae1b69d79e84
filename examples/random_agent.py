"""Plays a game of your own folder of games with random actions.

    python examples/random_agent.py integrations HomebrewKart-Snes --episodes 3

This is also a test of the folder: an error in a game's files is reported before the first step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from kart_rewards import KartRewardsError, make_env


def play(integrations: Path, game: str, /, episodes: int = 1, seed: int = 1) -> None:
    """Plays a game with random actions, and prints the sum of each reward term.

    Args:
        integrations: Folder of games, in stable-retro's layout.
        game: Name of the game's folder in it.
        episodes: Number of episodes.
        seed: Seed of the actions.
    """
    env = make_env(game, integrations=integrations)
    env.action_space.seed(seed)
    for episode in range(1, episodes + 1):
        _, info = env.reset()
        steps, total, over = 0, 0.0, False
        while not over:
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            steps, total, over = steps + 1, total + float(reward), terminated or truncated
        ended_by = info.get("done_rule", "the step limit")
        print(f"episode {episode}: {steps} steps, ended by {ended_by}, return {total:.2f}")
        for term, paid in info["episode_rewards"]["sum"].items():
            print(f"  {term:<16}{paid:>12.2f}")
    env.close()


if __name__ == "__main__":
    try:
        tyro.cli(play)
    except KartRewardsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
