"""Fingerprints of code: whether a reward term still computes what it computed when a run was saved.

* ``code_text`` - everything in the source code that decides what a function or class returns
* ``fingerprint`` - a hash of this text
* ``file_fingerprint`` - a hash of a complete file, by which checkpoints of version 0.1 compare
* ``attributes_of`` - the attributes of an instance
* ``package_of``, ``is_library`` - whether a definition is the user's own
* ``names_in`` - the names of globals and attributes in a function's code

A fingerprint covers the code of a definition, the functions and classes that it uses, also those of other files, and
the constants that it reads. It does not cover comments, docstrings, type annotations, decorators and line breaks, nor
other definitions of the file. Libraries (everything outside the user's own files and this package) count by name.
"""

from __future__ import annotations

import ast
import copyreg
import functools
import hashlib
import inspect
import io
import logging
import random
import sys
import textwrap
import tokenize
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np

from kart_rewards.imports import LIBRARIES, is_loaded, neighbours_in

NO_SOURCE = (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError)
"""What ``inspect`` raises for a definition that is interactive or built in, or whose file was edited meanwhile."""


def fingerprint(definition: Any) -> str:
    """Returns 16 hexadecimal digits that change when the code changes that decides what the definition returns.

    Args:
        definition: A function, a class, or any other callable.
    """
    return hash_of(code_text(definition))


def code_text(definition: Any) -> str:
    """Returns the code that decides what the definition returns, with the constants that it reads.

    Args:
        definition: A function, a class, or any other callable.
    """
    parts: list[str] = []
    _Collector(parts, package_of(definition)).add(definition)
    return "\n".join(parts)


