"""Sessions: playing a game to a start state, going back, and saving."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from conftest import GAME

from kart_rewards.games.session import Session
from kart_rewards.integrations import Game


def test_a_session_goes_back_to_a_moment_with_the_inputs_up_to_it(own_game: Path) -> None:
    session = Session(Game(GAME, own_game / GAME))
    at_first = session.console.ram()
    for _ in range(20):
        session.step()
    moment, ram = session.moment(), session.console.ram()
    session.step(frozenset({"START"}))
    session.go_to(moment)
    assert session.console.ram() == ram
    assert session.pressed == [frozenset()] * 20
    session.step(frozenset({"LEFT"}))
    session.go_to(session.beginning)
    assert (session.pressed, session.console.ram()) == ([], at_first)


def test_saving_does_not_change_the_session(own_game: Path, tmp_path: Path) -> None:
    session = Session(Game(GAME, own_game / GAME))
    for _ in range(60):
        session.step()
    ram, picture = session.console.ram(), session.console.screen
    assert not session.saved
    session.save(tmp_path / "New.state")
    assert session.saved
    assert session.console.ram() == ram
    assert np.array_equal(session.console.screen, picture)
    again = tmp_path / "Again.state"
    session.save(again)
    assert again.read_bytes() == (tmp_path / "New.state").read_bytes()  # no time stamp, no name


def test_the_table_shows_the_first_elements_of_an_array(own_game: Path) -> None:
    tiles = {"address": 8261825, "type": "|u1", "count": 320}
    (own_game / GAME / "data.json").write_text(
        json.dumps({"info": {"laps": {"address": 8261825, "type": "|u1"}, "tiles": tiles}})
    )
    session = Session(Game(GAME, own_game / GAME), start="Level1")
    laps, array = session.table()
    assert laps.split() == ["laps", "127"]
    shown = array.removeprefix("tiles").split()
    assert shown == [*map(str, session.console.ram().tiles[: len(shown) - 1]), "…"]
    assert len(laps) == len(array)
