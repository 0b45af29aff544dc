"""The console in a real browser: what a person sees and does, under the policy that the page is served with."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bytekv.engine.store import Store
from bytekv.http import running
from bytekv.http.console import PAGE, PAGE_POLICY
from tests.support import harness

TIMEOUT_S = 30
TOKEN = "s3cret"
#: With this set, the screenshots are kept there; one of them is docs/reference/console.png.
KEPT = os.environ.get("BYTEKV_SCREENSHOTS")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]

# --- the page as text --------------------------------------------------------------------------


class Elements(HTMLParser):
    """Collect the elements of the page and the text of each script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            assert self._open not in self.text
            self.text[self._open] = data


def test_the_page_is_one_file_and_runs_only_what_its_policy_names(door):
    elements = Elements()
    elements.feed(PAGE)
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        links = [attributes[name] for name in ("src", "href", "action") if name in attributes]
        assert all(link and link.startswith("data:") for link in links), (tag, attributes)
    assert "innerHTML" not in PAGE
    policy = dict(part.split(" ", 1) for part in PAGE_POLICY.split("; "))
    for name, text in elements.text.items():
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    answer = door(tokens=TOKEN)("GET", "/-/console")
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.body.decode() == PAGE


# --- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of this module, with a profile of its own."""
    for name in ("selenium", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("chromium-browser")
    if not driver or not browser:
        pytest.skip("chromium or chromedriver is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


class Page:
    """The console as a person uses it."""

    def __init__(self, chrome: Any, url: str, store: Store) -> None:
        self.chrome, self.url, self.store = chrome, url, store

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, *, token: str | None = TOKEN, dark: bool = False) -> Page:
        self.resize(1280, 900)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.chrome.get(f"{self.url}/-/console")
        if token is not None:
            self.until(lambda: self.is_open("token-dialog"))
            self.type("token", token + "\n")
            self.until(lambda: self.text("state") == "open")
        return self

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.chrome, TIMEOUT_S, 0.02, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: condition())

    def element(self, name: str) -> Any:
        return self.chrome.find_element("id", name)

    def text(self, name: str) -> str:
        return self.element(name).text

    def value(self, name: str) -> str:
        return self.element(name).get_property("value")

    def is_open(self, name: str) -> bool:
        return bool(self.element(name).get_property("open"))

    def is_shown(self, name: str) -> bool:
        return self.element(name).is_displayed()

    def click(self, name: str) -> None:
        self.until(lambda: self.element(name).is_enabled())
        self.element(name).click()

    def type(self, name: str, text: str, *, clear: bool = False) -> None:
        element = self.element(name)
        if clear:
            element.clear()
        element.send_keys(text)

    def press(self, dialog: str, label: str) -> None:
        self.until(lambda: self.is_open(dialog))
        for button in self.element(dialog).find_elements("tag name", "button"):
            if button.text == label:
                button.click()
                return
        raise AssertionError(f"no button {label!r}")

    def listed(self) -> list[str]:
        """Return the keys on the list as they are shown."""
        return self.chrome.execute_script(
            "return Array.from(document.querySelectorAll('#list button:not(.more)'), each => each.innerText)"
        )

    def choose(self, shown: str) -> None:
        self.until(lambda: shown in self.listed())
        script = "return document.querySelectorAll('#list button')[arguments[0]]"
        self.chrome.execute_script(script, self.listed().index(shown)).click()
        self.until(lambda: self.is_shown("head") and self.text("name") == shown)

    def hex(self) -> Any:
        return self.element("hex").find_element("tag name", "textarea")

    def toasts(self) -> str:
        return self.text("toasts")

    def shot(self, name: str) -> None:
        if KEPT:
            self.chrome.save_screenshot(str(Path(KEPT) / f"{name}.png"))


