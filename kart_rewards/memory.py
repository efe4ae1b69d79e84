"""Memory outside a script: values that a reward term or done rule keeps from frame to frame, but not in its instance.

* ``find_shared_memory`` - the first statement that changes such a value

Such a value goes on from one episode to the next, all environments of a process share it, and checkpoints do not hold
it. The search reads the source code of a script and of the user's functions that it calls. It follows names,
attributes, elements, assignments and what functions return; it runs none of the code.

In a rewards file, each change counts. Of functions that are passed in Python, a change counts only if a function also
reads the value, and lists of an enclosing function do not count: a test may record what its term sees.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import queue
from collections import deque
from collections.abc import Container, Iterator, MutableMapping, MutableSequence, MutableSet
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

from kart_rewards.fingerprint import attributes_of, is_library, names_in, package_of
from kart_rewards.imports import is_loaded, neighbours_in

_UNKNOWN = object()

_CHANGING_METHODS = {
    *("append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "popitem", "remove", "discard"),
    *("clear", "add", "update", "setdefault", "sort", "reverse", "rotate", "difference_update", "subtract"),
    *("intersection_update", "symmetric_difference_update", "move_to_end", "fill", "put", "itemset", "resize"),
    *("__setitem__", "__delitem__", "__setattr__", "__delattr__", "__iadd__", "__ior__"),
    *("send", "put_nowait", "set"),
}
_CHANGING_FUNCTIONS = {
    *("heappush", "heappop", "heapreplace", "heappushpop", "heapify", "insort", "insort_left", "insort_right"),
    *("shuffle", "setattr", "delattr", "setitem", "delitem", "next"),
}
_CHANGEABLE: tuple[type, ...] = (
    *(MutableSequence, MutableSet, MutableMapping, deque, bytearray),
    *(GeneratorType, ContextVar, queue.Queue, queue.SimpleQueue),
)
_SAME_ELEMENTS = {"list", "tuple", "set", "sorted", "reversed", "iter", "enumerate", "zip", "filter"}
_NOT_OPERATORS = {"__init__", "__new__", "__call__", "__init_subclass__", "__set_name__", "__repr__", "__str__"}


def find_shared_memory(definition: Any) -> tuple[str, str, str] | None:
    """Returns the file and line, the text, and the object of the first change of a value outside the script's instance.

    Args:
        definition: A function, a class, an instance, or any other callable.
    """
    search = _Search(package_of(definition))
    search.add_script(definition)
    for change in search.changes:
        if change.of_rewards_file or (change.variable.root in search.read and not change.is_recording):
            return change.where, change.text, change.variable.what
    return None


@dataclass(frozen=True)
class _Outside:
    """An object that exists longer than an episode.

    Args:
        what: Its description, for a person.
        root: The identity of the variable through which the code reaches it.
        value: The object, or ``_UNKNOWN``.
    """

    what: str
    root: tuple[str, int | str, str]
    value: Any

    @property
    def is_mutable(self) -> bool:
        """Whether its methods can change it: a list, set, dict, deque, array, queue or the like."""
        return isinstance(self.value, _CHANGEABLE) or hasattr(type(self.value), "__array_interface__")


@dataclass(frozen=True)
class _Change:
    variable: _Outside
    where: str
    text: str
    of_rewards_file: bool
    is_recording: bool


class _Search:
    """The functions that a script calls, the values outside them that they change, and those that they read."""

    def __init__(self, package: str) -> None:
        self.changes: list[_Change] = []
        self.read: set[tuple[str, int | str, str]] = set()
        self._package = package
        self._seen: set[Any] = set()
        self.resolving: set[str] = set()  # the functions whose returned objects are being looked for

    def is_library(self, value: Any) -> bool:
        """Whether a definition is not the user's own. The terms of this package are tested."""
        return package_of(value) == __package__ or is_library(value, {self._package} - {"builtins"})

    def add_script(self, definition: Any) -> None:
        """Searches the code of a script. Its own instance is not outside."""
        match definition:
            case functools.partial():
                self._add_partial(definition, is_script=True)
            case FunctionType():
                self.add_function(definition, _defaults(definition))
            case MethodType() if inspect.isclass(definition.__self__):
                self.add_callable(definition)
            case MethodType():
                self.add_class(type(definition.__self__), attributes_of(definition.__self__))
            case type():
                self.add_class(definition, {})
            case _ if hasattr(definition, "__wrapped__"):
                self.add_script(definition.__wrapped__)
            case _ if hasattr(definition, "__func__"):  # a static method
                self.add_script(definition.__func__)
            case _:
                self.add_class(type(definition), attributes_of(definition))

    def _add_partial(self, definition: functools.partial[Any], is_script: bool = False) -> None:
        if not isinstance(definition.func, FunctionType):
            (self.add_script if is_script else self.add_callable)(definition.func)
            return
        names = definition.func.__code__.co_varnames
        held = dict(zip(names, definition.args, strict=False)) | definition.keywords
        bound = {
            name: _Outside(f"the argument {name!r} of a partial function", ("argument", id(value), name), value)
            for name, value in held.items()
        }
        self.add_function(definition.func, _defaults(definition.func) | bound)

    def add_class(self, cls: type, attributes: dict[str, Any]) -> None:
        """Searches all methods of a class.

        Args:
            cls: The class.
            attributes: The attributes of the instance that are not shared with other instances.
        """
        if (cls, "methods") in self._seen:
            return
        self._seen.add((cls, "methods"))
        if not self.is_library(type(cls)):  # a metaclass
            self.add_class(type(cls), {})
        methods = [pair for base in cls.__mro__ if not self.is_library(base) for pair in _methods(base)]
        instance = _Instance(cls, {*attributes}, {})
        searches = []
        for method, kind in methods:
            first = next(iter(method.__code__.co_varnames[: method.__code__.co_argcount]), "")
            bound = _defaults(method)
            if kind == "class" and first:
                bound[first] = _class(cls)
            of_instance = (first, instance) if kind == "instance" and first else None
            searches.append((method, bound, of_instance))
            node = _node(method.__code__)
            if node and of_instance:
                _FunctionSearch(self, method, node, bound, of_instance).find_attributes()
        for search in searches:
            self.add_function(*search)

    def add_function(
        self, function: Any, bound: dict[str, _Outside], instance: tuple[str, _Instance] | None = None
    ) -> None:
        """Searches a function.

        Args:
            function: The function.
            bound: Argument -> the object outside the script that it is.
            instance: The name of the argument for the script's instance, and the instance.
        """
        if not isinstance(function, FunctionType) or self.is_library(function):
            return
        key = (function, frozenset((name, outside.root) for name, outside in bound.items()), instance is None)
        node = None if key in self._seen else _node(function.__code__)
        self._seen.add(key)
        if node is not None:
            _FunctionSearch(self, function, node, bound, instance).run()

    def add_callable(self, value: Any, arguments: dict[str, _Outside] | None = None) -> None:
        """Searches whatever a call of an object runs."""
        match value:
            case functools.partial():
                self._add_partial(value)
            case MethodType():
                names = value.__func__.__code__.co_varnames[:1] if isinstance(value.__func__, FunctionType) else ()
                self.add_function(value.__func__, {name: _object(value.__self__) for name in names})
            case FunctionType():
                self.add_function(value, arguments or {})
            case type() if not self.is_library(value):
                self.add_class(value, {})
            case _ if hasattr(value, "__wrapped__"):
                self.add_callable(value.__wrapped__)
            case _ if isinstance(call_of := getattr(type(value), "__call__", None), FunctionType):  # noqa: B004
                self.add_callable(MethodType(call_of, value))


