"""The report page in a real browser: what is drawn, what a toggle changes, what hovering shows, and no request."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_report import write_run

from fastdreamer.dream import write_video
from fastdreamer.presets import PRESETS
from fastdreamer.report import main

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1500,1200",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LINES = "return document.querySelector('[data-metric=\"episode/return\"]').data.filter(t => t.mode === 'lines')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if shutil.which("chromedriver") is None:
        pytest.skip("needs Debian's chromium and chromium-driver, and pip install selenium")
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / str(seed), PRESETS["atari100k"], 4 * seed, last=100_000) for seed in range(2)]
    (runs[0] / "videos" / "step-7").mkdir(parents=True)
    write_video(runs[0] / "videos" / "step-7" / "episode-0.mp4", np.full((30, 48, 64, 3), 99, np.uint8))
    (runs[0] / "videos" / "step-7" / "dream.html").write_text("a dream")
    (runs[1] / "machine.jsonl").write_text('{"step": 0, "gpu": "A GPU"}\n')
    assert main([*map(str, runs), "--out", str(folder / "page.html")]) == 0
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get((folder / "page.html").as_uri())
    yield driver
    driver.save_screenshot(str(folder / "page.png"))
    driver.quit()


def set_value(browser, id: str, value: str) -> None:
    browser.execute_script(
        f"const c = document.getElementById('{id}'); c.value = '{value}'; c.dispatchEvent(new Event('input'))"
    )


def test_toggles_hover_and_no_request(browser) -> None:
    set_value(browser, "smooth", "0")
    mean, official = browser.execute_script(LINES)
    assert mean["y"][:21:10] == [12, 22, 32]  # 10 i + the mean of seeds 0 and 4
    assert mean["y"][5] == pytest.approx(17)  # between two points: as the line is drawn
    assert official["name"].endswith("(April 2024 code)")
    browser.find_element("id", "seeds").click()
    first, second, _ = browser.execute_script(LINES)
    assert first["y"][:11:10] == [10, 20] and second["y"][:11:10] == [14, 24]
    browser.find_element("id", "seeds").click()
    set_value(browser, "axis", "minutes")
    (mean,) = browser.execute_script(LINES)  # the official code's minutes are not known
    assert mean["x"][:11:10] == [1, 2]
    set_value(browser, "axis", "step")
    set_value(browser, "filter", "loss/dyn")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(n => !n.hidden).map(n => n.dataset.metric)"
    )
    assert shown == ["loss/dyn"]
    set_value(browser, "filter", "")
    browser.find_elements("css selector", "#groups input")[0].click()
    assert len(browser.execute_script(LINES)) == 1
    browser.find_elements("css selector", "#groups input")[0].click()

    from selenium.webdriver import ActionChains

    plot = browser.find_element("css selector", '[data-metric="episode/return"] .nsewdrag')
    ActionChains(browser).move_to_element(plot).perform()
    time.sleep(0.5)
    assert "atari100k" in browser.find_element("css selector", ".hoverlayer").text
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked == []


def test_videos_play_in_the_page_and_machines_are_named(browser) -> None:
    play = "const v = document.querySelector('video'), f = arguments[0]; v.muted = true;"
    assert browser.execute_async_script(play + " v.play().then(() => f(v.duration))") == pytest.approx(
        2, abs=0.1
    )  # 30 pictures at 15 per second
    assert [each.text for each in browser.find_elements("css selector", "#films a")] == ["step-7, dream.html"]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name.slice(0, 20))")
    assert all(name.startswith("data:") for name in asked)
    cells = [each.text for each in browser.find_elements("css selector", "#runs td:last-child")]
    assert cells == ["-", "A GPU"]


def test_a_name_of_a_run_is_text(browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "<img src=x onerror=document.title=1>", PRESETS["cartpole"])
    assert main([str(run), "--out", str(tmp_path / "page.html")]) == 0
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.title == "fastdreamer report"
    assert "<img" in browser.find_element("id", "runs").text
