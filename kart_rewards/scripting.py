"""Scripts: the common part of reward terms and done rules.

* ``Script`` - a named function or class, with its source
* ``ScriptCalls`` - calls a list of scripts on each frame of one episode; saves and restores their memory
* ``mark``, ``script_of``, ``as_script``, ``name_of`` - the scripts of functions and classes
* ``pair_hint`` - what to say about a value that is a pair and should not be one
* ``marked_scripts``, ``unique_by_name`` - the scripts of files and modules; ``import_source`` is of
  ``kart_rewards.imports``
* ``INPUTS``, ``plain_action`` - the arguments for a frame's input; an action in the form that scripts get
* ``to_plain``, ``from_plain`` - values in a form that any file format can store

A script is a function that takes the frame's snapshot, or a class whose instances are such functions. A class has a
memory: each episode has its own instance. An instance, a bound method and a ``functools.partial`` are scripts, too:
each episode has its own copy.

A class may be a reward term and a done rule: it has both marks. Its instances return a pair, the term's value and
whether the episode is over. An episode then has one instance for both, which is called once per frame.

The first positional argument is the frame's snapshot. An argument ``previous`` gets the snapshot of the previous frame,
wherever it stands, with or without a default; so does a second positional argument without a default, whatever its
name. On an episode's first frame, both arguments are the same snapshot. An argument ``buttons`` gets the buttons that
are held on the frame, a ``frozenset`` of their names. An argument ``action`` gets the agent's action: a number, or a
tuple of numbers if the action has several parts; None on the first frame. Other arguments keep their defaults.
``*args`` and ``**kwargs`` get nothing; only if a wrapper has ``functools.wraps``, the wrapped function decides for
``*args``.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import re
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from enum import Enum
from functools import cached_property
from inspect import Parameter
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, ClassVar, TypeVar

from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.fingerprint import NO_SOURCE, attributes_of, code_text, file_fingerprint, hash_of
from kart_rewards.imports import describe, import_source
from kart_rewards.memory import find_shared_memory
from kart_rewards.ram import RamLayout, RamSnapshot, readable_names, shown, snapshot_class

__all__ = [
    *("Script", "ScriptCalls", "SomeScript", "as_script", "from_plain", "import_source", "mark", "marked_scripts"),
    *("INPUTS", "name_of", "pair_hint", "plain_action", "script_of", "snake_case", "to_plain", "unique_by_name"),
]

SomeScript = TypeVar("SomeScript", bound="Script")
Definition = TypeVar("Definition", bound=Callable[..., Any])

_COMPLETE_SNAPSHOT = (
    r"\b(?:_asdict|_fields|itemgetter)\b|\bgetattr\((?![^,()]*, '\w*'[,)])|\b{0}\[|\bin {0}\b(?!\.)|\*{0}\b(?!\.)|"
    r"\b(?:sum|list|tuple|set|zip|enumerate|sorted|max|min|hash)\((?:[^()]*, )?{0}[,)]"
)
"""Code that reads all variables of a snapshot, or variables whose names are not in the code; {0} is the snapshot."""

INPUTS = ("buttons", "action")
"""The arguments for a frame's input. A script gets them if it has an argument of the name."""

PASSED_BY_NAME = ("previous", *INPUTS)
"""The arguments that a script gets if it has an argument of the name."""

_RELEASED: frozenset[str] = frozenset()

_MARKS = "__kart_marks__"
"""The global variable of a module with the definitions that its code has marked, and their scripts."""

_EARLIER = {"prev", "previous", "before", "last", "old", "earlier", "past", "prior", "former", "preceding"}
_SNAPSHOT = {"ram", "snapshot", "snap", "frame", "state", "step", "info", "obs", "observation", "data", "values"}


