"""Scripts: the common part of reward terms and done rules.

* ``Script`` - a named function or class, with its source
* ``ScriptCalls`` - calls a list of scripts on each frame of one episode; saves and restores their memory
* ``mark``, ``script_of``, ``as_script``, ``name_of`` - the scripts of functions and classes
* ``marked_scripts``, ``import_source``, ``unique_by_name`` - the scripts of files and modules
* ``to_plain``, ``from_plain`` - values in a form that any file format can store

A script is a function that takes the frame's snapshot, or a class whose instances are such functions. A class has a
memory: each episode has its own instance. A script may take a second argument, the snapshot of the previous frame. On
an episode's first frame, both arguments are the same snapshot.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from kart_rewards.errors import KartRewardsError
from kart_rewards.fingerprint import NO_SOURCE, file_fingerprint, fingerprint
from kart_rewards.ram import RamLayout, RamSnapshot, snapshot_class

SomeScript = TypeVar("SomeScript", bound="Script")


@dataclass(frozen=True)
class Script:
    """A reward term or a done rule.

    Args:
        name: The name in scenarios, on the command line and in TensorBoard. It must be a valid Python name without a
            leading underscore.
        definition: The function or class.

    Attributes:
        where: File and line of the definition.
        file_fingerprint: A hash of the file's text, by which checkpoints of version 0.1 compare.

    Raises:
        KartRewardsError: The name is not valid, or the definition does not take one or two snapshots.
    """

    name: str
    definition: Callable[..., Any]
    where: str = field(init=False, compare=False)
    file_fingerprint: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Computed now and not on access: the file may change while the run continues with the old code.
        object.__setattr__(self, "where", _where(self.definition))
        object.__setattr__(self, "file_fingerprint", file_fingerprint(self.definition))
        if not self.name.isidentifier() or self.name.startswith("_"):
            raise KartRewardsError(
                f"{self.where}: {self.name!r} can't be a script's name: mark it with name='…', a valid Python name "
                "without a leading underscore"
            )
        callable_instances = not self.is_class or any(
            "__call__" in vars(base) for base in inspect.getmro(cast(type, self.definition))
        )
        if not callable_instances or not 1 <= len(self._arguments()) <= 2:
            raise KartRewardsError(
                f"{self.where}: {self.name!r} must take the RAM snapshot, and may take the previous one: "
                f"def {'__call__(self, ' if self.is_class else self.name + '('}ram[, previous])"
            )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the code that decides the script's values; see ``kart_rewards.fingerprint``.

        A resumed run compares it with the checkpoint's. It is computed on the first access, because a decorator runs
        before the rest of its file: functions that the script calls may not exist yet. ``Scoring`` accesses it at once.
        """
        return fingerprint(self.definition)

    @property
    def is_class(self) -> bool:
        """Whether the script is a class, which has a memory."""
        return inspect.isclass(self.definition)

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(self.definition, "__call__") if self.is_class else self.definition  # noqa: B004, B009

    def _arguments(self) -> list[str]:
        """The names of the required positional arguments. Arguments with a default are not for the snapshots."""
        try:
            parameters = list(inspect.signature(self._function).parameters.values())[1 if self.is_class else 0 :]
        except (TypeError, ValueError):  # built-in functions may have no signature
            return []
        if any(item.kind is item.KEYWORD_ONLY and item.default is item.empty for item in parameters):
            return []
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [item.name for item in parameters if item.kind in positional and item.default is item.empty]

    @property
    def wants_previous(self) -> bool:
        """Whether the script also takes the snapshot of the previous frame."""
        return len(self._arguments()) == 2

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.definition) or "").partition("\n")[0]

    def reads(self) -> set[str]:
        """Returns the names of the RAM variables that the source code reads, including in helper functions."""
        return _attributes_read(self._function, self._arguments(), set())

    def check_reads(self, layout: RamLayout) -> None:
        """Checks that the layout has all variables that the script reads.

        Raises:
            KartRewardsError: The game's ``data.json`` does not define one of them.
        """
        for name in sorted(self.reads() - set(dir(layout.snapshot_class))):
            raise KartRewardsError(
                f"{self.name!r} ({self.where}) reads {name!r}, which {layout.source} does not define; "
                f"it defines {', '.join(layout.names)}. Add the variable to that file, or leave {self.name!r} out"
            )


def _where(definition: Callable[..., Any]) -> str:
    try:
        return f"{inspect.getsourcefile(definition)}:{inspect.getsourcelines(definition)[1]}"
    except NO_SOURCE:
        return "defined interactively"


