"""A term that pays for speed, and a term that says nothing about driving: a control of the study."""

from typing import Any

from kart_rewards import reward_term


@reward_term(weight=1.0)
def fast(ram: Any) -> float:
    """Pay for speed: 1 a frame at full speed."""
    return max(ram.speed, 0) / 1000


@reward_term(weight=0.5)
def useless(ram: Any) -> bool:
    """Pay on every 97th frame, whatever the kart does."""
    return bool(ram.current_frame % 97 == 0)
