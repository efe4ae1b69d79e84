"""HomebrewKart's graphics. This code computes all colours, ground tiles, sky, font, logo and sprites.

* ``COLOUR`` - the indices of the world colours in the palette
* ``ground``, ``kerb_pattern``, ``road_texture``, ``paint_*``, ``course_map`` - the world and its map
* ``sky``, ``font``, ``sprites`` - the other graphics
* ``palette``, ``check_contrast``, ``merge_palette`` - the colours of a course
* ``planar``, ``bgr555`` - conversion to the formats of the SNES
* ``enlarge`` - repeats each cell of an array

Palette (256 colours): 0 backdrop, 1-15 text, 16-31 sky, 32-47 course map, 48-127 world, 128-255 sprites.
"""

from __future__ import annotations

import itertools

import numpy as np

from kart_rewards.race import DEEP_WATER, DIRT, GRASS, OIL, PIT, ROAD, WALL

RGB = tuple[int, int, int]
TILE = 8
CELLS = 128

# --- colours ----------------------------------------------------------------------------------------------------------
WORLD_COLOURS: dict[str, RGB] = {
    "outer": (88, 176, 64),
    "grass_a": (88, 176, 64),
    "grass_b": (112, 200, 80),
    "grass_dots": (72, 152, 56),
    "verge": (144, 216, 104),
    "road_a": (88, 88, 96),
    "road_b": (104, 104, 112),
    "road_dots": (72, 72, 80),
    "line": (216, 216, 200),
    "kerb_red": (200, 24, 32),
    "kerb_white": (248, 248, 248),
    "black": (16, 16, 16),
    "white": (248, 248, 248),
    "wall_top": (255, 248, 184),
    "wall_side": (240, 144, 48),
    "wall_edge": (72, 24, 8),
    "dirt": (216, 168, 104),
    "dirt_dots": (192, 136, 80),
    "dirt_edge": (152, 104, 56),
    "water": (16, 64, 184),
    "water_dots": (96, 160, 240),
    "water_edge": (224, 240, 248),
    "pit": (24, 16, 24),
    "pit_dots": (48, 32, 40),
    "pit_edge": (128, 80, 48),
    "boost": (176, 32, 160),
    "boost_mark": (255, 240, 64),
    "oil": (8, 8, 16),
    "oil_sheen": (96, 64, 144),
}
FIRST_WORLD_COLOUR = 48
# The main colours of each ground.
GROUND_COLOURS = {
    ROAD: ("road_a", "road_b"),
    GRASS: ("grass_a", "grass_b"),
    DIRT: ("dirt",),
    DEEP_WATER: ("water",),
    WALL: ("wall_top", "wall_side"),
}
CONTRAST = 25  # minimum difference of the mean luminances of two grounds
COLOUR = {name: FIRST_WORLD_COLOUR + number for number, name in enumerate(WORLD_COLOURS)}

FIRST_MAP_COLOUR = 32
# The world colours of the course map's palette, from its entry 1 on.
MAP_COLOURS = ["black", "grass_a", "verge", "road_a", "kerb_white", "wall_top", "dirt", "water", "pit", "boost_mark"]
MAP_COLOURS += ["oil", "white", "kerb_red"]
_MAP_OF = {
    "outer": "grass_a",
    "grass_a": "grass_a",
    "grass_b": "grass_a",
    "grass_dots": "grass_a",
    "verge": "grass_a",
    "road_a": "road_a",
    "road_b": "road_a",
    "road_dots": "road_a",
    "line": "road_a",
    "kerb_red": "kerb_white",
    "kerb_white": "kerb_white",
    "black": "black",
    "white": "white",
    "wall_top": "wall_top",
    "wall_side": "wall_top",
    "wall_edge": "wall_top",
    "dirt": "dirt",
    "dirt_dots": "dirt",
    "dirt_edge": "dirt",
    "water": "water",
    "water_dots": "water",
    "water_edge": "water",
    "pit": "pit",
    "pit_dots": "pit",
    "pit_edge": "pit",
    "boost": "boost_mark",
    "boost_mark": "boost_mark",
    "oil": "oil",
    "oil_sheen": "oil",
}

TEXT_COLOURS: list[RGB] = [
    (16, 20, 56),  # backdrop
    (248, 248, 248),
    (16, 16, 40),
    (160, 168, 200),
    (0, 0, 0),
    (255, 232, 80),  # text palette 1: yellow; the logo's upper colour
    (40, 8, 32),
    (248, 120, 32),  # the logo's lower colour
    (0, 0, 0),
    (255, 88, 72),  # text palette 2: red
    (16, 16, 40),
    (255, 216, 80),
    (0, 0, 0),
    (104, 232, 120),  # text palette 3: green
    (16, 16, 40),
    (40, 64, 120),
]

