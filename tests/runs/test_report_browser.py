"""The report in a real browser, opened from disk: it loads without complaint, and everything on it works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from browsers import needs_browser
from covary.runs.report import write_report
from fake_run import write_fake_run

HOSTILE = ["</script><script>document.title='broken'</script>", "<img src=x onerror=\"document.title='broken'\">"]

pytestmark = needs_browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_fake_run(tmp_path_factory.mktemp("run"), n=1600))


@pytest.fixture
def page(browser: WebDriver, run: Path) -> WebDriver:
    visit(browser, run)
    return browser


def visit(browser: WebDriver, path: Path) -> list[str]:
    """Opens a report; returns the addresses it asked for, and fails on anything in the console."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert not complaints
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def find(page: WebDriver, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def column(page: WebDriver, key: str) -> list[str]:
    heads = [th.get_attribute("data-key") for th in page.find_elements(By.CSS_SELECTOR, "#table th")]
    return page.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].map(tr => tr.cells[arguments[0]]?.textContent ?? '')",
        heads.index(key),
    )


def sort_by(page: WebDriver, key: str) -> None:
    find(page, f'#table th[data-key="{key}"] button').click()


def visible_panels(page: WebDriver) -> list[str | None]:
    return [p.get_attribute("id") for p in page.find_elements(By.CSS_SELECTOR, ".panel") if p.is_displayed()]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_it_loads_with_the_answer_in_view_and_no_request_leaves_the_page(browser: WebDriver, run: Path) -> None:
    requests = visit(browser, run)
    assert [url for url in requests if not url.startswith("data:")] == [run.as_uri()]
    heading = find(browser, "h1")
    assert heading.text.replace("\u00a0", " ") == "788 of 1,600 inputs flagged\nat a false-alarm rate of 1 %"
    assert heading.location["y"] < 200
    assert browser.execute_script("return [...document.images].every(i => !i.complete || i.naturalWidth > 0)")


def test_the_policy_stops_what_it_should(page: WebDriver) -> None:
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1'; document.body.append(s)"
    )
    assert page.execute_script("return window.foreign") is None
    page.get_log("browser")  # the refusal is expected here