def hash_of(text: str) -> str:
    """Returns 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(definition: Any) -> str:
    """Returns a hash of the text of the file that holds a definition."""
    try:
        module = inspect.getmodule(definition)
        source = inspect.getsource(definition if module is None else module)
    except NO_SOURCE:
        source = ""
    return hash_of(source)


class _Collector:
    """Collects the text that a fingerprint is a hash of.

    Args:
        parts: Is extended.
        package: The package of the definition, which is never taken for a library.
    """

    def __init__(self, parts: list[str], package: str) -> None:
        self._parts = parts
        self._package = package
        self._own_packages = {package, "kart_rewards"} - {"builtins"}
        self._seen: set[int] = set()
        self._inside: set[int] = set()  # what the values that are being added lie in
        self._kept: list[Any] = []  # so that no id is used again

    def add(self, value: Any, name: str = "") -> None:
        """Adds a value, and everything of the user's own that it uses.

        Args:
            value: The value.
            name: How the code calls it.
        """
        pending: list[_Used] = [(value, name)]
        while pending:  # a recursive call would fail on long chains of objects
            value, name = pending.pop()
            if isinstance(value, _EndOf):
                self._inside.discard(value.container)
            else:
                pending += reversed([*self._add(value, name)])

    def _add(self, value: Any, name: str) -> Iterable[_Used]:
        """Adds a value. Returns what it uses, which must be added next."""
        if id(value) in self._seen or id(value) in self._inside:
            self._parts.append(f"{name}: see above")
            return []
        if type(value) not in _PLAIN and (isinstance(value, MethodType) or _has(value, "__dict__")):
            self._seen.add(id(value))
            self._kept.append(value)
        match value:
            case functools.partial():
                return [(part, f"{name} partial") for part in (value.func, value.args, value.keywords)]
            case MethodType():
                return [(value.__func__, name), (value.__self__, f"{name} self")]
            case FunctionType():
                return self._add_function(value, name)
            case type():
                return self._add_class(value, name)
            case ModuleType():
                spec = value.__spec__  # a rewards file's neighbour has a private __name__
                self._parts.append(f"{name}: module {spec.name if spec else value.__name__}")
            case _ if isinstance(value, _BY_TYPE):
                self._parts.append(f"{name}: {type(value).__module__}.{type(value).__qualname__}")
            case list() | tuple():
                self._parts.append(f"{name}: {type(value).__name__} of {len(value)}")
                return self._items(value, [(item, f"{name}[{i}]") for i, item in enumerate(value)])
            case dict() | MappingProxyType():
                self._parts.append(f"{name}: dict of {len(value)}")
                return self._items(value, [(item, f"{name}[{self._key(key)}]") for key, item in value.items()])
            case set() | frozenset():
                self._parts.append(f"{name}: set {sorted(map(self._key, value))}")
            case None | bool() | int() | float() | complex() | str() | bytes() | Path():
                self._parts.append(f"{name}: {value!r}")
            case _ if inspect.isbuiltin(value):
                self._parts.append(f"{name}: {value.__module__}.{value.__qualname__}")
            case _ if _has(value, "tobytes") and not getattr(getattr(value, "dtype", None), "hasobject", False):
                form = f"{getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}"
                self._parts.append(f"{name}: {form} {hashlib.sha256(value.tobytes()).hexdigest()}")
            case _ if _has(value, "tolist"):  # a tensor, or an array of objects
                self._parts.append(f"{name}: {getattr(value, 'dtype', '')}")
                return [(value.tolist(), name)]
            case _ if callable(value) and _has(value, "__wrapped__"):  # such as a function with functools.cache
                return [(value.__wrapped__, name)]
            case _:
                held = attributes_of(value) or _content_of(value)
                return self._items(value, [(type(value), f"{name} of"), (held, f"{name} with")])
        return []

    def _items(self, container: Any, items: list[_Used]) -> list[_Used]:
        """Returns the items of a list, a dict or an object, and a mark of their end: it may hold itself."""
        self._inside.add(id(container))
        self._kept.append(container)
        return [*items, (_EndOf(id(container)), "")]

    def _key(self, value: Any) -> str:
        """Returns a text of a dict's key or a set's item that is the same in each process."""
        text = repr(value)
        if " at 0x" not in text and "{" not in text:  # no address, and no set, whose order differs
            return text
        parts: list[str] = []
        _Collector(parts, self._package).add(value)
        return "\n".join(parts)

    def _add_function(self, function: FunctionType, name: str) -> Iterator[_Used]:
        if is_library(function, self._own_packages):
            self._parts.append(f"{name}: {function.__module__}.{function.__qualname__}")
            return
        tree = _tree(function.__code__)
        self._parts.append(f"{name}: {_text(tree) if tree else _bytecode(function.__code__)}")
        yield function.__defaults__, "defaults"
        yield function.__kwdefaults__, "keyword defaults"
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield cell.cell_contents, variable
            except ValueError:  # it has no value yet
                self._parts.append(f"{variable}: unset")
        used = {name: function.__globals__[name] for name in names_in(function.__code__) & {*function.__globals__}}
        used |= neighbours_in(tree, function.__globals__) if tree else {}
        for variable, value in sorted(used.items()):
            yield value, variable
            for path in sorted(_paths(tree, variable)) if tree else ():
                yield from self._of_module(value, variable, path)

    def _of_module(self, value: Any, name: str, path: tuple[str, ...]) -> Iterator[_Used]:
        """Yields what code reads from one of the user's modules: ``helper.LIMIT``, ``package.module.function``."""
        for attribute in path:
            if not isinstance(value, ModuleType) or is_library(value, self._own_packages):
                return
            value, name = getattr(value, attribute, None), f"{name}.{attribute}"
        yield value, name

    def _add_class(self, cls: type, name: str) -> Iterator[_Used]:
        if is_library(cls, self._own_packages):
            self._parts.append(f"{name}: {cls.__module__}.{cls.__qualname__}")
            return
        self._parts.append(f"{name}: class {cls.__qualname__}")
        for base in cls.__bases__:
            yield base, "base"
        for attribute, value in sorted(vars(cls).items()):
            if attribute in _OF_EVERY_CLASS:
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if isinstance(value, (property, functools.cached_property)):
                value = value.fget if isinstance(value, property) else value.func
            yield value, attribute


