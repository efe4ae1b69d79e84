"""Imports of rewards files: each file sees the files beside it, and no other code does.

* ``import_source`` - imports a ``.py`` file by path, or a module by its dotted name
* ``load_function`` - imports a function or class by its name on a command line
* ``source_files`` - the files that ``import_source`` has loaded in this process
* ``is_loaded`` - whether ``import_source`` has loaded a module
* ``neighbours_in`` - the neighbours that a function imports when it is called
* ``describe`` - an exception with its file and line, for error messages

A rewards file and its neighbours (the modules and packages in its folder) form a group. Inside a group, a neighbour
comes before an installed module of the same name. Its name in ``sys.modules`` is private, so that two folders can each
have a ``utils.py``, and a neighbour ``random.py`` does not replace the standard module for other code.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.util
import io
import linecache
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.files import copies_in_use, copy_of, read_file

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""The folders of the standard library and of installed packages."""

_PACKAGE = str(Path(__file__).parent) + os.sep

_groups: dict[Path, _Group] = {}
_files: dict[Path, None] = {}  # in the order of loading
_module_names: set[str] = set()


def source_files() -> list[Path]:
    """Returns the files that ``import_source`` has loaded in this process: rewards files and their neighbours."""
    return list(_files)


def is_loaded(module_name: str) -> bool:
    """Whether ``import_source`` has loaded the module with this name in ``sys.modules``."""
    return module_name in _module_names


