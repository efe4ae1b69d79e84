from __future__ import annotations

import random

from kart_rewards.drives import SHIPPED, load_drive
from kart_rewards.lab.auditing.behaviours import GRID, Behaviour, GameFacts, Phase, at_random, changed, known_strategies
from kart_rewards.lab.auditing.targets import CHANGES, Target

RACE = load_drive(SHIPPED / "race.drive")
BUTTONS = tuple(name for name in RACE.info.buttons if name)
READ = ("laps", "checkpoint", "surface", "speed", "kart_x", "current_frame")


def facts(targets: tuple[Target, ...] = (), names: tuple[str, ...] = tuple(RACE.columns)) -> GameFacts:
    return GameFacts(BUTTONS, names, RACE, 1500, READ, targets, ("L",))


def test_variables_with_few_values_that_rarely_change_are_discrete() -> None:
    assert facts().discrete() == ["laps", "checkpoint", "surface"]


def test_boundaries_are_frames_on_which_a_variable_changes() -> None:
    for name in ("laps", "checkpoint", "surface"):
        frames = facts().boundaries(name)
        assert frames
        assert all(RACE.columns[name][frame - 1] != RACE.columns[name][frame] for frame in frames)


def test_the_strategies_of_a_kart_stand_shuttle_and_end_early() -> None:
    known = list(known_strategies(facts((Target("kart_x", ">", 2000),)), random.Random(1)))
    names = {behaviour.strategy for behaviour in known}
    assert {"standing still", "shuttling", "circling", "into the wall", "hopping on the spot"} <= names
    assert {"gas and brake", "driving the wrong way", "into the water and back"} <= names
    assert any(phase.until == Target("kart_x", ">", 2000) for behaviour in known for phase in behaviour.phases)
    assert known == list(known_strategies(facts((Target("kart_x", ">", 2000),)), random.Random(1)))


def test_another_game_is_played_with_its_buttons() -> None:
    known = list(known_strategies(facts(names=("score",)), random.Random(1)))
    held = {phase.held for behaviour in known for phase in behaviour.phases}
    assert set(BUTTONS) - {"START", "SELECT"} <= held
    assert "B+LEFT" in held
    assert "START" not in held


def test_changed_and_random_behaviours_are_valid_and_repeatable() -> None:
    runs = []
    for _ in range(2):
        rng, here = random.Random(3), facts()
        behaviour = Behaviour("gas and brake", 100, (Phase("B", 30), Phase("Y", 30, Target("laps", CHANGES))), 1)
        made = []
        for _ in range(300):
            behaviour = changed(here, behaviour, [at_random(here, rng)], rng)
            made.append(behaviour)
        runs.append(made)
    assert runs[0] == runs[1]
    for behaviour in runs[0]:
        assert 0 <= behaviour.loop < len(behaviour.phases) <= 10
        assert 0 <= behaviour.begin <= 1500
        assert behaviour.begin % GRID == 0
        assert all(1 <= phase.frames <= 600 for phase in behaviour.phases)


def test_a_behaviour_says_what_it_does() -> None:
    behaviour = Behaviour("hopping", 0, (Phase("Y", 240, Target("speed", "<=", 0)), Phase("L", 2), Phase("", 26)), 1)
    said = "hopping: Y until speed <= 0, then again and again: L for 2 frames, no button for 26 frames"
    assert str(behaviour) == said
