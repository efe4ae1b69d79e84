"""A small bonus for drifts at speed, and a charge for jerks of the steering."""

from typing import Any

from kart_rewards import reward_term


@reward_term(weight=1.0)
def drifts(ram: Any) -> bool:
    """Pay for a fast drift."""
    return bool(ram.drift_frames > 0 and ram.speed > 600)


@reward_term(weight=-0.2)
class Jerk:
    """Charge changes of the agent's steering."""

    def __init__(self) -> None:
        self.steering = 0.0

    def __call__(self, ram: Any, action: Any) -> float:
        before, self.steering = self.steering, action[0] if action else 0.0
        return abs(self.steering - before)
