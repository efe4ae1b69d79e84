"""Finds out where a snes9x core keeps the variables that ``kart_rewards.env.core.Drawing`` uses.

    python -m pip install lief capstone
    python -m pip download --no-deps --only-binary=:all: --platform macosx_14_0_arm64 stable-retro==1.0.1
    python scripts/drawing_offsets.py stable_retro-1.0.1-*.whl

The arguments are wheels of stable-retro, or files of cores: ELF or Mach-O, for x86-64 or arm64. For each core, this
script prints a line of ``KNOWN_CORES``. It reads the positions of the structures from the core's symbols. It checks the
offsets in ``STRUCTURE_FIELDS`` by disassembling two functions of the core: they must use these fields of these
structures. It runs no core.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import capstone
import lief

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kart_rewards.env.core import STRUCTURE_FIELDS, Structures

USERS = {
    "RenderLine(unsigned char)": ("IPPU.RenderThisFrame", "PPU.RangeTimeOver"),
    "S9xStartScreenRefresh()": (
        "IPPU.RenderThisFrame", "IPPU.Interlace", "IPPU.TotalEmulatedFrames", "GFX.DoInterlace",
    ),
}  # fmt: skip
"""Function -> fields that it uses, according to snes9x's gfx.cpp."""
NEXT_BYTES = ("IPPU.Interlace", "GFX.DoInterlace")
"""Fields after which another one follows: IPPU.InterlaceOBJ, GFX.InterlaceFrame. S9xStartScreenRefresh uses them."""
STRUCTURES = tuple(name.upper() for name in Structures._fields)
MANGLED = {"RenderLine(unsigned char)": "_Z10RenderLineh", "S9xStartScreenRefresh()": "_Z21S9xStartScreenRefreshv"}


class Core:
    """A core: its symbols and its machine code.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.binary: Any = lief.parse(str(path))
        self.is_elf = isinstance(self.binary, lief.ELF.Binary)
        prefix = "" if self.is_elf else "_"
        symbols = self.binary.symbols
        self.symbols = {str(each.name).removeprefix(prefix): int(each.value) for each in symbols if each.value}
        machine = str(self.binary.header.machine_type if self.is_elf else self.binary.header.cpu_type)
        self.is_arm = "ARM64" in machine or "AARCH64" in machine
        self.pointers: dict[int, int] = {}  # address of a pointer that the loader fills in -> what it points to
        for each in () if self.is_elf else self.binary.relocations:
            content = bytes(self.binary.get_content_from_virtual_address(each.address, 8))
            self.pointers[int(each.address)] = int.from_bytes(content, "little")

    def instructions(self, function: str) -> Iterator[Any]:
        """Yields the instructions of a function, up to the beginning of the next one."""
        begin = self.symbols[MANGLED[function]]
        end = min(value for value in self.symbols.values() if value > begin)
        code = bytes(self.binary.get_content_from_virtual_address(begin, end - begin))
        arm, x86 = (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM), (capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        disassembler = capstone.Cs(*(arm if self.is_arm else x86))
        disassembler.detail = True
        yield from disassembler.disasm(code, begin)

    def used_addresses(self, function: str) -> set[int]:
        """Returns the addresses of the variables that a function reads or writes, as far as they are constant."""
        known: dict[str, int] = {}  # register -> its value
        used = set()
        for each in self.instructions(function):
            operands = each.operands
            address, memory = None, next((one.mem for one in operands if one.type == capstone.CS_OP_MEM), None)
            if memory is not None:
                base, index = each.reg_name(memory.base) or "", each.reg_name(memory.index) or ""
                if base == "rip":
                    address = each.address + each.size + memory.disp
                elif base in known and (not index or index in known):
                    address = known[base] + known.get(index, 0) + memory.disp
            if address is not None and each.mnemonic != "lea":
                used.add(address)
            target = each.reg_name(operands[0].reg) if operands and operands[0].type == capstone.CS_OP_REG else ""
            value = self._result(each, address, known)
            if each.mnemonic != "pop":  # which ends a branch
                for register in each.regs_access()[1]:
                    known.pop(self._wide(each.reg_name(register)), None)
            if value is not None and target:
                known[self._wide(target)] = value
        return used

    def _wide(self, register: str) -> str:
        return "x" + register[1:] if self.is_arm and register[:1] == "w" else register

    def _result(self, each: Any, address: int | None, known: dict[str, int]) -> int | None:
        """Returns the value that an instruction gives its first operand, if it is constant."""
        if each.mnemonic == "lea":
            return address
        if each.mnemonic in ("mov", "ldr") and address in self.pointers:
            return self.pointers[address]
        if self.is_arm and each.mnemonic in ("adrp", "mov", "movz") and each.operands[-1].type == capstone.CS_OP_IMM:
            return int(each.operands[-1].imm)
        if self.is_arm and each.mnemonic == "add" and each.operands[-1].type == capstone.CS_OP_IMM:
            base = known.get(each.reg_name(each.operands[1].reg))
            return None if base is None else base + int(each.operands[2].imm)
        return None


def examine(path: Path) -> str:
    """Returns the line of a core. Raises ValueError if the core does not use the fields of ``STRUCTURE_FIELDS``."""
    core = Core(path)
    missing = {"retro_run", *STRUCTURES, *MANGLED.values()} - core.symbols.keys()
    if missing:
        raise ValueError(f"{path.name}: has no symbols {', '.join(sorted(missing))}")
    for function, fields in USERS.items():
        used = core.used_addresses(function)
        for field in fields:
            begin = core.symbols[field.partition(".")[0]] + STRUCTURE_FIELDS[field]
            for address in (begin, begin + 1) if field in NEXT_BYTES else (begin,):
                if address not in used:
                    raise ValueError(f"{path.name}: {function} does not use {field} at {address:#x}")
    distances = (core.symbols[name] - core.symbols["retro_run"] for name in STRUCTURES)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f'"{digest}": Structures({", ".join(f"0x{distance:X}" for distance in distances)}),'


def main() -> int:
    """Prints the line of each core. Returns 1 if one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a wheel of stable-retro, or a core")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(parser.parse_args().files):
            core = file
            if file.suffix == ".whl":
                with zipfile.ZipFile(file) as wheel:
                    [name] = (each for each in wheel.namelist() if "snes9x_libretro." in each)
                    core = Path(wheel.extract(name, Path(folder) / str(number)))
            try:
                print(f"{examine(core)}  # {file.name}")
            except ValueError as error:
                print(f"{file.name}: {error}", file=sys.stderr)
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
