"""Computes the maps, tiles and tables of a course from its description.

* ``Track`` - the maps, tiles and tables of one course
* ``build_track`` - computes a ``Track``
* ``centreline`` - computes the samples of the centreline only
* ``reduce_tiles`` - divides a picture into 256 tiles

After the corners are rounded, all coordinates are converted to integers of 1/16 pixel. Only integer arithmetic decides
what is drawn, so the ROM is the same on each machine.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import artwork
import numpy as np
from courses import Course, Ellipse, Pad, Strip, WallAlong, WallLine

from kart_rewards.race import BOOST, DEEP_WATER, DIRT, GRASS, PIT, ROAD, START_LINE, WALL

WORLD = 1024
TILE = 8
CELLS = WORLD // TILE  # surface cells of 8 pixels per side of the world
SECTOR_CELL = 16
SECTOR_CELLS = WORLD // SECTOR_CELL
UNIT = 16  # sub-pixel units in a pixel
SPACING = 2  # pixels between samples of the centreline
KERB = 8  # width of the striped kerb, part of the road
VERGE = 6  # width of the light strip beside the kerb
BORDER_CELLS = 2  # thickness of the wall around the world
GRID_DISTANCE = 40  # pixels from the grid slot to the start line
MARGIN = 48  # width of the ground beside the road that belongs to checkpoints, pixels
SURE_MARGIN = 24  # width of the part of it on which each bend has all its checkpoints
SHORT_CUT_MARGIN = 16  # the same as MARGIN, beside a short cut
NO_SECTOR = 0xFF
MAX_TILES = 256
MAP_SIZE = 112  # width and height of the course map, pixels

# Row step, column step, length in fifths of a cell.
NEIGHBOURS = ((0, 1, 5), (1, 0, 5), (0, -1, 5), (-1, 0, 5), (1, 1, 7), (1, -1, 7), (-1, 1, 7), (-1, -1, 7))

# Weights of red, green and blue in the difference of two tiles: about the luminance.
COLOUR_WEIGHTS = np.array([3, 6, 2], dtype=np.int64)


@dataclass
class Track:
    """The maps, tiles and tables of a course.

    Attributes:
        course: The description.
        line: Samples of the centreline from the start line on, int (n, 2), in 1/16 pixel.
        tangent: Driving direction at each sample, float (n, 2), unit length.
        length: Length of a lap in pixels.
        surface: Surface code of each 8-pixel cell, uint8 (128, 128), row-major from the north-west.
        sector: Checkpoint sector of each 16-pixel cell, uint8 (64, 64); NO_SECTOR far from the road and short cuts.
        direction: Direction of the course at each 16-pixel cell in 1/256 turn (0 is north, clockwise), uint8 (64, 64).
        escape: Direction back to the road, around walls, at each 8-pixel cell in 1/256 turn, uint8 (128, 128).
        image: The world in palette indices, uint8 (1024, 1024), before the tiles are merged.
        tilemap: Tile number of each cell, uint8 (128, 128).
        tiles: Tiles, uint8 (256, 8, 8).
        checkpoints: Rescue point of each sector: x and y in quarter pixels, and heading in 1/65536 turn.
        start: Start position on the grid, in the units of a rescue point.
        unique_tiles: Number of different tiles before they are merged.
    """

    course: Course
    line: np.ndarray
    tangent: np.ndarray
    length: float
    surface: np.ndarray
    sector: np.ndarray
    direction: np.ndarray
    escape: np.ndarray
    image: np.ndarray
    tilemap: np.ndarray
    tiles: np.ndarray
    checkpoints: list[tuple[int, int, int]]
    start: tuple[int, int, int]
    unique_tiles: int


def _rounded_polygon(course: Course) -> list[tuple[float, float]]:
    """Return the points of the polygon with arcs in place of its corners. Points on arcs are about 1 pixel apart."""
    points: list[tuple[float, float]] = []
    corners = course.corners
    for index, corner in enumerate(corners):
        before, after = corners[index - 1], corners[(index + 1) % len(corners)]
        ax, ay = before.x - corner.x, before.y - corner.y
        bx, by = after.x - corner.x, after.y - corner.y
        a, b = math.sqrt(ax * ax + ay * ay), math.sqrt(bx * bx + by * by)
        ax, ay, bx, by = ax / a, ay / a, bx / b, by / b
        # Half-angle formulas: the distance from the corner to the arc, and the centre of the arc on the bisector.
        cosine = ax * bx + ay * by
        half_sine = math.sqrt((1 - cosine) / 2)
        half_cosine = math.sqrt((1 + cosine) / 2)
        reach = corner.radius * half_cosine / half_sine
        if reach > min(a, b):
            raise ValueError(f"{course.name}: the bend at ({corner.x}, {corner.y}) does not fit between its neighbours")
        mx, my = ax + bx, ay + by
        norm = math.sqrt(mx * mx + my * my)
        centre_x = corner.x + mx / norm * corner.radius / half_sine
        centre_y = corner.y + my / norm * corner.radius / half_sine
        first = math.atan2(corner.y + ay * reach - centre_y, corner.x + ax * reach - centre_x)
        last = math.atan2(corner.y + by * reach - centre_y, corner.x + bx * reach - centre_x)
        sweep = (last - first + math.pi) % (2 * math.pi) - math.pi
        steps = max(2, round(abs(sweep) * corner.radius))
        for step in range(steps + 1):
            angle = first + sweep * step / steps
            points.append((centre_x + corner.radius * math.cos(angle), centre_y + corner.radius * math.sin(angle)))
    return points


def centreline(course: Course) -> tuple[np.ndarray, np.ndarray, float]:
    """Return equally spaced samples of the centreline from the start line on.

    Returns:
        Samples in 1/16 pixel, int64 (n, 2); unit tangents, float (n, 2); lap length in pixels.
    """
    polygon = [(round(x * UNIT), round(y * UNIT)) for x, y in _rounded_polygon(course)]
    start = (course.start[0] * UNIT, course.start[1] * UNIT)
    # Cut the loop at the start line.
    for index, (ax, ay) in enumerate(polygon):
        bx, by = polygon[(index + 1) % len(polygon)]
        on_axis = (ax == bx == start[0] and min(ay, by) <= start[1] <= max(ay, by)) or (
            ay == by == start[1] and min(ax, bx) <= start[0] <= max(ax, bx)
        )
        if on_axis:
            break
    else:
        raise ValueError(f"{course.name}: the start is not on a straight that runs along an axis")
    loop = [start, *polygon[index + 1 :], *polygon[: index + 1], start]
    lengths = [0.0]
    for (ax, ay), (bx, by) in itertools.pairwise(loop):
        lengths.append(lengths[-1] + math.sqrt((bx - ax) ** 2 + (by - ay) ** 2))
    total = lengths[-1]
    count = round(total / UNIT / SPACING)
    samples, segment = [], 0
    for number in range(count):
        target = total * number / count
        while lengths[segment + 1] < target:
            segment += 1
        (ax, ay), (bx, by) = loop[segment], loop[segment + 1]
        span = lengths[segment + 1] - lengths[segment]
        part = (target - lengths[segment]) / span if span else 0.0
        samples.append((round(ax + (bx - ax) * part), round(ay + (by - ay) * part)))
    line = np.array(samples, dtype=np.int64)
    ahead, behind = np.roll(line, -3, axis=0), np.roll(line, 3, axis=0)
    tangent = (ahead - behind).astype(np.float64)
    tangent /= np.sqrt((tangent**2).sum(axis=1, keepdims=True))
    return line, tangent, total / UNIT


def _heading(tangent: np.ndarray, turn: int = 65536) -> int:
    """Return a direction in 1/``turn`` of a full turn: 0 is north, clockwise."""
    return round(math.atan2(tangent[0], -tangent[1]) / (2 * math.pi) * turn) % turn


def _distance_field(line: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the line (1/16 pixel) and the nearest sample's index, for pixels within ``reach``."""
    best = np.full((WORLD, WORLD), (reach * UNIT) ** 2, dtype=np.int64)
    nearest = np.full((WORLD, WORLD), -1, dtype=np.int32)
    centres = np.arange(WORLD, dtype=np.int64) * UNIT + UNIT // 2
    for number, (x, y) in enumerate(line.tolist()):
        left, right = max(0, x // UNIT - reach), min(WORLD, x // UNIT + reach + 1)
        top, bottom = max(0, y // UNIT - reach), min(WORLD, y // UNIT + reach + 1)
        square = (centres[top:bottom, None] - y) ** 2 + (centres[None, left:right] - x) ** 2
        window = best[top:bottom, left:right]
        closer = square < window
        window[closer] = square[closer]
        nearest[top:bottom, left:right][closer] = number
    return np.sqrt(best.astype(np.float64)).astype(np.int64), nearest


def _nearest_on_cells(line: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest sample's index and its squared distance (1/256 pixel^2), for square cells of ``size``."""
    centres = np.arange(WORLD // size, dtype=np.int64) * size * UNIT + size * UNIT // 2
    number = np.empty((len(centres), len(centres)), dtype=np.int64)
    square = np.empty_like(number)
    for row, y in enumerate(centres):
        distance = (centres[:, None] - line[None, :, 0]) ** 2 + (y - line[None, :, 1]) ** 2
        number[row] = distance.argmin(axis=1)
        square[row] = distance.min(axis=1)
    return number, square


def _polyline_field(points: tuple[tuple[int, int], ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the position along an open polyline, 0 to 1, and the squared distance to it, for cells of ``size``."""
    samples: list[tuple[int, int]] = []
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        steps = max(1, math.isqrt((bx - ax) ** 2 + (by - ay) ** 2) // SPACING)
        samples += [
            ((ax * UNIT * (steps - k) + bx * UNIT * k) // steps, (ay * UNIT * (steps - k) + by * UNIT * k) // steps)
            for k in range(steps)
        ]
    samples.append((points[-1][0] * UNIT, points[-1][1] * UNIT))
    number, square = _nearest_on_cells(np.array(samples, dtype=np.int64), size)
    return number / max(1, len(samples) - 1), square


def _line_cells(points: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Return (row, column) of the 8-pixel cells under a polyline. The cells are 4-connected: there is no gap."""
    cells: list[tuple[int, int]] = []
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        steps = max(abs(bx - ax), abs(by - ay), 1)
        for k in range(steps + 1):
            cell = ((ay * (steps - k) + by * k) // steps // TILE, (ax * (steps - k) + bx * k) // steps // TILE)
            if cells and cell == cells[-1]:
                continue
            if cells and cell[0] != cells[-1][0] and cell[1] != cells[-1][1]:
                cells.append((cells[-1][0], cell[1]))
            cells.append(cell)
    return cells


def build_track(course: Course) -> Track:
    """Compute the maps, tiles and tables of a course.

    Raises:
        ValueError: The description is not valid: a bend does not fit, a checkpoint can be left out, the start is not on
            plain road, or two grounds look alike in grey.
    """
    line, tangent, length = centreline(course)
    count = len(line)
    half = course.road_width // 2

    # --- ground on the 8-pixel grid -------------------------------------------------------------------------------
    cell_number, cell_square = _nearest_on_cells(line, TILE)
    on_road = cell_square < (half * UNIT) ** 2
    clear_of_road = cell_square >= ((half + TILE) * UNIT) ** 2
    surface = np.where(on_road, ROAD, GRASS).astype(np.uint8)
    centres = np.arange(CELLS) * TILE + TILE // 2
    walls = np.zeros((CELLS, CELLS), dtype=bool)
    pads: list[tuple[int, int, int, int, int]] = []
    short_cuts: list[Strip] = []
    for feature in course.features:
        if isinstance(feature, Ellipse):
            inside = (centres[None, :] - feature.x) ** 2 * feature.radius_y**2 + (
                centres[:, None] - feature.y
            ) ** 2 * feature.radius_x**2 < (feature.radius_x * feature.radius_y) ** 2
            surface[inside & ~on_road] = feature.surface
        elif isinstance(feature, Strip):
            _, square = _polyline_field(feature.points, TILE)
            inside = square < (feature.width * UNIT // 2) ** 2
            surface[inside & ~on_road] = feature.surface
            if feature.short_cut:
                short_cuts.append(feature)
        elif isinstance(feature, Pad):
            row, column = round(feature.y / 16) * 2, round(feature.x / 16) * 2
            nearest = cell_number[min(row, CELLS - 1), min(column, CELLS - 1)]
            quarter = (_heading(tangent[nearest], 256) + 32) // 64 % 4  # 0 north, 1 east, 2 south, 3 west
            rows, columns = feature.along, feature.across
            if quarter in (1, 3):
                rows, columns = columns, rows
            pads.append((feature.surface, row - rows, column - columns, rows * 2, columns * 2))
            surface[row - rows : row + rows, column - columns : column + columns] = feature.surface
        elif isinstance(feature, WallLine):
            for row, column in _line_cells(feature.points):
                walls[row, column] = True
        elif isinstance(feature, WallAlong):
            distance = (half + feature.gap + TILE // 2) * UNIT
            side = 1.0 if feature.side == "right" else -1.0
            first, last = int(feature.start * count), int(feature.end * count)
            offsets = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * side * distance
            path = np.floor((line + offsets) / UNIT + 0.5).astype(np.int64)[np.arange(first, last)]
            for row, column in _line_cells(tuple((int(x), int(y)) for x, y in path)):
                if 0 <= row < CELLS and 0 <= column < CELLS:
                    walls[row, column] = True
    # Walls are two cells thick: visible from far away, and too thick to pass at any speed.
    walls[1:] |= walls[:-1]
    walls[:, 1:] |= walls[:, :-1]
    walls &= clear_of_road
    walls &= surface == GRASS
    walls[:BORDER_CELLS] = walls[-BORDER_CELLS:] = True
    walls[:, :BORDER_CELLS] = walls[:, -BORDER_CELLS:] = True
    surface[_two_thick(walls)] = WALL

    # --- the start line: two rows of cells after the line ----------------------------------------------------------
    start_cells = np.zeros((CELLS, CELLS), dtype=bool)
    forward = np.round(tangent[0]).astype(int)
    if course.start[0 if forward[0] else 1] % SECTOR_CELL:
        raise ValueError(f"{course.name}: the start line must lie on the 16-pixel grid")
    for step in range(2):
        for across in range(-half, half, TILE):
            x = course.start[0] + forward[0] * (step * TILE + TILE // 2) + abs(forward[1]) * (across + TILE // 2)
            y = course.start[1] + forward[1] * (step * TILE + TILE // 2) + abs(forward[0]) * (across + TILE // 2)
            start_cells[y // TILE, x // TILE] = True
    start_cells &= on_road
    surface[start_cells] = START_LINE

    # --- sectors and directions on the 16-pixel grid ----------------------------------------------------------------
    number, line_square = _nearest_on_cells(line, SECTOR_CELL)
    headings = np.array([_heading(t, 256) for t in tangent], dtype=np.int64)
    direction = headings[number]
    road16 = _any_of_four(on_road)
    beside_cut = np.zeros_like(road16)
    for strip in short_cuts:
        part, square = _polyline_field(strip.points, SECTOR_CELL)
        ends = np.array([strip.points[0], strip.points[-1]], dtype=np.int64) * UNIT
        first, last = (int(((line - end) ** 2).sum(axis=1).argmin()) for end in ends)
        if last < first:
            raise ValueError(f"{course.name}: a short cut must run forward and not over the start line")
        off_road = ~road16 & (part > 0) & (part < 1)
        beside = off_road & (square < ((strip.width // 2 + SHORT_CUT_MARGIN) * UNIT) ** 2)
        _spread_between_mouths(number, beside, road16)
        beside_cut |= beside
        ahead = np.array(strip.points[-1]) - np.array(strip.points[0])
        direction[off_road & (square < (strip.width * UNIT // 2) ** 2)] = _heading(ahead, 256)
    sector = number * course.num_checkpoints // count
    _check_sectors(course, sector, road16 | beside_cut, line_square < ((half + SURE_MARGIN) * UNIT) ** 2)
    # Cells far from the road have no sector: a loop through the infield would pass all sectors in order, too.
    sector[(line_square >= ((half + MARGIN) * UNIT) ** 2) & ~beside_cut] = NO_SECTOR

    # --- the picture ------------------------------------------------------------------------------------------------
    artwork.check_contrast(course.name, course.colours, np.unique(surface).tolist())
    reach = half + VERGE + 2
    distance, nearest = _distance_field(line, reach)
    image = artwork.ground()
    cell_of = artwork.enlarge(surface)
    kerb_colour = artwork.kerb_pattern()
    band = artwork.enlarge((cell_number * SPACING // 32) % 2)
    off_road_kind = np.isin(cell_of, (DIRT, DEEP_WATER, PIT, BOOST))
    artwork.paint_patches(image, surface)
    verge = (distance < reach * UNIT - 2 * UNIT) & (nearest >= 0) & ~off_road_kind
    image[verge] = artwork.COLOUR["verge"]
    kerb = (distance < half * UNIT) & (nearest >= 0)
    image[kerb] = kerb_colour[kerb]
    tarmac = (distance < (half - KERB) * UNIT) & (nearest >= 0)
    # There is no kerb where a short cut meets the road, so that drivers see it.
    for strip in short_cuts:
        _, square = _polyline_field(strip.points, TILE)
        mouth = artwork.enlarge(square < (strip.width * UNIT // 2 - 6 * UNIT) ** 2)
        tarmac |= mouth & kerb
    image[tarmac] = artwork.road_texture(band)[tarmac]
    line_mark = (distance < 2 * UNIT) & (nearest >= 0) & ((nearest * SPACING // 24) % 2 == 0)
    image[line_mark] = artwork.COLOUR["line"]
    for code, row, column, rows, columns in pads:
        quarter = int(direction[min(row // 2, 63), min(column // 2, 63)] + 32) // 64 % 4
        artwork.paint_pad(image, code, row, column, rows, columns, quarter)
    artwork.paint_start_line(image, start_cells)
    artwork.paint_walls(image, surface == WALL)

    tilemap, tiles, unique = reduce_tiles(image, artwork.merge_palette(course.colours))

    # --- rescue points and the grid ---------------------------------------------------------------------------------
    checkpoints = []
    for k in range(course.num_checkpoints):
        index = (2 * k + 1) * count // (2 * course.num_checkpoints)
        index = _plain_road_near(surface, line, index)
        x, y = (int(v) for v in line[index])
        checkpoints.append((x // 4, y // 4, _heading(tangent[index])))
    x = course.start[0] - int(forward[0]) * GRID_DISTANCE
    y = course.start[1] - int(forward[1]) * GRID_DISTANCE
    start = (x * 4, y * 4, _heading(tangent[0]))
    if surface[y // TILE, x // TILE] != ROAD or sector[y // 16, x // 16] != course.num_checkpoints - 1:
        raise ValueError(f"{course.name}: the grid slot is not on plain road in the last sector")
    return Track(
        course=course,
        line=line,
        tangent=tangent,
        length=length,
        surface=surface,
        sector=sector.astype(np.uint8),
        direction=direction.astype(np.uint8),
        escape=_escape_map(surface, cell_square < ((half - TILE) * UNIT) ** 2, tangent[cell_number]),
        image=image,
        tilemap=tilemap,
        tiles=tiles,
        checkpoints=checkpoints,
        start=start,
        unique_tiles=unique,
    )


def _escape_map(surface: np.ndarray, safe: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Return for each cell the direction of a path back to the road that avoids walls.

    A kart that hits a wall is turned in this direction, so it can leave each wall and each gap between walls.

    Args:
        surface: Surface codes, (128, 128).
        safe: Cells inside the road, away from its edges, bool (128, 128).
        tangent: Direction of the course at each cell, float (128, 128, 2).

    Returns:
        Directions in 1/256 turn, uint8 (128, 128).
    """
    wall = surface == WALL
    # Cells beside a wall, a pit or water have a high price, so the path keeps its distance.
    deadly = np.isin(surface, (DEEP_WATER, PIT))
    near = np.zeros_like(wall)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near |= np.roll(wall | deadly, (dy, dx), axis=(0, 1))
    price = np.where(deadly, 60, np.where(near, 12, 1)).tolist()
    blocked = wall.tolist()
    far = 1 << 30
    cost = [[far] * CELLS for _ in range(CELLS)]
    step_to: dict[tuple[int, int], tuple[int, int]] = {}
    queue = []
    for row, column in np.argwhere(safe).tolist():
        cost[row][column] = 0
        queue.append((0, row, column))
    heapq.heapify(queue)
    while queue:
        so_far, row, column = heapq.heappop(queue)
        if so_far > cost[row][column]:
            continue
        for dy, dx, length in NEIGHBOURS:
            y, x = row + dy, column + dx
            if not (0 <= y < CELLS and 0 <= x < CELLS) or blocked[y][x]:
                continue
            if dy and dx and (blocked[row][x] or blocked[y][column]):
                continue
            total = so_far + length * price[y][x]
            if total < cost[y][x]:
                cost[y][x] = total
                step_to[y, x] = (row, column)
                heapq.heappush(queue, (total, y, x))
    out = np.zeros((CELLS, CELLS), dtype=np.uint8)
    steps = 5
    for row in range(CELLS):
        for column in range(CELLS):
            y, x = row, column
            for done in range(steps + 1):
                if done == steps or (y, x) not in step_to:
                    break
                y, x = step_to[y, x]
            # The rest of the path is along the course.
            ahead = (steps - done) * tangent[y, x] if safe[y, x] else np.zeros(2)
            vector = np.array([x - column, y - row]) + ahead
            out[row, column] = _heading(vector if vector.any() else tangent[row, column], 256)
    return out


def _plain_road_near(surface: np.ndarray, line: np.ndarray, index: int) -> int:
    """Return the index of the nearest sample on plain road. A rescued kart must not be on a pad."""
    for away in range(len(line)):
        for candidate in ((index + away) % len(line), (index - away) % len(line)):
            x, y = line[candidate] // UNIT // TILE
            if surface[y, x] == ROAD:
                return candidate
    raise ValueError("the course has no plain road")


def _two_thick(walls: np.ndarray) -> np.ndarray:
    """Return the wall cells that belong to a complete square of 2 x 2 cells, without thinner parts.

    The game checks for walls at the four corners of the kart, which are 10 pixels apart. If the kart overlaps a square
    of 16 pixels, at least one corner is inside it. A single cell of 8 pixels fits between the corners.
    """
    square = walls[:-1, :-1] & walls[:-1, 1:] & walls[1:, :-1] & walls[1:, 1:]
    out = np.zeros_like(walls)
    for dy in (0, 1):
        for dx in (0, 1):
            out[dy : CELLS - 1 + dy, dx : CELLS - 1 + dx] |= square
    return out


def _any_of_four(cells: np.ndarray) -> np.ndarray:
    """Return for each 16-pixel cell whether any of its 8-pixel cells is set."""
    return cells.reshape(SECTOR_CELLS, 2, SECTOR_CELLS, 2).any(axis=(1, 3))


def _spread_between_mouths(number: np.ndarray, cells: np.ndarray, road: np.ndarray) -> None:
    """Interpolate the sample numbers of a short cut's cells between those of the road at both ends.

    Each cell gets the mean of its neighbours, many times (as in a heat equation); the road's cells do not change. The
    arithmetic uses fixed-point integers, so the result is the same on each machine. Changes ``number`` in place.
    """
    scale = 1 << 16
    held = cells | road
    value = number * scale
    weight = sum(np.roll(held, step, axis=axis).astype(np.int64) for axis in (0, 1) for step in (1, -1))
    inside = cells & (weight > 0)
    value[inside] = int(number[inside].mean()) * scale
    for _ in range(4000):
        kept = np.where(held, value, 0)
        total = sum(np.roll(kept, step, axis=axis) for axis in (0, 1) for step in (1, -1))
        value[inside] = total[inside] // weight[inside]
    number[cells] = value[cells] // scale


def _pairs(cells: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the (row, column) pairs, each int (n, 2), of set cells that are neighbours, for each of four directions."""
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.argwhere(cells)
        there = here + np.array((dy, dx))
        fits = (there >= 0).all(axis=1) & (there < SECTOR_CELLS).all(axis=1)
        here, there = here[fits], there[fits]
        both = cells[tuple(there.T)]
        yield here[both], there[both]


def _check_sectors(course: Course, sector: np.ndarray, on_course: np.ndarray, beside: np.ndarray) -> None:
    """Check that a kart on the course can't leave out a checkpoint.

    On the road and on short cuts, neighbouring cells must have the same or successive sectors. Beside the road, two
    parts of the course may meet, because such a jump does not count. But no sector may be missing in a bend.
    """
    n = course.num_checkpoints
    for cells, bad in ((on_course, range(2, n - 1)), (beside, (2, 3, n - 3, n - 2))):
        for here, there in _pairs(cells):
            jumps = np.isin((sector[tuple(there.T)] - sector[tuple(here.T)]) % n, list(bad))
            if jumps.any():
                (row, column), other = here[jumps][0], there[jumps][0]
                raise ValueError(
                    f"{course.name}: checkpoints jump from {sector[row, column]} to {sector[tuple(other)]} "
                    f"near ({column * SECTOR_CELL}, {row * SECTOR_CELL})"
                )
    missing = set(range(n)) - set(np.unique(sector).tolist())
    if missing:
        raise ValueError(f"{course.name}: checkpoints {sorted(missing)} have no cell")


def reduce_tiles(image: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Divide an image into 8 x 8 tiles, and merge similar ones until 256 are left.

    The algorithm is greedy: it repeatedly replaces one tile by the most similar one. It selects the tile for which the
    difference, multiplied by the number of uses, is smallest. It is deterministic: it uses integer arithmetic, and the
    lowest number wins a tie.

    Args:
        image: Palette indices, uint8 (1024, 1024).
        palette: The course's colours, int64 (256, 3).

    Returns:
        Tile number of each cell, uint8 (128, 128); tiles, uint8 (256, 8, 8); number of different tiles before merging.
        Tile 0 has only the ``outer`` colour. The hardware repeats it outside the world.
    """
    blocks = image.reshape(CELLS, TILE, CELLS, TILE).swapaxes(1, 2).reshape(-1, TILE * TILE)
    unique, inverse, counts = np.unique(blocks, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    outer = np.full((1, TILE * TILE), artwork.COLOUR["outer"], dtype=np.uint8)
    unique = np.concatenate([outer, unique])
    counts = np.concatenate([[1 << 40], counts]).astype(np.int64)
    inverse = inverse + 1
    size = len(unique)
    # Small objects that are important for a driver have rare tiles. They get a higher number of uses.
    important = [artwork.COLOUR[name] for name in ("oil", "oil_sheen", "boost", "boost_mark", "black")]
    counts += 60 * np.isin(unique, important).any(axis=1)

    # Squared colour distances, computed with dot products. float64 represents these integers exactly.
    features = (palette[unique] * COLOUR_WEIGHTS).reshape(size, -1).astype(np.float64)
    norms = (features**2).sum(axis=1)
    difference = norms[:, None] + norms[None, :] - 2.0 * (features @ features.T)
    infinite = np.inf
    np.fill_diagonal(difference, infinite)
    alive = np.ones(size, dtype=bool)
    neighbour = difference.argmin(axis=1)
    cost = difference[np.arange(size), neighbour]
    working = difference.copy()
    for _ in range(max(0, size - MAX_TILES)):
        loss = np.where(alive, cost * counts, infinite)
        loser = int(loss.argmin())
        counts[neighbour[loser]] += counts[loser]
        alive[loser] = False
        working[:, loser] = infinite
        for orphan in np.flatnonzero(alive & (neighbour == loser)):
            neighbour[orphan] = working[orphan].argmin()
            cost[orphan] = working[orphan, neighbour[orphan]]
    kept = np.flatnonzero(alive)
    np.fill_diagonal(difference, 0.0)
    number = difference[:, kept].argmin(axis=1)
    tiles = np.zeros((MAX_TILES, TILE, TILE), dtype=np.uint8)
    tiles[: len(kept)] = unique[kept].reshape(-1, TILE, TILE)
    return number[inverse].reshape(CELLS, CELLS).astype(np.uint8), tiles, size - 1
