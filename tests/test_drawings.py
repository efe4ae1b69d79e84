"""The drawings of docs/architecture.md are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import load_module

ROOT = Path(__file__).parent.parent
drawings = load_module(ROOT / "scripts" / "drawings.py")


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_committed_drawing_is_what_the_script_writes(name: str) -> None:
    drawn = drawings.DRAWINGS[name]().svg()
    assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == drawn, "run python scripts/drawings.py"


def test_the_drawing_has_the_rooms_in_the_order_of_import_linter() -> None:
    configuration = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r'containers = \["kart_rewards"\]\nlayers = \[(.*?)\]', configuration, flags=re.S)
    assert layers
    assert [name for name, *_ in drawings.ROOMS[1:]] == re.findall(r'^    "(\w+)"', layers[1], flags=re.M)


def test_the_drawings_name_functions_that_are_there() -> None:
    for draw in drawings.DRAWINGS.values():
        for path, names in re.findall(r">((?:\w+/)?\w+\.py): ([\w.]*)<", draw().svg()):
            source = (ROOT / "kart_rewards" / path).read_text(encoding="utf-8")
            for name in filter(None, names.split(".")):
                assert re.search(rf"^ *(?:def|class) {name}\b", source, flags=re.M), f"{path}: {name}"
