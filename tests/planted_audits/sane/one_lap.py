"""An episode of one lap, with a truncation after 25 seconds."""

from typing import Any

from kart_rewards import done_rule, reward_term


@done_rule
def one_lap(ram: Any) -> bool:
    """End after a lap."""
    return bool(ram.laps >= 129)


@reward_term(weight=500)
def lap_done(ram: Any, previous: Any) -> bool:
    """Pay the lap."""
    return bool(ram.laps >= 129 > previous.laps)


@done_rule(truncates=True)
class Late:
    """Truncate after 25 seconds."""

    def __init__(self) -> None:
        self.frames = 0

    def __call__(self, ram: Any) -> bool:
        self.frames += 1
        return self.frames > 1500
