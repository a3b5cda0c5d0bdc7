"""The page in a real headless Chromium, and its files. A screenshot of every state is kept in
out/page/."""

import base64
import io
import re
import shutil
import subprocess
import sys
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

import train
from conftest import ROOT
from in_float64 import no_pictures

STATIC = ROOT / "nanocontrol" / "page" / "static"
FILES = sorted(
    file for file in STATIC.rglob("*") if file.suffix in (".js", ".css", ".html", ".svg")
)
NO_PAGE = 'the extra `page` is missing: pip install -e ".[page]"'
SHOTS = ROOT / "out" / "page"
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 120  # seconds for one pair of pictures, on a busy machine
PYRAMID = [[(0.5, 0.2), (0.25, 0.7)], [(0.5, 0.2), (0.55, 0.8)], [(0.5, 0.2), (0.8, 0.65)]]
PYRAMID += [[(0.25, 0.7), (0.55, 0.8), (0.8, 0.65)]]


# -------------------------------------------------------------------------------- without a browser


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_of_the_page_names_an_address_outside(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:|wss?:|ftp:|[\"'(])//", text)


def test_the_document_has_nothing_inline():
    """The policy `default-src 'self'` forbids it."""
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    assert "setAttribute('style'" not in "".join(file.read_text() for file in FILES)


def test_every_element_that_a_module_asks_for_exists():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    modules = "".join(file.read_text(encoding="utf-8") for file in STATIC.glob("*.js"))
    there = set(re.findall(r"\bid=\"([\w-]+)\"", html)) | set(
        re.findall(r"\bid: '([\w-]+)'", modules)
    )
    # A field's explanation has the field's name and -help.
    there |= {f"{name}-help" for name in re.findall(r"\bfield\('([\w-]+)'", modules)}
    asked = set(re.findall(r"\$\('([\w-]+)'\)", modules))
    assert asked and asked <= there


def test_every_module_is_imported():
    modules = "".join(file.read_text(encoding="utf-8") for file in STATIC.glob("*.js"))
    imported = set(re.findall(r"from '\./([\w-]+\.js)'", modules))
    assert imported == {file.name for file in STATIC.glob("*.js")} - {"main.js"}


# --------------------------------------------------------------------------------- with a browser


class Chromium:
    """The page in a browser, as a user handles it."""

    def __init__(self, driver, address: str):
        self.driver, self.address = driver, address

    def open(self, fragment: str = "", width: int = 1280, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        self.wait(lambda: "loaded" in self.status or "made in" in self.status)

    @contextmanager
    def slow_server(self) -> Iterator[None]:
        """Pages that are opened meanwhile get every answer two seconds late."""
        script = "const at_once = fetch; window.fetch = async (...asked) => {"
        script += "await new Promise((done) => setTimeout(done, 2000)); return at_once(...asked)}"
        tell = self.driver.execute_cdp_cmd
        added = tell("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        yield
        tell("Page.removeScriptToEvaluateOnNewDocument", added)

    def js(self, script: str, *values):
        return self.driver.execute_script(script, *values)

    def find(self, selector: str):
        found = self.driver.find_element("css selector", selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
        return found

    def click(self, selector: str) -> None:
        self.act(selector, "element.click()")

    def set(self, selector: str, value) -> None:
        """Set a slider or a text, as its input event tells the page."""
        event = "element.dispatchEvent(new Event('input', {bubbles: true}))"
        self.act(selector, f"element.value = arguments[1]; {event}", value)

    def act(self, selector: str, script: str, *values) -> None:
        """Find the element and act in one piece: the page may draw it again at any time."""
        found = "const element = document.querySelector(arguments[0]);"
        seen = "element.scrollIntoView({block: 'center', behavior: 'instant'});"
        self.js(found + seen + script, selector, *values)

    @property
    def status(self) -> str:
        return self.find_text("#status-text")

    def find_text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited in vain; the page says: {self.status}"
            time.sleep(0.1)

    def made(self, action: Callable[[], object]) -> dict[str, str]:
        """The finished pictures by column (PNG) after an action that changes the request."""
        self.js("document.querySelector('#status-text').textContent = ''")
        action()
        self.wait(lambda: "made in" in self.status)
        return self.pictures()

    def pictures(self) -> dict[str, str]:
        script = "return [...document.querySelectorAll('#pictures figure')].map("
        script += "(f) => [f.dataset.column, f.querySelector('.made').src])"
        return dict(self.js(script))

    def scores(self) -> list[float]:
        found = self.js("return [...document.querySelectorAll('.score')].map((p) => p.textContent)")
        return [float(re.findall(r"[\d.]+", text)[0]) for text in found]

    def drag(self, selector: str, points: list[tuple[float, float]]) -> None:
        """Press the pointer at the first point, move it through the others, and let go. Points are
        fractions of the element's box."""
        from selenium.webdriver.common.action_chains import ActionChains

        element, chain = self.find(selector), ActionChains(self.driver, duration=20)
        box = self.js("return arguments[0].getBoundingClientRect().toJSON()", element)
        for i, (x, y) in enumerate(points):
            dx, dy = int((x - 0.5) * box["width"]), int((y - 0.5) * box["height"])
            chain.move_to_element_with_offset(element, dx, dy)
            if i == 0:
                chain.click_and_hold()
        chain.release().perform()

    def keep(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SHOTS / f"{name}.png"))


@contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The address of a page's server."""
    pytest.importorskip("uvicorn", reason=NO_PAGE)
    pytest.importorskip("starlette", reason=NO_PAGE)
    command = [sys.executable, "-m", "nanocontrol.page", "--port", "0", "--device", "cpu", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[0]
        server.terminate()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with serving("--out", str(tmp_path_factory.mktemp("hints"))) as found:
        yield found


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator:
    reason = "selenium is missing: pip install selenium"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("chromium is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(service=Service(chromedriver), options=options)
    yield started
    started.quit()


@pytest.fixture
def page(driver, address) -> Iterator[Chromium]:
    """A page that logs no error during the test."""
    driver.get_log("browser")
    yield Chromium(driver, address)
    said = [entry["message"] for entry in driver.get_log("browser")]
    assert not said


def draw_a_pyramid(page: Chromium) -> dict[str, str]:
    page.made(lambda: page.click("#clear"))
    page.set("#prompt", "a blue pyramid on a white background")
    for stroke in PYRAMID[:-1]:
        page.drag("#canvas", stroke)
    return page.made(lambda: page.drag("#canvas", PYRAMID[-1]))


@pytest.mark.slow
def test_the_first_screen_needs_no_click(page):
    page.open()
    page.wait(lambda: page.js("return document.querySelectorAll('.score b').length") == 2)
    without, controlled = page.scores()
    assert controlled > without + 0.3
    assert "Both pictures began as the same noise" in page.find_text("#says")
    assert page.js("return document.querySelectorAll('#maps figure').length") > 0
    page.keep("first")


@pytest.mark.slow
def test_the_picture_follows_what_is_drawn(page):
    page.open()
    pictures = draw_a_pyramid(page)
    page.keep("drawn")
    assert pictures["none"] != pictures["canny"]
    without, controlled = page.scores()
    assert controlled > 0.6 and controlled > without + 0.2
    assert "✓" in page.find_text("#check")
    # The address brings the drawing and the pictures back.
    fragment = page.js("return location.hash")
    page.open(fragment)
    page.wait(lambda: "made in" in page.status)
    assert page.pictures() == pictures


@pytest.mark.slow
def test_a_muted_connection_changes_the_picture_and_comes_back(page):
    page.open()
    before = page.made(lambda: page.set("#steps", 8))
    muted = page.made(lambda: page.drag("[data-row='6'] .cells", [(0.5, 0.5)]))
    page.keep("muted")
    assert page.find_text("[data-row='6'] output") == "muted"
    assert muted["none"] == before["none"] and muted["canny"] != before["canny"]
    weaker = page.made(
        lambda: page.drag("[data-row='1'] input", [(0.5, 0.5), (0.4, 0.5), (0.2, 0.5)])
    )
    assert weaker["canny"] != muted["canny"]
    assert page.made(lambda: page.click("#reset")) == before
    silent = page.made(lambda: page.set("#strength", 0))
    assert silent["none"] == silent["canny"]
    assert "they are the same picture" in page.find_text("#says")


@pytest.mark.slow
def test_a_zero_convolution_says_that_it_is_muted(page):
    page.open()
    page.made(lambda: page.set("#steps", 2))
    zero, click = "[data-zero='2']", "document.querySelector(arguments[0])"
    click += ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    page.made(lambda: page.js(click, zero))
    page.find("#block-text")
    page.keep("zero")
    assert "It is muted" in page.find_text("#block-text")
    assert page.find_text(f"{zero} text") == page.find_text("[data-row='2'] output") == "muted"
    page.made(lambda: page.js(click, zero))
    assert "muted" not in page.find_text("#block-text") + page.find_text(f"{zero} text")


@pytest.mark.slow
def test_an_empty_drawing_changes_no_picture_and_is_named(page):
    page.open()
    page.made(lambda: page.set("#steps", 2))
    page.made(lambda: page.click("#clear"))
    page.click("#overlay")
    page.find("#pictures")
    page.keep("empty")
    named = "return [...document.querySelectorAll('#pictures figure')]"
    named += ".filter((f) => f.textContent.includes('nothing to follow'))"
    named += ".map((f) => f.dataset.column)"
    assert page.js(named) == ["none", "canny"]
    assert page.js("return document.querySelectorAll('.picture .hint').length") == 0
    assert "The drawing is empty" in page.find_text("#says")
    # A scene without a figure has edges, but no pose.
    page.made(lambda: page.click("[name=mode][value=scene]"))
    page.made(lambda: page.click("#compare"))
    page.keep("empty-pose")
    assert page.js(named) == ["pose"]
    assert "empty" not in page.find_text("#says") + page.find_text("#layers-text")
    page.made(lambda: page.click("[name=condition][value=pose]"))
    assert "Add a figure" in page.find_text("#check")


@pytest.mark.slow
def test_a_dragged_solid_moves_the_picture(page):
    page.open()
    page.made(lambda: page.set("#steps", 8))
    before = page.made(lambda: page.click("[name=mode][value=scene]"))
    x = page.js("return document.querySelector('.thing.chosen .body').cx.baseVal.value")
    y = page.js("return document.querySelector('.thing.chosen .body').cy.baseVal.value")
    after = page.made(lambda: page.drag("#grips", [(x, y), (x + 0.05, y), (x + 0.1, y)]))
    page.keep("scene")
    moved = page.js("return document.querySelector('.thing.chosen .body').cx.baseVal.value")
    assert moved == pytest.approx(x + 0.1, abs=0.02)
    assert after["none"] == before["none"] and after["canny"] != before["canny"]
    colours = "return [...document.querySelectorAll('#object select')].map((s) => s.value)"
    assert page.js(colours) == ["pyramid", "blue", "red"]
    page.made(lambda: page.click("#compare"))
    page.keep("compare")
    assert {*page.pictures()} == {"none", "canny", "depth", "pose"}


@pytest.mark.slow
def test_comparing_begins_with_a_scene(page):
    page.open()
    page.made(lambda: page.set("#steps", 2))
    page.made(lambda: page.click("#compare"))
    assert {*page.pictures()} == {"none", "canny", "depth", "pose"}
    page.made(lambda: page.click("#compare"))
    assert {*page.pictures()} == {"none", "canny"}


@pytest.mark.slow
def test_kinds_without_weights_say_what_trains_them(page):
    with page.slow_server():
        page.open()
    # The samples of the kinds come later, and the tiles are drawn again.
    page.click(".tile.off[value=soft]")
    assert page.find_text("#train code") == "python train.py --condition soft"
    page.wait(lambda: page.js("return document.querySelectorAll('.tile img').length") > 0)
    assert page.find_text("#train code") == "python train.py --condition soft"
    page.made(lambda: page.click("[name=condition][value=depth]"))
    assert "✓" in page.find_text("#check")  # areas come from a scene


@pytest.mark.slow
def test_the_recorded_connections_stay_when_the_models_are_loaded_late(page):
    with page.slow_server():
        page.open()
    for row in range(7):
        assert page.find_text(f"[data-row='{row}'] output") == "× 1.00"


@pytest.mark.slow
def test_a_link_that_cannot_be_read_opens_the_page(page):
    page.open("#1this-is-no-request")
    page.wait(lambda: page.find_text("#step-text") == "finished")
    for prompt in ("null", "5"):
        request = f'{{"drawing":{{}},"prompt":{prompt},"steps":2}}'.encode()
        deflate = zlib.compressobj(wbits=-15)
        packed = urlsafe_b64encode(deflate.compress(request) + deflate.flush())
        page.open(f"#1{packed.decode().rstrip('=')}")
        page.wait(lambda: "made in" in page.status)
    page.open()
    page.made(lambda: page.set("#steps", 4))
    script = "const s = (await import('/static/state.js')).state; return s.request"
    request = page.js(f"return (async () => {{{script}}})()")
    assert request["steps"] == 4 and request["drawing"]["condition"] == "canny"


@pytest.mark.slow
def test_the_keyboard_draws_and_undoes(page):
    page.open()
    page.made(lambda: page.set("#steps", 4))
    page.made(lambda: page.click("#clear"))
    canvas = page.find("#canvas")
    empty = page.js("return arguments[0].toDataURL()", canvas)
    keys = " " + "\ue014" * 10 + "\ue015" * 10 + " "  # space, right, down, space
    page.made(lambda: canvas.send_keys(keys))
    page.wait(lambda: page.js("return arguments[0].toDataURL()", canvas) != empty)
    assert "empty" not in page.find_text("#check")
    page.wait(lambda: "of 1." in page.find_text("#says"))
    without, controlled = page.scores()
    follows = controlled >= 0.5 and controlled - without > 0.1
    assert ("and it follows it:" in page.find_text("#says")) == follows
    page.made(lambda: page.click("#undo"))
    page.wait(lambda: page.js("return arguments[0].toDataURL()", canvas) == empty)


@pytest.mark.slow
def test_unknown_words_are_marked_and_known_ones_are_offered(page):
    page.open()
    page.made(lambda: page.set("#prompt", "a red dragon on a blue background"))
    assert page.find_text("#words mark") == "dragon"
    choices = page.js("return [...document.querySelectorAll('#words select')].map((s) => s.value)")
    assert choices == ["red", "blue"]
    page.keep("words")


@pytest.mark.slow
def test_work_can_be_stopped_and_a_missing_server_is_said(page):
    page.open()
    page.set("#steps", 50)
    page.wait(lambda: "step" in page.status)
    page.click("#cancel")
    page.keep("stopped")
    assert page.status.startswith("Stopped")
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.set("#steps", 10)
    page.wait(lambda: "does not answer" in page.status)
    page.keep("unreachable")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    page.driver.get_log("browser")  # the browser itself reports what it could not reach


@pytest.mark.slow
def test_the_tour_has_ten_stops_and_puts_back_what_it_tried(page):
    page.open()
    page.made(lambda: page.set("#steps", 4))
    page.click("#tour-start")
    titles = []
    for _ in range(10):
        titles.append(page.find_text("#tour-title"))
        page.keep(f"tour-{len(titles)}")
        if titles[-1] == "Strength":
            before = page.js("return document.querySelector('#strength').value")
            page.made(lambda: page.click("#tour-try"))
            assert page.js("return document.querySelector('#strength').value") != before
        page.click("#tour-next")
    assert len({*titles}) == 10 and titles[0] == "The locked copy"
    assert page.js("return document.querySelector('#strength').value") == before
    assert page.js("return document.querySelector('#tour').hidden")


OVERLAP = """const a = document.querySelector('#tour').getBoundingClientRect();
    return [...document.querySelectorAll('#pictures .picture')]
        .map((p) => p.getBoundingClientRect())
        .filter((b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        .length"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (853, 480)])
def test_the_tours_box_leaves_the_pictures_free(page, width, height):
    page.open(width=width, height=height)
    page.made(lambda: page.set("#steps", 2))
    page.click("#tour-start")
    assert page.js(OVERLAP) == 0
    page.click("#tour-next")
    page.click("#tour-next")  # the zero convolution, in the diagram
    page.made(lambda: page.click("#tour-try"))
    time.sleep(1)  # it scrolls
    page.keep(f"tour-try-{width}")
    assert page.js(OVERLAP) == 0


@pytest.mark.slow
def test_a_recorded_training_is_shown_and_played(page):
    page.open()
    page.wait(lambda: page.find_text("#run-at") == "step 700")
    shown = "return document.querySelector('#run-pictures figure:last-child img').src"
    last = page.js(shown)
    assert page.js("return document.querySelectorAll('#film figure').length") > 10
    page.set("#run-step", 0)
    assert page.find_text("#run-at") == "step 0" and page.js(shown) != last
    page.keep("recorded")
    page.js("""window.seen = []; const at = document.querySelector('#run-at');
        new MutationObserver(() => seen.push(at.textContent)).observe(at, {childList: true})""")
    page.click("#run-play")
    page.wait(lambda: page.js("return seen.length") > 0 and page.find_text("#run-at") == "step 700")
    page.wait(lambda: "Play" in page.find_text("#run-play"))
    played = page.js("return [...new Set(seen)]")  # without step 0, where it was already
    assert played[-35:] == [f"step {20 * i}" for i in range(1, 36)]
    assert page.js(shown) == last


@pytest.mark.slow
def test_one_drawing_through_the_weights_of_a_run(driver, tmp_path):
    flags = ["--steps", "2", "--batch-size", "2", "--scenes", "4", "--sample-every", "1"]
    flags += ["--keep", "all", "--device", "cpu", "--out", str(tmp_path / "run")]
    with no_pictures():
        train.main(flags)
    with serving("--run", str(tmp_path / "run"), "--out", str(tmp_path / "hints")) as address:
        page = Chromium(driver, address)
        page.open()
        bundled = page.made(lambda: page.set("#steps", 4))
        page.wait(lambda: "was trained for 2 steps" in page.find_text("#run-says"))
        untrained = page.made(lambda: page.set("#run-step", 0))
        assert page.find_text("#run-at") == "step 0"
        assert untrained["none"] == untrained["canny"] == bundled["none"]
        page.click("#run-play")
        page.wait(lambda: page.js("return document.querySelectorAll('#film figure').length") == 3)
        page.wait(lambda: page.find_text("#run-at") == "step 2")
        page.keep("run")
        assert page.made(lambda: page.click("#run-bundled")) == bundled


@pytest.mark.slow
def test_the_command_makes_the_same_pixels(page, tmp_path):
    page.open()
    picture = page.made(lambda: page.set("#steps", 4))["canny"]
    page.click("#copy-command")
    page.wait(lambda: page.find_text("#dialog-text") != "")
    page.keep("command")
    command = page.find_text("#dialog-text")
    lines = "return [...document.querySelectorAll('#dialog-text span')].map((e) => e.offsetHeight)"
    assert len({*page.js(lines)}) == 1  # no flag is broken
    done = subprocess.run(
        f"{command} --out {tmp_path}".replace("python ", f"{sys.executable} ", 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert pixels(base64.b64decode(picture.split(",")[1])) == pixels(
        (tmp_path / "000.png").read_bytes()
    )


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 380])
def test_nothing_is_wider_than_the_screen(page, width):
    page.open(width=width, height=780)
    page.wait(lambda: page.find_text("#step-text") == "finished")
    page.keep(f"width-{width}")
    assert page.js("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (853, 480)])
def test_the_pictures_are_on_a_projectors_first_screen(page, width, height):
    """1280x720, and the same zoomed to 150 %."""
    page.open(width=width, height=height)
    page.wait(lambda: page.find_text("#step-text") == "finished")
    page.keep(f"projector-{width}")
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    for selector in ("#canvas", "[data-column=none] .score b", "[data-column=canny] .score b"):
        assert page.js(bottom, selector) <= height, selector


@pytest.mark.slow
def test_every_control_has_a_name_and_visible_focus(page):
    page.open()
    script = """return [...document.querySelectorAll('button, input, select, canvas[tabindex]')]
        .filter((e) => e.offsetParent && !(e.labels?.length || e.getAttribute('aria-label')
            || e.textContent.trim() || e.title)).map((e) => e.outerHTML)"""
    assert page.js(script) == []
    page.js("document.activeElement.blur(); scrollTo(0, 0)")
    body, seen = page.driver.find_element("css selector", "body"), []
    for _ in range(12):
        body.send_keys("\ue004") if not seen else page.driver.switch_to.active_element.send_keys(
            "\ue004"
        )
        seen.append(page.js("return document.activeElement.id || document.activeElement.value"))
        outline = (
            "const e = document.activeElement; const s = getComputedStyle(e.closest('label') ?? e);"
        )
        shown = page.js(outline + "return s.outlineStyle + getComputedStyle(e).outlineStyle")
        assert "solid" in shown or "auto" in shown, seen
    assert seen[:3] == ["tour-start", "copy-link", "copy-command"]
