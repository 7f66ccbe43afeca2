"""Runs a page in a headless Chromium, where one is installed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_WRAP = """<body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:1000px" srcdoc="{page}"></iframe>
<script>
window.onload = () => {{
  const doc = document.getElementById("page").contentDocument;
  document.title = "RESULT" + JSON.stringify((() => {{ {script} }})()) + "END";
}};
</script>"""


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def evaluate(page: str, width: int, script: str, folder: Path) -> Any:
    """What the JavaScript `script` returns of `doc`, the page in a window `width` pixels wide."""
    file = folder / "wrapped.html"
    text = _WRAP.format(width=width, page=html.escape(page, quote=True), script=script)
    file.write_text(text, encoding="utf-8")
    browser = find_browser()
    assert browser is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    words += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{file}"]
    done = subprocess.run(
        [browser, *words], capture_output=True, text=True, check=True, timeout=120
    )
    found = re.search(r"<title>RESULT(.*?)END</title>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(found.group(1)))