@dataclass(frozen=True)
class Script:
    """A reward term or a done rule.

    Args:
        name: The name in scenarios, on the command line and in TensorBoard. It must be a valid Python name without a
            leading underscore.
        definition: The function or class, or any other callable.

    Attributes:
        where: File and line of the definition.
        file_fingerprint: A hash of the file's text, by which checkpoints of version 0.1 compare.

    Raises:
        KartRewardsError: The name is not valid, or the definition can't be called with one or two snapshots.
    """

    place_in_pair: ClassVar[int] = 0
    """The index of this kind's value in a pair: 0 for a term, 1 for a rule."""

    name: str
    definition: Callable[..., Any]
    where: str = field(init=False, compare=False)
    file_fingerprint: str = field(init=False, compare=False)
    _signature: _Signature = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Computed now and not on access: the file may change while the run continues with the old code.
        object.__setattr__(self, "where", _where(self.definition))
        object.__setattr__(self, "file_fingerprint", file_fingerprint(self.definition))
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name.startswith("_"):
            raise KartRewardsError(
                f"{self.where}: {self.name!r} can't be a script's name: mark it with name='…', a valid Python name "
                "without a leading underscore"
            )
        try:
            object.__setattr__(self, "_signature", _Signature(self.definition))
        except _SignatureError as error:
            example = f"def {'__call__(self, ' if self.is_class else self.name + '('}ram[, previous])"
            raise KartRewardsError(f"{self.where}: {self.name!r} {error}: {example}") from None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the code that decides the script's values; see ``kart_rewards.fingerprint``.

        A resumed run compares it with the checkpoint's. It is computed on the first access, because a decorator runs
        before the rest of its file: functions that the script calls may not exist yet. ``Scoring`` accesses it at once.
        """
        return hash_of(self._code)

    @cached_property
    def _code(self) -> str:
        return code_text(self.definition)

    @property
    def is_class(self) -> bool:
        """Whether each episode calls the definition to make an instance: it is a class, or a partial of a class."""
        return _class_of(self.definition) is not None

    @property
    def returns_pair(self) -> bool:
        """Whether a call returns two values: the definition is a reward term and a done rule."""
        return any(len(_own_marks(holder)) > 1 for holder in _markable(self.definition))

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(_origin(self.definition)) or "").partition("\n")[0]

    @property
    def inputs(self) -> list[str]:
        """Those of ``INPUTS`` that the script asks for."""
        return [name for name in self._signature.by_name if name in INPUTS]

    def reads(self) -> set[str]:
        """Returns the names of the RAM variables that the source code reads, including in helper functions."""
        return set(self._reads)

    def place_of(self, name: str) -> str:
        """Returns where the source code reads a RAM variable, as the end of a message; empty if it is not known."""
        place = self._reads.get(name)
        return f"\n  at {place}" if place else ""

    @cached_property
    def _reads(self) -> dict[str, str]:
        return _attributes_read(_body(inspect.unwrap(_entry(self.definition))), self._signature.snapshots, set())

    def may_read(self, names: Iterable[str]) -> set[str]:
        """Returns the names of variables that may decide the script's values: they occur in its code.

        These are at least the variables of ``reads``, and those that methods and functions of other modules read. They
        are all variables if the code reads the complete snapshot, such as ``ram[0]`` and ``ram._asdict()``.
        """
        snapshots = "|".join(map(re.escape, self._signature.snapshots))
        if re.search(_COMPLETE_SNAPSHOT.format(f"(?:{snapshots})"), self._code):
            return set(names)
        return {*names} & (self.reads() | {*re.findall(r"\w+", self._code)})

    def check_reads(self, layout: RamLayout) -> None:
        """Checks that the layout has all variables that the script reads.

        Raises:
            KartRewardsError: The game's ``data.json`` does not define one of them.
        """
        for name in sorted(self.reads() - readable_names(layout.snapshot_class)):
            raise KartRewardsError(
                f"{self.name!r} ({self.where}) reads {name!r}, which {layout.source} does not define; "
                f"it defines {', '.join(layout.names)}.{did_you_mean(name, layout.names)} Add the variable to that "
                f"file, or leave {self.name!r} out{self.place_of(name)}"
            )


class _NotAPairError(Exception):
    """A class that is a term and a rule did not return a pair. The message follows the script's name."""


class _SignatureError(Exception):
    """A definition can't be called with snapshots. The message follows the script's name."""