def neighbours_in(tree: ast.AST, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the neighbours that a function imports in its body, before the function is called.

    Args:
        tree: The syntax tree of the function.
        variables: The function's globals.

    Returns:
        Name in the function -> module, function or other imported value. Installed modules are left out.
    """
    own = variables.get("__builtins__")
    importing = own.get("__import__") if isinstance(own, dict) else None
    if not isinstance(importing, partial) or not isinstance(getattr(importing.func, "__self__", None), _Group):
        return {}
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    module = importing(alias.name, fromlist=("*",) if alias.asname else ())
                    found[alias.asname or module.__spec__.name] = module
            elif isinstance(node, ast.ImportFrom):
                module = importing(node.module or "", fromlist=[item.name for item in node.names], level=node.level)
                found |= {item.asname or item.name: getattr(module, item.name) for item in node.names}
        except Exception:  # noqa: S112 - the function itself may catch it
            continue
    return {name: value for name, value in found.items() if is_loaded(_module_of(value))}


def _module_of(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))


def import_source(source: str | Path) -> ModuleType:
    """Imports a ``.py`` file by path, or a module by its dotted name.

    A file runs once per process. It runs again only after a change of its text, or of a neighbour's text.

    Args:
        source: A path that ends in ``.py``, or the dotted name of an importable module.

    Raises:
        KartRewardsError: The file or module does not exist, it is not Python, or its import fails.
    """
    path = Path(source)
    original = path.resolve() if path.suffix == ".py" else _copied_module(str(source))
    try:
        return _import_named(str(source)) if original is None else _import_file(original, source)
    except KartRewardsError:
        raise
    except (Exception, SystemExit) as error:
        # A missing module needs no name of its exception: "No module named 'x'" says it.
        what = describe(error).removeprefix("raised ModuleNotFoundError: ")
        if original and isinstance(error, ModuleNotFoundError) and _is_file(original.with_name(f"{error.name}.py")):
            what += f"\n  {error.name}.py lies beside it: write `import {error.name}`; importlib does not find it"
        raise KartRewardsError(f"{source}: fails to import: {'it ' * what.startswith('raised')}{what}") from error


def load_function(name: str, what: str = "function", importable: bool = False) -> Callable[..., Any]:
    """Imports a function or class by its name on a command line.

    Args:
        name: ``MODULE:NAME`` or ``FILE.py:NAME``. Modules are also looked for in the current folder.
        what: What it is, for messages.
        importable: Whether other processes must be able to unpickle objects of a file. Then the file is imported as
            ``import`` does it, by its plain name, and its folder becomes part of ``sys.path``.

    Raises:
        KartRewardsError: The module or function does not exist, or the module fails to import.

    Example:
        >>> load_function("kart_rewards.errors:counted")(2, "frame")
        '2 frames'
    """
    source, _, attribute = name.rpartition(":")
    if not (source and attribute):
        raise KartRewardsError(f"{name!r}: is not the name of a {what}: write MODULE:NAME or FILE.py:NAME")
    is_plain = importable and source.endswith(".py")
    module = _import_plainly(Path(source).resolve(), source) if is_plain else import_source(source)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise KartRewardsError(f"{source}: has no function or class {attribute!r}.{did_you_mean(attribute, known)}")
    return function


def _import_plainly(path: Path, source: str) -> ModuleType:
    """Imports a file by the plain name of its module. ``source`` is the user's name for it."""
    if not path.is_file():
        raise _no_such_file(path, source)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = import_source(path.stem)
    if Path(module.__file__ or "").resolve() != path:
        raise KartRewardsError(
            f"{source}: another module has the same name, {path.stem!r} ({module.__file__}): rename the file"
        )
    return module


def _no_such_file(path: Path, source: str | Path) -> KartRewardsError:
    given = "" if str(source) == str(path) else f" (given as {str(source)!r})"
    hint = did_you_mean(path.stem, [file.stem for file in path.parent.glob("*.py")], ".py")
    return KartRewardsError(f"{path}: no such file{given}.{hint}")


def describe(error: BaseException) -> str:
    """Returns ``raised TYPE: MESSAGE``, with the user's file and line: those of the last frame outside libraries."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        line = f":{error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        return f"raised {type(error).__name__}: {error.msg}\n  at {error.filename}{line}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_users(frame.filename)]
    frame = (own or frames)[-1]
    return f"raised {type(error).__name__}: {error}\n  at {frame.filename}:{frame.lineno}: {frame.line}"


def _is_users(file: str) -> bool:
    return Path(file) in _files or not file.startswith((*LIBRARIES, _PACKAGE, "<"))


def _import_file(path: Path, source: str | Path) -> ModuleType:
    """Imports a file by its absolute path. ``source`` is the user's name for it."""
    try:
        read_file(path)
    except FileNotFoundError:
        raise _no_such_file(path, source) from None
    except OSError as error:
        raise KartRewardsError(f"{path}: can't be read: {error.strerror}") from None
    group = _groups.get(path.parent)
    if group is None or group.is_stale():
        group = _groups[path.parent] = _Group(path.parent)
    return group.load(path, path.stem)


def _import_named(name: str) -> ModuleType:
    path = Path(name)
    if path.is_file():
        raise KartRewardsError(f"{name}: is not a Python file: the name of a rewards file must end in .py")
    if not all(part.isidentifier() for part in name.split(".")):
        hint = f" Did you mean {name + '.py'!r}?" if Path(name + ".py").is_file() else ""
        raise KartRewardsError(
            f"{name!r}: is neither a Python file (its name must end in .py) nor the dotted name of a module.{hint}"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    before = set(sys.modules)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise KartRewardsError(f"{name}: no such module; a file's name must end in .py") from None
    for loaded in (module, *(sys.modules[new] for new in set(sys.modules) - before)):
        file = getattr(loaded, "__file__", None)
        if file and not str(file).startswith((*LIBRARIES, _PACKAGE)):
            _files[Path(file)] = None
            _module_names.add(loaded.__name__)
    return module


def _copied_module(name: str) -> Path | None:
    """Returns the file of a module by its dotted name, if a copy of it is in use."""
    ends = tuple(os.sep + name.replace(".", os.sep) + end for end in (".py", os.sep + "__init__.py"))
    return next((path for path in copies_in_use() if str(path).endswith(ends)), None)


def _is_file(path: Path) -> bool:
    return copy_of(path).is_file()


class _Group:
    """The modules of one folder. If a text changes, the next import of a rewards file makes a new group.

    Args:
        root: The folder in which absolute imports look first.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.texts: dict[Path, bytes] = {}
        self.modules: dict[Path, ModuleType] = {}

    def is_stale(self) -> bool:
        """Whether the text of one of the group's files has changed, or the file is gone."""
        try:
            return any(read_file(path) != text for path, text in self.texts.items())
        except OSError:
            return True

    def load(self, path: Path, name: str, parent: ModuleType | None = None) -> ModuleType:
        """Returns the module of a file, or of a folder without ``__init__.py``. It is executed once.

        Args:
            path: The file or folder.
            name: The name in import statements, such as ``package.module``.
            parent: The package that holds the module.
        """
        if path in self.modules:
            return self.modules[path]
        is_code = path.suffix == ".py"
        text = read_file(path) if is_code else b""
        if parent:
            private = f"{parent.__name__}.{name.rpartition('.')[2]}"
        else:
            private = f"{name}_{hashlib.sha256(bytes(path) + text).hexdigest()[:8]}"
            while private in sys.modules:  # an older version that differs in a neighbour
                private += "_"
        module = ModuleType(private)
        module.__spec__ = ModuleSpec(name, None, origin=str(path))
        if is_code:
            module.__file__ = str(path)
        if not is_code or path.name == "__init__.py":
            module.__path__ = [str(path.parent if is_code else path)]
        importing = partial(self._import, path.parent if is_code else path)
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": importing}
        # Before it runs, like `import`: dataclasses and pickle look up their module, and imports can be circular.
        self.modules[path] = sys.modules[private] = module
        _module_names.add(private)
        if is_code:
            try:
                _execute(path, text, module)
            except BaseException:
                del self.modules[path], sys.modules[private]
                raise
            self.texts[path] = text
            _files[path] = None
        return module

    def _import(
        self,
        folder: Path,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Replaces ``builtins.__import__`` in the group's modules.

        Args:
            folder: The folder of the importing module.
            name, globals, locals, fromlist, level: See ``builtins.__import__``.
        """
        parts = tuple(name.split(".")) if name else ()
        if level:
            for _ in range(level - 1):
                folder = folder.parent
            if folder != self.root and self.root not in folder.parents:
                raise ImportError(f"a relative import goes beyond the folder of the rewards file, {self.root}")
            parts = folder.relative_to(self.root).parts + parts
        elif parts[0] == __package__ or not (found := self._find(parts[:1])) or not _is_needed(found, parts[0]):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        chain = self._load_all(parts)
        last: Any = chain[-1] if chain else SimpleNamespace()  # `from . import x` in the root folder
        for attribute in fromlist or ():
            for wanted in getattr(last, "__all__", ()) if attribute == "*" else (attribute,):
                if not hasattr(last, wanted) and self._find((*parts, wanted)):
                    setattr(last, wanted, self._load_all((*parts, wanted))[-1])
        return last if fromlist else chain[0]

    def _load_all(self, parts: tuple[str, ...]) -> list[ModuleType]:
        """Loads a module and the packages that hold it, from the outside in."""
        chain: list[ModuleType] = []
        for i in range(len(parts)):
            name = ".".join(parts[: i + 1])
            path = self._find(parts[: i + 1])
            if path is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            parent = chain[-1] if chain else None
            chain.append(self.load(path, name, parent))
            if parent:
                setattr(parent, parts[i], chain[-1])
        return chain

    def _find(self, parts: tuple[str, ...]) -> Path | None:
        folder = self.root.joinpath(*parts)
        for path in (folder / "__init__.py", folder.with_name(folder.name + ".py")):
            if _is_file(path):
                return path
        has_code = any(folder in path.parents for path in copies_in_use()) or any(folder.glob("*.py"))
        return folder if has_code else None


def _is_needed(path: Path, name: str) -> bool:
    """Whether a neighbour comes before an installed module: any file does, but not a mere folder."""
    return path.suffix == ".py" or (name not in sys.modules and importlib.util.find_spec(name) is None)


def _execute(path: Path, text: bytes, module: ModuleType) -> None:
    try:
        code = compile(text, path, "exec", dont_inherit=True)
        lines = io.StringIO(importlib.util.decode_source(text)).readlines()  # splitlines would also split at ^L
    except SyntaxError as error:
        error.filename = error.filename or str(path)
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise KartRewardsError(f"{path}: is not Python: {error or type(error).__name__}") from None
    # Tracebacks and `inspect` show the text that runs, whatever happens to the file. No time: it never expires.
    linecache.cache[str(path)] = (len(text), None, lines, str(path))
    exec(code, vars(module))  # noqa: S102 - `import` could use an old .pyc