def test_flagged_inputs_are_chosen_by_keyboard(page: WebDriver) -> None:
    assert visible_panels(page) == ["panel-0"]
    first = find(page, "#tab-0")
    page.execute_script("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_DOWN)
    assert visible_panels(page) == ["panel-1"]
    chosen = page.switch_to.active_element
    assert chosen.get_attribute("id") == "tab-1"
    assert chosen.get_attribute("aria-selected") == "true"
    assert find(page, "#panel-1 h3 .id").text == find(page, "#tab-1 .id").text
    chosen.send_keys(Keys.END)
    last = len(page.find_elements(By.CSS_SELECTOR, '[role="tab"]')) - 1
    assert visible_panels(page) == [f"panel-{last}"]
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert visible_panels(page) == [f"panel-{last}"], "the list does not wrap around"
    page.switch_to.active_element.send_keys(Keys.HOME)
    assert visible_panels(page) == ["panel-0"]
    assert len(page.find_elements(By.CSS_SELECTOR, '[role="tab"][tabindex="0"]')) == 1, "one tab stop for the list"


def test_a_click_chooses_too(page: WebDriver) -> None:
    find(page, "#tab-2").click()
    assert visible_panels(page) == ["panel-2"]


def test_the_layers_of_a_profile_are_read_by_keyboard(page: WebDriver) -> None:
    profile = find(page, "#panel-0 .profile")
    readout = profile.find_element(By.CSS_SELECTOR, ".readout")
    resting = readout.text
    assert "layers outside the trusted range" in resting
    profile.send_keys(Keys.ARROW_RIGHT)
    assert readout.text.startswith("conv1: ")
    profile.send_keys(Keys.ARROW_RIGHT)
    assert readout.text.startswith("layer1.0.conv1: ")
    assert "(trusted 0.3" in readout.text
    profile.send_keys(Keys.END)
    assert readout.text.startswith("linear: ")
    page.execute_script("document.activeElement.blur()")
    assert readout.text == resting


def test_the_table_as_drawn_by_script_is_the_table_as_written(page: WebDriver, run: Path) -> None:
    """The first page is in the file for readers without scripts; both writers of cells must agree."""
    drawn = page.execute_script("return [...document.querySelectorAll('#table tbody td')].map(td => td.textContent)")
    written = page.execute_script(
        "const d = new DOMParser().parseFromString(arguments[0], 'text/html');"
        "return [...d.querySelectorAll('#table tbody td')].map(td => td.textContent)",
        run.read_text(encoding="utf-8"),
    )
    assert drawn == written


def test_sorting(page: WebDriver) -> None:
    scores = [number(text) for text in column(page, "score")]
    assert scores == sorted(scores, reverse=True)
    sort_by(page, "score")
    scores = [number(text) for text in column(page, "score")]
    assert scores == sorted(scores)
    assert find(page, '#table th[data-key="score"]').get_attribute("aria-sort") == "ascending"
    assert len(page.find_elements(By.CSS_SELECTOR, "#table th[aria-sort]")) == 1
    sort_by(page, "row")
    assert column(page, "row") == [str(i) for i in range(1, 26)]
    sort_by(page, "predicted")
    assert set(column(page, "predicted")) == {"airplane"}
    sort_by(page, "raised_by")
    assert column(page, "raised_by") == ["confidence"] * 14 + ["functional"] * 11, "empty cells come last"


def test_searching_and_filters(page: WebDriver) -> None:
    search, status = find(page, "#search"), find(page, "#status")
    search.send_keys("triggered/00735")
    assert column(page, "id") == ["triggered/00735"]
    assert status.text == "1–1 of 1"
    search.clear()
    search.send_keys("CAT latent")
    named = zip(column(page, "predicted"), column(page, "y"), strict=True)
    assert all("cat" in pair for pair in named), "every word must be found"
    assert set(column(page, "raised_by")) == {"latent"}
    search.clear()
    search.send_keys("no such input")
    assert column(page, "row") == ["No input matches."]
    assert status.text == "0"
    search.clear()
    search.send_keys(Keys.ENTER)
    assert "report.html" in page.current_url, "the form must not submit"
    only = Select(find(page, "#only"))
    only.select_by_value("flagged")
    assert status.text == "1–25 of 788"
    only.select_by_value("passed")
    assert status.text == "1–25 of 812"
    only.select_by_value("missed")
    assert set(column(page, "truth")) == {"anomalous"}
    assert set(column(page, "flagged")) == {"passed"}
    only.select_by_value("false")
    assert set(column(page, "truth")) == {"clean"}


def test_pages(page: WebDriver) -> None:
    previous, following, status = find(page, "#previous"), find(page, "#next"), find(page, "#status")
    assert not previous.is_enabled()
    first = column(page, "id")
    following.click()
    assert status.text == "26–50 of 1,600"
    assert not set(first) & set(column(page, "id"))
    previous.click()
    assert column(page, "id") == first
    Select(find(page, "#size")).select_by_visible_text("100")
    assert len(column(page, "id")) == 100
    for _ in range(15):
        following.click()
    assert status.text == "1,501–1,600 of 1,600"
    assert not following.is_enabled()


def test_a_row_with_evidence_leads_to_it(page: WebDriver) -> None:
    link = page.find_elements(By.CSS_SELECTOR, "#table td button")[3]
    link.click()
    assert visible_panels(page) == [f"panel-{link.get_attribute('data-panel')}"]
    assert page.switch_to.active_element.get_attribute("id") == f"tab-{link.get_attribute('data-panel')}"


def test_light_and_dark(page: WebDriver, run: Path) -> None:
    def background() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    def prefer(scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})  # type: ignore[attr-defined]

    prefer("light")
    light = background()
    prefer("dark")
    dark = background()
    assert light != dark
    prefer("light")
    toggle = find(page, "#theme")
    WebDriverWait(page, 5).until(lambda _: toggle.text == "Dark")
    toggle.click()
    assert background() == dark
    assert toggle.text == "Light"
    visit(page, run)
    assert background() == dark, "the choice is remembered"
    find(page, "#theme").click()
    assert background() == light
    page.execute_script("localStorage.clear()")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: WebDriver, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[attr-defined]
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # type: ignore[attr-defined]


def test_paper_unfolds_everything_and_is_never_dark(page: WebDriver) -> None:
    page.execute_script("document.documentElement.dataset.theme = 'dark'")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})  # type: ignore[attr-defined]
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not find(page, ".bar-top").is_displayed()
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert find(page, ".settings td").is_displayed()
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})  # type: ignore[attr-defined]
    assert page.execute_script("return document.querySelectorAll('details[open]').length") == 0


@pytest.mark.parametrize(
    "options",
    [
        {"n": 200, "flag": "none", "truth": False},
        {"n": 80, "flag": "all", "truth": False, "pictures": False},
        {"n": 80, "pictures": False, "text": True},
        {"n": 80, "flag": "all", "ids": HOSTILE},
        {"n": 10_000},
    ],
    ids=["none", "all", "text", "hostile", "many"],
)
def test_other_runs_load_and_sort(browser: WebDriver, tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_report(write_fake_run(tmp_path, **options))
    requests = visit(browser, path)
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    sort_by(browser, "row")
    assert column(browser, "id")[:2] == options.get("ids", column(browser, "id")[:2])
    assert column(browser, "row")[0] == "1"
    assert "flagged" in browser.title
    assert len(visible_panels(browser)) == 1
    assert not browser.get_log("browser")


def test_a_run_of_results_alone(browser: WebDriver, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("id,score\na,1.5\nb,2.5\nc,\n")
    visit(browser, write_report(tmp_path))
    assert column(browser, "id") == ["b", "a", "c"]
    sort_by(browser, "score")
    assert column(browser, "id") == ["a", "b", "c"], "a missing score comes last in either direction"