@dataclass(frozen=True)
class _Instance:
    """The script's own instance.

    Args:
        cls: Its class.
        own: The names of the attributes that it does not share with other instances.
        assigned: Attribute -> the values that methods assign to it; None stands for a value inside the script.
    """

    cls: type
    own: set[str]
    assigned: dict[str, list[_Outside | None]]


class _FunctionSearch:
    """Searches one function. See ``_Search.add_function`` for the arguments."""

    def __init__(
        self,
        search: _Search,
        function: FunctionType,
        node: ast.AST,
        bound: dict[str, _Outside],
        instance: tuple[str, _Instance] | None,
    ) -> None:
        self._search, self._function, self._node = search, function, node
        self._instance = instance
        self._bound = dict(bound)
        for name, value in neighbours_in(node, function.__globals__).items():
            self._bound[name] = _Outside(f"the imported {name!r}", ("import", id(value), name), value)
        code = function.__code__
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self._cells = {name: cell for name, cell in cells if name != "__class__"}
        self._globals_assigned = {
            name for item in ast.walk(node) if isinstance(item, ast.Global) for name in item.names
        }
        nonlocals = {name for item in ast.walk(node) if isinstance(item, ast.Nonlocal) for name in item.names}
        self._nonlocals = nonlocals & {*self._cells}
        self._locals = _local_names(node) - self._globals_assigned - self._nonlocals
        self._aliases = _aliases(node)
        self._resolving: set[str] = set()

    def run(self) -> None:
        """Searches the body."""
        body = self._node.body  # type: ignore[attr-defined]
        for item in body if isinstance(body, list) else [body]:
            self._visit(item)

    def find_attributes(self) -> None:
        """Finds the attributes that the function assigns to the script's instance, and which of them lie outside."""
        assert self._instance
        name, instance = self._instance
        for target, value in _assignments(self._node):
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == name:
                instance.assigned.setdefault(target.attr, []).append(self._resolve(value))

    def returned(self) -> _Outside | None:
        """Returns the object outside the script that the function returns, if it does."""
        body = self._node.body if isinstance(self._node, ast.Lambda) else None
        values = [body] if body else [item.value for item in ast.walk(self._node) if isinstance(item, ast.Return)]
        return next(filter(None, map(self._resolve, values)), None)

    def _look_up(self, name: str) -> _Outside | None:
        if name in self._bound and name not in self._aliases:
            return self._bound[name]
        if name in self._locals:
            if name in self._aliases and name not in self._resolving:
                self._resolving.add(name)
                found = [self._resolve(value) for value in self._aliases[name]]
                if name in self._bound:
                    found.append(self._bound[name])
                self._resolving.discard(name)
                return found[0] if all(found) else None
            return None
        if name in self._cells:
            try:
                value = self._cells[name].cell_contents
            except ValueError:
                value = _UNKNOWN
            return _Outside(
                f"the variable {name!r} of the enclosing function", ("cell", id(self._cells[name]), name), value
            )
        if name in self._function.__globals__ or name in self._globals_assigned:
            value = self._function.__globals__.get(name, _UNKNOWN)
            return _Outside(f"the global variable {name!r}", ("global", id(self._function.__globals__), name), value)
        return None

    def _resolve(self, node: ast.AST | None) -> _Outside | None:
        """Returns the object outside the script that an expression is, or is a part of."""
        match node:
            case ast.Name():
                return self._look_up(node.id)
            case ast.Attribute(value=ast.Name(id=name)) if self._instance and name == self._instance[0]:
                return self._of_instance(node.attr)
            case ast.Attribute():
                base = self._resolve(node.value)
                return base and replace(base, value=_attribute(base.value, node.attr))
            case ast.Subscript():
                base = self._resolve(node.value)
                if isinstance(node.slice, ast.Slice) and not hasattr(type(base and base.value), "__array_interface__"):
                    return None  # a copy
                return base and replace(base, value=_item(base.value, node.slice))
            case ast.Call(func=ast.Name(id="type"), args=[ast.Name(id=name)]) if (
                self._instance and name == self._instance[0]
            ):
                return _class(self._instance[1].cls)
            case ast.Call(func=ast.Name(id="globals")):
                return _Outside("the global variables", ("global", id(self._function.__globals__), ""), {})
            case ast.Call(func=ast.Name(id="vars"), args=[argument]):
                base = self._resolve(argument)
                return base and replace(base, value={})
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "setdefault" | "__getitem__")):
                base = self._resolve(value)
                return base and (self._returned(node) or replace(base, value=_UNKNOWN))
            case ast.Call():
                return self._returned(node)
            case ast.NamedExpr():
                return self._resolve(node.value)
            case ast.IfExp():
                return self._resolve(node.body) or self._resolve(node.orelse)
            case ast.BoolOp():
                return next(filter(None, map(self._resolve, node.values)), None)
            case ast.Starred():  # of _assignments: an element
                return self._element(node.value)
        return None

    def _element(self, node: ast.AST) -> _Outside | None:
        """Returns the object outside the script whose elements an iteration yields."""
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in _SAME_ELEMENTS:
                return next(filter(None, map(self._element, node.args)), None)
            case ast.Call(func=ast.Attribute(value=value, attr="values" | "items" | "copy")):
                return self._element(value)
        base = self._resolve(node)
        return base and replace(base, value=_UNKNOWN)

    def _returned(self, node: ast.Call) -> _Outside | None:
        """Returns the object outside the script that a call of one of the user's functions returns."""
        called = self._resolve(node.func)
        function = called.value if called else None
        if isinstance(function, functools._lru_cache_wrapper) and not self._search.is_library(function):
            what = f"what the cached function {function.__name__!r} returned"
            return _Outside(what, ("object", id(function), ""), _UNKNOWN)
        if not isinstance(function, FunctionType) or self._search.is_library(function):
            return None
        found, key = None, f"{id(function)}()"
        tree = _node(function.__code__)
        if tree and key not in self._search.resolving:
            self._search.resolving.add(key)
            arguments = self._arguments(function.__code__.co_varnames, node, function)
            found = _FunctionSearch(self._search, function, tree, arguments, None).returned()
            self._search.resolving.discard(key)
        return found

    def _of_instance(self, attribute: str) -> _Outside | None:
        assert self._instance is not None
        cls, own, assigned = self._instance[1].cls, self._instance[1].own, self._instance[1].assigned
        if attribute == "__class__":
            return _class(cls)
        if attribute in own:
            return None
        if attribute in assigned:
            values = assigned[attribute]
            return values[0] if values and all(values) else None
        holder = next((base for base in cls.__mro__ if attribute in vars(base)), None)
        if holder is None or self._search.is_library(holder):
            return None
        what = f"the class attribute {holder.__name__}.{attribute}"
        shared = _Outside(what, ("attribute", id(holder), attribute), vars(holder)[attribute])
        return shared if shared.is_mutable or not self._search.is_library(type(shared.value)) else None

    def _visit(self, node: ast.AST) -> None:
        match node:
            case ast.Expr(value=ast.Call() as call):
                self._visit_call(call, is_used=False)
            case ast.Call():
                self._visit_call(node, is_used=True)
            case ast.AugAssign():
                target = self._resolve(node.target)
                self._visit(node.target)
                if target and target.is_mutable and isinstance(node.target, (ast.Name, ast.Attribute)):
                    self._change(target, node)
                self._visit(node.value)
            case ast.Name(ctx=ast.Store() | ast.Del()):
                if node.id in self._globals_assigned or node.id in self._nonlocals:
                    self._change(self._look_up(node.id), node, is_assignment=True)
            case ast.Attribute(ctx=ast.Store() | ast.Del()):
                self._change(self._resolve(node.value), node)
                self._visit_chain(node.value)
            case ast.Subscript(ctx=ast.Store() | ast.Del()):
                self._change(self._resolve(node.value), node)
                self._visit_chain(node.value)
                self._visit(node.slice)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                self._read(self._resolve(node))
                for child in ast.iter_child_nodes(node):
                    self._visit(child)
            case _:
                for child in ast.iter_child_nodes(node):
                    self._visit(child)

    def _visit_chain(self, node: ast.AST) -> None:
        """Visits what is inside the brackets of an object that is changed. The object itself is not read."""
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Subscript):
                self._visit(node.slice)
            node = node.value
        if not isinstance(node, ast.Name):
            self._visit(node)

    def _visit_call(self, node: ast.Call, is_used: bool) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        of = self._resolve(node.func.value) if isinstance(node.func, ast.Attribute) else None
        first = self._resolve(node.args[0]) if node.args else None
        arguments = node.args
        changed: _Outside | None = None
        if of and name in _CHANGING_METHODS and (of.is_mutable or of.value is _UNKNOWN):
            changed = of
        elif first and (
            (name in _CHANGING_FUNCTIONS and (name != "next" or first.root[0] == "global"))
            or (
                name in _CHANGING_METHODS
                and isinstance(node.func, ast.Attribute)
                and _is_built_in_type(node.func.value)
            )
        ):
            changed, arguments = first, node.args[1:]
        if changed:
            self._change(changed, node)
            if is_used:
                self._read(changed)
            if isinstance(node.func, ast.Attribute):
                self._visit_chain(node.func.value)
        else:
            self._visit(node.func)
            self._follow(node, of)
        for argument in (*arguments, *node.keywords):
            self._visit(argument)

    def _follow(self, node: ast.Call, of: _Outside | None) -> None:
        """Searches the function that a call runs."""
        called = self._resolve(node.func)
        if called is None or called.value is _UNKNOWN:
            return
        value = called.value
        if isinstance(value, FunctionType) and of and not isinstance(of.value, (ModuleType, type, dict)):
            # A method of an object outside the script.
            names = value.__code__.co_varnames[: value.__code__.co_argcount]
            self._search.add_function(value, self._arguments(names[1:], node, value) | dict.fromkeys(names[:1], of))
        else:
            names = getattr(getattr(value, "__code__", None), "co_varnames", ())
            self._search.add_callable(value, self._arguments(names, node, value))

    def _arguments(self, names: tuple[str, ...], node: ast.Call, function: Any) -> dict[str, _Outside]:
        """Returns those arguments of a call that are objects outside the script."""
        if any(isinstance(item, ast.Starred) for item in node.args) or any(item.arg is None for item in node.keywords):
            return {}
        passed = dict(zip(names, node.args, strict=False)) | {item.arg or "": item.value for item in node.keywords}
        found = {name: outside for name, value in passed.items() if (outside := self._resolve(value))}
        defaults = _defaults(function) if isinstance(function, FunctionType) else {}
        return found | {name: outside for name, outside in defaults.items() if name not in passed}

    def _read(self, outside: _Outside | None) -> None:
        if outside is None:
            return
        self._search.read.add(outside.root)
        value = outside.value
        self._add_methods(value, outside, [])
        for item in value.values() if type(value) is dict else value if type(value) in (list, tuple, set) else ():
            self._add_methods(item, outside, names_in(self._function.__code__))

    def _add_methods(self, value: Any, outside: _Outside, names: Container[str]) -> None:
        """Searches a function; or of one of the user's objects its properties, its operators and the named methods."""
        if isinstance(value, (FunctionType, functools.partial)):
            self._search.add_callable(value)
        if isinstance(value, (ModuleType, type)) or self._search.is_library(type(value)):
            return
        members = {name: member for kind in reversed(type(value).__mro__) for name, member in vars(kind).items()}
        for name, member in sorted(members.items()):
            is_called = name in names or (name.startswith("__") and name not in _NOT_OPERATORS)
            method = member.fget if isinstance(member, property) else member if is_called else None
            if isinstance(method, FunctionType):
                self._search.add_function(method, dict.fromkeys(method.__code__.co_varnames[:1], outside))

    def _change(self, outside: _Outside | None, node: Any, is_assignment: bool = False) -> None:
        if outside is None:
            return
        file = self._function.__code__.co_filename
        text = linecache.getline(file, node.lineno).strip()
        in_file = is_loaded(self._function.__globals__.get("__name__", ""))
        is_container = outside.is_mutable or outside.value is _UNKNOWN
        recording = outside.root[0] == "cell" and is_container and not is_assignment
        self._search.changes.append(_Change(outside, f"{file}:{node.lineno}", text, in_file, recording))


