"""The reference set alone: this file only adds a term that pays nothing."""

from typing import Any

from kart_rewards import reward_term


@reward_term(weight=0)
def speed(ram: Any) -> float:
    """Measure the speed."""
    return ram.speed / 1000