KART_COLOURS: list[RGB] = [
    (0, 0, 0),
    (16, 16, 24),  # 1 outline
    (24, 24, 32),  # 2-4 tyre
    (48, 48, 60),
    (120, 120, 136),
    (120, 8, 24),  # 5-8 body
    (184, 16, 32),
    (232, 48, 48),
    (255, 136, 112),
    (16, 48, 136),  # 9-11 suit
    (40, 88, 208),
    (104, 160, 248),
    (184, 136, 0),  # 12-14 helmet
    (248, 208, 32),
    (255, 248, 168),
    (200, 208, 216),  # 15 metal
]
# Sprite palette 1: marker, shadow, dust, digits.
EFFECT_COLOURS: list[RGB] = [
    (0, 0, 0),
    (16, 16, 24),  # 1 outline, shadow
    (248, 248, 248),  # 2 white
    (255, 232, 64),  # 3 yellow
    (248, 120, 24),  # 4 orange
    (216, 32, 40),  # 5 red
    (216, 200, 168),  # 6 dust
    (168, 144, 104),  # 7 dust, dark
    (176, 216, 248),  # 8 splash
    (104, 232, 120),  # 9 green
    (56, 160, 72),  # 10 green, dark
    (255, 160, 64),  # 11
    (64, 248, 248),  # 12 cyan: on no course map
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 0),
]


def bgr555(colour: RGB) -> int:
    """Return a colour in the format of the SNES: 15 bits, blue in the highest ones."""
    red, green, blue = (min(31, (channel + 4) >> 3) for channel in colour)
    return red | green << 5 | blue << 10


def world_palette(overrides: dict[str, RGB]) -> list[RGB]:
    """Return the 80 world colours of a course (palette entries 48-127)."""
    unknown = set(overrides) - set(WORLD_COLOURS)
    if unknown:
        raise ValueError(f"unknown colour names: {sorted(unknown)}")
    colours = [overrides.get(name, default) for name, default in WORLD_COLOURS.items()]
    return colours + [(0, 0, 0)] * (80 - len(colours))


def palette(overrides: dict[str, RGB], sky_colours: tuple[RGB, ...]) -> list[RGB]:
    """Return a course's 256 colours."""
    world = world_palette(overrides)
    named = dict(zip(WORLD_COLOURS, world, strict=False))
    course_map: list[RGB] = [(0, 0, 0)] + [named[name] for name in MAP_COLOURS]
    course_map += [(0, 0, 0)] * (16 - len(course_map))
    colours = TEXT_COLOURS + sky_palette(sky_colours) + course_map + world + KART_COLOURS + EFFECT_COLOURS
    return colours + [(0, 0, 0)] * (256 - len(colours))


def check_contrast(name: str, overrides: dict[str, RGB], surfaces: list[int]) -> None:
    """Check that a course's grounds are different in grey, because most agents see the game in grey.

    Args:
        name: The name of the course.
        overrides: The colours of the course that differ from ``WORLD_COLOURS``.
        surfaces: The codes of its surfaces.

    Raises:
        ValueError: The luminances of two grounds differ by less than ``CONTRAST`` of 255 levels.
    """
    colours = WORLD_COLOURS | overrides

    def grey(*names: str) -> float:
        """Return the mean luminance of some colours."""
        return sum(0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (colours[n] for n in names)) / len(names)

    levels = {kind: grey(*names) for kind, names in GROUND_COLOURS.items() if kind in surfaces}
    for (a, one), (b, other) in itertools.combinations(levels.items(), 2):
        if abs(one - other) < CONTRAST:
            raise ValueError(f"{name}: surfaces {a:#x} and {b:#x} look alike in grey ({one:.0f} and {other:.0f})")


def merge_palette(overrides: dict[str, RGB]) -> np.ndarray:
    """Return a course's world colours, int64 (256, 3). They are for the comparison of tiles."""
    colours = np.zeros((256, 3), dtype=np.int64)
    colours[FIRST_WORLD_COLOUR : FIRST_WORLD_COLOUR + 80] = world_palette(overrides)
    return colours


def scatter(x: np.ndarray | int, y: np.ndarray | int, salt: int = 0) -> np.ndarray:
    """Return a pseudo-random byte for each position. It is an integer hash, so it is the same on each machine."""
    h = (np.asarray(x, dtype=np.int64) * 73856093) ^ (np.asarray(y, dtype=np.int64) * 19349663) ^ (salt * 83492791)
    h &= 0x7FFFFFFF
    h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
    return (h ^ (h >> 16)) & 0xFF


# --- the world --------------------------------------------------------------------------------------------------------
WORLD = 1024
_Y, _X = np.mgrid[0:WORLD, 0:WORLD]