class _Signature:
    """How a definition is called on a frame.

    Args:
        definition: Any callable.

    Attributes:
        has_second: Whether the second positional argument gets the previous snapshot.
        by_name: Those of ``PASSED_BY_NAME`` that are passed as keywords.
        snapshots: The names of the arguments that get snapshots.

    Raises:
        _SignatureError: The definition can't be called with one or two snapshots.
    """

    def __init__(self, definition: Any) -> None:
        call = _entry(definition)
        if not callable(definition):
            raise _SignatureError(
                f"is a {type(definition).__name__}, which can't be called. Mark a function or a class"
            )
        parameters = _parameters(call)
        positional = [
            item for item in parameters if item.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        ]
        if any(check(_body(call)) for check in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)):
            raise _SignatureError("is an async function, which returns no number. Write a plain function")
        if inspect.isgeneratorfunction(_body(call)):
            raise _SignatureError("is a generator (it has a yield), which returns no number. Use return")
        if not positional and not any(item.kind is Parameter.VAR_POSITIONAL for item in parameters):
            raise _SignatureError("must take the RAM snapshot, and may take the previous one")
        if positional and isinstance(call, FunctionType) and positional[0].name == "self":
            raise _SignatureError("is a method of a class. Mark the class, and name the method __call__")
        self.has_second = False
        self.by_name: list[str] = []
        self.snapshots = [item.name for item in positional[:1]]
        if positional and (_means_previous(positional[0].name) or positional[0].name in INPUTS):
            raise _SignatureError(
                f"has {positional[0].name!r} as its first argument, but the first one gets the snapshot of this frame. "
                f"Write it behind the first one"
            )
        held = call.keywords if isinstance(call, functools.partial) else {}
        for item in parameters:
            if item.name not in held and item not in positional[:1]:
                self._add(item, is_second=item in positional[1:2])
        if self.has_second and "previous" in self.by_name:
            raise _SignatureError(f"has two arguments for the previous snapshot: {', '.join(self.snapshots[1:])}")

    def _add(self, item: Parameter, is_second: bool) -> None:
        if item.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            if _means_previous(item.name):
                raise _SignatureError(f"has an argument *{item.name} that would always be empty. Write {item.name}")
            return
        required = item.default is Parameter.empty
        if item.name in INPUTS:
            if item.kind is Parameter.POSITIONAL_ONLY:
                raise _SignatureError(f"has an argument {item.name!r} before a /, but it is passed by its name")
            self.by_name.append(item.name)
        elif is_second and (required or item.name == "previous"):
            if did_you_mean(item.name, INPUTS):
                raise _SignatureError(
                    f"has a second argument {item.name!r}, which would get the previous snapshot."
                    f"{did_you_mean(item.name, INPUTS)} Otherwise call it previous"
                )
            self.has_second = True
            self.snapshots.append(item.name)
        elif item.name == "previous" and item.kind is not Parameter.POSITIONAL_ONLY:
            self.by_name.append(item.name)
            self.snapshots.append(item.name)
        elif required:
            raise _SignatureError(
                f"must take the RAM snapshot, and may take {', '.join(PASSED_BY_NAME)}; its argument {item.name!r} "
                f"needs a default.{did_you_mean(item.name, PASSED_BY_NAME)}"
            )
        elif _means_previous(item.name):
            raise _SignatureError(
                f"has an argument {item.name!r} that would always keep its default. To get the snapshot of the "
                "previous frame, call it previous"
            )
        elif is_second and item.default is None:
            raise _SignatureError(
                f"has a second argument {item.name!r} that would always be None. To get the snapshot of the previous "
                "frame, call it previous; otherwise give it another default"
            )


def _means_previous(name: str) -> bool:
    words = set(snake_case(name).strip("_").split("_"))
    return bool(words & _EARLIER) and (len(words) == 1 or bool(words & ({"prev", "previous"} | _SNAPSHOT)))


def _class_of(definition: Any) -> type | None:
    """Returns the class whose instances are called, if the definition is a class or a partial of one."""
    while isinstance(definition, functools.partial):
        definition = definition.func
    return definition if inspect.isclass(definition) else None


def _is_function(definition: Any) -> bool:
    return inspect.isroutine(definition) or isinstance(definition, functools._lru_cache_wrapper)


