"""The overview page in a browser: headless Chromium, driven over its DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from typing import Any

import pytest
from websockets.sync.client import connect

from examples import app, stats
from tests.servers import SERVERS

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE = 60.0  # seconds for anything that the browser does
STYLES = ["/ws-wsproto-low", "/ws-wsproto-high", "/ws-websockets-std", "/ws-websockets-event"]
SERVED = {"hop": STYLES, "std": ["/ws-websockets-std"]}

pytestmark = [
    pytest.mark.no_poller,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install it"),
]


class Page:
    """One tab: commands out, answers in; what went wrong in the page is kept in `errors`."""

    def __init__(self, client: Any) -> None:
        self.client, self.numbers = client, itertools.count(1)
        self.errors: list[str] = []

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        number = next(self.numbers)
        self.client.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.client.recv(timeout=PATIENCE))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until the expression is true; its value."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.js(condition)):
            assert time.monotonic() < deadline, f"never: {condition}\n{self.js(STATE)}"
        return value


STATE = "document.body.innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests; the port of its DevTools."""
    home = tmp_path_factory.mktemp("chromium")
    command = [
        str(BROWSER), "--headless=new", "--no-first-run", "--disable-gpu", "--mute-audio",
        "--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-port=0",
        f"--user-data-dir={home}", *(["--no-sandbox"] if os.geteuid() == 0 else []),
        "about:blank",
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        said = home / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (said.exists() and said.read_text().count("\n")):
            assert process.poll() is None, "the browser has ended"
            assert time.monotonic() < deadline, "the browser does not start"
            time.sleep(0.05)
        yield int(said.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def shown(browser, url, dark=False):
    """The page behind `url` in a new tab."""
    request = urllib.request.Request(f"http://127.0.0.1:{browser}/json/new", method="PUT")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        tab = json.load(answer)
    with connect(tab["webSocketDebuggerUrl"], max_size=None, compression=None) as client:
        page = Page(client)
        page.command("Runtime.enable")
        page.command("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ])
        page.command("Page.navigate", url=url)
        page.until('location.protocol === "http:" && document.readyState === "complete"')
        try:
            yield page
        finally:
            page.command("Page.close")
    assert not page.errors


@pytest.fixture(params=SERVED)
def server(request, monkeypatch):
    """The name of the server, and the page's address there; counters come quickly, and begin
    with nothing."""
    monkeypatch.setattr(stats, "EVERY", 0.1)
    monkeypatch.setattr(stats, "_open", type(stats._open)())
    with SERVERS[request.param](app.application) as port:
        yield request.param, f"http://127.0.0.1:{port}/"


def card(path):
    """The card of this style, as an expression."""
    return f"document.querySelector('[data-path=\"{path}\"]')"


@pytest.fixture
def page(browser, server):
    with shown(browser, server[1]) as page:
        yield page


def test_every_style_echoes(page, server):
    page.until("latest !== null")
    for path in STYLES:
        this = card(path)
        page.js(f"{this}.querySelector('input').value = 'Grüße an {path} \U0001f407'; 1")
        page.js(f"{this}.querySelector('form').requestSubmit(); 1")
        if path in SERVED[server[0]]:
            text = page.until(
                f"{this}.querySelector('.log').innerText.includes('echoed in') "
                f"&& {this}.querySelector('.log').innerText"
            )
            assert text.startswith(f"Grüße an {path} \U0001f407")
            assert page.js(f"{this}.querySelector('.state').dataset.open") == "yes"
            page.js(f"{this}.querySelector('.close').click(); 1")
            page.until(f"{this}.querySelector('.log').innerText.includes('closed with code 1000')")
        else:
            page.until(f"{this}.querySelector('.log').innerText.includes('501')")
            assert page.js(f"{this}.querySelector('.state').innerText") == "refused"


def test_counters_arrive_and_the_lines_move(page, server):
    name, _ = server
    page.until("latest !== null")
    assert page.js("latest.server") == name
    for counter in ("threads", "connections", "memory"):
        line = f"document.querySelector('[data-counter={counter}] .line').getAttribute('d')"
        before = page.until(line)
        assert page.until(f"{line} !== {json.dumps(before)} && {line}").count("L") >= 1
        label = page.js(f"document.querySelector('[data-counter={counter}] svg').ariaLabel")
        assert "now" in label
    assert float(page.js("document.querySelector('[data-counter=threads] .value').innerText")) >= 1
    assert "MiB" in page.js("document.querySelector('[data-counter=memory] .value').innerText")


def test_the_picture_changes(page):
    """The same place of the screen, before and after the first counters."""
    page.until("latest !== null")

    def picture():
        box = page.js(
            "(() => { const b = document.querySelector('[data-counter=memory]')"
            ".getBoundingClientRect(); return [b.x, b.y + scrollY, b.width, b.height] })()"
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        answer = page.command("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return answer["data"]

    first = picture()
    page.until("charts.memory.points.length > 5")
    assert picture() != first


def test_fifty_idle_connections_are_held_and_let_go(page, server):
    path = SERVED[server[0]][0]
    this = card(path)
    page.until("latest !== null")
    before = page.js("latest.threads")
    page.js(f"{this}.querySelector('.hold').click(); 1")
    page.until(f"latest.open[{path[1:]!r}] === 50")
    page.until(f"{this}.querySelector('.held').innerText.startsWith('50 open: threads')")
    grown = page.js("latest.threads") - before
    assert grown >= 50 if path == "/ws-websockets-std" else grown < 50
    page.js(f"{this}.querySelector('.hold').click(); 1")
    page.until(f"!latest.open[{path[1:]!r}]")
    page.until(f"{this}.querySelector('.hold').innerText === 'Hold 50 idle'")


def test_the_event_stream_is_heard(page):
    this = "document.getElementById('sse')"
    page.js(f"{this}.querySelector('button').click(); 1")
    if "/sse" in app.ROUTES:
        page.until(f"{this}.querySelector('.held').innerText.startsWith('2 events')")
        assert page.js(f"{this}.querySelector('output').innerText") != "–"
        page.js(f"{this}.querySelector('button').click(); 1")
        assert page.js(f"{this}.querySelector('.state').innerText") == "closed"
    else:
        page.until(f"{this}.querySelector('.state').innerText === 'refused'")


def test_the_stream_is_said_to_be_cut_off(browser):
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(contextlib.ExitStack())
        port = serving.enter_context(SERVERS["std"](app.application))
        page = stack.enter_context(shown(browser, f"http://127.0.0.1:{port}/"))
        page.until("latest !== null")
        page.js("stats.close(); stats.onerror(); 1")
        assert "cut off" in page.js("document.getElementById('stats-state').innerText")


# looks, and whoever cannot see them


def colours(page):
    return page.js("[getComputedStyle(document.body).backgroundColor, "
                   "getComputedStyle(document.body).color]")


def luminance(colour):
    """Relative luminance of `rgb(...)` (WCAG 2)."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """
(() => {
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour.startsWith('rgb(')) return colour;
    }
  };
  return [...document.querySelectorAll('main *')]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
                   && e.checkVisibility() && !e.disabled)
    .map((e) => [e.outerHTML.slice(0, 80), getComputedStyle(e).color, ground(e)]);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(browser, dark):
    """Contrast of 4.5 to 1 at least (WCAG 2, 1.4.3), in both schemes."""
    with SERVERS["std"](app.application) as port:
        with shown(browser, f"http://127.0.0.1:{port}/", dark) as page:
            page.until("latest !== null")
            ground, ink = colours(page)
            assert (luminance(ground) < luminance(ink)) == dark
            found = page.js(CONTRASTS)
    assert len(found) > 30
    for what, colour, behind in found:
        light, other = sorted([luminance(colour), luminance(behind)], reverse=True)
        assert (light + 0.05) / (other + 0.05) >= 4.5, (what, colour, behind)


def test_everything_has_a_name(page):
    unnamed = page.js(
        "[...document.querySelectorAll('button, input, [role]')].filter((e) => !(e.ariaLabel "
        "|| e.innerText?.trim() || e.getAttribute('role') === 'status')).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert page.js("document.documentElement.lang") == "en"
    levels = page.js("[...document.querySelectorAll('h1, h2, h3')].map((e) => +e.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_runs_over_the_edge(page, width):
    page.command("Emulation.setDeviceMetricsOverride", width=width, height=800,
                 deviceScaleFactor=1, mobile=False)
    page.until(f"innerWidth === {width}")
    assert page.js("document.documentElement.scrollWidth") <= width
