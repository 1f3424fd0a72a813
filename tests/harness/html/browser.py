"""A real browser without a window: what a page does, told by a program that runs in it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# The page lies in a frame, because a window is never narrower than 500 pixels.
FRAME = """<!doctype html>
<iframe src="asked.html" style="width: %dpx; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", (event) => {
  const pre = document.createElement("pre");
  pre.id = "answer";
  pre.textContent = event.data;
  document.body.append(pre);
});
</script>
"""
# Waits until every figure is drawn, then tells the frame the answer.
PROGRAM = """
<script>
addEventListener("error", (event) => fail(event.message));
addEventListener("unhandledrejection", (event) => fail(String(event.reason)));
const failures = [];
function fail(text) { failures.push(text); }
for (const kind of ["error", "warn"]) console[kind] = (...words) => fail(words.join(" "));
</script>
"""
ASK = """
<script>
(async () => {
  const pause = (ms) => new Promise((go) => setTimeout(go, ms));
  const one = (query) => document.querySelector(query);
  const all = (query) => [...document.querySelectorAll(query)];
  for (let i = 0; i < 200 && document.documentElement.dataset.drawn !== "all"; i++) await pause(50);
  let answer = null;
  try { answer = await (async () => { %s })(); } catch (error) { fail(String(error)); }
  parent.postMessage(JSON.stringify({ answer, failures }), "*");
})();
</script>
"""


def path() -> str:
    """The browser; the test skips where there is none."""
    found = next((where for name in NAMES if (where := shutil.which(name))), None)
    if found is None:
        pytest.skip("missing: a browser (Debian's package `chromium`)")
    return found


def ask(page: str, program: str, folder: Path, *, width: int = 1280) -> Any:
    """What a program returns that runs in the page once it is drawn; nothing may be complained of.

    program: a file of `programs`, the body of an async JavaScript function
    """
    file, frame = folder / "asked.html", folder / "frame.html"
    body = (PROGRAMS / f"{program}.js").read_text(encoding="utf-8")
    frame.write_text(FRAME % width, encoding="utf-8")
    head, _, rest = page.partition("<style>")
    file.write_text(f"{head}{PROGRAM}<style>{rest}{ASK % body}", encoding="utf-8")
    command = [
        path(),
        "--headless",
        "--no-sandbox",  # as root, and in containers
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=20000",
        "--dump-dom",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stdout[-500:] + done.stderr[-500:]
    said = json.loads(html.unescape(answer[1]))
    assert said["failures"] == []
    return said["answer"]
