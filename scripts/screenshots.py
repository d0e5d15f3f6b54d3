"""Makes a bundle's HTML pages, and pictures of them and of the playground in a headless Chromium, for the docs.

    python scripts/screenshots.py smollm2-135m -f valid.tokens.txt -o docs/images
    make screenshots MODEL=smollm2-135m TEXT=valid.tokens.txt

Each page is shot in light and in dark mode: `page-trace-light.png`, `page-trace-dark.png`, and the same for
`page-actions` and `page-schedules`. The last needs held-out text to score; without -f its pictures stay as they are.
`playground-light.png` and `playground-dark.png` show `sol-rt serve`; they need the package playwright.
Chromium or Chrome has to be in PATH.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
MOST_BYTES = 200_000
"""Largest size of a picture."""

_WIDTH = 920  # pixels
_PAGES = {"trace": 1440, "actions": 1180, "schedules": 950}  # height in pixels that is shown of each page
_PLAYGROUND = {"width": 1280, "height": 760}  # pixels
_QUESTION, _BUDGETS = "Name three rivers in Europe, with a sentence about each.", {"A": "100", "B": "75"}
_PROMPT = "Write a short story about a robot that learns to paint."
_GENERATE = ("--chat", "-p", _PROMPT, "--budget", "0.7", "-n", "100", "--repetition-penalty", "1.1")
_EVALUATE = ("-c", "512", "--chunks", "4", "--scored", "64", "--random", "8", "-b", "0.5,0.6,0.7")
_SECONDS = 60  # for one run of the browser
_FLAGS = (
    "--headless",
    "--no-sandbox",  # pages are our own files, and containers often forbid the sandbox
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class BrowserError(Exception):
    """The browser is missing, or did not do what it was asked."""


def find_browser() -> str:
    """Path of a Chromium in PATH. Raises BrowserError if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise BrowserError(
            f"no Chromium in PATH (looked for {', '.join(BROWSERS)}); install one, on Debian: apt-get install chromium"
        )
    return found


def browse(browser: str, page: Path, options: Sequence[str], dark: bool = False) -> tuple[str, str]:
    """Opens a page in a fresh profile, and returns what the browser wrote on stdout and on stderr.

    Args:
        browser: path of the browser.
        page: HTML file.
        options: further options of the browser.
        dark: whether the reader prefers dark pages.

    Raises BrowserError if the browser fails or takes too long.
    """
    mode = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        argv = [browser, *_FLAGS, f"--user-data-dir={profile}", mode, *options, page.resolve().as_uri()]
        try:
            run = subprocess.run(argv, capture_output=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise BrowserError(f"{browser}: took more than {_SECONDS} s to open {page}; run it again") from None
    errors = run.stderr.decode("utf-8", "replace")
    if run.returncode:
        last = errors.strip().splitlines()[-1:] or ["it said nothing"]
        raise BrowserError(f"{browser}: exit code {run.returncode} on {page} ({last[0][:120]}); open it by hand")
    return run.stdout.decode("utf-8", "replace"), errors


def shoot(browser: str, page: Path, picture: Path, height: int, dark: bool) -> None:
    """Writes a PNG of a page's upper `height` pixels. Raises BrowserError if that fails or the file is too large."""
    picture.unlink(missing_ok=True)
    browse(browser, page, [f"--window-size={_WIDTH},{height}", f"--screenshot={picture.resolve()}"], dark)
    size = picture.stat().st_size if picture.is_file() else 0
    if not 0 < size <= MOST_BYTES:
        raise BrowserError(f"{picture}: got {size} bytes, expected 1 to {MOST_BYTES}; change the height in {__file__}")


def shoot_playground(browser: str, model: str, folder: Path) -> None:
    """Writes pictures of two answers side by side, as a server of the model gives them. Raises BrowserError."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        print("playground: needs playwright (pip install playwright); its pictures stay as they are", file=sys.stderr)
        return
    command = [sys.executable, "-m", "sol_rt", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stderr is not None
        try:
            address = next((found[1] for line in server.stderr if (found := re.search(r"(http://\S+)/v1", line))), None)
            if address is None:
                raise BrowserError(f"sol-rt serve {model}: did not start; run it by hand")
            chromium = playwright.chromium.launch(executable_path=browser, args=list(_FLAGS))
            for mode in ("light", "dark"):
                page = chromium.new_page(viewport=_PLAYGROUND, color_scheme=mode)
                page.goto(address)
                page.click("#tune")
                page.fill("#max_tokens", "76")
                page.get_by_role("button", name="Done").click()
                page.click("#compare")
                for pane, budget in _BUDGETS.items():
                    page.fill(f"#budget-{pane}", budget)
                page.fill("#prompt", _QUESTION)
                page.press("#prompt", "Enter")
                page.locator("#send", has_text="Send").wait_for(timeout=1000 * _SECONDS)
                picture = folder / f"playground-{mode}.png"
                page.screenshot(path=picture, animations="disabled")
                print(picture)
            chromium.close()
        except Error as error:
            raise BrowserError(f"playground: {error.message.splitlines()[0]}; open it by hand") from None
        finally:
            server.terminate()


def sol_rt(*argv: str, folder: Path | None = None) -> None:
    """Runs one of sol_rt's commands without its text. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "sol_rt", *argv], check=True, stdout=subprocess.DEVNULL, cwd=folder)


def make_pages(model: str, text: Path | None, folder: Path) -> dict[str, Path]:
    """Writes a model's pages into a folder, with the commands that a user runs; returns them by name."""
    trace, pages = folder / "trace.jsonl", {name: folder / f"{name}.html" for name in _PAGES}
    sol_rt("generate", "-m", model, *_GENERATE, "--trace", str(trace))
    sol_rt("trace", str(trace), "-o", str(pages["trace"]))
    sol_rt("inspect", "-m", model, "--html", str(pages["actions"]))
    if text is None:
        del pages["schedules"]
        print("page-schedules: needs held-out text (-f); its pictures stay as they are", file=sys.stderr)
    else:
        # the page names the text as it was given, so the command runs in the text's folder
        page, state = pages["schedules"].resolve(), (folder / "schedules.state").resolve()
        argv = ("eval", "-m", model, "-f", text.name, *_EVALUATE, "--state", str(state), "--html", str(page))
        sol_rt(*argv, folder=text.parent)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundle folder, or name of a bundle")
    parser.add_argument("-f", "--file", type=Path, help="held-out text, for the page of schedules")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--pages", type=Path, help="folder to keep the pages in; a later run takes the evaluation's results from there"
    )
    args = parser.parse_args()
    if args.file is not None and not args.file.is_file():
        parser.error(f"{args.file}: no such file")
    model = str(Path(args.model).resolve()) if os.path.isdir(args.model) else args.model
    try:
        browser = find_browser()
        args.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as aside:
            folder = args.pages or Path(aside)
            folder.mkdir(parents=True, exist_ok=True)
            for name, page in make_pages(model, args.file, folder).items():
                for mode in ("light", "dark"):
                    picture = args.output / f"page-{name}-{mode}.png"
                    shoot(browser, page, picture, _PAGES[name], mode == "dark")
                    print(picture)
        shoot_playground(browser, model, args.output)
    except (BrowserError, OSError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the command has said what is wrong


if __name__ == "__main__":
    main()
