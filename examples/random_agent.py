"""Plays a game at random: the shortest use of a folder of games of your own.

    python examples/random_agent.py integrations HomebrewKart-Snes --episodes 3

It is a test of the folder, too: what is wrong with a game's files is told before the first step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from kart_rewards import KartRewardsError, ObservationConfig, make_env


def play(integrations: Path, game: str, /, episodes: int = 1, seed: int = 1) -> None:
    """Plays a game at random, and prints what each reward term paid.

    Args:
        integrations: Folder of games, in stable-retro's layout.
        game: Name of the game's folder there.
        episodes: How many to play.
        seed: Seed of the actions.
    """
    # Any button of any console, and the whole screen: the defaults are made for a kart race on the SNES.
    seen = ObservationConfig(crop=None)
    env = make_env(game, integrations=integrations, action_mode="multi-discrete", observation=seen)
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