_Used = tuple[Any, str]  # a value, and how the code calls it

_BY_TYPE = (logging.Logger, logging.LoggerAdapter, io.IOBase, random.Random, np.random.Generator, np.random.RandomState)
"""What holds more than the code that uses it: other loggers, a position, a state that is not that of the start."""

_PLAIN = {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset}

_MISSING = object()


@dataclass(frozen=True)
class _EndOf:
    """Follows the items of a container.

    Args:
        container: The ``id`` of the container.
    """

    container: int


def _has(value: Any, name: str) -> bool:
    """Whether a value or its class has an attribute. ``hasattr`` would call a ``__getattr__`` of the user's own."""
    return inspect.getattr_static(value, name, _MISSING) is not _MISSING


def _content_of(value: Any) -> Any:
    """Returns what a library's object without attributes holds, such as a range, a deque or an operator.attrgetter."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = reduce(value) if reduce else value.__reduce_ex__(2)
    except Exception:  # it has no such form
        return None
    if not isinstance(reduced, tuple):
        return reduced
    return [list(part) if isinstance(part, Iterator) else part for part in reduced[1:]]


_OF_EVERY_CLASS = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__kart_scripts__"),
    *("__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__", "__orig_bases__"),
}


def attributes_of(instance: Any) -> dict[str, Any]:
    """Returns name -> value of an instance's own attributes, those in slots included, without the mark of a script."""
    slots = [name for cls in type(instance).__mro__ for name in _slots(cls)]
    attributes = {}
    for name in slots:
        with suppress(AttributeError):  # without a value
            attributes[name] = object.__getattribute__(instance, name)
    if _has(instance, "__dict__"):
        attributes |= object.__getattribute__(instance, "__dict__")
    return {name: value for name, value in attributes.items() if name not in _OF_EVERY_CLASS}


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    prefix = f"_{cls.__name__.lstrip('_')}"
    return [prefix + name if name.startswith("__") and not name.endswith("__") else name for name in names]


def is_library(value: Any, own_packages: Container[str]) -> bool:
    """Whether a function, class or module is not the user's own.

    Args:
        value: The function, class or module.
        own_packages: The packages that are never a library, wherever they are installed.
    """
    package = package_of(value)
    if package in own_packages or is_loaded(package):
        return False
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:  # built in, or a package without __init__.py
        return package == "builtins" or package in sys.builtin_module_names
    return str(file).startswith(LIBRARIES)


def package_of(value: Any) -> str:
    """Returns the first part of the name of a definition's module."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name.partition(".")[0] if isinstance(name, str) else ""


def _tree(code: CodeType) -> ast.AST | None:
    """The syntax tree of a function without what does not decide its result; None if there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except NO_SOURCE:
        return None
    try:
        tree: ast.AST = ast.parse(source)
    except SyntaxError:  # a lambda amid an expression of several lines
        return None
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    if code.co_name == "<lambda>":
        return lambdas[0] if len(lambdas) == 1 else None
    return _Stripper().visit(tree)


class _Stripper(ast.NodeTransformer):
    """Removes docstrings, annotations and decorators."""

    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        node.decorator_list = []
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _strip  # noqa: N815 - names of ast

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return None if node.value is None else ast.Assign([node.target], node.value, lineno=node.lineno)


def _text(tree: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(tree))


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def names_in(code: CodeType) -> set[str]:
    """Returns the names of globals and attributes in a function's code, also in the functions inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= names_in(constant)
    return names


def _paths(tree: ast.AST, name: str) -> set[tuple[str, ...]]:
    """The attributes that code reads from a name: ``a.b.c`` gives ``("b",)`` and ``("b", "c")`` for ``a``."""
    paths = set()
    node: Any
    for node in ast.walk(tree):
        path: tuple[str, ...] = ()
        while isinstance(node, ast.Attribute):
            node, path = node.value, (node.attr, *path)
        if path and isinstance(node, ast.Name) and node.id == name:
            paths.add(path)
    return paths
