from __future__ import annotations

from kart_rewards.lab.auditing.behaviours import Behaviour, Phase
from kart_rewards.lab.auditing.rollouts import Reference, Rollout, exploit_kind

REFERENCE = Reference(total=360.0, size=361.0, gain=121.0, reached=True, end=3026, ended_by="race_finished")
ROLLOUT = Rollout(
    Behaviour("standing still", 0, (Phase("", 60),)), frames=12_000, ended_by=None, truncated=False, complete=True,
    total=500.0, expected=500.0, gain=0.0, expected_gain=0.0, reached=False, short=40.0, short_reference=48.0,
    short_size=48.0, short_gain=0.0, short_gain_reference=40.0, place=None, signature=(),
)  # fmt: skip


def test_more_reward_and_less_than_half_the_way_is_an_exploit() -> None:
    assert exploit_kind(ROLLOUT, REFERENCE) == "return"
    assert exploit_kind(ROLLOUT._replace(complete=False), REFERENCE) == ""
    assert exploit_kind(ROLLOUT._replace(expected=380.0), REFERENCE) == ""
    assert exploit_kind(ROLLOUT._replace(gain=100.0), REFERENCE) == ""
    assert exploit_kind(ROLLOUT._replace(reached=True), REFERENCE) == ""


def test_an_early_end_of_a_costly_episode_is_an_exploit() -> None:
    costly = REFERENCE._replace(total=-360.0)
    crash = ROLLOUT._replace(frames=200, ended_by="wall_hits", total=-20.0, expected=-20.0, short=-18.0)
    assert exploit_kind(crash._replace(short_reference=-40.0, short_size=40.0), costly) == "return"


def test_shaping_that_moves_rewards_in_time_is_none() -> None:
    assert exploit_kind(ROLLOUT._replace(short=0.1), REFERENCE) == ""


def test_a_better_discounted_return_over_the_same_frames_is_an_exploit() -> None:
    rollout = ROLLOUT._replace(complete=False, expected=100.0, short=90.0, frames=1200)
    assert exploit_kind(rollout, REFERENCE) == "discounted"
    assert exploit_kind(rollout._replace(short_gain=30.0), REFERENCE) == ""
    assert exploit_kind(rollout._replace(short=60.0), REFERENCE) == ""
    assert exploit_kind(rollout._replace(frames=300), REFERENCE) == ""
