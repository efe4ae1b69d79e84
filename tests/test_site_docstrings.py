"""Docstrings as the reference of the documentation site shows them."""

from __future__ import annotations

from pathlib import Path

import griffe
from conftest import load_module

site_docstrings = load_module(Path(__file__).parent.parent / "scripts" / "site_docstrings.py")

SOURCE = '''"""A module of ``Thing`` and ``other``.

* ``Thing.turn()``, ``kart_rewards_planted.parts``, ``json`` - names

A block::

    code
"""

from kart_rewards_planted.parts import other


class Thing:
    """A ``Thing`` that can ``turn``.

    Example:
        >>> Thing()
    """

    def turn(self):
        """Turns."""

    def unknown(self):
        pass
'''


def changed(tmp_path: Path) -> griffe.Module:
    """A package with the source above, as the extension leaves it."""
    package = tmp_path / "kart_rewards_planted"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    (package / "parts.py").write_text('"""Parts."""\n\n\ndef other():\n    """Another one. See ``Thing.unknown``."""\n')
    extensions = griffe.load_extensions(site_docstrings.MarkdownDocstrings)
    module = griffe.load("kart_rewards_planted", search_paths=[tmp_path], extensions=extensions, allow_inspection=False)
    assert isinstance(module, griffe.Module)
    return module


def text_of(thing: griffe.Object | griffe.Alias) -> str:
    assert thing.docstring
    return thing.docstring.value


def test_names_of_documented_objects_are_links(tmp_path: Path) -> None:
    package = changed(tmp_path)
    text = text_of(package)
    assert "[`Thing`][kart_rewards_planted.Thing] and [`other`][kart_rewards_planted.parts.other]" in text
    assert "* [`Thing.turn()`][kart_rewards_planted.Thing.turn], " in text
    assert ", [`kart_rewards_planted.parts`][kart_rewards_planted.parts], ``json`` - names" in text
    assert "``Thing`` that can [`turn`][kart_rewards_planted.Thing.turn]" in text_of(package["Thing"])
    assert "See ``Thing.unknown``" in text_of(package["parts.other"])


def test_sections_and_literal_blocks_have_the_form_that_markdown_needs(tmp_path: Path) -> None:
    package = changed(tmp_path)
    assert "\nA block:\n" in text_of(package)
    assert "\nExamples:\n" in text_of(package["Thing"])
