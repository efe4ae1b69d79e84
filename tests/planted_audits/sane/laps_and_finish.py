"""New laps and the finish are paid, and time is charged.

options: --scenario None
"""

from typing import Any

from kart_rewards import done_rule, reward_term
from kart_rewards.race import finished


@reward_term(weight=1000)
class NewLap:
    """Pay each lap once."""

    def __init__(self) -> None:
        self.best = 128

    def __call__(self, ram: Any) -> bool:
        new = ram.laps > self.best
        self.best = max(self.best, ram.laps)
        return new


@reward_term(weight=-0.5)
def time(ram: Any) -> float:
    """Charge each frame."""
    return 1.0


@done_rule
def over(ram: Any) -> bool:
    """End after the race."""
    return finished(ram)
