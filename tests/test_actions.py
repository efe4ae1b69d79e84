from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_retro

from kart_rewards.env.actions import ACTION_MODES, Actions, make_actions
from kart_rewards.errors import KartRewardsError

BUTTONS = ["B", "Y", "SELECT", "START", "UP", "DOWN", "LEFT", "RIGHT", "A", "X", "L", "R"]


@pytest.fixture
def make(tiny_emulator: Any) -> Any:
    data = tiny_emulator[1]
    return lambda mode, buttons=BUTTONS: make_actions(mode, buttons, data.valid_actions(), data.filter_action)


def pressed(actions: Actions, action: Any, frame_skip: int = 1) -> list[str]:
    """Returns the buttons that are held on each frame, such as 'B+LEFT'."""
    return [
        "+".join(name for name, down in zip(BUTTONS, buttons, strict=True) if down)
        for buttons in actions.frames(action, frame_skip)
    ]


def test_each_mode_converts_samples_of_its_space_to_masks(make: Any) -> None:
    for mode in ACTION_MODES:
        actions = make(mode)
        actions.space.seed(1)
        for _ in range(50):
            for buttons in actions.frames(actions.space.sample(), 4):
                assert buttons.shape == (12,)
                assert buttons.dtype == np.uint8
                assert set(buttons) <= {0, 1}


def test_the_buttons_of_these_tests_are_those_of_the_core(tiny_emulator: Any) -> None:
    assert stable_retro.get_system_info("Snes")["buttons"] == BUTTONS


def test_driving_has_the_four_actions_of_the_original(make: Any) -> None:
    driving = make("driving")
    assert driving.space == gym.spaces.Discrete(4)
    assert [pressed(driving, action)[0] for action in range(4)] == ["B", "B+LEFT", "B+RIGHT", "B+L"]
    assert pressed(driving, 1, frame_skip=3) == ["B+LEFT"] * 3


def test_continuous_steering_is_a_duty_cycle(make: Any) -> None:
    steering = make("continuous")
    for value, right, left in ((0.0, 0, 0), (1.0, 40, 0), (-1.0, 0, 40), (0.25, 10, 0), (-0.5, 0, 20)):
        steering.reset()
        held = [buttons for _ in range(10) for buttons in pressed(steering, np.array([value]), 4)]
        assert (held.count("B+RIGHT"), held.count("B+LEFT")) == (right, left), value
        assert held.count("B") == 40 - right - left


@pytest.mark.parametrize(
    ("action", "held"),
    [
        ([0, 0, 0], "B"),
        ([1, -0.5, 0.75], "B+RIGHT"),
        ([-1, -0.51, 0], "LEFT"),
        ([0, -0.9, 0], ""),
        ([1, -0.91, 0], "Y+RIGHT"),
        ([0, -7, 7], "Y+L"),
        ([-1, 1, 0.76], "B+LEFT+L"),
    ],
)
def test_full_has_steering_a_pedal_and_hop(make: Any, action: list[float], held: str) -> None:
    full = make("full")
    assert full.space == gym.spaces.Box(-1, 1, (3,), np.float32)
    assert pressed(full, np.array(action, np.float32), 4) == [held] * 4


def test_full_steers_as_continuous_does(make: Any) -> None:
    for steering in np.linspace(-1, 1, 9):
        assert pressed(make("full"), [steering, 0, 0], 40) == pressed(make("continuous"), [steering], 40)


def test_the_remainder_of_a_step_is_added_to_the_next_one(make: Any) -> None:
    steering = make("continuous")
    held = [pressed(steering, np.array([0.1]), 4).count("B+RIGHT") for _ in range(10)]
    assert sum(held) == 4
    assert max(held) == 1


def test_a_reset_sets_the_remainder_to_zero(make: Any) -> None:
    steering = make("continuous")
    first = pressed(steering, np.array([0.4]), 4)
    assert pressed(steering, np.array([0.4]), 4) != first
    steering.reset()
    assert pressed(steering, np.array([0.4]), 4) == first


def test_steering_is_clipped(make: Any) -> None:
    assert pressed(make("continuous"), np.array([7.0]), 4) == ["B+RIGHT"] * 4
    assert pressed(make("continuous"), np.array([-7.0]), 4) == ["B+LEFT"] * 4


@pytest.mark.parametrize("mode", ["all", "filtered", "discrete", "multi-discrete"])
def test_stable_retros_modes_hold_the_same_buttons_as_stable_retro(make: Any, tiny_emulator: Any, mode: str) -> None:
    """The reference is stable-retro's ``RetroEnv.action_to_array`` with the data of this game."""
    reference = stable_retro.RetroEnv.__new__(stable_retro.RetroEnv)
    reference.players, reference.num_buttons = 1, 12
    reference.data = tiny_emulator[1]
    reference.button_combos = reference.data.valid_actions()
    reference.use_restricted_actions = stable_retro.Actions[mode.upper().replace("-", "_")]
    actions = make(mode)
    actions.space.seed(3)
    for _ in range(200):
        action = actions.space.sample()
        assert np.array_equal(actions.frames(action, 1)[0], reference.action_to_array(action)[0]), action


def test_discrete_has_468_actions(make: Any) -> None:
    assert make("discrete").space == gym.spaces.Discrete(468)


def test_a_console_without_the_buttons_is_refused(make: Any) -> None:
    with pytest.raises(KartRewardsError, match="action mode 'driving' presses L, and this console has B, LEFT, RIGHT"):
        make("driving", ["B", None, "LEFT", "RIGHT"])


def test_unknown_modes_are_refused(make: Any) -> None:
    with pytest.raises(KartRewardsError, match="unknown action mode 'flying': it is one of auto, continuous, full"):
        make("flying")


@pytest.mark.parametrize(
    ("mode", "action", "message"),
    [
        ("driving", 7, r"action 7 is not in the action space Discrete\(4\)"),
        ("driving", "left", "action 'left' is not in the action space"),
        ("driving", -1, "action -1 is not in the action space"),
        ("driving", 1.7, "action 1.7 is not in the action space"),
        ("all", [2] * 12, "is not in the action space"),
        ("filtered", [0.5] * 12, "is not in the action space"),
        ("continuous", [0.5, 1.0], "is not a steering action: pass a list of one number"),
        ("continuous", "x", "action 'x' is not a steering action"),
        ("discrete", 468, "action 468 is not in the action space"),
        ("continuous", 0, "action 0 is not a steering action: pass a list of one number"),
        ("continuous", [float("nan")], r"the action is not a number \(NaN\)"),
        ("full", [0.5], "is not a steering action: pass a list of three numbers: steering, pedal, hop"),
        ("full", [0, float("nan"), 0], r"the action is not a number \(NaN\)"),
    ],
)
def test_actions_outside_the_space_are_reported(make: Any, mode: str, action: Any, message: str) -> None:
    with pytest.raises(KartRewardsError, match=message):
        make(mode).frames(action, 4)


def test_an_action_outside_its_space_is_refused(make: Any) -> None:
    actions = make("multi-discrete")
    for action in ([-1] + [0] * (len(actions.space.nvec) - 1), [99] * len(actions.space.nvec), [0]):
        assert not actions.space.contains(np.array(action))
        with pytest.raises(KartRewardsError, match="is not in the action space"):
            actions.frames(action, 1)
