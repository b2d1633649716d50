"""A page in headless Chromium: what it shows, what it complains of and what it asks the network for."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",  # for root, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # and if something should try, it finds nobody
    "--allow-file-access-from-files",
    "--hide-scrollbars",
)

# The page in a frame of the wanted width: a window of Chromium is never narrower than about 500 pixels.
WRAPPER = """<!doctype html><meta charset="utf-8"><style>body{margin:0}iframe{border:0;display:block}</style>
<iframe id="frame" src="SOURCE" width="WIDTH" height="HEIGHT"></iframe><pre id="found"></pre>
<script>
const box = element => {
  const found = element.getBoundingClientRect();
  return [found.left, found.top, found.right, found.bottom];
};
const frame = document.getElementById("frame");
frame.onload = () => {
  const inner = frame.contentWindow, page = frame.contentDocument;
  const images = [...page.images];
  const wide = [...page.body.querySelectorAll("*")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.right > inner.innerWidth + 1 && !element.closest(".scroll, pre");
  });
  document.getElementById("found").textContent = JSON.stringify({
    innerWidth: inner.innerWidth,
    scrollWidth: page.documentElement.scrollWidth,
    height: page.documentElement.scrollHeight,
    images: images.map(image => [image.naturalWidth, image.naturalHeight]),
    alts: images.map(image => image.getAttribute("alt")),
    resources: inner.performance.getEntriesByType("resource").map(entry => entry.name),
    sticking_out: wide.map(element => element.outerHTML.slice(0, 100)),
    heading: page.querySelector("h1").textContent,
    dark: inner.matchMedia("(prefers-color-scheme: dark)").matches,
    drawings: [...page.querySelectorAll("svg.chart")].filter(svg => svg.getBoundingClientRect().width > 0).map(svg => ({
      box: box(svg),
      paper: inner.getComputedStyle(svg.closest(".plot")).backgroundColor,
      texts: [...svg.querySelectorAll("text")].map(
        text => [text.textContent, inner.getComputedStyle(text).fill, box(text)]),
      marks: [...svg.querySelectorAll("use")].map(inner.getComputedStyle).map(style => [style.fill, style.stroke]),
    })),
  });
};
</script>
"""


def executable() -> str | None:
    """Chromium or Chrome from the PATH."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# In Chromium's own settings, as a user would set it; `--force-dark-mode` would invert the page instead.
DARK = "--blink-settings=preferredColorScheme=0"


def look(page: Path, folder: Path, width: int, *more: str) -> dict[str, Any]:
    """What `WRAPPER` finds in the page, with `console` (the complaints) and `requests`, from its net log.

    Args:
        page: an HTML file.
        folder: an empty one to work in.
        width: of the page, in pixels.
        more: flags.
    """
    wrapper, net_log = folder / "wrapper.html", folder / "net.json"
    text = WRAPPER.replace("SOURCE", page.resolve().as_uri()).replace("WIDTH", str(width)).replace("HEIGHT", "900")
    wrapper.write_text(text, encoding="utf-8")
    browser = executable()
    assert browser is not None
    command = [
        browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 600)},900",
        "--enable-logging=stderr", f"--log-net-log={net_log}", "--virtual-time-budget=10000", *more,
        "--dump-dom", wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    if match is None or not match[1]:
        raise RuntimeError(f"the page did not load: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    found["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found["requests"] = sorted(_requests(json.loads(net_log.read_text(encoding="utf-8", errors="replace"))))
    return found


def _requests(log: dict[str, Any]) -> set[str]:
    """URLs that the pages asked for; what Chromium itself would like to know has no origin."""
    started = [event.get("params") or {} for event in log["events"]]
    asked = {p["url"] for p in started if "url" in p and p.get("initiator", "not an origin") != "not an origin"}
    return {url for url in asked if not url.startswith(("file:", "data:", "about:"))}
