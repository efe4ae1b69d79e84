"""The term and rule of the documentation: standing still is charged, and ends the episode."""

from typing import Any

from kart_rewards import done_rule, reward_term


@reward_term(weight=-0.5)
@done_rule(truncates=True)
class Stuck:
    """Charge standing still, and end the episode after five seconds of it."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, ram: Any) -> tuple[bool, bool]:
        self.frames = self.frames + 1 if abs(ram.speed) < 20 else 0
        return self.frames > 0, self.frames >= 5 * 60


@reward_term(weight=0.1)
def gained_speed(ram: Any, previous: Any) -> float:
    """Pay gained speed, and charge lost speed."""
    return (ram.speed - previous.speed) / 100
