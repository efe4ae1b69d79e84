"""The descriptions of HomebrewKart's courses.

* ``COURSES`` - all courses; to add a course, add a ``Course`` here and run the build
* ``Course`` - one course
* ``Corner`` - a corner of the centreline
* ``Ellipse``, ``Strip``, ``Pad``, ``WallLine``, ``WallAlong`` - features of a course

Units are pixels of a world of 1024 x 1024 pixels; x grows to the east (right), y grows to the south (down). The
centreline is a closed polygon with rounded corners. The order of its corners is the driving direction. Features are
drawn on a grid of 8 pixels, so the drawn ground is exactly the ground of the game's rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kart_rewards.race import BOOST, DEEP_WATER, DIRT, OIL, PIT

Point = tuple[int, int]
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Corner:
    """A corner of the centreline: its position and the radius of its bend, in pixels."""

    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Ellipse:
    """An off-road area: all 8-pixel cells that have their centre in the ellipse and are not road."""

    surface: int
    x: int
    y: int
    radius_x: int
    radius_y: int


@dataclass(frozen=True)
class Strip:
    """An off-road path of constant width along a polyline.

    With ``short_cut`` the strip is a legal connection between the two parts of the road at its ends. Its cells belong
    to the checkpoints between these parts in order, so driving it counts like driving on the road.
    """

    surface: int
    points: tuple[Point, ...]
    width: int
    short_cut: bool = False


@dataclass(frozen=True)
class Pad:
    """A boost pad or oil slick on the road: ``across`` x ``along`` cells of 16 pixels, centred near a point."""

    surface: int
    x: int
    y: int
    across: int = 1
    along: int = 1


@dataclass(frozen=True)
class WallLine:
    """A wall two cells thick along a polyline of world pixels."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class WallAlong:
    """A wall along the road, ``gap`` pixels from its edge, between two fractions of the lap.

    ``side`` is the driver's left or right.
    """

    side: str
    gap: int
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Course:
    """One course.

    Attributes:
        name: The name on the menu and beside the map; at most 15 characters of A-Z, 0-9 and space.
        corners: The closed centreline in driving order.
        road_width: Width of the road with its kerbs, in pixels.
        start: The position of the start line: a point of the centreline on a straight along an axis. The coordinate
            along the road must be a multiple of 16.
        num_checkpoints: Number of sectors in a lap.
        features: Areas, pads and walls. Later ones are drawn over earlier ones, and walls over all.
        colours: Name -> colour, for colours that differ from ``artwork.WORLD_COLOURS``.
        sky: The colours of the top, middle and bottom of the sky, then of near and far scenery.
        held_out: Whether the course is for evaluation only; true for one course.
    """

    name: str
    corners: tuple[Corner, ...]
    road_width: int
    start: Point
    num_checkpoints: int
    features: tuple[Ellipse | Strip | Pad | WallLine | WallAlong, ...] = ()
    colours: dict[str, RGB] = field(default_factory=dict)
    sky: tuple[RGB, RGB, RGB, RGB, RGB] = (
        (48, 112, 224),
        (104, 168, 248),
        (208, 232, 248),
        (32, 112, 56),
        (88, 128, 168),
    )
    held_out: bool = False


