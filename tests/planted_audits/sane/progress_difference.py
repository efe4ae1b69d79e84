"""Potential-like progress: gained sectors are paid, and lost ones are charged.

options: --reward-weights checkpoint=0
"""

from typing import Any

from kart_rewards import reward_term
from kart_rewards.race import progress


@reward_term(weight=200)
def gained(ram: Any, previous: Any) -> int:
    """Pay the difference of the progress."""
    return progress(ram) - progress(previous)
