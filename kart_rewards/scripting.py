"""Python in place of Lua: what reward terms and done rules have in common.

A script is a function of the frame's snapshot, or a class whose instances are such functions and live for one episode:
a class has a memory, a function has none. Either may take a second argument, the snapshot of the frame before; on an
episode's first frame that is the same snapshot again.

* ``Script`` - a named function or class, with its source
* ``ScriptCalls`` - a set of scripts at work on one episode; what they remember can be saved
* ``marked_scripts`` - the scripts that a file or module defines
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import re
import sys
import textwrap
import tokenize
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from kart_rewards.errors import KartRewardsError
from kart_rewards.ram import RamLayout, RamSnapshot, snapshot_class

SomeScript = TypeVar("SomeScript", bound="Script")


@dataclass(frozen=True)
class Script:
    """A reward term or a done rule.

    Args:
        name: How scenarios, the command line and TensorBoard call it: a plain Python name.
        definition: The function, or the class.

    Attributes:
        where: File and line of the definition.
        fingerprint: A hash of the file's text when the script was made, to tell whether a resumed run scores as before.

    Raises:
        KartRewardsError: The name is no plain one, or the definition does not take one snapshot, or two.
    """

    name: str
    definition: Callable[..., Any]
    where: str = field(init=False, compare=False)
    fingerprint: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Now, not when it is asked for: the file may change while the run goes on under the code it had.
        object.__setattr__(self, "where", _where(self.definition))
        object.__setattr__(self, "fingerprint", _fingerprint(self.definition))
        if not self.name.isidentifier() or self.name.startswith("_"):
            raise KartRewardsError(
                f"{self.where}: {self.name!r} can't be a script's name: mark it with name='…', a plain Python name"
            )
        callable_instances = not self.is_class or any(
            "__call__" in vars(base) for base in inspect.getmro(cast(type, self.definition))
        )
        if not callable_instances or not 1 <= len(self._arguments()) <= 2:
            raise KartRewardsError(
                f"{self.where}: {self.name!r} must take the RAM snapshot, and may take the one before it: "
                f"def {'__call__(self, ' if self.is_class else self.name + '('}ram[, previous])"
            )

    @property
    def is_class(self) -> bool:
        """Whether it has a memory of one episode."""
        return inspect.isclass(self.definition)

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(self.definition, "__call__") if self.is_class else self.definition  # noqa: B004, B009

    def _arguments(self) -> list[str]:
        """The arguments that a call must give, by position. One with a default is the script's own business."""
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
        """Whether it also takes the snapshot of the frame before."""
        return len(self._arguments()) == 2

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.definition) or "").partition("\n")[0]

    def reads(self) -> set[str]:
        """The variables that the source text reads off its snapshots, helper functions of one's own included."""
        return _attributes_read(self._function, self._arguments(), set())

    def check_reads(self, layout: RamLayout) -> None:
        """Raises KartRewardsError if the script reads a variable that the game's ``data.json`` lacks."""
        for name in sorted(self.reads() - set(dir(layout.snapshot_class))):
            raise KartRewardsError(
                f"{self.name!r} ({self.where}) reads {name!r}, which {layout.source} does not define; "
                f"it defines {', '.join(layout.names)}. Add the variable there, or leave {self.name!r} out"
            )


# What inspect raises for what was defined interactively, is built in, or stands in a file that was edited since.
_NO_SOURCE = (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError)


def _where(definition: Callable[..., Any]) -> str:
    try:
        return f"{inspect.getsourcefile(definition)}:{inspect.getsourcelines(definition)[1]}"
    except _NO_SOURCE:
        return "defined interactively"


def _fingerprint(definition: Callable[..., Any]) -> str:
    try:
        module = inspect.getmodule(definition)
        source = inspect.getsource(definition if module is None else module)
    except _NO_SOURCE:
        source = ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def name_of(definition: Any) -> str:
    """Returns the name of a script that was given none: ``top_speed``, and ``left_the_road`` for ``LeftTheRoad``."""
    return snake_case(getattr(definition, "__name__", type(definition).__name__))


def _attributes_read(function: Callable[..., Any], arguments: list[str], seen: set[Any]) -> set[str]:
    """The attributes that a function reads off these of its arguments, and passes to functions that read them."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except _NO_SOURCE:
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
    """A set of scripts at work on one episode: fresh instances of the classes, and the frame before.

    Args:
        scripts: In the order in which ``values`` returns their values.
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
            raise KartRewardsError(f"{script.name!r} ({script.where}) can't be constructed: {error!r}") from error

    def _call(self, script: Script, instance: Any) -> Callable[[Any], Any]:
        call = instance.__call__ if script.is_class else instance  # a bound method is quicker to call than an instance
        return (lambda ram: call(ram, self.previous)) if script.wants_previous else call

    def get_state(self) -> dict[str, Any]:
        """Returns what the scripts remember, as plain values that ``set_state`` takes back.

        Raises:
            KartRewardsError: A script's instance holds something else than numbers, text, snapshots, and lists, tuples,
                sets, deques and dicts of these.
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
        """Takes back what ``get_state`` returned."""
        for script, instance in zip(self.scripts, self._instances, strict=True):
            if script.is_class:
                vars(instance).clear()
                vars(instance).update(from_plain(state["memories"][script.name]))
        self.previous = from_plain(state["previous"])

    def values(self, ram: Any) -> list[Any]:
        """Returns each script's value for this frame. This runs once per emulated frame."""
        if self.previous is None:
            self.previous = ram
        values: list[Any] = []
        try:
            for call in self._calls:
                values.append(call(ram))  # their number tells below which one raised
        except (Exception, SystemExit) as error:
            raise self.failure(len(values), ram, _describe(error)) from error
        self.previous = ram
        return values

    def failure(self, i: int, ram: Any, what: str) -> KartRewardsError:
        """The error that script number ``i`` went wrong on this snapshot."""
        script = self.scripts[i]
        return KartRewardsError(f"{script.name!r} ({script.where}) {what}\n  on {ram!r}")


