"""Hooks of the documentation site: what ``mkdocs build`` does besides the pages in docs/.

* ``on_config`` - adds a page for each module of the package to the navigation
* ``on_files`` - makes these pages, and adds what the documents link to outside of docs/
* ``on_page_markdown`` - changes links to these files, which are right on GitHub, to their pages
* ``on_page_content`` - makes pictures open in full size
* ``on_post_build`` - checks that no page fetches anything from another server

The documents are the repository's own files, so there is no second copy of a text. ``mkdocs.yml`` names this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kart_rewards"
ROOMS = {
    "": "RAM, rewards, drives",
    "env": "One environment",
    "training": "Training",
    "evaluation": "Evaluation",
    "games": "Games",
    "look": "Watching and playing",
    "lab": "The lab",
}
"""A folder of the package -> its title in the reference."""
SCRIPT = "ppo_continuous_single_file"
PAGES_OF_FILES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "agents/README.md": "agents.md",
    "homebrew/README.md": "homebrew.md",
}
"""A document outside of docs/ -> its page."""
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<target>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def modules() -> dict[str, list[str]]:
    """Returns the package's modules: a room's folder -> the names of its modules, in the order of the alphabet."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = parts[1] if len(parts) > 2 else ""
        if parts[-1] != "__init__":
            rooms[room].append(".".join(parts))
        elif len(parts) <= 3:  # a room itself
            rooms[room].insert(0, ".".join(parts[:-1]))
    return rooms


def page_of(module: str) -> str:
    """Returns the path of a module's page."""
    return f"api/{module}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the modules to the section of the navigation that has the overview of the reference."""
    assert config.nav, "mkdocs.yml has a navigation"
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    for room, names in modules().items():
        reference.append(
            {ROOMS[room]: [{name.partition(f"{room or 'kart_rewards'}.")[2] or name: page_of(name)} for name in names]}
        )
    reference.append({"The trainer": page_of(SCRIPT)})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the modules, and the files outside of docs/ that documents link to."""
    for name in [SCRIPT, *(name for names in modules().values() for name in names)]:
        members = "    options:\n      members: false\n" if (PACKAGE.parent / name.replace(".", "/")).is_dir() else ""
        text = f"---\nsearch:\n  boost: 0.05\n---\n\n::: {name}\n{members}"
        files.append(File.generated(config, page_of(name), content=text))
    waiting = [file for file in files if file.src_uri.endswith(".md") and not file.src_uri.startswith("api/kart")]
    waiting += [_add(name, uri, files, config) for name, uri in PAGES_OF_FILES.items() if name != "README.md"]
    while waiting:  # a page that is added can link to more files
        page = waiting.pop()
        for path in _outside(page):
            uri = _page_of_file(path)
            if not files.get_file_from_path(uri):
                file = _add(path, uri, files, config)
                waiting += [file] if path.endswith(".md") else []
    return files


def _add(path: str, uri: str, files: Files, config: MkDocsConfig) -> File:
    """Adds a file of the repository to the site. Source files become pages that show them."""
    if not uri.endswith(".md") or path.endswith(".md"):
        file = File.generated(config, uri, abs_src_path=str(ROOT / path))
    else:
        code = (ROOT / path).read_text(encoding="utf-8")
        language = "python" if path.endswith(".py") else "docker"
        file = File.generated(config, uri, content=f"# {path}\n\n```{language}\n{code}```\n")
        file.inclusion = InclusionLevel.NOT_IN_NAV
    files.append(file)
    return file


def _page_of_file(path: str) -> str:
    """Returns the path on the site of a file of the repository, such as ``agents/README.md``."""
    if path in PAGES_OF_FILES:
        return PAGES_OF_FILES[path]
    if path.startswith("docs/") or path.endswith((".md", ".json", ".png", ".svg", ".gif")):
        return path.removeprefix("docs/")
    module = path.removesuffix(".py").replace("/", ".")
    return page_of(module) if (module + ".").startswith(("kart_rewards.", SCRIPT)) else f"{path}.md"


def _home(page: File) -> Path:
    """Returns the folder of the repository in which a page's text lies."""
    path = Path(str(page.abs_src_path)) if page.abs_src_path else ROOT / "docs" / page.src_uri
    return path.parent


def _title(path: Path) -> str:
    """Returns the heading of a document."""
    heading = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return heading[1] if heading else path.name


def _outside(page: File) -> Iterator[str]:
    """Returns the files outside of docs/ that a page links to, as paths from the repository's root."""
    for link in LINK.finditer(page.content_string):
        target = (_home(page) / link["target"]).resolve()
        if target.is_relative_to(ROOT) and not target.is_relative_to(ROOT / "docs") and target.is_file():
            yield target.relative_to(ROOT).as_posix()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Changes links to files outside of docs/, and links from there into docs/, to links between pages."""
    up = "../" * page.file.src_uri.count("/")

    def changed(link: re.Match[str]) -> str:
        target = (_home(page.file) / link["target"]).resolve()
        if not (target.is_relative_to(ROOT) and target.is_file()):  # not a link, or mkdocs reports it
            return link[0]
        text = _title(target) if link["text"].endswith(".md") else link["text"]  # a file's name says little on a site
        return f"[{text}]({up}{_page_of_file(target.relative_to(ROOT).as_posix())}{link['anchor'] or ''})"

    return LINK.sub(changed, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes each picture a link to its file: on a phone, wide ones are small."""
    return re.sub(r'(<p>)(<img [^>]*\bsrc="([^"]+)"[^>]*>)(</p>)', r'\1<a href="\3">\2</a>\4', html)


FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*\brel=[\"']?(?:canonical|next|prev))[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)|@import\s+[\"']((?:https?:)?//[^\"']+)"
)


def fetched_from_elsewhere(text: str) -> list[str]:
    """Returns the addresses from which a browser fetches a part of an HTML page or a stylesheet."""
    return [address for match in FETCHED.findall(text) for address in match if address]


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Checks the built pages.

    Raises:
        PluginError: A page fetches something from another server.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css") and (found := fetched_from_elsewhere(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path}: fetches {', '.join(found)}: put the file into docs/")
