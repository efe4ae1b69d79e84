"""Checkpoints with a small speed term."""

from typing import Any

from kart_rewards import reward_term


@reward_term(weight=0.5)
def top_speed(ram: Any) -> float:
    """Pay for speed."""
    return float(ram.speed > 900)


@reward_term(weight=0.5)
def speed(ram: Any) -> float:
    """Pay for speed."""
    return max(ram.speed, 0) / 1000
