"""The page of `catome report` as a browser shows it: on a phone and a desk, in the dark and the light."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catome_bench.report.page import make_page

NAMES = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if name and (path := shutil.which(name))), None)
DARK, LIGHT = 0, 1
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium in the PATH, or its path in $CHROMIUM")

PROBE = """<script>
const seen = { errors: [] }, slider = document.querySelector("input[type=range]"), box = slider.closest(".live");
const move = (input, event) => input.dispatchEvent(new Event("input", { bubbles: true }));
addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.blockedURI));
addEventListener("load", () => {
  seen.width = document.documentElement.scrollWidth;
  seen.images = [...document.images].map((image) => image.naturalWidth);
  seen.text = getComputedStyle(document.body).color;
  seen.ink = getComputedStyle(document.querySelector(".plot svg")).fill;
  seen.viewport = innerWidth;
  slider.focus();
  seen.focused = document.activeElement === slider;
  slider.value = 20;
  move(slider);
  seen.clip = getComputedStyle(box.querySelector(".above")).clipPath;
  box.querySelector("input[type=checkbox]").click();
  seen.blend = getComputedStyle(box.querySelector(".above")).mixBlendMode;
  const choice = box.querySelector("select");
  choice.selectedIndex = 1;
  move(choice);
  seen.shown = [...box.querySelectorAll(".above")].map((image) => image.checkVisibility());
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""
# A window has a least width, which a phone's is below; a frame has none.
FRAME = """<script>onmessage = ({{ data }}) => {{ document.body.dataset.seen = data; }};</script>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>"""


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def row(name: str, number: int) -> dict[str, Any]:
    spread = {"median": 1.0 + number, "worst": 1.0, "interval": [1.0, 1.0 + number]}
    names = ("seconds", "denoiser", "speedup", "denoiser_speedup", "psnr", "ssim")
    files = {"pictures": [f"pictures/{number}.png"], "recipe": {"scope": "keys"} if number else None}
    return {"name": name, "merged": 0.5, "warm_up": 0.0, "memory": None} | dict.fromkeys(names, spread) | files


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    rows = [row(name, number) for number, name in enumerate(("unmerged", "half", "a-recipe-of-a-long-name" * 9))]
    for number in range(3):
        picture(folder / "pictures" / f"{number}.png", 50 * number)
    about = {"settings": {"calls": [{"prompt": "x" * 500}], "seeds": [0]}, "machine": {"device": "CPU"}, "gate": {}}
    verdicts = {one["name"]: f"{one['name']}: keep" for one in rows[1:]}
    kept = {"kept": [*verdicts]}
    found = about | kept | {"rows": rows, "verdicts": verdicts, "notes": [], "rule": "keep"}
    (folder / "comparison.json").write_text(json.dumps(found))
    (folder / "report.html").write_text(make_page(folder))
    return folder / "report.html"


def browse(folder: Path, page: Path, scheme: int, *wanted: str) -> str:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
    command = [str(CHROMIUM), *options, f"--blink-settings=preferredColorScheme={scheme}", *wanted, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(("width", "scheme"), [(1280, LIGHT), (420, DARK)])
def test_pictures_are_shown_and_controls_work_at_every_width(page, tmp_path, width, scheme):
    probed, frame = tmp_path / "probed.html", tmp_path / "frame.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    frame.write_text(FRAME.format(page=probed.as_uri(), width=width))
    dom = browse(tmp_path, frame, scheme, "--virtual-time-budget=2000", "--dump-dom")
    (found,) = re.findall(r'data-seen="([^"]*)"', dom)
    seen = json.loads(unescape(found))
    assert seen["errors"] == []
    assert seen["width"] <= seen["viewport"] == width
    assert seen["images"] == [8, 8, 8]
    assert seen["ink"] == seen["text"] == ("rgb(230, 233, 236)" if scheme == DARK else "rgb(27, 31, 36)")
    assert seen["focused"] and seen["clip"] == "inset(0px 0px 0px 20%)"
    assert seen["blend"] == "difference"
    assert seen["shown"] == [False, True]


@pytest.mark.parametrize(("width", "scheme", "paper"), [(1280, LIGHT, (255, 255, 255)), (420, DARK, (20, 23, 26))])
def test_a_screenshot_has_the_colors_that_the_reader_prefers(page, tmp_path, width, scheme, paper):
    shot = tmp_path / "shot.png"
    browse(tmp_path, page, scheme, f"--window-size={width},900", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] == width
    assert tuple(pixels[2, 2]) == paper
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
