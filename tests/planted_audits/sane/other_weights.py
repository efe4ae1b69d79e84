"""The reference set with other weights.

options: --reward-weights checkpoint=100 time=-5 wall=-50 speed=0
"""

from typing import Any

from kart_rewards import reward_term


@reward_term(weight=0)
def speed(ram: Any) -> float:
    """Measure the speed."""
    return ram.speed / 1000
