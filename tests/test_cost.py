"""Decoding, scoring and observing take about as many instructions as before. A machine's load can't change that."""

from __future__ import annotations

import pytest
from instruction_counts import PARTS, PYTHON, count, missing, ratios

RATIOS = {
    "3.10": {"decoding a frame": 1.24, "scoring a frame": 3.95, "observing a step": 1.08},
    "3.11": {"decoding a frame": 1.25, "scoring a frame": 2.93, "observing a step": 1.05},
    "3.12": {"decoding a frame": 1.26, "scoring a frame": 3.40, "observing a step": 1.06},
    "3.13": {"decoding a frame": 1.25, "scoring a frame": 3.26, "observing a step": 1.06},
}
"""Version of Python -> part -> its instructions, relative to its yardstick. ``instruction_counts.py`` prints a line."""
MARGIN = 0.1


@pytest.fixture(scope="module")
def counts() -> dict[str, float]:
    """The instructions of each part and of each yardstick."""
    if lacking := missing():
        pytest.skip(f"instructions can't be counted: {lacking}")
    if PYTHON not in RATIOS:
        pytest.skip(f"no ratios are committed for Python {PYTHON}")
    return count()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.slow
def test_the_instructions_are_within_a_tenth_of_the_committed_ones(part: str, counts: dict[str, float]) -> None:
    ratio, committed = ratios(counts)[part], RATIOS[PYTHON][part]
    assert abs(ratio / committed - 1) <= MARGIN, (
        f"{part} takes {counts[part]:,.0f} instructions, {ratio:.2f} times as many as {PARTS[part]}; committed is "
        f"{committed:.2f}. If you changed this on purpose, replace RATIOS with what tests/instruction_counts.py prints"
    )