def enlarge(cells: np.ndarray, factor: int = TILE) -> np.ndarray:
    """Return an array in which each cell is repeated ``factor`` times in both directions."""
    return np.repeat(np.repeat(cells, factor, axis=0), factor, axis=1)


def _dots(size: int, points: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return a mask of the world, bool (1024, 1024), that repeats the points (x, y) every ``size`` pixels."""
    pattern = np.zeros((size, size), dtype=bool)
    for x, y in points:
        pattern[y, x] = True
    return np.tile(pattern, (WORLD // size, WORLD // size))


def ground() -> np.ndarray:
    """Return grass, uint8 (1024, 1024): two tones in a chequer of 32 pixels with some dots. It needs few tiles."""
    tone = ((_X >> 5) + (_Y >> 5)) & 1
    image = np.where(tone == 1, COLOUR["grass_a"], COLOUR["grass_b"]).astype(np.uint8)
    image[_dots(16, ((2, 3), (3, 2), (11, 5), (12, 4), (5, 12), (6, 11), (14, 13)))] = COLOUR["grass_dots"]
    return image


def kerb_pattern() -> np.ndarray:
    """Return the kerb's colour at each pixel, uint8 (1024, 1024): a chequer in which each tile has one colour."""
    return np.where((((_X >> 3) + (_Y >> 3)) & 1) == 1, COLOUR["kerb_red"], COLOUR["kerb_white"]).astype(np.uint8)


def road_texture(band: np.ndarray) -> np.ndarray:
    """Return tarmac, uint8 (1024, 1024), with some dots. ``band``, 0 or 1 at each pixel, is its shade."""
    image = np.where(band == 1, COLOUR["road_a"], COLOUR["road_b"]).astype(np.uint8)
    image[_dots(8, ((1, 2), (6, 5)))] = COLOUR["road_dots"]
    return image


def _edges(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Return the edge of a mask of cells (128, 128) as a mask of pixels, ``thickness`` wide, with rounded corners."""
    big = enlarge(mask)
    inner = big.copy()
    for dy in range(-thickness, thickness + 1):
        for dx in range(-thickness, thickness + 1):
            if dx * dx + dy * dy <= thickness * thickness:
                inner &= np.roll(big, (dy, dx), axis=(0, 1))
    return big & ~inner


def paint_patches(image: np.ndarray, surface: np.ndarray) -> None:
    """Draw dirt, water and pits on the cells of the surface map."""
    styles: dict[int, tuple[str, tuple[tuple[int, int], ...], int]] = {  # colours, dots, thickness of the edge
        DIRT: ("dirt", ((1, 1), (2, 1), (5, 4), (6, 6), (3, 6)), 1),
        DEEP_WATER: ("water", ((1, 2), (2, 2), (3, 2), (5, 6), (6, 6)), 2),
        PIT: ("pit", ((2, 2), (6, 5)), 3),
    }
    for code, (name, dots, edge) in styles.items():
        mask = surface == code
        big = enlarge(mask)
        image[big] = COLOUR[name]
        image[_dots(8, dots) & big] = COLOUR[f"{name}_dots"]
        image[_edges(mask, edge)] = COLOUR[f"{name}_edge"]


def paint_pad(image: np.ndarray, code: int, row: int, column: int, rows: int, columns: int, quarter: int) -> None:
    """Draw a boost pad or an oil slick.

    Args:
        image: The world, uint8 (1024, 1024).
        code: The surface code, BOOST or OIL.
        row, column: The upper left cell of 8 pixels.
        rows, columns: The size in cells of 8 pixels.
        quarter: The direction of a boost pad's chevrons: 0 north, 1 east, 2 south, 3 west.
    """
    y, x = np.mgrid[0 : rows * TILE, 0 : columns * TILE]
    if code == OIL:
        cy, cx = rows * TILE, columns * TILE
        radius = (2 * y + 1 - cy) ** 2 * cx * cx + (2 * x + 1 - cx) ** 2 * cy * cy
        area = image[row * TILE : (row + rows) * TILE, column * TILE : (column + columns) * TILE]
        area[radius < cx * cx * cy * cy] = COLOUR["oil"]
        area[(radius < cx * cx * cy * cy * 5 // 10) & (radius > cx * cx * cy * cy * 3 // 10) & (y < x)] = COLOUR[
            "oil_sheen"
        ]
        return
    ly, lx = y % 16, x % 16
    along, across = {0: (ly, lx), 1: (15 - lx, ly), 2: (15 - ly, lx), 3: (lx, ly)}[quarter]
    arm = np.where(across < 8, 7 - across, across - 8)
    chevron = ((along - arm) % 16 < 7) & (along >= 1)
    look = np.where(chevron, COLOUR["boost_mark"], COLOUR["boost"])
    image[row * TILE : (row + rows) * TILE, column * TILE : (column + columns) * TILE] = look


def paint_start_line(image: np.ndarray, cells: np.ndarray) -> None:
    """Draw the chequered line on a mask of cells (128, 128)."""
    big = enlarge(cells)
    chequer = ((_X >> 3) + (_Y >> 3)) & 1
    image[big & (chequer == 0)] = COLOUR["black"]
    image[big & (chequer == 1)] = COLOUR["white"]


def paint_walls(image: np.ndarray, cells: np.ndarray) -> None:
    """Draw walls with a bright top and a dark edge on a mask of cells (128, 128)."""
    big = enlarge(cells)
    light = ((_X >> 4) + (_Y >> 4)) & 1
    image[big & (light == 0)] = COLOUR["wall_top"]
    image[big & (light == 1)] = COLOUR["wall_side"]
    image[_edges(cells, 2)] = COLOUR["wall_edge"]


def course_map(image: np.ndarray) -> np.ndarray:
    """Reduce the world to the course map of 112 x 112 pixels.

    Args:
        image: Palette indices, uint8 (1024, 1024).

    Returns:
        Indices of the map's palette (1-15), uint8 (112, 112). A pixel has a special colour if that colour covers enough
        of its area, else the most frequent one.
    """
    table = np.zeros(256, dtype=np.int64)
    names = list(MAP_COLOURS)
    for name, index in COLOUR.items():
        table[index] = names.index(_MAP_OF[name]) + 1
    world = table[image]
    out = np.zeros((112, 112), dtype=np.uint8)
    # The special colours, the most important one first, with the necessary share of the area in 1/16.
    order = [("wall_top", 6), ("black", 5), ("boost_mark", 4), ("oil", 4), ("kerb_white", 9)]
    for row in range(112):
        top, bottom = row * 64 // 7, (row + 1) * 64 // 7
        for column in range(112):
            field = world[top:bottom, column * 64 // 7 : (column + 1) * 64 // 7]
            counts = np.bincount(field.ravel(), minlength=16)
            for name, share in order:
                if counts[names.index(name) + 1] * 16 >= share * field.size:
                    out[row, column] = names.index(name) + 1
                    break
            else:
                out[row, column] = counts.argmax()
    black = names.index("black") + 1
    # Draw the start line in the resolution of the map: alternately black and white.
    for row, column in np.argwhere(out == black):
        if (row + column) % 2:
            out[row, column] = names.index("white") + 1
    return out


# --- sky --------------------------------------------------------------------------------------------------------------
SKY_ROWS = 40


def sky_palette(colours: tuple[RGB, ...]) -> list[RGB]:
    """Return the 16 sky colours: 1-7 gradient, 8-9 cloud, 10-12 far scenery, 13-15 near scenery."""
    top, middle, bottom, near, far = colours

    def mix(a: RGB, b: RGB, part: int, of: int) -> RGB:
        return tuple((x * (of - part) + y * part) // of for x, y in zip(a, b, strict=True))  # type: ignore[return-value]

    white: RGB = (255, 255, 255)
    black: RGB = (0, 0, 0)
    gradient = [top, mix(top, middle, 1, 3), mix(top, middle, 2, 3), middle]
    gradient += [mix(middle, bottom, 1, 3), mix(middle, bottom, 2, 3), bottom]
    clouds = [mix(bottom, white, 3, 4), mix(middle, white, 1, 2)]
    hills = [mix(far, white, 1, 4), far, mix(far, black, 1, 5)]
    trees = [mix(near, white, 1, 5), near, mix(near, black, 2, 5)]
    return [black, *gradient, *clouds, *hills, *trees]


def _ridge(count: int, period: int, height: int, salt: int) -> np.ndarray:
    """Return a smooth periodic outline, int (count,): hashed heights every ``period`` columns, interpolated."""
    knots = [int(scatter(k, salt, 7)) * height // 255 for k in range(count // period)]
    out = np.zeros(count, dtype=np.int64)
    for x in range(count):
        k, t = divmod(x, period)
        a, b = knots[k], knots[(k + 1) % len(knots)]
        # Smoothstep in integers.
        weight = t * t * (3 * period - 2 * t)
        out[x] = (a * (period**3 - weight) + b * weight) // period**3
    return out


def sky() -> np.ndarray:
    """Return the backdrop, palette indices uint8 (40, 512): gradient, clouds, far hills, near trees."""
    image = np.zeros((SKY_ROWS, 512), dtype=np.uint8)
    for y in range(SKY_ROWS):
        image[y] = min(7, 1 + y * 7 // 34)
    # Clouds are in two rows of tiles, so they need few tiles.
    for number in range(7):
        cx = number * 73 + int(scatter(number, 1)) % 30
        cy = 20 + int(scatter(number, 2)) % 4
        for part in range(3):
            px, py = cx + (part - 1) * 9, cy - (3 if part == 1 else 0)
            rx, ry = 9 if part == 1 else 7, 4 if part == 1 else 3
            for y in range(py - ry, py + ry + 1):
                for x in range(px - rx, px + rx + 1):
                    if (x - px) ** 2 * ry * ry + (y - py) ** 2 * rx * rx <= rx * rx * ry * ry and 16 <= y < 28:
                        lit = y < py + 1
                        if image[y, x % 512] != 8:
                            image[y, x % 512] = 8 if lit else 9
    hills = _ridge(512, 32, 11, 3) + _ridge(512, 16, 3, 5)
    trees = _ridge(512, 16, 4, 9)
    for x in range(512):
        top = 37 - int(hills[x])
        for y in range(max(22, top), SKY_ROWS):
            image[y, x] = 10 if y == top or (y - top < 3 and scatter(x >> 1, y, 2) < 90) else 11
            if y > 34:
                image[y, x] = 12 if scatter(x, y, 4) < 128 else 11
        # Round tree tops, nine pixels apart, on a hedge.
        centre = (x // 9) * 9 + 4
        bump = 3 - (x - centre) ** 2 // 5
        top = 36 - int(trees[x]) - max(0, bump) + int(scatter(x // 9, 6)) % 3
        for y in range(top, SKY_ROWS):
            image[y, x] = 13 if y - top < 2 and x <= centre else (15 if y >= 38 or x > centre + 2 else 14)
    return image


# --- text -------------------------------------------------------------------------------------------------------------
# Each glyph has 5 x 7 pixels; its rows are separated by |, the first row is the top.
_GLYPHS = {
    "0": ".###.|#...#|#..##|#.#.#|##..#|#...#|.###.",
    "1": "..#..|.##..|..#..|..#..|..#..|..#..|.###.",
    "2": ".###.|#...#|....#|..##.|.#...|#....|#####",
    "3": ".###.|#...#|....#|..##.|....#|#...#|.###.",
    "4": "...#.|..##.|.#.#.|#..#.|#####|...#.|...#.",
    "5": "#####|#....|####.|....#|....#|#...#|.###.",
    "6": ".###.|#....|####.|#...#|#...#|#...#|.###.",
    "7": "#####|....#|...#.|..#..|..#..|.#...|.#...",
    "8": ".###.|#...#|#...#|.###.|#...#|#...#|.###.",
    "9": ".###.|#...#|#...#|.####|....#|....#|.###.",
    "A": ".###.|#...#|#...#|#####|#...#|#...#|#...#",
    "B": "####.|#...#|#...#|####.|#...#|#...#|####.",
    "C": ".####|#....|#....|#....|#....|#....|.####",
    "D": "####.|#...#|#...#|#...#|#...#|#...#|####.",
    "E": "#####|#....|#....|####.|#....|#....|#####",
    "F": "#####|#....|#....|####.|#....|#....|#....",
    "G": ".####|#....|#....|#..##|#...#|#...#|.####",
    "H": "#...#|#...#|#...#|#####|#...#|#...#|#...#",
    "I": ".###.|..#..|..#..|..#..|..#..|..#..|.###.",
    "J": "..###|...#.|...#.|...#.|...#.|#..#.|.##..",
    "K": "#...#|#..#.|#.#..|##...|#.#..|#..#.|#...#",
    "L": "#....|#....|#....|#....|#....|#....|#####",
    "M": "#...#|##.##|#.#.#|#.#.#|#...#|#...#|#...#",
    "N": "#...#|##..#|##..#|#.#.#|#..##|#..##|#...#",
    "O": ".###.|#...#|#...#|#...#|#...#|#...#|.###.",
    "P": "####.|#...#|#...#|####.|#....|#....|#....",
    "Q": ".###.|#...#|#...#|#...#|#.#.#|#..#.|.##.#",
    "R": "####.|#...#|#...#|####.|#.#..|#..#.|#...#",
    "S": ".####|#....|#....|.###.|....#|....#|####.",
    "T": "#####|..#..|..#..|..#..|..#..|..#..|..#..",
    "U": "#...#|#...#|#...#|#...#|#...#|#...#|.###.",
    "V": "#...#|#...#|#...#|#...#|.#.#.|.#.#.|..#..",
    "W": "#...#|#...#|#...#|#.#.#|#.#.#|##.##|#...#",
    "X": "#...#|#...#|.#.#.|..#..|.#.#.|#...#|#...#",
    "Y": "#...#|#...#|.#.#.|..#..|..#..|..#..|..#..",
    "Z": "#####|....#|...#.|..#..|.#...|#....|#####",
    "'": "..#..|..#..|.#...|.....|.....|.....|.....",
    '"': "#..#.|#..#.|#..#.|.....|.....|.....|.....",
    "/": "....#|...#.|...#.|..#..|.#...|.#...|#....",
    "!": "..#..|..#..|..#..|..#..|..#..|.....|..#..",
    ".": ".....|.....|.....|.....|.....|.##..|.##..",
    ":": ".....|.##..|.##..|.....|.##..|.##..|.....",
    "-": ".....|.....|.....|.###.|.....|.....|.....",
    "<": "...#.|..#..|.#...|#....|.#...|..#..|...#.",
    ">": ".#...|..#..|...#.|....#|...#.|..#..|.#...",
}
# The characters in their order in VRAM. The build writes the assembler's .charmap lines from it.
CHARACTERS = " " + "".join(_GLYPHS)
BAR_TILE = 48  # the first of nine tiles: a bar of 0 to 8 filled pixels
LOGO_TILE = 60  # the first tile of the logo: six tiles per letter in LOGO_LETTERS
LOGO_LETTERS = "HOMEBRWKAT"
LOGO_TEXT = "HOMEBREW KART"


def _bitmap(glyph: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in _GLYPHS[glyph].split("|")], dtype=bool)


def _grow(mask: np.ndarray) -> np.ndarray:
    """Return a mask grown by one pixel in all eight directions. Its border must be empty."""
    out = mask.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            out |= np.roll(mask, (dy, dx), axis=(0, 1))
    return out


def font() -> np.ndarray:
    """Return the 128 text tiles, values 0-3, uint8 (128, 8, 8): characters, bar, logo letters."""
    tiles = np.zeros((128, 8, 8), dtype=np.uint8)
    for number, character in enumerate(CHARACTERS):
        if character == " ":
            continue
        mask = np.zeros((8, 8), dtype=bool)
        mask[0:7, 0:5] = _bitmap(character)
        bold = mask | np.roll(mask, 1, axis=1)
        shadow = np.roll(bold, (1, 1), axis=(0, 1))
        tiles[number][shadow] = 2
        tiles[number][bold] = 1
    for fill in range(9):
        bar = tiles[BAR_TILE + fill]
        bar[1:7] = 3
        bar[1:7, :fill] = 1
        bar[0] = bar[7] = 2
    for number, letter in enumerate(LOGO_LETTERS):
        mask = np.zeros((24, 16), dtype=bool)
        mask[1:22, 1:16] = enlarge(_bitmap(letter), 3)
        mask[1:22, 15] = False
        outline = _grow(mask) | np.roll(mask, (2, 1), axis=(0, 1))
        look = np.zeros((24, 16), dtype=np.uint8)
        look[outline] = 2
        look[mask] = 1
        look[12:][mask[12:]] = 3
        for row in range(3):
            for column in range(2):
                tile = LOGO_TILE + number * 6 + row * 2 + column
                tiles[tile] = look[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    return tiles


# --- sprites ----------------------------------------------------------------------------------------------------------
# The kart is a 3D model of boxes, balls and wheels, in a parallel projection from behind and above. All sprites of the
# kart show this model at different angles. The unit is about one sprite pixel; x is right, y is up, z is forward.
_BALLS = [  # centre, radii, ramp of colours
    ((0.0, 10.5, -1.5), (5.2, 5.6, 4.2), (9, 10, 11)),
    ((-5.4, 9.6, 1.0), (2.0, 3.2, 3.2), (9, 10, 11)),
    ((5.4, 9.6, 1.0), (2.0, 3.2, 3.2), (9, 10, 11)),
    ((0.0, 18.2, -1.0), (5.4, 5.2, 5.4), (12, 13, 14)),
]
_BOXES = [  # centre, half sizes, ramp
    ((0.0, 4.6, 1.0), (6.4, 2.4, 11.0), (5, 6, 7)),
    ((0.0, 5.6, -8.0), (7.6, 2.6, 2.6), (6, 7, 8)),
    ((0.0, 3.4, 12.0), (9.0, 1.2, 2.0), (6, 7, 8)),
    ((-3.4, 5.4, -11.2), (1.4, 1.4, 1.6), (4, 15, 15)),
    ((3.4, 5.4, -11.2), (1.4, 1.4, 1.6), (4, 15, 15)),
]
_WHEELS = [  # centre, radius, half width
    ((-10.8, 4.9, -6.5), 4.9, 2.9),
    ((10.8, 4.9, -6.5), 4.9, 2.9),
    ((-10.0, 4.0, 9.0), 4.0, 2.2),
    ((10.0, 4.0, 9.0), 4.0, 2.2),
]
# Yaw as (cosine, sine) in 1/1000, and the sideways lean of the driver in 1/1000 of the height.
KART_POSES = [((1000, 0), 0), ((966, 259), 60), ((857, 515), 130), ((707, 707), 130)]


def _kart(yaw: tuple[int, int], lean: int) -> np.ndarray:
    """Return a sprite of the kart, palette indices uint8 (32, 32), turned to the right by ``yaw``."""
    cos_yaw, sin_yaw = yaw[0] / 1000, yaw[1] / 1000
    sin_pitch, cos_pitch = 0.36, 0.933
    fine = 3
    size = 32 * fine
    row, column = np.mgrid[0:size, 0:size]
    zoom = 1.14  # model units in a sprite pixel
    screen_x = ((column + 0.5) / fine - 16) * zoom
    screen_y = (27.6 - (row + 0.5) / fine) * zoom
    depth = np.full((size, size), 1e9)
    colour = np.zeros((size, size), dtype=np.uint8)

    def to_view(x, y, z):
        """Convert a direction from model axes to view axes: right, up on the screen, away from the viewer."""
        rx, rz = x * cos_yaw + z * sin_yaw, -x * sin_yaw + z * cos_yaw
        return rx, y * cos_pitch + rz * sin_pitch, rz * cos_pitch - y * sin_pitch

    def paint(hit, away, ramp, normal):
        """Draw the pixels that are nearer than before. The shade depends on the light from above, left and behind."""
        light = (normal[0] * -0.45 + normal[1] * 0.75 + normal[2] * -0.48) * 1000
        shade = np.where(light > 620, 2, np.where(light > 60, 1, 0))
        closer = hit & (away < depth)
        depth[closer] = away[closer]
        colour[closer] = np.array(ramp, dtype=np.uint8)[shade][closer]

    # The origins and the direction of the view rays, in model axes.
    right, up, ahead = (np.array(to_view(*axis)) for axis in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    axes = np.stack([right, up, ahead])  # rows: model axis in view coordinates
    view_x, view_y, view_z = axes[:, 0], axes[:, 1], axes[:, 2]
    direction = view_z
    origin = [screen_x * view_x[i] + screen_y * view_y[i] for i in range(3)]

    def cast_ball(centre, radii, ramp):
        shifted = (centre[0] + (centre[1] - 6) * lean / 1000, centre[1], centre[2])
        o = [(origin[i] - shifted[i]) / radii[i] for i in range(3)]
        d = [direction[i] / radii[i] for i in range(3)]
        a = sum(v * v for v in d)
        b = sum(o[i] * d[i] for i in range(3))
        c = sum(v * v for v in o) - 1
        root = b * b - a * c
        hit = root > 0
        t = (-b - np.sqrt(np.where(hit, root, 0))) / a
        normal = [(o[i] + t * d[i]) / radii[i] for i in range(3)]
        norm = np.sqrt(sum(v * v for v in normal))
        paint(hit, t, ramp, [v / norm for v in normal])

    def cast_box(centre, half, ramp):
        near, far = np.full((size, size), -1e9), np.full((size, size), 1e9)
        face = np.zeros((size, size), dtype=np.int64)
        for i in range(3):
            d = direction[i] if abs(direction[i]) > 1e-6 else 1e-6
            t1, t2 = (centre[i] - half[i] - origin[i]) / d, (centre[i] + half[i] - origin[i]) / d
            low, high = np.minimum(t1, t2), np.maximum(t1, t2)
            face = np.where(low > near, i, face)
            near, far = np.maximum(near, low), np.minimum(far, high)
        signs = [-1.0 if direction[i] > 0 else 1.0 for i in range(3)]
        normal = [np.where(face == i, signs[i], 0.0) for i in range(3)]
        paint(near < far, near, ramp, normal)

    def cast_wheel(centre, radius, half_width):
        o = [origin[i] - centre[i] for i in range(3)]
        d = direction
        a = d[1] * d[1] + d[2] * d[2]
        b = o[1] * d[1] + o[2] * d[2]
        c = o[1] * o[1] + o[2] * o[2] - radius * radius
        root = b * b - a * c
        hit = root > 0
        t = (-b - np.sqrt(np.where(hit, root, 0))) / a
        tread = hit & (np.abs(o[0] + t * d[0]) < half_width)
        zero = np.zeros((size, size))
        paint(tread, t, (2, 2, 3), [zero, (o[1] + t * d[1]) / radius, (o[2] + t * d[2]) / radius])
        if abs(d[0]) > 1e-6:
            side = -1.0 if d[0] > 0 else 1.0
            t = (side * half_width - o[0]) / d[0]
            square = (o[1] + t * d[1]) ** 2 + (o[2] + t * d[2]) ** 2
            rim = square < (radius * 0.5) ** 2
            paint(square < radius * radius, t, (2, 3, 3), [zero + side, zero, zero])
            paint(rim & (square < radius * radius), t - 0.01, (4, 15, 15), [zero + side, zero, zero])

    for wheel in _WHEELS:
        cast_wheel(*wheel)
    for box in _BOXES:
        cast_box(*box)
    for ball in _BALLS:
        cast_ball(*ball)

    # Each sprite pixel has the most frequent colour of its samples.
    out = np.zeros((32, 32), dtype=np.uint8)
    for y in range(32):
        for x in range(32):
            counts = np.bincount(colour[y * fine : y * fine + fine, x * fine : x * fine + fine].ravel(), minlength=16)
            if counts[0] * 2 < fine * fine:
                out[y, x] = counts[1:].argmax() + 1
    solid = out > 0
    ring = np.zeros_like(solid)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        ring |= np.roll(solid, (dy, dx), axis=(0, 1))
    ring[0] = False  # the roll's wrap-around
    out[ring & ~solid] = 1
    return out


def _big_glyph(text: str, colours: tuple[int, int], scale: int) -> np.ndarray:
    """Return enlarged text as a 32 x 32 sprite with an upper colour, a lower colour and a dark outline."""
    gap = 1
    width = len(text) * 5 + (len(text) - 1) * gap
    mask = np.zeros((7, width), dtype=bool)
    for number, character in enumerate(text):
        mask[:, number * (5 + gap) : number * (5 + gap) + 5] = _bitmap(character)
    big = enlarge(mask, scale)
    canvas = np.zeros((40, 40), dtype=bool)
    top, left = (40 - big.shape[0]) // 2, (40 - big.shape[1]) // 2
    canvas[top : top + big.shape[0], left : left + big.shape[1]] = big
    out = np.zeros((40, 40), dtype=np.uint8)
    out[_grow(canvas)] = 1
    out[canvas] = colours[0]
    out[20:][canvas[20:]] = colours[1]
    return out[4:36, 4:36]


def sprites() -> np.ndarray:
    """Return the sprite sheet, palette indices uint8 (128, 128): sixteen 32 x 32 cells.

    Cells: 0-3 the kart, each turned more to the right; 4-6 the countdown 3 2 1; 7 GO; 8 the shadow; 9 small sprites
    (marker, marker with edge, large and small dust; in the next row large and small splash). The others are empty.
    """
    sheet = np.zeros((128, 128), dtype=np.uint8)

    def put(cell: int, image: np.ndarray) -> None:
        y, x = cell // 4 * 32, cell % 4 * 32
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image

    for cell, (yaw, lean) in enumerate(KART_POSES):
        put(cell, _kart(yaw, lean))
    for cell, text in enumerate(("3", "2", "1")):
        put(4 + cell, _big_glyph(text, ((5, 4), (4, 3), (4, 3))[cell], 4))
    put(7, _big_glyph("GO", (9, 10), 2))
    y, x = np.mgrid[0:32, 0:32]
    oval = (2 * x - 31) ** 2 * 49 + (2 * y - 51) ** 2 * 900 < 900 * 49
    put(8, np.where(oval & ((x + y) % 2 == 0), 1, 0).astype(np.uint8))
    small = np.zeros((8, 48), dtype=np.uint8)
    y, x = np.mgrid[0:8, 0:8]
    square = (2 * x - 7) ** 2 + (2 * y - 7) ** 2
    small[:, 0:8] = np.where(square < 20, 12, np.where(square < 42, 1, 0))
    small[:, 8:16] = np.where(square < 20, 5, np.where(square < 42, 2, 0))
    small[:, 16:24] = np.where(square < 14, 6, np.where((square < 50) & ((x + y) % 2 == 0), 7, 0))
    small[:, 24:32] = np.where((square < 20) & ((x + y) % 2 == 0), 6, 0)
    small[:, 32:40] = np.where(square < 14, 2, np.where((square < 50) & ((x + y) % 2 == 0), 8, 0))
    small[:, 40:48] = np.where((square < 20) & ((x + y) % 2 == 1), 8, 0)
    put(9, small[:, :32])
    sheet[64 + 8 : 64 + 16, 32 : 32 + 16] = small[:, 32:48]
    return sheet


def planar(tiles: np.ndarray, bits: int) -> bytes:
    """Convert tiles (n, 8, 8) to the bit-plane format of the SNES with 2 or 4 bits per pixel."""
    out = bytearray()
    weights = 1 << np.arange(7, -1, -1)
    for tile in tiles:
        for pair in range(0, bits, 2):
            for row in tile:
                for plane in (pair, pair + 1):
                    out.append(int((((row >> plane) & 1) * weights).sum()))
    return bytes(out)
