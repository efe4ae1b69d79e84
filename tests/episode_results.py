"""Results of episodes that were never played, for tests of statistics and tables."""

from __future__ import annotations

from typing import Any

from kart_rewards.evaluation import EpisodeResult


def result(
    policy: str = "agent",
    state: str = "Level1",
    laps: tuple[float, ...] = (),
    episode_return: float = 0.0,
    **values: Any,
) -> EpisodeResult:
    """A race of three laps. With fewer laps it was not finished."""
    finished = len(laps) == 3
    known: dict[str, Any] = {
        "seed": 1,
        "finished": finished,
        "laps_completed": len(laps),
        "race_time_seconds": sum(laps) if finished else None,
        "off_road_seconds": 0.0,
        "wall_hits": 0,
        "length_steps": 1000,
        "length_seconds": 66.6,
        "done_rule": "race_finished" if finished else None,
        "reward_sums": {},
    }
    return EpisodeResult(
        **{**known, **values}, policy=policy, state=state, lap_times_seconds=laps, episode_return=episode_return
    )


RESULTS = [
    result(laps=(12.0, 10.0, 10.0), off_road_seconds=1.0, wall_hits=2, episode_return=100.0),
    result(laps=(13.0, 11.0, 12.0), off_road_seconds=2.0, wall_hits=1, episode_return=90.0),
    result(laps=(14.0, 10.5), off_road_seconds=6.0, wall_hits=7, episode_return=50.0),
    result("random", wall_hits=7, off_road_seconds=3.0, episode_return=-5.0),
    result("agent", "Level2", laps=(20.0, 20.0, 20.0)),
]
OVER_THREE_SEEDS = [RESULTS[:3], [result(laps=(13.0, 11.0, 12.0), episode_return=90.0)], [result(wall_hits=7)]]
"""The results of three agents on one course. Two of the agents finished races."""