def _describe(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error}\n  at {frame.filename}:{frame.lineno}: {frame.line}"


def to_plain(value: Any) -> Any:
    """Returns a value as text, numbers, lists and dicts, which any file format holds and no loader runs as code.

    Raises:
        TypeError: It is, or holds, something else than numbers, text, snapshots, lists, tuples, sets, deques and dicts.
    """
    if value is None:
        return None
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)  # of a subclass, such as NumPy's float64, the plain value
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
    raise TypeError(f"a {type(value).__name__}, {value!r}")


def from_plain(plain: Any) -> Any:
    """Returns the value that ``to_plain`` was given."""
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
    """``LeftTheRoad`` -> ``left_the_road``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def mark(definition: Any, script: Script) -> Any:
    """Notes on a function or class that it is a script; the function or class itself stays what it was."""
    definition.__kart_script__ = script
    return definition


def script_of(definition: Any, kind: type[SomeScript]) -> SomeScript | None:
    """Returns the mark that ``mark`` left on a function or class, if it left one of this kind."""
    script = getattr(definition, "__dict__", {}).get("__kart_script__")
    return script if isinstance(script, kind) else None


def as_script(definition: Any, kind: type[SomeScript], what: str) -> SomeScript:
    """Returns the script of one kind that a function or class was marked as, or makes one of it.

    Raises:
        KartRewardsError: It can't be called, so it is no ``what``.
    """
    if isinstance(definition, kind):
        return definition
    if not callable(definition):
        raise KartRewardsError(f"{definition!r} is no {what}: pass a function or a class")
    return script_of(definition, kind) or kind(name_of(definition), definition)


def marked_scripts(source: str | Path | ModuleType, kind: type[SomeScript]) -> list[SomeScript]:
    """Returns the scripts of one kind that a file or module defines, in the order of definition.

    Args:
        source: A path that ends in ``.py``, the dotted name of an importable module, or a module.
        kind: ``RewardTerm`` or ``DoneRule``.

    Raises:
        KartRewardsError: The file is missing or fails to import.
    """
    module = source if isinstance(source, ModuleType) else import_source(source)
    scripts = (script_of(value, kind) for value in vars(module).values())
    return [script for script in scripts if script and script.definition.__module__ == module.__name__]


def import_source(source: str | Path) -> ModuleType:
    """Imports a ``.py`` file by path, or a module by its dotted name.

    A file is run once per process, however often it is asked for, unless it was changed.

    Raises:
        KartRewardsError: It is missing or fails to import.
    """
    path = Path(source)
    try:
        if path.suffix != ".py":
            _make_importable(Path.cwd())
            return importlib.import_module(str(source))
        path = path.resolve()
        source_text = path.read_bytes()
        name = f"{path.stem}_{hashlib.sha256(bytes(path) + source_text).hexdigest()[:8]}"  # edited: another module
        if name in sys.modules:
            return sys.modules[name]
        _make_importable(path.parent)
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # before it runs, as `import` does: dataclasses and pickle look their module up
        try:
            exec(compile(source_text, path, "exec"), vars(module))  # noqa: S102 - not from a stale .pyc
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except KartRewardsError:
        raise
    except FileNotFoundError as error:
        raise KartRewardsError(f"{error.filename}: no such file (asked for as {str(source)!r})") from None
    except ModuleNotFoundError as error:
        if error.name == str(source):
            raise KartRewardsError(f"{source}: no such module; a file's name must end in .py") from None
        raise KartRewardsError(f"{source}: fails to import: {error}") from None
    except (Exception, SystemExit) as error:
        raise KartRewardsError(f"{source}: fails to import: it {_describe(error)}") from error


def _make_importable(folder: Path) -> None:
    """Lets a rewards file import what lies beside it, after everything that is importable anyway."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def unique_by_name(scripts: Iterable[SomeScript]) -> dict[str, SomeScript]:
    """Returns name -> script.

    Raises:
        KartRewardsError: Two different scripts share a name.
    """
    named: dict[str, SomeScript] = {}
    for script in scripts:
        other = named.setdefault(script.name, script)
        if other.definition is not script.definition:
            raise KartRewardsError(
                f"two terms or rules are called {script.name!r}: {other.where} and {script.where}: rename one"
            )
    return named
