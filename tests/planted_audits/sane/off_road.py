"""Charges for leaving the road and for hops."""

from typing import Any

from kart_rewards import reward_term
from kart_rewards.race import COURSE_SURFACES


@reward_term(weight=-2)
def off_road(ram: Any) -> bool:
    """Charge each frame off the road."""
    return ram.surface not in COURSE_SURFACES


@reward_term(weight=-20)
class LeftTheRoad:
    """Charge leaving the road."""

    def __init__(self) -> None:
        self.on_road = True

    def __call__(self, ram: Any) -> float:
        was_on_road, self.on_road = self.on_road, ram.surface in COURSE_SURFACES
        return float(was_on_road and not self.on_road)


@reward_term(weight=-1.0)
def idle_hop(ram: Any, buttons: Any) -> bool:
    """Charge a hop with straight wheels."""
    return "L" in buttons and ram.height > 0 and ram.steering == 0