def name_of(definition: Any) -> str:
    """Returns the default name of a script: ``top_speed``, and ``left_the_road`` for the class ``LeftTheRoad``."""
    return snake_case(getattr(definition, "__name__", type(definition).__name__))


def _attributes_read(function: Callable[..., Any], arguments: list[str], seen: set[Any]) -> set[str]:
    """Returns the attributes of the arguments that a function reads, itself or in helper functions.

    Args:
        function: The function.
        arguments: The names of those of its arguments that are snapshots.
        seen: The functions that were searched before; this function is added.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except NO_SOURCE:
        return set()
    seen.add(function)
    read = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in arguments:
            read.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            helper = getattr(function, "__globals__", {}).get(node.func.id)
            if inspect.isfunction(helper) and helper not in seen:
                passed = zip(inspect.signature(helper).parameters, node.args, strict=False)
                snapshots = [name for name, value in passed if isinstance(value, ast.Name) and value.id in arguments]
                read |= _attributes_read(helper, snapshots, seen)
    return read


class ScriptCalls:
    """Calls a list of scripts on each frame of one episode.

    Args:
        scripts: The scripts, in the order of the list that ``values`` returns. Each class is instantiated.

    Attributes:
        previous: The snapshot of the previous frame; None before the first frame.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts = scripts
        self.previous: Any = None
        self._instances = [self._instance(script) for script in scripts]
        self._calls = [self._call(*pair) for pair in zip(scripts, self._instances, strict=True)]

    def _instance(self, script: Script) -> Callable[..., Any]:
        try:
            return script.definition() if script.is_class else script.definition
        except Exception as error:
            raise KartRewardsError(f"{script.name!r} ({script.where}) can't be instantiated: {error!r}") from error

    def _call(self, script: Script, instance: Any) -> Callable[[Any], Any]:
        call = instance.__call__ if script.is_class else instance  # a bound method is faster than an instance
        return (lambda ram: call(ram, self.previous)) if script.wants_previous else call

    def get_state(self) -> dict[str, Any]:
        """Returns the memory of all scripts as plain values, for ``set_state``.

        Raises:
            KartRewardsError: An instance has an attribute that ``to_plain`` does not support.
        """
        memories = {}
        for script, instance in zip(self.scripts, self._instances, strict=True):
            if script.is_class:
                try:
                    memories[script.name] = to_plain(vars(instance))
                except TypeError as error:
                    message = f"{script.name!r} ({script.where}) can't be saved: it holds {error}"
                    raise KartRewardsError(message) from None
        return {"memories": memories, "previous": to_plain(self.previous)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned."""
        for script, instance in zip(self.scripts, self._instances, strict=True):
            if script.is_class:
                vars(instance).clear()
                vars(instance).update(from_plain(state["memories"][script.name]))
        self.previous = from_plain(state["previous"])

    def values(self, ram: Any) -> list[Any]:
        """Returns each script's value for one frame. This method runs once per emulated frame.

        Args:
            ram: The frame's ``RamSnapshot``.

        Raises:
            KartRewardsError: A script raised an exception. The message names the script, its file and line, and the
                snapshot.
        """
        if self.previous is None:
            self.previous = ram
        values: list[Any] = []
        try:
            for call in self._calls:
                values.append(call(ram))  # one by one: the length below is the index of the script that raised
        except (Exception, SystemExit) as error:
            raise self.failure(len(values), ram, _describe(error)) from error
        self.previous = ram
        return values

    def failure(self, i: int, ram: Any, what: str) -> KartRewardsError:
        """Returns the error for a fault of one script.

        Args:
            i: The script's index.
            ram: The snapshot.
            what: The fault, such as ``returned None, not a finite number``.
        """
        script = self.scripts[i]
        return KartRewardsError(f"{script.name!r} ({script.where}) {what}\n  on {ram!r}")


def _describe(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error}\n  at {frame.filename}:{frame.lineno}: {frame.line}"


def to_plain(value: Any) -> Any:
    """Converts a value to text, numbers, lists and dicts. Any file format can store these, and no loader runs them.

    Args:
        value: None, a number, text or a RAM snapshot; or a list, tuple, set, deque or dict of these.

    Raises:
        TypeError: The value, or a part of it, has another type.
    """
    if value is None:
        return None
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)  # also for a subclass, such as NumPy's float64
    if isinstance(value, RamSnapshot):
        return {"snapshot": list(value._fields), "values": list(value)}  # type: ignore[call-overload]
    if type(value) is dict:
        return {"dict": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    if type(value) is deque:
        return {"deque": [to_plain(item) for item in value], "maxlen": value.maxlen}
    for kind in (list, tuple, set):
        if type(value) is kind:
            return {kind.__name__: [to_plain(item) for item in value]}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy number
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}, {value!r}")


def from_plain(plain: Any) -> Any:
    """Converts a value that ``to_plain`` returned back to the original value."""
    if not isinstance(plain, dict):
        return plain
    if "snapshot" in plain:
        return snapshot_class(tuple(plain["snapshot"]))(*plain["values"])
    if "deque" in plain:
        return deque(map(from_plain, plain["deque"]), plain["maxlen"])
    [(kind, items)] = plain.items()
    if kind == "dict":
        return {from_plain(key): from_plain(item) for key, item in items}
    return {"list": list, "tuple": tuple, "set": set}[kind](map(from_plain, items))


def snake_case(name: str) -> str:
    """Converts a name to snake case: ``LeftTheRoad`` -> ``left_the_road``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def mark(definition: Any, script: Script) -> Any:
    """Stores the script on its function or class, and returns the function or class."""
    definition.__kart_script__ = script
    return definition


def script_of(definition: Any, kind: type[SomeScript]) -> SomeScript | None:
    """Returns the script that ``mark`` stored on a function or class, or None if there is none of this kind."""
    script = getattr(definition, "__dict__", {}).get("__kart_script__")
    return script if isinstance(script, kind) else None


def as_script(definition: Any, kind: type[SomeScript], what: str) -> SomeScript:
    """Returns the script of a function or class.

    Args:
        definition: A script of this kind, or a function or class with or without a mark.
        kind: ``RewardTerm`` or ``DoneRule``.
        what: The name of the kind, for error messages.

    Raises:
        KartRewardsError: The definition can't be called, or it is not a valid script.
    """
    if isinstance(definition, kind):
        return definition
    if not callable(definition):
        raise KartRewardsError(f"{definition!r} is not a {what}: pass a function or a class")
    return script_of(definition, kind) or kind(name_of(definition), definition)


def marked_scripts(source: str | Path | ModuleType, kind: type[SomeScript]) -> list[SomeScript]:
    """Returns the scripts of one kind that a file or module defines, in the order of definition.

    Args:
        source: A path that ends in ``.py``, the dotted name of an importable module, or a module.
        kind: ``RewardTerm`` or ``DoneRule``.

    Raises:
        KartRewardsError: The file or module does not exist, or its import fails.
    """
    module = source if isinstance(source, ModuleType) else import_source(source)
    scripts = (script_of(value, kind) for value in vars(module).values())
    return [script for script in scripts if script and script.definition.__module__ == module.__name__]


def import_source(source: str | Path) -> ModuleType:
    """Imports a ``.py`` file by path, or a module by its dotted name.

    The file runs once per process. It runs again only after a change of its content.

    Args:
        source: A path that ends in ``.py``, or the dotted name of an importable module.

    Raises:
        KartRewardsError: The file or module does not exist, or its import fails.
    """
    path = Path(source)
    try:
        if path.suffix != ".py":
            _make_importable(Path.cwd())
            return importlib.import_module(str(source))
        path = path.resolve()
        source_text = path.read_bytes()
        name = f"{path.stem}_{hashlib.sha256(bytes(path) + source_text).hexdigest()[:8]}"  # new if edited
        if name in sys.modules:
            return sys.modules[name]
        _make_importable(path.parent)
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # before it runs, like `import`: dataclasses and pickle look up their module
        try:
            exec(compile(source_text, path, "exec"), vars(module))  # noqa: S102 - `import` could use an old .pyc
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except KartRewardsError:
        raise
    except FileNotFoundError as error:
        raise KartRewardsError(f"{error.filename}: no such file (given as {str(source)!r})") from None
    except ModuleNotFoundError as error:
        if error.name == str(source):
            raise KartRewardsError(f"{source}: no such module; a file's name must end in .py") from None
        raise KartRewardsError(f"{source}: fails to import: {error}") from None
    except (Exception, SystemExit) as error:
        raise KartRewardsError(f"{source}: fails to import: it {_describe(error)}") from error


def _make_importable(folder: Path) -> None:
    """Appends a folder to ``sys.path``, so that a rewards file can import other files of its folder."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def unique_by_name(scripts: Iterable[SomeScript]) -> dict[str, SomeScript]:
    """Returns name -> script, in the given order.

    Raises:
        KartRewardsError: Two different scripts have the same name.
    """
    named: dict[str, SomeScript] = {}
    for script in scripts:
        other = named.setdefault(script.name, script)
        if other.definition is not script.definition:
            raise KartRewardsError(
                f"two terms or rules have the name {script.name!r}: {other.where} and {script.where}: rename one"
            )
    return named
