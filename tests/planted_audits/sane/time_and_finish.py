"""Only time and the finish count: the finish pays more than a slow race costs.

options: --scenario None
"""

from typing import Any

from kart_rewards import done_rule, reward_term
from kart_rewards.done import WallHits
from kart_rewards.race import finished


@reward_term(weight=5000)
class Finish:
    """Pay the finish."""

    def __init__(self) -> None:
        self.paid = False

    def __call__(self, ram: Any) -> bool:
        new = finished(ram) and not self.paid
        self.paid = self.paid or new
        return new


@reward_term(weight=-1.0)
def time(ram: Any) -> bool:
    """Charge each frame."""
    return not finished(ram)


@done_rule
def over(ram: Any) -> bool:
    """End after the race."""
    return finished(ram)


@done_rule
class TooManyHits(WallHits):
    """End at the seventh frame with a wall hit, as the reference does."""
