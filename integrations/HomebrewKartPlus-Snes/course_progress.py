"""Pays progress along the middle of the road on every frame, up to an end of the race that is a truncation.

The scenario ``course_progress`` uses both.

The reference term ``checkpoint`` pays at lines across the road that the agent can't see. Therefore two equal pictures
can have returns that differ by a payment, which is more than a better line earns in a second. This term pays the same
sum, 1 for each checkpoint, in small parts.

Nor can the agent see how many laps are left. If the reward ends with the race, the return depends on that: on the same
place of the course, it is almost 0 in the last lap and the reward of seconds in all others. A truncation counts as if
the race went on, so that the return depends on what the agent sees. ``docs/training.md`` compares all of this.
"""

from pathlib import Path

from kart_rewards import done_rule, reward_term
from kart_rewards.drivers import centrelines
from kart_rewards.race import finished, progress

UNITS_PER_PIXEL = 4  # of kart_x and kart_y
LINES = list(centrelines(Path(__file__).with_name("courses.json")).values())  # in the order of the variable `course`


def place(ram):
    """Returns the place on the middle of the road: like ``progress`` in checkpoints, but with the part of the next.

    It is between the current checkpoint and the next, also where another part of the road is nearer. In a short cut,
    the checkpoints are those of the road that it replaces.
    """
    line = LINES[ram.course]
    points_per_checkpoint = len(line) / ram.num_checkpoints
    x, y = ram.kart_x / UNITS_PER_PIXEL, ram.kart_y / UNITS_PER_PIXEL

    def squared_distance(i):
        px, py = line[i % len(line)]
        return (x - px) ** 2 + (y - py) ** 2

    first, last = (round(checkpoint * points_per_checkpoint) for checkpoint in (progress(ram), progress(ram) + 1))
    nearest = min(range(first, last + 1), key=squared_distance)
    (ax, ay), (px, py), (bx, by) = (line[i % len(line)] for i in (nearest - 1, nearest, nearest + 1))
    dx, dy = (bx - ax) / 2, (by - ay) / 2
    beyond = ((x - px) * dx + (y - py) * dy) / (dx**2 + dy**2)  # the part of the way to the next point
    return (nearest + min(max(beyond, -0.5), 0.5)) / points_per_checkpoint


@reward_term(weight=300)
class CourseProgress:
    """Pay each frame's progress along the middle of the road, in checkpoints, beyond the best progress so far."""

    def __init__(self):
        self.best = None

    def __call__(self, ram):
        if finished(ram):
            return 0.0
        now = place(ram)
        before = now if self.best is None else self.best
        self.best = max(now, before)
        return self.best - before


@done_rule(truncates=True)
def race_over(ram):
    """All five laps are done."""
    return finished(ram)