def _is_built_in_type(node: ast.expr) -> bool:
    """Whether an expression is a type such as ``list`` in ``list.append(SEEN, 1)``."""
    return isinstance(node, ast.Name) and node.id in ("list", "dict", "set", "deque", "object")


def _class(cls: type) -> _Outside:
    return _Outside(f"the class {cls.__name__}", ("object", id(cls), ""), cls)


def _object(value: Any) -> _Outside:
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    what = f"the class {name}" if isinstance(value, type) else f"an object of {name}"
    return _Outside(what, ("object", id(value), ""), value)


def _defaults(function: FunctionType) -> dict[str, _Outside]:
    """Returns the arguments with a mutable default, which all calls share."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    values = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
    outside = {
        name: _Outside(f"the default of the argument {name!r}", ("argument", id(value), name), value)
        for name, value in values.items()
    }
    return {name: item for name, item in outside.items() if item.is_mutable}


def _methods(cls: type) -> Iterator[tuple[FunctionType, str]]:
    for value in vars(cls).values():
        kind = {staticmethod: "static", classmethod: "class"}.get(type(value), "instance")
        function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value))))
        if isinstance(function, FunctionType):
            yield function, "class" if function.__name__ == "__new__" else kind


def _local_names(node: ast.AST) -> set[str]:
    names = {item.arg for item in ast.walk(node) if isinstance(item, ast.arg)}
    for item in ast.walk(node):
        if isinstance(item, ast.Name) and not isinstance(item.ctx, ast.Load):
            names.add(item.id)
        elif isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and item is not node:
            names.add(item.name)
        elif isinstance(item, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in item.names}
        elif isinstance(item, ast.ExceptHandler) and item.name:
            names.add(item.name)
    return names


def _assignments(node: ast.AST) -> Iterator[tuple[ast.AST, ast.expr]]:
    """Yields the targets of a function's assignments and loops, each with its value; ``*x`` is an element of ``x``.

    ``x += 1`` is none of them.
    """
    pairs: list[tuple[ast.expr, ast.expr]]
    for item in ast.walk(node):
        match item:
            case ast.Assign():
                pairs = [(target, item.value) for target in item.targets]
            case ast.AnnAssign(value=ast.expr()) | ast.NamedExpr():
                pairs = [(item.target, item.value)]  # type: ignore[list-item]
            case ast.For() | ast.comprehension():
                pairs = [(item.target, _element_of(item.iter))]
            case ast.withitem(optional_vars=ast.expr()):
                pairs = [(item.optional_vars, item.context_expr)]  # type: ignore[list-item]
            case _:
                continue
        while pairs:
            target, value = pairs.pop()
            if isinstance(target, (ast.Tuple, ast.List)):
                values = value.elts if isinstance(value, (ast.Tuple, ast.List)) else []
                if len(values) != len(target.elts):
                    values = [_element_of(value)] * len(target.elts)
                pairs += zip(target.elts, values, strict=True)
            elif not isinstance(value, ast.Constant):  # a method can't change it, so it does not matter
                yield target, value


def _element_of(value: ast.expr) -> ast.expr:
    return ast.Starred(value, ast.Load())


def _aliases(node: ast.AST) -> dict[str, list[ast.expr]]:
    """Returns local name -> the expressions that are assigned to it."""
    aliases: dict[str, list[ast.expr]] = {}
    for target, value in _assignments(node):
        if isinstance(target, ast.Name):
            aliases.setdefault(target.id, []).append(value)
    return aliases


def _attribute(value: Any, name: str) -> Any:
    """Returns an attribute without running the user's code, such as a property."""
    if value is _UNKNOWN:
        return _UNKNOWN
    try:
        return getattr(value, name) if isinstance(value, (ModuleType, type)) else inspect.getattr_static(value, name)
    except AttributeError:
        return _UNKNOWN


def _item(value: Any, index: ast.expr) -> Any:
    if isinstance(index, ast.Constant) and isinstance(value, (list, tuple, dict)):
        try:
            return value[index.value]  # type: ignore[index]
        except (LookupError, TypeError):
            pass
    return _UNKNOWN


def _node(code: CodeType) -> ast.AST | None:
    """Returns the syntax tree of a function, with the line numbers of its file; None if there is no source."""
    linecache.checkcache(code.co_filename)
    functions = _functions_by_line("".join(linecache.getlines(code.co_filename)))
    found = functions.get((code.co_firstlineno, code.co_name), [])
    return found[0] if len(found) == 1 else None


@functools.lru_cache(maxsize=64)
def _functions_by_line(text: str) -> dict[tuple[int, str], list[ast.AST]]:
    functions: dict[tuple[int, str], list[ast.AST]] = {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return functions
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            functions.setdefault((node.lineno, "<lambda>"), []).append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            functions.setdefault((first, node.name), []).append(node)
    return functions
