"""The woven book: complete, at home on one host, with links that lead somewhere."""

import html
import inspect
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit
from xml.etree import ElementTree

import pytest

from book.notebook import ROOT
from book.weave import OUT, chapters, source_map
from hop import Engine, Server

HTML = OUT / "html"
#: What a style sheet asks for.
CSS_URL = r"url\(\s*['\"]?(.*?)['\"]?\s*\)|@import\s+['\"](.*?)['\"]"
EPUB = OUT / "epub" / "hop.epub"

pytestmark = pytest.mark.timeout(600)


@dataclass
class Page(HTMLParser):
    """What a page refers to, and what may be referred to in it."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    caption: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "p":
            self.caption = values.get("id", "")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            self.captions.setdefault(self.caption, []).append(values["href"])
        elif tag == "link" and values.get("rel") not in ("next", "prev", "search", "index"):
            self.assets.append(values.get("href", ""))
        elif tag in ("script", "img", "iframe", "source", "video", "audio", "object", "embed"):
            self.assets += [values[name] for name in ("src", "srcset", "data") if name in values]

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.caption = ""


@pytest.fixture(scope="module", autouse=True)
def woven() -> None:
    """Weave the book as `make book` does: a warning fails here, with Sphinx's own words."""
    done = subprocess.run(
        [sys.executable, "-m", "book.weave"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def page(path: Path) -> Page:
    """A page, read once."""
    return Page(path)


def pages() -> Iterator[Page]:
    """Every HTML page of the book; the theme keeps templates of its own in _static."""
    for path in sorted(HTML.rglob("*.html")):
        if "_static" not in path.parts:
            yield page(path)


def is_elsewhere(url: str) -> bool:
    """Whether a browser would ask another host for it."""
    return bool(urlsplit(url).netloc)


def leads_somewhere(target: Path, fragment: str) -> bool:
    """Whether the file is there, and in it what the fragment names."""
    if target.suffix != ".html" or not fragment:
        return target.exists()
    return target.exists() and fragment in page(target).ids


def test_every_chapter_and_every_module_has_a_page() -> None:
    expected = {f"notebooks/{chapter.name}.html" for chapter in chapters()}
    expected |= {f"code/{path.stem}.html" for path in (ROOT / "hop").glob("*.py")}
    assert len(chapters()) >= 9
    assert {name for name in expected if not (HTML / name).exists()} == set()
    landing = page(HTML / "index.html")
    assert expected - set(landing.links) == set()


def test_nothing_is_fetched_from_another_host() -> None:
    fetched = [f"{p.path.name}: {url}" for p in pages() for url in p.assets if is_elsewhere(url)]
    for style in HTML.rglob("*.css"):
        urls = re.findall(CSS_URL, style.read_text())
        fetched += [f"{style.name}: {url}" for pair in urls for url in pair if is_elsewhere(url)]
    for path in (p.path for p in pages()):
        inline = re.findall(r"<style.*?</style>|style=\"[^\"]*\"", path.read_text(), re.DOTALL)
        urls = re.findall(CSS_URL, " ".join(inline))
        fetched += [f"{path.name}: {url}" for pair in urls for url in pair if is_elsewhere(url)]
    assert fetched == []


def test_all_assets_and_local_links_lead_somewhere() -> None:
    lost = []
    for p in pages():
        for url in p.links + p.assets:
            if is_elsewhere(url) or urlsplit(url).scheme or url == "":
                continue
            path, fragment = urldefrag(url)
            target = (p.path.parent / unquote(path.split("?")[0])).resolve() if path else p.path
            target = target / "index.html" if target.is_dir() else target
            if not leads_somewhere(target, unquote(fragment)):
                lost.append(f"{p.path.relative_to(HTML)}: {url}")
    assert lost == []


def test_an_exported_cell_leads_to_its_lines_and_they_lead_back() -> None:
    traced = source_map()
    for chapter in chapters():
        chapter_page = page(HTML / "notebooks" / f"{chapter.name}.html")
        for cell, file in chapter.exports.items():
            lines = [n for origin in traced[file] if origin.cell == cell
                     for n in (origin.first, origin.last)]
            (target,) = chapter_page.captions[f"export-{cell}"]
            module, _, line = target.partition("#L")
            assert module == f"../code/{Path(file).stem}.html"
            if lines:  # a cell that only imports has its lines at the top, collected
                assert int(line) in lines
                back = f"../notebooks/{chapter.name}.html#export-{cell}"
                assert back in page(HTML / "code" / f"{Path(file).stem}.html").links


def test_a_module_s_page_shows_the_module() -> None:
    for path in sorted((ROOT / "hop").glob("*.py")):
        text = (HTML / "code" / f"{path.stem}.html").read_text()
        count = len(path.read_text().splitlines())
        assert f'id="L{count}"' in text
        assert f'id="L{count + 1}"' not in text


def test_the_tangler_s_directives_are_not_shown() -> None:
    for chapter in chapters():
        text = (HTML / "notebooks" / f"{chapter.name}.html").read_text()
        article = text.split("<article")[1].split("</article")[0]
        shown = re.sub(r"<[^>]+>", "", article)
        assert not re.search(r"^#\| (export|default_exp)", shown, re.MULTILINE)


def test_alerts_have_become_admonitions() -> None:
    said = sum(cell.source.count("> [!") for c in chapters() for cell in c.notebook.node.cells
               if cell.cell_type == "markdown")
    shown = sum(p.path.read_text().count('class="admonition') for p in pages())
    assert said
    assert shown >= said
    assert not [p.path.name for p in pages() if "[!NOTE]" in p.path.read_text()]


def test_chapters_are_numbered_from_nought() -> None:
    for number, chapter in enumerate(chapters()):
        text = (HTML / "notebooks" / f"{chapter.name}.html").read_text()
        assert f'<span class="section-number">{number}. </span>' in text
        assert chapter.name.startswith(f"{number:02}_")


def test_the_search_knows_the_words() -> None:
    index = (HTML / "searchindex.js").read_text()
    for word in ("epol", "listen", "chunk"):
        assert word in index


def test_the_reference_names_every_option_and_every_key() -> None:
    text = html.unescape(re.sub(r"<[^>]+>", "", (HTML / "reference.html").read_text()))
    server = set(inspect.signature(Server).parameters) - {"engine", "listen"}
    engine = set(inspect.signature(Engine).parameters) - {"app", "limits", "storage"}
    options = {f"--{name.replace('_', '-')}" for name in server | engine}
    source = (ROOT / "hop" / "adaptor.py").read_text()
    keys = set(re.findall(r'"(hop\.[a-z]+)"', source))
    assert keys >= {"hop.response", "hop.context"}
    assert {name for name in options | keys if name not in text} == set()


def test_the_epub_is_whole_and_well_formed() -> None:
    with zipfile.ZipFile(EPUB) as book:
        names = book.namelist()
        assert names[0] == "mimetype"
        for chapter in chapters():
            assert f"notebooks/{chapter.name}.xhtml" in names
        for name in names:
            if name.endswith((".xhtml", ".opf", ".ncx", ".svg")):
                try:
                    ElementTree.fromstring(book.read(name))
                except ElementTree.ParseError as error:
                    pytest.fail(f"{name}: {error}")


def test_no_machine_s_path_is_in_the_book() -> None:
    home = [str(ROOT), str(Path.home()) + "/"]
    told = [p.path.name for p in pages() for word in home if word in p.path.read_text()]
    assert told == []
