"""The hooks of the documentation site: pages of modules, links out of docs/, and fetches from other servers.

``.ci/run`` builds the site, which checks every link and cross-reference.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
from conftest import load_module
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files, get_files
from mkdocs.structure.pages import Page

import kart_rewards

ROOT = Path(__file__).parent.parent
site_hooks = load_module(ROOT / "scripts" / "site_hooks.py")


@pytest.fixture(scope="module")
def config() -> MkDocsConfig:
    """The site's configuration, with the pages that the hook adds to the navigation."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    return config.plugins.on_config(config)


@pytest.fixture(scope="module")
def files(config: MkDocsConfig) -> Files:
    """The site's files, with those that the hook adds."""
    return config.plugins.on_files(get_files(config), config=config)


def leaves(entries: object) -> list[str]:
    """The pages in a part of the navigation."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in values for page in leaves(entry)]  # type: ignore[attr-defined]


def rendered(source: str, config: MkDocsConfig, files: Files) -> str:
    """The Markdown of a page after the hook."""
    file = files.get_file_from_path(source)
    assert file is not None
    return site_hooks.on_page_markdown(file.content_string, Page(None, file, config), config, files)


def test_every_module_and_every_page_is_in_the_navigation(config: MkDocsConfig, files: Files) -> None:
    pages = leaves(config.nav)
    for module in pkgutil.walk_packages(kart_rewards.__path__, "kart_rewards."):
        assert f"api/{module.name}.md" in pages or (module.ispkg and module.name.count(".") > 1), module.name
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= set(pages)
    assert len(pages) == len(set(pages))
    for page in pages:
        assert files.get_file_from_path(page), page


def test_links_out_of_docs_lead_to_pages(config: MkDocsConfig, files: Files) -> None:
    assert "](examples/sb3_agent.py.md)" in rendered("libraries.md", config, files)
    assert "](agents.md)" in rendered("first_run.md", config, files)
    assert "](../api/kart_rewards.testing.md)" in rendered("api/index.md", config, files)
    assert "](training.md)" in rendered("agents.md", config, files)
    assert "](architecture.md#the-rooms)" in rendered("CONTRIBUTING.md", config, files)
    for path in ("agents/evaluation.json", "examples/sb3_agent.py.md"):
        assert files.get_file_from_path(path), path


def test_a_link_with_the_name_of_a_file_shows_its_title(config: MkDocsConfig, files: Files) -> None:
    assert "[Write a reward](rewards.md)" in rendered("judging.md", config, files)


def test_what_is_no_link_stays(config: MkDocsConfig, files: Files) -> None:
    page = rendered("examples/random_agent.py.md", config, files)
    assert (ROOT / "examples" / "random_agent.py").read_text(encoding="utf-8") in page


def test_a_picture_opens_in_full_size(config: MkDocsConfig, files: Files) -> None:
    html = site_hooks.on_page_content(
        '<p><img alt="A" src="images/a.svg" /></p>', Page(None, next(iter(files)), config), config, files
    )
    assert html == '<p><a href="images/a.svg"><img alt="A" src="images/a.svg" /></a></p>'


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://example.org/a.js"></script>',
        "<img alt=x src=//example.org/a.png>",
        '<link rel="stylesheet" href="https://example.org/a.css">',
        "@import 'https://example.org/a.css';",
        "a { background: url(https://example.org/a.svg) }",
    ],
)
def test_a_page_that_fetches_something_from_elsewhere_fails_the_build(
    text: str, tmp_path: Path, config: MkDocsConfig
) -> None:
    (tmp_path / "index.html").write_text(text)
    site = config.copy()
    site.site_dir = str(tmp_path)
    with pytest.raises(PluginError, match=r"index\.html: fetches (https:)?//example\.org/a\."):
        site_hooks.on_post_build(site)


def test_links_that_a_reader_clicks_are_no_fetches() -> None:
    text = '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org/"><img src="a.png">'
    assert site_hooks.fetched_from_elsewhere(text) == []
