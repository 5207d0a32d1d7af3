"""The live page in a real browser, fed by a real service."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

import tiny
from browsers import needs_browser
from covary.serving.http import ServeSettings, make_server

X, _, TRUTH = tiny.inputs()
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
KEY = "a long secret"

pytestmark = needs_browser


def send(address: str, x: np.ndarray, name: str = "") -> None:
    tensor = {"name": "input", "datatype": "UINT8", "shape": list(x.shape), "data": x.ravel().tolist()}
    answer = httpx.post(
        f"{address}/v2/models/digits/infer", json={"id": name, "inputs": [tensor]}, timeout=60,
        headers={"authorization": f"Bearer {KEY}"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "locked"])
def service(request, fitted) -> Iterator[tuple[str, str | None]]:
    server = make_server(fitted, ServeSettings(name="digits", port=0, api_key=request.param))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", request.param
    server.should_exit = True
    thread.join()


def text(page: WebDriver, name: str) -> str:
    return page.find_element(By.ID, name).text.replace("\u00a0", " ")


def test_the_page_lives(browser: WebDriver, service: tuple[str, str | None], tmp_path: Path) -> None:
    address, key = service
    browser.get_log("browser")
    browser.get(address)
    waiting = WebDriverWait(browser, 30)
    if key is not None:
        waiting.until(lambda _: text(browser, "pulse") == "locked")
        assert not browser.find_element(By.ID, "content").is_displayed()
        browser.find_element(By.ID, "key").send_keys("wrong")
        browser.find_element(By.CSS_SELECTOR, "#lock button").click()
        waiting.until(lambda _: browser.find_element(By.ID, "wrong").is_displayed())
        browser.find_element(By.ID, "key").clear()
        browser.find_element(By.ID, "key").send_keys(key)
        browser.find_element(By.CSS_SELECTOR, "#lock button").click()
    waiting.until(lambda _: text(browser, "pulse") == "live")
    assert text(browser, "headline") == "0 of 0 inputs flagged"
    assert "Nothing speaks against them" in text(browser, "account")
    assert text(browser, "flagged-lead") == "None since the start."
    send(address, X[TRUTH == 0])
    send(address, X[TRUTH == 1][:1], HOSTILE)
    waiting.until(lambda _: " of 101 inputs" in text(browser, "headline"))
    waiting.until(lambda _: HOSTILE in text(browser, "latest"))
    for _ in range(5):
        send(address, X[TRUTH == 1])
    waiting.until(lambda _: "Alarm raised at input" in text(browser, "account"))
    assert "alarmed" in (browser.find_element(By.ID, "account").get_attribute("class") or "")
    cards = browser.find_elements(By.CSS_SELECTOR, "#latest li")
    assert 3 <= len(cards) <= 24
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for plot in ("rate-plot", "stream-plot", "p-plot"):
        assert browser.find_element(By.CSS_SELECTOR, f"#{plot} svg").size["height"] > 100
    assert "flagged" in browser.title
    for width in (390, 1280):
        size: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[attr-defined]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        if place := os.environ.get("COVARY_SCREENSHOTS"):
            full = browser.execute_script("return document.documentElement.scrollHeight")
            size |= {"height": min(int(full), 4000)}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[attr-defined]
            browser.save_screenshot(f"{place}/live-{width}.png")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # type: ignore[attr-defined]
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != light
    complaints = [entry["message"] for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert complaints == []