def fill(db: Store) -> None:
    """Store a few keys of every kind, in several segments, some of which are dead."""
    for round_ in range(2):
        for number in range(400):
            db[f"user:{number:04}"] = (
                f'{{\n  "name": "User {number}",\n  "visits": {number * round_ * 7 % 97}\n}}\n' * 2
            )
    for number in range(0, 400, 3):
        del db[f"user:{number:04}"]
    db["config/app.toml"] = '[server]\nhost = "127.0.0.1"\nport = 8080\n\n[log]\nlevel = "info"   # ünïcödé ✓\n'
    db[b"\x01\xff"] = bytes(range(256))
    db[""] = "of the empty key"
    db[".."] = "dots"
    db["<b>bold</b>"] = "<script>document.title = 'taken over'</script>"
    db["a\u202etxt.exe\n"] = ""
    db["large"] = bytes(range(256)) * 1000
    db.put("offer", "2 for 1", ttl=3600)


@pytest.fixture
def page(chromium: Any, path: Path) -> Iterator[Page]:
    """A console on a store with a few keys of every kind."""
    with harness.open_store(path, segment_size_bytes=64 * 1024) as db:
        fill(db)
        with running(db, tokens={TOKEN: "read write admin", "reader": "read"}) as url:
            yield Page(chromium, url, db)
            chromium.get("about:blank")
    refused = re.compile(r"status of (401|403|404|412|416|503)")  # which the page has to cope with
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [entry for entry in errors if not refused.search(entry["message"])]


