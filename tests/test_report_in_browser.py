"""The report in a browser: quiet, self-contained, and as wide as the screen."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_dualif import InfluenceEstimator
from sklearn_dualif.inspection import report

pytest.importorskip("matplotlib")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCREENS = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module", params=["table", "images"])
def page_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    if request.param == "table":
        X, y = load_wine(return_X_y=True, as_frame=True)
        X.index = [f"bottle{'-' * 60}{row}" for row in X.index]
        y = np.array(["<script>alert(1)</script>", "b" * 60, "c"])[y]
        model = make_pipeline(StandardScaler(), LogisticRegression())
        wide = pd.DataFrame(np.random.default_rng(0).random((3, 40)))
        options = {"sections": [("Wide", wide), ("Long", "x" * 500)], "title": "t" * 120}
        split = len(y) // 2
    else:
        X, y = load_digits(return_X_y=True)
        X, model, split = X / 16, LogisticRegression(max_iter=1000), 100
        options = {"image_shape": (8, 8)}
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:split], order[split : split + 80]
    rows = X.iloc if hasattr(X, "iloc") else X
    influence = InfluenceEstimator(model).fit(rows[train], y[train])
    options |= {"n_refits": 7, "random_state": 0}
    return report(influence, path, rows[test], y[test], **options)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_it_opens_without_a_word(browser, page_file, screen, scheme):
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 3
    assert min(widths) > 0
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= seen == width
    # Text stands out from the page in either scheme.
    ink, paper = page.evaluate(
        "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (
        (brightness[0] > brightness[1] + 400)
        if scheme == "dark"
        else (brightness[1] > brightness[0] + 400)
    )
    context.close()


def test_it_prints(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    # On A4 paper less its margins.
    page.set_viewport_size({"width": 703, "height": 1000})
    inside = page.evaluate(
        "[...document.querySelectorAll('td')].every(cell => cell.offsetHeight < 900)"
    )
    assert inside
    page.close()
