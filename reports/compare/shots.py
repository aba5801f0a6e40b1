"""Opens a comparison's page in a headless Chromium: fails on any message on its console, any
request, and anything wider than its window, and takes the screenshots.

    python3 -m venv venv && venv/bin/pip install playwright pillow
    venv/bin/python reports/compare/shots.py DIR/index.html reports/compare/shots [/usr/bin/chromium]

Without the last argument the Chromium of `playwright install chromium` is used.
"""

import pathlib
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

PAGE = pathlib.Path(sys.argv[1]).resolve()
OUTPUT = pathlib.Path(sys.argv[2])
CHROMIUM = sys.argv[3] if len(sys.argv) > 3 else None


def use(page):
    """Does once what a reader can do: sort a table, walk through values, zoom the timeline."""
    page.locator("th button").first.click()
    assert page.locator("th[aria-sort=ascending]").count() == 1
    drawing = page.locator(".drawing").first
    drawing.focus()
    page.wait_for_timeout(500)  # Scrolling there hides what is said.
    drawing.press("ArrowRight")
    assert page.locator("#tip.on").inner_text(), "an arrow key says a value"
    canvas = page.locator("#zoom canvas")
    if canvas.count():
        before = canvas.evaluate("c => c.toDataURL()")
        canvas.press("+")
        assert canvas.evaluate("c => c.toDataURL()") != before, "plus zooms"
        canvas.press("Home")
    page.locator("details summary").first.click()
    page.locator("details summary").first.click()


def small(path):
    """Fewer colours: a fifth of the bytes."""
    picture = Image.open(path).convert("RGB")
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        print("Chromium", browser.version)
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                page = context.new_page()
                name = f"{width}-{scheme}"
                page.on("console", lambda m, n=name: wrong.append(f"{n}: console: {m.text}"))
                page.on("pageerror", lambda e, n=name: wrong.append(f"{n}: error: {e}"))
                page.on(
                    "request",
                    lambda r, n=name: r.url.startswith(("file:", "data:"))
                    or wrong.append(f"{n}: asks for {r.url}"),
                )
                page.goto(PAGE.as_uri())
                wide = page.evaluate("document.documentElement.scrollWidth")
                if wide > width:
                    wrong.append(f"{name}: {wide} pixels wide")
                use(page)
                page.goto("about:blank")
                page.goto(PAGE.as_uri())
                top = OUTPUT / f"{name}-top.png"
                page.screenshot(path=top)
                small(top)
                for part in ("speed-adamw", "memory-adamw", "timeline"):
                    path = OUTPUT / f"{name}-{part}.png"
                    page.locator(f"#{part}").screenshot(path=path)
                    small(path)
                height = page.evaluate("document.documentElement.scrollHeight")
                print(f"{name}: page of {height} pixels")
                context.close()
        browser.close()
    print("\n".join(wrong) or "nothing on the console, no requests, nothing wider than the window")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
