"""The page in a browser, opened from the disk: Debian's chromium, driven by selenium."""

import shutil

import pytest
from made import STAGES, made_run, made_study

from sparring.report.write import write_report

pytestmark = pytest.mark.slow

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "<b onclick=alert(1)>'\"🦊"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run, a comparison of three runs and a study."""
    folder = tmp_path_factory.mktemp("pages")
    classes = (HOSTILE, "trouser", "pullover")
    runs = [made_run(folder / name, which=("best",), harder=h, classes=classes).path for name, h in RUNS.items()]
    return {
        "run": write_report(runs[:1]),
        "comparison": write_report(runs, folder / "comparison.html"),
        "study": write_report([made_study(folder / "study")]),
    }


RUNS = {"plain": 0.0, "harder": 0.015, "third": 0.01}


@pytest.fixture
def shown(chromium, pages):
    def open_page(kind, width=1280):
        chromium.get_log("browser")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get(pages[kind].resolve().as_uri())
        return Shown(chromium)

    return open_page


class Shown:
    """What a reader sees and does."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, script, *given):
        return self.driver.execute_script(script, *given)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def choose(self, name, value):
        script = """const field = document.querySelector(`.filters [name=${arguments[0]}]`);
        if (field.type === "checkbox") field.checked = arguments[1]; else field.value = arguments[1];
        field.dispatchEvent(new Event("change", { bubbles: true }));"""
        self.run(script, name, value)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        ActionChains(self.driver).send_keys(*(getattr(Keys, key) for key in keys)).perform()

    def focused(self):
        return self.run("return document.activeElement.outerHTML")


