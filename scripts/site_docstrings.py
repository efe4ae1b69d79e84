"""The docstrings of the package, as the reference of the documentation site shows them.

* ``MarkdownDocstrings`` - an extension of griffe, which reads the docstrings for mkdocstrings
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

NAME = re.compile(r"``(\w+(?:\.\w+)*)(\(\))?``")


class MarkdownDocstrings(griffe.Extension):
    """Changes what is no Markdown in docstrings, and makes names of documented objects links."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Changes the docstrings of a package, once it is complete."""
        for documented in list(_with_docstrings(pkg)):
            assert documented.docstring
            documented.docstring.value = _changed(documented.docstring.value, documented)


def _changed(text: str, documented: griffe.Object) -> str:
    """Returns the docstring of an object as griffe and Markdown need it."""
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.M)  # the name of griffe's section
    text = re.sub(r"::$", ":", text, flags=re.M)  # a literal block of reStructuredText

    def link(match: re.Match[str]) -> str:
        target = _find(match[1], documented)
        if target is None or target is documented:
            return match[0]
        return f"[`{match[1]}{match[2] or ''}`][{target.path}]"

    return NAME.sub(link, text)


def _find(name: str, documented: griffe.Object) -> griffe.Object | None:
    """Returns the object that a name means in a docstring, if the reference shows it."""
    module = documented.module
    places = [name, f"{module.path}.{name}"]
    places += [f"{documented.path}.{name}"] if documented.is_class else []
    for place in places:
        try:
            found = module.modules_collection[place]
            found = found.final_target if isinstance(found, griffe.Alias) else found
        except (KeyError, griffe.GriffeError):
            continue
        if found.is_module or (found.has_docstring and not re.search(r"\._[a-z]", found.path)):
            return found if found.path.startswith(("kart_rewards", "ppo_continuous")) else None
    return None


def _with_docstrings(thing: griffe.Object) -> Iterator[griffe.Object]:
    """Returns an object and everything in it, if it has a docstring."""
    if thing.docstring:
        yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _with_docstrings(member)