COURSES: tuple[Course, ...] = (
    Course(
        name="SUNDAY OVAL",
        corners=(Corner(144, 240, 210), Corner(880, 240, 210), Corner(880, 784, 210), Corner(144, 784, 210)),
        road_width=108,
        start=(496, 784),
        num_checkpoints=24,
        features=(
            Ellipse(DEEP_WATER, 512, 512, 150, 70),
            WallAlong("left", 24),
            WallAlong("right", 32, 0.13, 0.42),
            WallAlong("right", 32, 0.63, 0.92),
            Pad(BOOST, 512, 240, across=3, along=2),
        ),
    ),
    Course(
        name="RIVER BEND",
        corners=(
            Corner(136, 880, 120),
            Corner(888, 880, 140),
            Corner(888, 560, 130),
            Corner(624, 560, 120),
            Corner(624, 144, 130),
            Corner(136, 144, 130),
            Corner(136, 420, 110),
            Corner(330, 560, 110),
            Corner(136, 700, 110),
        ),
        road_width=92,
        start=(432, 880),
        num_checkpoints=28,
        features=(
            Strip(DEEP_WATER, ((1000, 300), (860, 330), (760, 420), (700, 470)), 64),
            Ellipse(DEEP_WATER, 860, 200, 120, 110),
            Ellipse(DEEP_WATER, 410, 720, 90, 56),
            Ellipse(DIRT, 520, 300, 36, 60),
            WallLine(((200, 560), (120, 560))),
            WallAlong("right", 16, 0.16, 0.34),
            WallAlong("left", 24, 0.41, 0.46),
            WallAlong("right", 24, 0.56, 0.72),
            WallLine(((328, 330), (328, 440))),
        ),
        colours={"grass_a": (64, 168, 64), "grass_b": (88, 192, 72), "outer": (64, 168, 64)},
    ),
    Course(
        name="CORKSCREW QUAY",
        corners=(
            Corner(168, 880, 100),
            Corner(168, 248, 90),
            Corner(348, 248, 90),
            Corner(348, 680, 80),
            Corner(508, 680, 80),
            Corner(508, 288, 76),
            Corner(660, 288, 76),
            Corner(660, 520, 100),
            Corner(872, 520, 100),
            Corner(872, 880, 100),
        ),
        road_width=84,
        start=(560, 880),
        num_checkpoints=30,
        features=(
            Strip(DEEP_WATER, ((16, 60), (1008, 60)), 100),
            Ellipse(DEEP_WATER, 880, 260, 130, 130),
            Ellipse(PIT, 428, 780, 30, 20),
            WallLine(((258, 330), (258, 790))),
            WallLine(((428, 230), (428, 600))),
            WallLine(((584, 360), (584, 790))),
            WallAlong("left", 24, 0.86, 0.995),
            WallLine(((120, 160), (396, 160))),
            WallLine(((460, 200), (708, 200))),
            WallLine(((300, 772), (372, 772))),
            WallLine(((468, 772), (556, 772))),
            Pad(OIL, 640, 452, across=2, along=2),
        ),
        colours={
            "grass_a": (176, 168, 128),
            "grass_b": (192, 184, 144),
            "grass_dots": (160, 152, 112),
            "verge": (208, 200, 160),
            "outer": (176, 168, 128),
            "wall_top": (255, 216, 176),
            "wall_side": (136, 16, 8),
            "wall_edge": (64, 8, 8),
        },
        sky=((40, 128, 200), (96, 184, 232), (216, 240, 248), (136, 96, 72), (120, 152, 176)),
    ),
    Course(
        name="DUSTY QUARRY",
        corners=(
            Corner(152, 872, 120),
            Corner(152, 152, 120),
            Corner(872, 152, 120),
            Corner(872, 872, 110),
            Corner(652, 872, 110),
            Corner(652, 560, 110),
            Corner(412, 560, 110),
            Corner(412, 872, 110),
        ),
        road_width=84,
        start=(152, 560),
        num_checkpoints=30,
        features=(
            Ellipse(DIRT, 330, 330, 100, 70),
            Strip(DIRT, ((560, 152), (640, 250), (760, 340), (872, 470)), 56, short_cut=True),
            Strip(DIRT, ((700, 872), (360, 872)), 72, short_cut=True),
            Ellipse(PIT, 532, 720, 40, 56),
            Ellipse(PIT, 480, 360, 56, 40),
            WallLine(((500, 810), (564, 810))),
            WallLine(((740, 480), (740, 780))),
            WallLine(((260, 480), (260, 760))),
            WallAlong("left", 32, 0.06, 0.2),
            WallAlong("left", 32, 0.36, 0.52),
            Pad(BOOST, 416, 152, across=3, along=2),
            Pad(BOOST, 650, 264, across=2, along=2),
            Pad(BOOST, 872, 608, across=2, along=2),
            Pad(BOOST, 592, 872, across=3, along=2),
            Pad(OIL, 632, 730, across=2, along=2),
            Pad(OIL, 136, 400, across=2, along=2),
        ),
        colours={
            "grass_a": (136, 144, 64),
            "grass_b": (152, 160, 72),
            "grass_dots": (120, 128, 56),
            "verge": (168, 176, 96),
            "outer": (136, 144, 64),
            "wall_top": (248, 248, 240),
            "wall_side": (176, 160, 160),
            "wall_edge": (48, 32, 32),
        },
        sky=((64, 136, 216), (136, 184, 232), (248, 224, 176), (144, 88, 48), (184, 136, 104)),
    ),
    Course(
        name="TWILIGHT MIX",
        corners=(
            Corner(144, 872, 120),
            Corner(600, 872, 120),
            Corner(600, 608, 110),
            Corner(864, 608, 110),
            Corner(864, 152, 120),
            Corner(484, 152, 110),
            Corner(484, 388, 100),
            Corner(144, 388, 110),
        ),
        road_width=88,
        start=(304, 872),
        num_checkpoints=28,
        features=(
            Ellipse(DEEP_WATER, 350, 630, 120, 70),
            Ellipse(DIRT, 700, 380, 90, 60),
            Ellipse(PIT, 260, 220, 80, 40),
            Strip(DIRT, ((864, 330), (760, 240), (640, 152)), 56, short_cut=True),
            WallAlong("right", 24, 0.12, 0.24),
            WallAlong("left", 24, 0.24, 0.34),
            WallAlong("right", 24, 0.46, 0.58),
            WallAlong("right", 24, 0.76, 0.92),
            WallLine(((560, 300), (560, 470))),
            Pad(BOOST, 864, 464, across=3, along=2),
            Pad(BOOST, 144, 608, across=2, along=2),
            Pad(OIL, 330, 368, across=2, along=2),
        ),
        colours={
            "grass_a": (88, 152, 112),
            "grass_b": (104, 168, 120),
            "grass_dots": (72, 136, 104),
            "verge": (136, 192, 136),
            "outer": (88, 152, 112),
            "road_a": (72, 72, 88),
            "road_b": (88, 88, 104),
            "road_dots": (56, 56, 72),
            "water": (16, 48, 160),
            "water_dots": (80, 128, 216),
            "dirt": (224, 168, 120),
            "dirt_dots": (192, 128, 88),
            "dirt_edge": (136, 88, 72),
            "wall_top": (248, 240, 255),
            "wall_side": (200, 136, 248),
            "wall_edge": (48, 16, 80),
        },
        sky=((56, 40, 112), (168, 72, 136), (248, 168, 112), (40, 40, 88), (104, 72, 128)),
        held_out=True,
    ),
)