def test_the_page_asks_for_the_token_and_keeps_it_out_of_every_url(page):
    page.open(token=None)
    page.until(lambda: page.is_open("token-dialog"))
    page.shot("token")
    page.type("token", "wrong\n")
    page.until(lambda: "not known" in page.text("token-dialog"))
    assert page.listed() == []
    page.type("token", TOKEN + "\n")
    page.until(lambda: len(page.listed()) > 100)
    assert not page.is_open("token-dialog")
    assert page.value("token") == ""
    assert page.chrome.current_url == f"{page.url}/-/console"
    asked = page.chrome.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert asked
    assert not [url for url in asked if TOKEN in url or not url.startswith(page.url)]
    assert page.chrome.execute_script("return [localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    page.click("lock")
    page.until(lambda: page.is_open("token-dialog"))


def test_keys_by_prefix(page):
    page.open()
    page.until(lambda: len(page.listed()) == 200)
    assert page.listed()[:3] == ["empty key", "hex01 ff", ".."]
    assert page.text("count") == "200 and more keys"
    page.type("prefix", "user:00")
    page.until(lambda: page.text("count") == "66 keys")
    assert page.listed()[0] == "user:0001"
    page.type("prefix", "x")
    page.until(lambda: "None begins with this" in page.text("list"))
    page.type("prefix", "", clear=True)
    page.click("refresh")
    page.until(lambda: len(page.listed()) == 200)
    page.chrome.find_element("css selector", "#list .more").click()
    page.until(lambda: page.text("count") == f"{len(page.store)} keys")


def test_nothing_that_a_store_contains_becomes_part_of_the_page(page):
    page.open()
    page.choose("<b>bold</b>")
    assert page.value("text") == "<script>document.title = 'taken over'</script>"
    page.choose(r"a\u{202e}txt.exe\u{a}")
    assert page.chrome.title == "bytekv console"
    assert not page.chrome.find_elements("css selector", "#list b, #name b")


def test_a_value_is_shown_changed_and_saved_as_text(page):
    page.open()
    page.choose("config/app.toml")
    assert page.value("text") == page.store["config/app.toml"].decode()
    assert not page.element("save").is_enabled()
    page.shot("light")
    page.type("text", "# more\n")
    assert page.text("status") == "Changed, not saved"
    page.click("revert")
    page.until(lambda: not page.element("save").is_enabled())
    page.type("text", "# more\n")
    page.click("save")
    page.until(lambda: "Saved" in page.toasts())
    assert page.store["config/app.toml"].endswith("# ünïcödé ✓\n# more\n".encode())
    assert f"seq {page.store.last_seq}" in page.text("facts")


def test_bytes_are_shown_and_changed_in_hexadecimal(page):
    page.open()
    page.until(lambda: page.listed())
    page.choose(next(shown for shown in page.listed() if shown.startswith("hex")))
    assert bytes.fromhex(page.hex().get_property("value")) == bytes(range(256))
    assert not page.element("as-text").is_enabled(), "these bytes are no text"
    page.hex().clear()
    page.hex().send_keys("00 f")
    assert not page.element("save").is_enabled()
    assert "pairs" in page.text("status")
    page.hex().send_keys("fC0")
    page.click("save")
    page.until(lambda: "Saved" in page.toasts())
    assert page.store[b"\x01\xff"] == b"\x00\xff\xc0"
    page.choose("..")
    page.click("as-hex")
    assert page.hex().get_property("value") == "64 6f 74 73"
    page.hex().send_keys(" 21")
    page.click("as-text")
    assert page.value("text") == "dots!"


def test_every_key_can_be_changed_and_deleted(page):
    """A browser removes ".." from a path, encoded or not."""
    page.open()
    for shown, key in (("..", b".."), ("empty key", b""), ("offer", b"offer")):
        page.choose(shown)
        page.type("text", "!")
        page.click("save")
        page.until(lambda key=key: page.store[key].endswith(b"!"))
        page.until(lambda: not page.element("save").is_enabled())
        assert (page.store.ttl(key) is not None) == (key == b"offer"), "an expiry stays"
        page.click("delete")
        page.press("ask-dialog", "Cancel")
        assert key in page.store
        page.click("delete")
        page.press("ask-dialog", "Delete")
        page.until(lambda key=key: key not in page.store)
        page.until(lambda shown=shown: shown not in page.listed())
        assert page.is_shown("nothing")


def test_a_value_that_somebody_else_has_changed_is_not_overwritten(page):
    page.open()
    page.choose("config/app.toml")
    page.store["config/app.toml"] = "theirs"
    page.type("text", "mine")
    page.click("save")
    page.until(lambda: "Somebody has changed" in page.text("banner"))
    assert page.store["config/app.toml"] == b"theirs"
    page.element("banner").find_element("tag name", "button").click()
    page.until(lambda: page.value("text") == "theirs")
    assert not page.is_shown("banner")
    page.store["config/app.toml"] = "theirs again"
    page.click("delete")
    page.press("ask-dialog", "Delete")
    page.until(lambda: "Somebody has changed" in page.text("banner"))
    assert "config/app.toml" in page.store


def test_unsaved_changes_are_not_lost_by_a_click(page):
    page.open()
    page.choose("config/app.toml")
    page.type("text", "mine")
    page.click("new")
    page.press("ask-dialog", "Cancel")
    assert page.value("text").endswith("mine")
    page.click("revert")


def test_a_new_key(page):
    page.open()
    page.click("new")
    page.until(lambda: page.is_open("new-dialog"))
    page.type("new-key", "brand new\n")
    page.until(lambda: page.is_shown("head"))
    page.type("text", "value")
    page.type("ttl", "60")
    page.click("save")
    page.until(lambda: "Saved" in page.toasts())
    assert page.store["brand new"] == b"value"
    assert 0 < page.store.ttl("brand new") <= 60
    page.click("new")
    page.until(lambda: page.is_open("new-dialog"))
    page.click("new-hex")
    page.type("new-key", "f", clear=True)
    page.press("new-dialog", "Continue")
    page.until(lambda: "pairs" in page.text("new-dialog"))
    page.type("new-key", "e01\n")
    page.until(lambda: "fe 01" in page.text("name"))
    page.store[b"\xfe\x01"] = "theirs"
    page.click("save")
    page.until(lambda: "meanwhile" in page.text("banner"))
    assert page.store[b"\xfe\x01"] == b"theirs"


def test_a_large_value_is_looked_at_in_part(page):
    page.open()
    page.choose("large")
    assert "first 64 KiB of 250 KiB" in page.text("banner")
    assert page.hex().get_property("readOnly")
    page.until(lambda: page.hex().get_property("value").count("\n") == 4095)
    assert not page.element("save").is_enabled()


def test_a_token_that_only_reads_is_told_so(page):
    page.open(token="reader")
    page.choose("config/app.toml")
    page.type("text", "mine")
    page.click("save")
    page.until(lambda: "scope write" in page.toasts())
    page.click("compact")
    page.until(lambda: "scope admin" in page.toasts())
    page.click("revert")


def test_segments_and_a_compaction_with_its_progress(page, monkeypatch):
    page.open()
    page.until(lambda: page.chrome.find_elements("css selector", "#strip .segment"))
    stats = page.store.stats()
    heights = page.chrome.execute_script(
        "return Array.from(document.querySelectorAll('#strip .segment i'), each => parseFloat(each.style.height))"
    )
    dead = [100 * (row.dead_bytes + row.tombstone_bytes) / row.length_bytes for row in stats.segments]
    assert heights == pytest.approx(dead, abs=0.01)
    widths = page.chrome.execute_script(
        "return Array.from(document.querySelectorAll('#strip .segment'), each => each.getBoundingClientRect().width)"
    )
    lengths = [row.length_bytes for row in stats.segments]
    assert len(lengths) > 2
    assert sorted(range(len(widths)), key=lengths.__getitem__) == sorted(range(len(widths)), key=widths.__getitem__)
    assert page.text("keys") == str(stats.keys)
    reached, go = threading.Event(), threading.Event()
    compact = type(page.store).compact

    def compact_slowly(self: Any, *, progress: Any) -> Any:
        def pause(state: Any) -> None:
            progress(state)
            reached.set()
            assert go.wait(60)

        return compact(self, progress=pause)

    monkeypatch.setattr(type(page.store), "compact", compact_slowly)
    page.click("compact")
    assert reached.wait(60)
    page.until(lambda: "Compacting: " in page.text("caption"))
    assert page.is_shown("progress")
    assert page.chrome.execute_script("return document.querySelector('#progress i').style.width") != "0px"
    assert not page.element("compact").is_enabled()
    page.shot("compacting")
    go.set()
    page.until(lambda: "gave back" in page.text("caption"))
    page.until(lambda: not page.is_shown("progress"))
    assert page.store.stats().compactions == stats.compactions + 1
    page.until(lambda: page.text("dead") == "0 B")


def test_operations_per_second(page):
    page.open()
    page.until(lambda: page.text("writes") == "0")
    page.store.update({f"n{number}": "" for number in range(1000)})
    page.until(lambda: int(page.text("writes").replace(",", "")) > 100)
    assert page.element("writes-line").get_attribute("d").startswith("M")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window(page, dark):
    page.open(dark=dark)
    page.choose("config/app.toml")
    for width in (1280, 820, 390, 320):
        page.resize(width, 900 if width > 800 else 780)
        page.shot(f"{'dark' if dark else 'light'}-{width}")
        beyond = page.chrome.execute_script(
            """const far = [];
            for (const each of document.querySelectorAll("body *")) {
              const box = each.getBoundingClientRect();
              const isOut = box.width && box.right > innerWidth + 0.5;
              if (isOut && !each.closest(".hex")) far.push(each.id || each.className);
            }
            return [innerWidth, far, document.documentElement.scrollWidth <= innerWidth];"""
        )
        assert beyond == [width, [], True]
    paper = page.chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(16, 20, 18)") == dark


def test_a_store_that_is_closed_is_noticed(chromium, path):
    with harness.open_store(path) as db, running(db, tokens=TOKEN) as url:
        page = Page(chromium, url, db).open()
        db.close()
        page.until(lambda: "closed" in page.text("state"))
        chromium.get("about:blank")
        chromium.get_log("browser")
