"""A program of a user. CI checks it with ``mypy --strict`` outside the repository, and runs it."""

from collections import deque
from typing import Any

import kart_rewards
from kart_rewards import done_rule, make_env, reward_term
from kart_rewards.testing import snapshot


@reward_term(weight=0.5)
def top_speed(ram: Any) -> bool:
    """Pay for a high speed."""
    return bool(ram.speed > 900)


@reward_term(weight=0.1)
class Average:
    """Pay the average speed of a second."""

    def __init__(self) -> None:
        self.speeds: deque[float] = deque(maxlen=60)

    def __call__(self, ram: Any) -> float:
        self.speeds.append(float(ram.speed))
        return sum(self.speeds) / len(self.speeds) / 1000


@done_rule(truncates=True)
def one_lap(ram: Any) -> bool:
    """Truncate after a lap."""
    return bool(ram.laps > 128)


def main() -> None:
    env = make_env("HomebrewKart-Snes", rewards=(__file__,), reward_weights={"wall": -5.0})
    env.reset(seed=1)
    total = 0.0
    for _ in range(10):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        total += float(reward)
        if terminated or truncated:
            break
    env.close()
    print(total, top_speed(snapshot(speed=950)), kart_rewards.__name__)


if __name__ == "__main__":
    main()
