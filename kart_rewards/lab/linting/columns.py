"""Variables that are read in the wrong way, by their recorded values.

* ``fault_of`` - what looks wrong with the type or the address of a variable

The values of a game change in small steps. Read with the wrong type, they jump where a byte overflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kart_rewards.ram import Variable

_FEWEST = 4  # events that are no coincidence
_SMOOTHER = 4  # times; by how much the right type is smoother than the wrong one


def fault_of(
    variable: Variable, columns: Sequence[np.ndarray], raw: Sequence[np.ndarray] = ()
) -> tuple[str, int, int] | None:
    """Returns what looks wrong with the type of a variable, and where: the index of the column and the frame.

    Args:
        variable: The variable, a single value of at most four bytes without a mask. Others are not examined.
        columns: Its values in several drives, each int64, shape (frames,).
        raw: Its bytes in memory in some drives, from the byte before it to the byte behind it: uint8, shape
            (frames, width + 2).

    Returns:
        The fault, the index of a column and a frame on which it shows; None if nothing looks wrong.
    """
    if variable.count is not None or variable.mask is not None or variable.width > 4:
        return None
    representation = variable.type[-2]
    if representation in "dn":
        return _not_decimal(variable, columns, raw)
    for check in (_decimal, _unsigned, _signed, _swapped, _wide):
        found = check(variable, columns)
        if found:
            return found
    return _narrow(variable, columns, raw)


def _first(columns: Sequence[np.ndarray], where: Sequence[np.ndarray]) -> tuple[int, int]:
    """Returns the index of the first column with a mark, and the frame of the mark."""
    index = next(i for i, marks in enumerate(where) if marks.any())
    return index, int(np.flatnonzero(where[index])[0])


def _not_decimal(
    variable: Variable, columns: Sequence[np.ndarray], raw: Sequence[np.ndarray]
) -> tuple[str, int, int] | None:
    """BCD whose digits are above 9."""
    if not raw or not len(columns):
        return None
    own = [table[:, 1:-1] for table in raw]
    bad = [((table & 0xF) > 9) | ((table >> 4 > 9) if variable.type[-2] == "d" else False) for table in own]
    if sum(int(marks.any(axis=1).sum()) for marks in bad) < _FEWEST:
        return None
    value = next(int(table[marks][0]) for table, marks in zip(own, bad, strict=True) if marks.any())
    return f"has the type {variable.type}, decimal digits, but a byte of it is 0x{value:02X}: it is binary", 0, 0


def _decimal(variable: Variable, columns: Sequence[np.ndarray]) -> tuple[str, int, int] | None:
    """A binary number all of whose nibbles are decimal digits, also above 0x0F: it counts 9, 16, 17."""
    values = np.unique(np.concatenate(columns))
    high = values[values >= 0x10]
    if (values < 0).any() or len(high) < 15:
        return None
    digits = high[:, None] >> (4 * np.arange(2 * variable.width)) & 0xF
    if (digits > 9).any():
        return None
    jumps = [
        np.flatnonzero((np.diff(column) >= 7) & (column[1:] & 0xF <= 3) & (column[:-1] & 0xF >= 6))
        for column in columns
    ]
    index = next((i for i, each in enumerate(jumps) if len(each)), None)
    if index is None:
        return None
    frame = int(jumps[index][0]) + 1
    before, after = columns[index][frame - 1], columns[index][frame]
    kept = variable.type.replace("u", "d").replace("i", "d").replace("s", "d")
    return (
        f"has the type {variable.type}, but looks like decimal digits (BCD): none of its {len(values)} values has a "
        f"hexadecimal digit above 9, and it counts from 0x{before:02X} to 0x{after:02X}. Its type is probably {kept}",
        index,
        frame,
    )


def _span(variable: Variable) -> int:
    return 1 << 8 * variable.width


def _steps(columns: Sequence[np.ndarray], span: int) -> list[np.ndarray]:
    """Returns the changes from frame to frame, the shorter way around."""
    return [(np.diff(column) + span // 2) % span - span // 2 for column in columns]


def _unsigned(variable: Variable, columns: Sequence[np.ndarray]) -> tuple[str, int, int] | None:
    """A signed number that is read as unsigned: it passes 0 downwards, and is never in the middle of its range."""
    if variable.type[-2] != "u":
        return None
    span = _span(variable)
    everything = np.concatenate(columns)
    in_the_middle = (everything > 0.3 * span) & (everything < 0.7 * span)
    down = [
        (np.diff(column) > span // 2) & (step < 0) for column, step in zip(columns, _steps(columns, span), strict=True)
    ]
    if in_the_middle.any() or not any(marks.any() for marks in down):
        return None
    index, frame = _first(columns, down)
    before, after = columns[index][frame], columns[index][frame + 1]
    return (
        f"has the type {variable.type}, but falls from {before:,} to {after:,} and is never between "
        f"{int(0.3 * span):,} and "
        f"{int(0.7 * span):,}: it looks signed. Its type is probably {variable.type.replace('u', 's')}",
        index,
        frame + 1,
    )


def _signed(variable: Variable, columns: Sequence[np.ndarray]) -> tuple[str, int, int] | None:
    """An unsigned number that is read as signed: it passes from its highest to its lowest value, but not 0."""
    if variable.type[-2] not in "is":
        return None
    span = _span(variable)
    around = [np.abs(np.diff(column)) > span // 2 for column in columns]
    near = span // 4
    through_zero = any(
        ((column[:-1] < 0) & (column[1:] >= 0) & (np.abs(column[:-1]) < near) & (column[1:] < near)).any()
        for column in columns
    )
    if through_zero or not any(marks.any() for marks in around):
        return None
    index, frame = _first(columns, around)
    before, after = columns[index][frame], columns[index][frame + 1]
    kept = variable.type.replace("i", "u").replace("s", "u")
    return (
        f"has the type {variable.type}, but jumps by {span:,} from {before:,} to {after:,}, and never passes 0: it "
        f"looks unsigned. Its type is probably {kept}",
        index,
        frame + 1,
    )


def _roughness(columns: Sequence[np.ndarray], span: int) -> float:
    return float(np.concatenate([np.abs(step) for step in _steps(columns, span)]).sum())


def _swapped(variable: Variable, columns: Sequence[np.ndarray]) -> tuple[str, int, int] | None:
    """Bytes in the wrong order: the byte that is read as the low one changes slowly, and the high one fast."""
    if variable.width < 2 or variable.type[:-2] in ("><", ">=", "<>"):
        return None
    width, span = variable.width, _span(variable)
    others = []
    for column in columns:
        table = column[:, None] >> (8 * np.arange(width)) & 0xFF
        others.append((table * (1 << 8 * np.arange(width)[::-1])).sum(axis=1))
    low, high = ([each >> shift & 0xFF for each in columns] for shift in (0, 8 * (width - 1)))
    changes_low, changes_high = (sum(int(np.count_nonzero(np.diff(each))) for each in part) for part in (low, high))
    is_rare = changes_high >= _FEWEST and not any(each.any() for each in low)  # as a lap count that is read so
    if not is_rare and (changes_high < 20 or changes_high <= 2 * changes_low):
        return None
    if _roughness(others, span) * _SMOOTHER > _roughness(columns, span):
        return None
    index, frame = _first(columns, [np.diff(each) != 0 for each in high])
    big = variable.type.startswith(">")
    kept = ("<" if big else ">") + variable.type[-2:]
    return (
        f"has the type {variable.type}, but its high byte changes {changes_high:,} times and its low byte "
        f"{changes_low:,} times: the bytes look swapped. Its type is probably {kept}",
        index,
        frame + 1,
    )


def _wide(variable: Variable, columns: Sequence[np.ndarray]) -> tuple[str, int, int] | None:
    """Two numbers that are read as one: the high byte never changes by a carry."""
    if variable.width != 2 or variable.type[:-2] in ("><", ">=", "<>"):
        return None
    high = [np.diff(column >> 8) != 0 for column in columns]
    steps = [np.abs(step) for step in _steps(columns, _span(variable))]
    jumps = np.concatenate([step[marks] for step, marks in zip(steps, high, strict=True)])
    others = np.concatenate([step[~marks & (step != 0)] for step, marks in zip(steps, high, strict=True)])
    if len(jumps) < _FEWEST or len(others) < 20 or jumps.min() < 100 or others.max() > 64:
        return None
    index, frame = _first(columns, high)
    before, after = columns[index][frame], columns[index][frame + 1]
    return (
        f"has the type {variable.type}, but its high byte never changes by a carry (from {before:,} to {after:,}): it "
        f"looks like two variables of one byte. Its type is probably |{variable.type[-2]}1",
        index,
        frame + 1,
    )


def _narrow(
    variable: Variable, columns: Sequence[np.ndarray], raw: Sequence[np.ndarray]
) -> tuple[str, int, int] | None:
    """A number of which only the low bytes are read: the next byte counts how often it overflows."""
    span, width = _span(variable), variable.width
    big = variable.type.startswith(">")
    together = alone = 0
    for table in raw:
        table = table.astype(np.int64)
        own = table[:, 1:-1][:, ::-1] if big else table[:, 1:-1]
        values = (own * (1 << 8 * np.arange(width))).sum(axis=1)
        carry = np.diff(values)
        step = (carry + span // 2) % span - span // 2
        carry = (carry < -span // 2).astype(int) - (carry > span // 2)
        small = np.abs(step) <= span // 4
        neighbour = (np.diff(table[:, 0] if big else table[:, -1]) + 128) % 256 - 128
        together += int(np.count_nonzero(small & (carry != 0) & (carry == neighbour)))
        alone += int(np.count_nonzero(small & ((carry != 0) != (neighbour != 0))))
    if together < _FEWEST or alone * 5 > together:
        return None
    kept = f"{'>' if big else '<'}{variable.type[-2]}{2 * width}"
    address = f", from the address {variable.address - width}" if big else ""
    return (
        f"has the type {variable.type}, but the byte {'before' if big else 'behind'} it changes by one each time that "
        f"it overflows ({together} times): it has more bytes. Its type is probably {kept}{address}",
        0,
        0,
    )