def _entry(definition: Any) -> Any:
    """Returns what runs on a frame: a function, or the method ``__call__`` of an instance."""
    cls = _class_of(definition)
    if cls is not None:
        entry: Any = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
        return entry.__get__(object(), cls) if hasattr(entry, "__get__") else entry
    if _is_function(definition) or isinstance(definition, functools.partial):
        return definition
    return getattr(definition, "__call__", None)  # noqa: B004 - it is used


def _body(call: Any) -> Any:
    """Returns the function whose code runs, without what holds or caches it."""
    while not isinstance(call, FunctionType):
        inner = getattr(call, "func", None) or getattr(call, "__func__", None) or getattr(call, "__wrapped__", None)
        if inner is None:
            break
        call = inner
    return call


def _parameters(call: Any) -> list[Parameter]:
    """Returns the arguments of a callable; those of the wrapped function if a wrapper takes any positional arguments.

    It returns an empty list for built-in functions that do not say what they take.
    """
    if isinstance(call, MethodType):
        parameters = _parameters(call.__func__)
        return parameters if parameters[:1] and parameters[0].kind is Parameter.VAR_POSITIONAL else parameters[1:]
    try:
        parameters = list(inspect.signature(call, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    takes_any = any(item.kind is Parameter.VAR_POSITIONAL for item in parameters)
    wrapped = getattr(call, "__wrapped__", None)
    return _parameters(wrapped) if callable(wrapped) and (takes_any or not parameters) else parameters


def _origin(definition: Any) -> Any:
    """Returns the function or class in the source code that a callable comes from."""
    while isinstance(definition, functools.partial):
        definition = definition.func
    if not _is_function(definition) and not inspect.isclass(definition):
        definition = type(definition)
    return inspect.unwrap(getattr(definition, "__func__", definition))


def _where(definition: Callable[..., Any]) -> str:
    origin = _origin(definition)
    try:
        return f"{inspect.getsourcefile(origin)}:{inspect.getsourcelines(origin)[1]}"
    except NO_SOURCE:
        return "defined interactively"


def name_of(definition: Any) -> str:
    """Returns the default name of a script: ``top_speed``, and ``left_the_road`` for the class ``LeftTheRoad``."""
    named = _class_of(definition) or definition
    return snake_case(getattr(named, "__name__", type(named).__name__))


def _attributes_read(function: Callable[..., Any], arguments: list[str], seen: set[Any]) -> dict[str, str]:
    """Returns the attributes of the arguments that a function reads, itself or in helper functions.

    Args:
        function: The function.
        arguments: The names of those of its arguments that are snapshots.
        seen: The functions that were searched before; this function is added.

    Returns:
        Name -> file, number and text of a line that reads it.
    """
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except NO_SOURCE:
        return {}
    seen.add(function)
    file = inspect.getsourcefile(function)
    replaced = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = [name for name in arguments if name not in replaced]  # such as ram = SimpleNamespace(...)
    read: dict[str, str] = {}
    asked_for = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in arguments:
            read.setdefault(node.attr, f"{file}:{first + node.lineno - 1}: {lines[node.lineno - 1].strip()}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "hasattr":
                asked_for |= {each.value for each in node.args[1:] if isinstance(each, ast.Constant)}
            helper = getattr(function, "__globals__", {}).get(node.func.id)
            if inspect.isfunction(helper) and helper not in seen:
                passed = zip(inspect.signature(helper).parameters, node.args, strict=False)
                snapshots = [name for name, value in passed if isinstance(value, ast.Name) and value.id in arguments]
                read = _attributes_read(helper, snapshots, seen) | read
    return {name: place for name, place in read.items() if name not in asked_for}  # a term for several games


class ScriptCalls:
    """Calls a list of scripts on each frame of one episode.

    Args:
        scripts: The scripts, in the order of the list that ``values`` returns. Each class is instantiated.
        after: The calls of other scripts, which run first on each frame. A definition that returns pairs and is among
            them has its instance there: it is not called again.

    Attributes:
        previous: The snapshot of the previous frame; None before the first frame.
        buttons, action: The input of the latest frame; see ``values``.

    Raises:
        KartRewardsError: A class can't be instantiated.
    """

    def __init__(self, scripts: Sequence[Script], after: ScriptCalls | None = None) -> None:
        self.scripts = scripts
        self.previous: Any = None
        self.buttons, self.action = _RELEASED, None
        self._pairs: dict[int, list[Any]] = {}  # id of the definition -> the pair of the latest frame
        self._pairs_before = after._pairs if after else {}
        copies: dict[int, Any] = {}  # id -> copy: two methods of one instance get the same copy of it
        self._instances = [
            None if id(script.definition) in self._pairs_before else self._instance(script, copies)
            for script in scripts
        ]
        self._calls = [self._call(*pair) for pair in zip(scripts, self._instances, strict=True)]

    def _instance(self, script: Script, copies: dict[int, Any]) -> Any:
        if script.is_class:
            try:
                instance = script.definition()
            except (Exception, SystemExit) as error:
                raise KartRewardsError(
                    f"{script.name!r} ({script.where}) can't be instantiated: it {describe(error)}"
                ) from error
            if not callable(instance):
                raise KartRewardsError(f"{script.name!r} ({script.where}) makes {instance!r}, which can't be called")
            return instance
        own_marks = getattr(script.definition, "__dict__", {}).get("__kart_scripts__")
        try:
            copies[id(own_marks)] = own_marks
            return copy.deepcopy(script.definition, copies)  # a function is its own copy
        except Exception as error:
            raise KartRewardsError(
                f"{script.name!r} ({script.where}) can't be copied for a new episode: {error!r}. Pass the class, or a "
                "functools.partial of the class and its arguments"
            ) from error

    def _call(self, script: Script, instance: Any) -> Callable[[Any], Any]:
        place = script.place_in_pair
        pair = self._pairs_before.get(id(script.definition))
        if pair is not None:
            return lambda ram: pair[place]
        call = self._plain_call(script, instance)
        if not script.returns_pair:
            return call
        latest = [0.0, False]
        self._pairs.setdefault(id(script.definition), latest)

        def value_of_pair(ram: Any) -> Any:
            returned = call(ram)
            if type(returned) is not tuple or len(returned) != 2:
                raise _NotAPairError(
                    f"returned {shown(returned)}. It is a reward term and a done rule, so each call must return two "
                    "values: return value, done"
                )
            latest[:] = returned
            return returned[place]

        return value_of_pair

    def _plain_call(self, script: Script, instance: Any) -> Callable[[Any], Any]:
        is_itself = _is_function(instance) or isinstance(instance, functools.partial)
        call = instance if is_itself else instance.__call__  # a bound method is faster than an instance
        has_second, names = script._signature.has_second, script._signature.by_name
        if script.inputs:
            return lambda ram: call(
                *((ram, self.previous) if has_second else (ram,)), **{name: getattr(self, name) for name in names}
            )
        if has_second:
            return lambda ram: call(ram, self.previous)
        if names:
            return lambda ram: call(ram, previous=self.previous)
        return call

    def get_state(self) -> dict[str, Any]:
        """Returns the memory of all scripts as plain values, for ``set_state``.

        Raises:
            KartRewardsError: An instance has an attribute that ``to_plain`` does not support.
        """
        memories = {}
        for script, instance in zip(self.scripts, self._instances, strict=True):
            holder = _holder(instance)
            if holder is not None:
                try:
                    if isinstance(holder, (list, dict, set, deque, bytearray)):
                        raise TypeError(
                            f"its memory in itself, because it is a {_built_in_base(holder)}, and not in self.x"
                        )
                    memories[script.name] = to_plain(attributes_of(holder))
                except TypeError as error:
                    message = f"{script.name!r} ({script.where}) can't be saved: it holds {error}"
                    raise KartRewardsError(message) from None
        return {"memories": memories, "previous": to_plain(self.previous)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned."""
        for script, instance in zip(self.scripts, self._instances, strict=True):
            holder = _holder(instance)
            if holder is not None:
                memory = from_plain(state["memories"][script.name])
                for name in attributes_of(holder).keys() - memory.keys():
                    object.__delattr__(holder, name)
                for name, value in memory.items():
                    object.__setattr__(holder, name, value)
        self.previous = from_plain(state["previous"])

    def values(self, ram: Any, buttons: frozenset[str] = _RELEASED, action: Any = None) -> list[Any]:
        """Returns each script's value for one frame. This method runs once per emulated frame.

        Args:
            ram: The frame's ``RamSnapshot``.
            buttons: The names of the buttons that are held on the frame.
            action: The agent's action, in the form of ``plain_action``; None on the first frame.

        Raises:
            KartRewardsError: A script raised an exception. The message names the script, its file and line, and the
                snapshot.
        """
        if self.previous is None:
            self.previous = ram
        self.buttons, self.action = buttons, action
        values: list[Any] = []
        try:
            for call in self._calls:
                values.append(call(ram))  # one by one: the length below is the index of the script that raised
        except _NotAPairError as error:
            raise self.failure(len(values), ram, str(error)) from None
        except (Exception, SystemExit) as error:
            raise self.failure(len(values), ram, describe(error)) from error
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
        given = "".join(f", {name} {getattr(self, name)!r}" for name in script.inputs)
        return KartRewardsError(f"{script.name!r} ({script.where}) {what}\n  on {ram!r}{given}")


def plain_action(action: Any) -> Any:
    """Returns an action as scripts get it: a number, or a tuple of numbers. A script can keep it in its memory.

    Args:
        action: A number, or an array or list of numbers.

    Example:
        >>> plain_action([0.5, 1])
        (0.5, 1)
    """
    action = action.tolist() if hasattr(action, "tolist") else action
    return tuple(map(plain_action, action)) if isinstance(action, (list, tuple)) else action


def _built_in_base(value: Any) -> str:
    return next(base.__name__ for base in type(value).__mro__ if base.__module__ in ("builtins", "collections"))


def _holder(instance: Any) -> Any:
    """Returns the object whose attributes are a script's memory; None for a function."""
    while isinstance(instance, functools.partial):
        instance = instance.func
    if isinstance(instance, MethodType):
        instance = instance.__self__
    return None if _is_function(instance) or isinstance(instance, (type, ModuleType)) else instance


def to_plain(value: Any) -> Any:
    """Converts a value to text, numbers, lists and dicts. Any file format can store these, and no loader runs them.

    Args:
        value: None, a number, text or a RAM snapshot; or a list, tuple, set, frozenset, deque or dict of these.

    Raises:
        TypeError: The value, or a part of it, has another type, or a list or the like is in two places.
    """
    return _to_plain(value, set())


def _to_plain(value: Any, seen: set[int]) -> Any:
    if value is None:
        return None
    if isinstance(value, Enum):  # some are also numbers or text
        raise TypeError(f"a value of type {type(value).__name__}, {value!r}")
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)  # also for a subclass, such as NumPy's float64
    if isinstance(value, RamSnapshot):
        items: tuple[Any, ...] = tuple(value)  # type: ignore[arg-type]
        plain_items = [item if type(item) is int else _to_plain(item, seen) for item in items]  # most are
        return {"snapshot": list(value._fields), "values": plain_items}
    if type(value) in (list, dict, set, deque):
        if id(value) in seen:  # after a resume, it would be two
            raise TypeError(f"the same {type(value).__name__} in two places, {shown(value)}")
        seen.add(id(value))
    if type(value) is dict:
        return {"dict": [[_to_plain(key, seen), _to_plain(item, seen)] for key, item in value.items()]}
    if type(value) is deque:
        return {"deque": [_to_plain(item, seen) for item in value], "maxlen": value.maxlen}
    for kind in (list, tuple, set, frozenset):
        if type(value) is kind:
            return {kind.__name__: [_to_plain(item, seen) for item in value]}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy number
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}, {value!r}")


def from_plain(plain: Any) -> Any:
    """Converts a value that ``to_plain`` returned back to the original value."""
    if not isinstance(plain, dict):
        return plain
    if "snapshot" in plain:
        return snapshot_class(tuple(plain["snapshot"]))(*map(from_plain, plain["values"]))
    if "deque" in plain:
        return deque(map(from_plain, plain["deque"]), plain["maxlen"])
    [(kind, items)] = plain.items()
    if kind == "dict":
        return {from_plain(key): from_plain(item) for key, item in items}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(from_plain, items))


def snake_case(name: str) -> str:
    """Converts a name to snake case: ``LeftTheRoad`` -> ``left_the_road``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def mark(definition: Any, script: Script) -> Any:
    """Stores the script on its function or class, and returns the function or class.

    The module whose code runs gets a list of its marks, so that ``marked_scripts`` finds all of them.

    Raises:
        KartRewardsError: It has a mark already, and is not a class with marks of two kinds; or it can't have a mark.
    """
    target = definition.__func__ if isinstance(definition, staticmethod) else definition
    others = _own_marks(target)
    has_instances = script.is_class or _holder(target) is not None
    if others and not (has_instances and all(type(other) is not type(script) for other in others)):
        kinds = " and ".join(f"@{snake_case(type(item).__name__)}" for item in (script, others[0]))
        differ = not has_instances and type(others[0]) is not type(script)
        both = ", or write a class, which can be a term and a rule: its calls return both values" if differ else ""
        raise KartRewardsError(
            f"{script.where}: {script.name!r} has two marks, {kinds}, and only one would count: remove one, or write "
            f"two functions of which one calls the other{both}"
        )
    try:
        setattr(target, "__kart_scripts__", (*others, script))  # noqa: B010 - no type has this attribute
    except (AttributeError, TypeError):
        raise KartRewardsError(
            f"{script.where}: {script.name!r} can't be marked, because it is a {type(target).__name__}: write a "
            "function that calls it, and mark the function"
        ) from None
    frame = sys._getframe(1)
    while frame.f_code.co_name != "<module>" and frame.f_back:
        frame = frame.f_back
    frame.f_globals.setdefault(_MARKS, []).append((target, script, id(frame.f_globals)))
    return definition


def _own_marks(definition: Any) -> tuple[Script, ...]:
    marks = getattr(definition, "__dict__", {}).get("__kart_scripts__")
    return marks if isinstance(marks, tuple) else ()


def _markable(definition: Any) -> list[Any]:
    """Returns the objects whose marks may have effect on a definition, the nearest first."""
    holders = [definition]
    while isinstance(holders[-1], functools.partial):
        holders.append(holders[-1].func)
    if not _is_function(holders[-1]) and not inspect.isclass(holders[-1]):
        holders.append(type(holders[-1]))
    return holders


def pair_hint(value: Any) -> str:
    """Returns the end of a message about a script's value: an explanation, if the value is a pair."""
    is_pair = type(value) is tuple and len(value) == 2
    return ". Only a class with both marks, @reward_term and @done_rule, returns a pair" if is_pair else ""


def script_of(definition: Any, kind: type[SomeScript]) -> SomeScript | None:
    """Returns the script that ``mark`` stored, or None if there is none of this kind.

    A mark has effect on what comes from the marked definition: an instance of the class, a partial or a wrapper of the
    function (``functools.wraps`` copies the mark). The result's ``definition`` is always the argument.
    """
    nearest = next(filter(None, map(_own_marks, _markable(definition))), ())
    for script in nearest:
        if isinstance(script, kind):
            return script if script.definition is definition else replaced(script, definition=definition)
    return None


def as_script(definition: Any, kind: type[SomeScript], what: str) -> SomeScript:
    """Returns the script of a function or class.

    Args:
        definition: A script of this kind; or a function, a class or another callable, with or without a mark.
        kind: ``RewardTerm`` or ``DoneRule``.
        what: The name of the kind, for error messages.

    Raises:
        KartRewardsError: The definition can't be called, it is not a valid script, or it keeps values outside itself.
    """
    if isinstance(definition, kind):
        return _checked(definition)
    if not callable(definition):
        raise KartRewardsError(f"{definition!r} is not a {what}: pass a function or a class")
    return _checked(script_of(definition, kind) or kind(name_of(definition), definition))


def _checked(script: SomeScript) -> SomeScript:
    """Checks what a decorator can't check, because the rest of the file does not exist yet.

    Raises:
        KartRewardsError: The class can't be instantiated, or the script keeps values outside itself.
    """
    if script.is_class:
        try:
            inspect.signature(script.definition).bind()
        except TypeError as error:
            raise KartRewardsError(
                f"{script.where}: {script.name!r} is a class that needs arguments ({error}): give them defaults; or "
                f"mark functools.partial({_origin(script.definition).__name__}, …); or pass an instance in Python"
            ) from None
        except ValueError:  # the signature of a class that derives from a built-in one may be unknown
            pass
    found = find_shared_memory(script.definition)
    if found:
        where, text, what = found
        raise KartRewardsError(
            f"{where}: {script.name!r} keeps a value outside itself: {text!r} changes {what}. All episodes and "
            "environments share this value, and checkpoints do not hold it. Write a class: set self.value in __init__, "
            "and change it in __call__(self, ram)"
        )
    return script


def marked_scripts(source: str | Path | ModuleType, kind: type[SomeScript]) -> list[SomeScript]:
    """Returns the scripts of one kind that a file or module defines, in the order of definition.

    Args:
        source: A path that ends in ``.py``, the dotted name of an importable module, or a module.
        kind: ``RewardTerm`` or ``DoneRule``.

    Raises:
        KartRewardsError: The file or module does not exist, its import fails, or a script is not valid.
    """
    module = source if isinstance(source, ModuleType) else import_source(source)
    marked = [value for value in _definitions(module) if any(isinstance(mark, kind) for mark in _own_marks(value))]
    found = [value for value in marked if _is_defined_in(module, value)]
    named = [mark for value in found for mark in _own_marks(value)]
    for target, script, marked_in in vars(module).get(_MARKS, ()):
        if marked_in != id(vars(module)):
            continue  # code that ran in a copy of the module's variables, such as a doctest
        if isinstance(script, kind) and all(script is not other for other in named):
            _check_without_name(module, target, script)
            found.append(target)
    scripts = (script_of(value, kind) for value in found)
    return [_checked(script) for script in scripts if script]


def _check_without_name(module: ModuleType, target: Any, script: Script) -> None:
    """Checks a marked definition that no variable of its module holds. It may be marked in a loop, or be in a list.

    Raises:
        KartRewardsError: It is a method of a class, or it was replaced or deleted after it was marked.
    """
    path = getattr(target, "__qualname__", "<locals>")
    if getattr(target, "__module__", None) != module.__name__ or "<" in path:
        return
    if "." in path and not inspect.isclass(target):
        raise KartRewardsError(
            f"{script.where}: {script.name!r} is a method of a class. Mark the class, and name the method __call__"
        )
    held, target = vars(module).get(path), inspect.unwrap(target)
    code = getattr(target, "__code__", None)
    in_loop = held is not None and code is not None and getattr(inspect.unwrap(held), "__code__", None) is code
    if "." not in path and held is not target and not in_loop:
        raise KartRewardsError(
            f"{script.where}: {script.name!r} has a mark, but at the end of the file {path!r} is something else: "
            "rename one of the two definitions. If another decorator stands above the mark, write the mark above it"
        )


def _definitions(module: ModuleType) -> Iterator[Any]:
    """Yields a module's values, and the static methods of its classes."""
    for value in vars(module).values():
        yield value
        if inspect.isclass(value) and value.__module__ == module.__name__:
            yield from (item.__func__ for item in vars(value).values() if isinstance(item, staticmethod))


def _is_defined_in(module: ModuleType, value: Any) -> bool:
    """Whether a module defines a value: it did not import it from the module that the value names.

    A wrapper or a partial names the module of the function that made it, which does not hold it.
    """
    home = sys.modules.get(getattr(value, "__module__", None) or "")
    return home is module or home is None or all(item is not value for item in vars(home).values())


def unique_by_name(scripts: Iterable[SomeScript]) -> dict[str, SomeScript]:
    """Returns name -> script, in the given order.

    Raises:
        KartRewardsError: Two different scripts have the same name.
    """
    named: dict[str, SomeScript] = {}
    for script in scripts:
        other = named.setdefault(script.name, script)
        if other.definition is not script.definition:
            remedy = "rename one"
            if other.where == script.where:  # two instances of a class, or two partials of a function
                remedy = f"name one, such as reward_term(name='{script.name}_2')(…), or done_rule for a rule"
            raise KartRewardsError(
                f"two terms or rules have the name {script.name!r}: {other.where} and {script.where}: {remedy}"
            )
    return named