@pytest.mark.parametrize("kind", ["run", "comparison", "study"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_a_page_opens_from_the_disk_without_an_error_and_fits_its_window(kind, width, shown):
    page = shown(kind, width)
    assert page.driver.get_log("browser") == []
    assert page.run("return document.documentElement.scrollWidth") <= width
    charts = page.run("return [...document.querySelectorAll('[data-chart]')].filter((e) => e.clientWidth).map((e) => "
                      "[e.dataset.chart, e.childElementCount])")  # fmt: skip
    assert charts and all(count > 0 for _, count in charts), charts


def test_no_name_becomes_mark_up(shown):
    page = shown("run")
    assert page.run("return document.querySelectorAll('[onclick]').length") == 0
    assert any(HOSTILE in text for text in page.texts(".filters option"))


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(shown):
    page = shown("comparison")
    table = "[aria-label='Accuracies of the compared models'] table"
    rows, head = f"{table} tbody tr", f"{table} thead th"
    column = f"{rows} td:nth-child(4) data"
    page.click(f"{head}:nth-child(4) button")
    found = [float(text.removesuffix(" %")) for text in page.texts(column)]
    assert len(found) == 3 and found == sorted(found, reverse=True)
    page.run("document.querySelector(arguments[0]).focus()", f"{head}:nth-child(4) button")
    page.press("ENTER")
    assert [float(text.removesuffix(" %")) for text in page.texts(column)] == found[::-1]
    assert page.run("return document.querySelector(arguments[0]).ariaSort", f"{head}:nth-child(4)") == "ascending"
    page.click(f"{head}:nth-child(1) button")
    assert page.texts(f"{rows} th") == sorted(RUNS)


def test_a_row_that_says_why_runs_cannot_be_paired_is_sorted_last(shown):
    page = shown("comparison")
    table = "[aria-label='Paired differences'] table"
    script = """const row = document.querySelector(arguments[0]);
    while (row.cells.length > 3) row.deleteCell(3);
    row.cells[2].colSpan = 5;
    row.cells[2].textContent = "other images";"""
    page.run(script, f"{table} tbody tr:nth-child(2)")
    for _ in ("descending", "ascending"):
        page.click(f"{table} thead th:nth-child(4) button")
        found = page.texts(f"{table} tbody td:nth-child(4) data")
        numbers = [float(text.split()[0].replace("−", "-")) for text in found]
        assert len(numbers) > 1 and numbers in (sorted(numbers), sorted(numbers)[::-1])
        assert page.texts(f"{table} tbody td:nth-child(3)")[-1] == "other images"


def test_examples_are_filtered_by_fate_and_class(shown):
    page = shown("run")
    facts = page.run("return JSON.parse(document.getElementById('facts').textContent).examples")
    fates, columns = facts["fates"], facts["columns"]
    page.choose("pictured", False)
    for code, fate in enumerate(fates):
        page.choose("fate", str(code))
        (text,) = page.texts("#example-count")
        assert text.startswith(f"{columns['fate'].count(code)} of 200 examples"), fate
    page.choose("fate", "")
    page.choose("label", "1")
    (text,) = page.texts("#example-count")
    assert text.startswith(f"{columns['label'].count(1)} of 200 examples")
    assert all(title.startswith("trouser") for title in page.texts(".card .title"))


def test_examples_are_sorted_by_margin_and_by_the_smallest_eps(shown):
    page = shown("run")
    columns = page.run("return JSON.parse(document.getElementById('facts').textContent).examples.columns")
    page.choose("pictured", False)
    for key, name in (("margin", "margin"), ("eps", "distance")):
        page.choose("sort", key)
        rows = page.run("return [...document.querySelectorAll('.card')].map((e) => Number(e.dataset.row))")
        assert [columns[name][row] for row in rows] == sorted(columns[name])[:12]


def test_an_example_is_opened_walked_through_and_left_by_the_keyboard(shown):
    page = shown("run")
    page.choose("fate", "2")
    page.run("document.querySelector('.card').focus()")
    page.press("ENTER")
    assert page.run("return document.querySelector('dialog').open")
    (title,) = page.texts("#example-title")
    assert page.run("return document.querySelectorAll('dialog canvas').length") == 3
    (command,) = page.texts("dialog .command")
    assert command.endswith(f"--only {title.split(':')[0].removeprefix('No. ')}")
    page.press("ARROW_RIGHT")
    assert page.texts("#example-title") != [title]
    page.press("ARROW_LEFT", "ARROW_LEFT")
    assert page.texts("#example-title") == [title]
    page.press("ESCAPE")
    assert not page.run("return document.querySelector('dialog').open")
    assert "card" in page.focused()


def test_pictures_are_painted(shown):
    page = shown("run")
    painted = """const seen = [...document.querySelectorAll(".thumbs canvas")].map((drawn) =>
        new Set(drawn.getContext("2d").getImageData(0, 0, drawn.width, drawn.height).data).size);
        return Math.min(...seen);"""
    from selenium.webdriver.support.ui import WebDriverWait

    assert WebDriverWait(page.driver, 10).until(lambda driver: driver.execute_script(painted) > 2)


def test_pages_of_examples_are_turned(shown):
    page = shown("run")
    before = page.texts(".card")
    page.click("[data-page='1']")
    assert page.texts("#page-number")[0].startswith("page 2 of ") and page.texts(".card") != before
    page.click("[data-page='-1']")
    assert page.texts(".card") == before


def test_all_can_be_reached_with_the_tab_key(shown):
    page = shown("run")
    page.press("TAB")
    assert "Skip to the report" in page.focused()
    page.run(
        "window.reached = []; addEventListener('focusin', (e) => reached.push(e.target.tagName + e.target.className))"
    )
    page.press(*["TAB"] * 100)
    reached = set(page.run("return window.reached"))
    assert {"A", "SELECT", "BUTTONcard", "BUTTONcommand", "SUMMARY"} <= reached


def test_three_questions_are_answered_on_the_first_screen_and_in_the_attacks(shown):
    """Is this model robust? Which attack breaks it? Which of two is better?"""
    page = shown("run")
    assert page.texts(".big")[0].endswith(" %") and "AutoAttack standard" in page.texts(".figure")[0]
    assert "AutoAttack standard breaks " in page.texts(".answer")[0]
    assert [name in text for name, text in zip(STAGES, page.texts("#attacks .stage th"), strict=True)] == [True] * 4
    page = shown("comparison")
    assert any(text.startswith("plain is more robust than harder, by ") for text in page.texts(".conclusions li"))


def test_a_frame_has_at_most_seven_series(shown):
    page = shown("study")
    lines = page.run("return [...document.querySelectorAll('svg')].map((e) => e.querySelectorAll('.line').length)")
    assert max(lines) <= 7 and lines.count(2) == 8  # eight trainings beside the baseline
