"""The page in a real browser, with a real mouse and keyboard over Chromium's own protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.microscope.made import inspection
from vgpo_lite.microscope import inspection_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium"),
]


class Browser:
    """A headless Chromium with one page, spoken to through pipes."""

    def __init__(self, folder: Path) -> None:
        read_end, write_end = os.pipe()
        answer_read, answer_write = os.pipe()
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", "--window-size=1200,900", "about:blank",
        ]  # fmt: skip

        def as_three_and_four() -> None:
            os.dup2(read_end, 3)
            os.dup2(answer_write, 4)

        self._process = subprocess.Popen(
            command,
            pass_fds=(3, 4, read_end, answer_write),
            preexec_fn=as_three_and_four,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(answer_write)
        self._out, self._in, self._count, self._rest = write_end, answer_read, 0, b""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            *whole, self._rest = self._rest.split(b"\0")
            for answer in map(json.loads, whole):
                if answer.get("id") == self._count:
                    assert "error" not in answer, answer
                    return answer["result"]
            received = os.read(self._in, 1 << 20)
            assert received, "the browser is gone"
            self._rest += received

    def page(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to the page."""
        return self.call(method, session=self._session, **parameters)

    def run(self, program: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.page("Runtime.evaluate", expression=program, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file and wait for it."""
        self.page("Page.enable")
        self.page("Page.navigate", url=path.as_uri())
        there = "document.readyState === 'complete' && location.protocol === 'file:'"
        self.run(f"new Promise(done => {{ const wait = () => {there} ? done(1) : setTimeout(wait, 20); wait(); }})")

    def hover(self, selector: str) -> None:
        """Move the mouse over the middle of an element."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.page("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def press(self, key: str, number: int = 0) -> None:
        """Press and let go of a key; what the browser itself does with it asks for the key's number."""
        for kind in ("keyDown", "keyUp"):
            self.page("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=number)

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        os.close(self._in)
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    maps = np.array([[0.0, 0.4], [0.4, 0.0], [0.2, 0.1]])
    (folder / "page.html").write_text(inspection_page(inspection(maps=maps, token="<b>two</b>")))
    browser = Browser(folder / "profile")
    browser.open(folder / "page.html")
    yield browser
    browser.close()


HEAT = (
    "(() => { const c = document.querySelector('canvas'); const p = c.getContext('2d'); "
    "return Array.from(p.getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 3); })()"
)


def test_hovering_over_a_token_changes_the_heat_map(browser: Browser) -> None:
    browser.hover(".token:nth-child(1)")
    assert browser.run(HEAT) == [0, 153]  # 0.6 of 255: the picture shines through
    browser.hover(".token:nth-child(2)")
    assert browser.run(HEAT) == [153, 0]
    assert "token 2 of 3" in browser.run("document.querySelector('.told').textContent")


def test_the_page_says_which_layer_the_maps_show(browser: Browser) -> None:
    note = browser.run("document.querySelector('.note').innerText")
    assert note.endswith("where the query that wrote it looked, in layer 30 of 34, averaged over the heads.")


def test_arrow_keys_move_from_token_to_token(browser: Browser) -> None:
    browser.run("document.querySelector('.token').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement === document.querySelectorAll('.token')[2]")
    assert browser.run(HEAT) == [153, 77]
    browser.press("Home")
    assert browser.run(HEAT) == [0, 153]
    assert browser.run("document.querySelector('.completion').querySelectorAll('.token[tabindex=\"0\"]').length") == 1


def test_the_switch_colours_by_another_value(browser: Browser) -> None:
    colours = "Array.from(document.querySelectorAll('.token')).slice(0, 3).map(t => t.style.background)"
    before = browser.run(colours)
    browser.run("document.querySelector('input[value=gate]').click()")
    assert browser.run(colours) != before
    browser.run("document.querySelector('input[value=focus]').click()")
    assert browser.run(colours) == before
    assert len(set(before)) == 3


def test_markup_in_a_token_is_text(browser: Browser) -> None:
    assert browser.run("document.querySelector('.token').textContent") == "<b>two</b>"
    assert browser.run("document.querySelectorAll('.token b').length") == 0


def test_right_and_wrong_answers_have_their_histograms(browser: Browser) -> None:
    assert browser.run("document.querySelectorAll('#summary svg').length") == 2
    assert "right (1)" in browser.run("document.querySelector('#summary').textContent")


@pytest.fixture
def with_losses(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    reliance = {
        "painted_over": torch.tensor([4.0, -2.0, 0.0]),
        "hidden_late": torch.tensor([0.0, 0.25, 0.0]),
        "entropy": torch.tensor([0.1, 0.2, 0.3]),
    }
    path = tmp_path / "causal.html"
    path.write_text(inspection_page(inspection(maps=np.full((3, 2), 0.1), reliance=reliance)))
    usual = browser.run("location.pathname")
    browser.open(path)
    yield browser
    browser.open(type(path)(usual))


def test_losses_without_the_image_are_colours_and_numbers(with_losses: Browser) -> None:
    browser = with_losses
    browser.run("document.querySelector('input[value=advantage]').focus()")
    browser.press("ArrowRight", 39)  # from one choice of the switch to the next
    assert browser.run("document.querySelector('input[name=kind]:checked').value") == "painted_over"
    colours = (
        "Array.from(document.querySelectorAll('.token')).slice(0, 3).map(t => getComputedStyle(t).backgroundColor)"
    )
    assert browser.run(colours) == ["rgba(11, 110, 79, 0.6)", "rgba(179, 84, 30, 0.3)", "rgba(11, 110, 79, 0)"]
    browser.page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.run(colours)
    browser.page("Emulation.setEmulatedMedia", features=[])
    assert dark == ["rgba(61, 190, 145, 0.6)", "rgba(232, 133, 70, 0.3)", "rgba(61, 190, 145, 0)"]
    browser.press("ArrowRight", 39)
    scale = "document.getElementById('scale').textContent"
    assert "where the last 7 of 28 layers cannot read the image, in nats; full colour at 0.250" in browser.run(scale)
    browser.run("document.querySelector('.token').focus()")
    browser.press("ArrowRight")
    told = browser.run("document.querySelector('.told').textContent")
    assert told.endswith("loss without image -2.000 · loss if hidden late 0.250 · entropy 0.200")
    head = browser.run("document.querySelector('.head').textContent")
    assert "focus against loss without image -0.50, loss if hidden late 0.00, entropy 1.00" in head


def test_a_page_without_losses_does_not_name_them(browser: Browser) -> None:
    assert browser.run("document.querySelectorAll('input[name=kind]').length") == 4
    assert "loss" not in browser.run("document.querySelector('main').innerText")


def test_the_dark_page_is_dark(browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(ground)
    browser.page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.run(ground)
    browser.page("Emulation.setEmulatedMedia", features=[])
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(17, 22, 20)")


def test_on_a_phone_the_image_stays_in_sight_and_over_no_token(browser: Browser) -> None:
    browser.page("Emulation.setDeviceMetricsOverride", width=390, height=700, deviceScaleFactor=1, mobile=True)
    browser.run("document.querySelectorAll('.completion')[1].querySelector('.token').scrollIntoView({block: 'center'})")
    browser.run("document.querySelectorAll('.completion')[1].querySelector('.token').click()")
    places = browser.run(
        "['canvas', '.told', '.eye', '.completion:last-child .tokens'].map(s => [...document.querySelectorAll(s)]"
        ".at(-1).getBoundingClientRect()).map(b => [b.top, b.bottom])"
    )
    ground = browser.run("getComputedStyle(document.querySelector('.eye')).backgroundColor")
    wide = browser.run("document.documentElement.scrollWidth")
    browser.page("Emulation.clearDeviceMetricsOverride")
    canvas, told, eye, tokens = places
    assert eye[0] <= canvas[0] < canvas[1] <= eye[1] + 1
    assert eye[0] <= told[0] < told[1] <= eye[1] + 1
    assert 0 <= eye[0] < eye[1] <= tokens[0] < 700
    assert ground.startswith("rgb(")  # opaque: no token shines through
    assert wide <= 390


def test_curves_of_long_answers_are_means_of_neighbouring_tokens(browser: Browser, tmp_path: Path) -> None:
    tokens = 162
    values = torch.arange(tokens) % 2.0  # 0, 1, 0, 1, ...
    path = tmp_path / "long.html"
    path.write_text(inspection_page(inspection(maps=np.full((tokens, 2), 0.1), values=values)))
    usual = browser.run("location.pathname")
    browser.open(path)
    curve = browser.run("document.querySelector('.curves polyline').getAttribute('points')")
    words = browser.run("document.querySelector('.curves').textContent")
    question = browser.run("document.querySelector('.question').textContent")
    browser.open(type(path)(usual))
    heights = [float(point.split(",")[1]) for point in curve.split()]
    top, bottom = 4, 90  # where 1 and 0 stand
    share = [(bottom - height) / (bottom - top) for height in heights]
    # Two neighbours on each side: 2 of 5 are ones around a 0, 3 of 5 around a 1; at the ends fewer are there.
    assert share[2:6] == pytest.approx([0.4, 0.6, 0.4, 0.6], abs=1e-3)
    assert share[0] == pytest.approx(1 / 3, abs=1e-3)
    assert f"token 1 to {tokens}, means of 5" in words
    assert question == "[image] How many?"
