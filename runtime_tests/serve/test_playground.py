"""The playground in a real Chromium, on a real server: what it shows, what the dial does, and what it never lets in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import screenshots

from helpers.random_decoder import medium_decoder
from helpers.servers import served
from helpers.tiny_bundle import write_bundle

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
KEY = "secret"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        path = screenshots.find_browser()
    except screenshots.BrowserError as error:
        pytest.skip(str(error))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page of the playground, and what its console said."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 800, **options: Any) -> None:
        self.said: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.tokens, self.send = self.page.locator(".pane:first-child .token"), self.page.locator("#send")

    def ready(self, **settings: object) -> None:
        expect(self.page.locator("#model")).to_contain_text("costs in")
        self.page.click("#tune")
        for name, value in settings.items():
            self.page.fill(f"#{name}", str(value))
        self.page.get_by_role("button", name="Done").click()

    def ask(self, prompt: str = "w3 w4 w5 w6") -> None:
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")

    def ended(self) -> None:
        expect(self.send).to_have_text("Send", timeout=60_000)


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Opened]:
    opened = Opened(browser, address)
    opened.ready(max_tokens=40, temperature=0)
    yield opened
    opened.page.close()
    assert opened.said == []
    assert all(url.startswith((address, "data:", "blob:")) for url in opened.asked), opened.asked


def trace(opened: Opened, pane: int = 1) -> Any:
    """The JSON that the button of a pane saves."""
    with opened.page.expect_download() as saved:
        opened.page.click(f".pane:nth-child({pane}) .trace")
    return json.loads(saved.value.path().read_text(encoding="utf-8"))


def test_text_appears_with_its_costs_and_is_saved(opened: Opened, address: str) -> None:
    opened.page.fill("#budget-A", "60")
    opened.ask()
    opened.ended()
    (answer,) = trace(opened)["answers"]
    body = {**answer["request"], "messages": [{"role": "user", "content": "w3 w4 w5 w6"}]}
    assert body == answer["request"]
    whole = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    said = whole["choices"][0]["message"]["content"]
    assert "".join(opened.page.locator(".pane:first-child .answer").all_text_contents()) == said
    assert "".join(step["text"] for step in answer["steps"]) == said
    assert len(answer["steps"]) == whole["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    first, *decoded = answer["steps"]
    assert first["cost"] is None
    assert all(0 < step["cost"] <= 1.01 and step["ms"] > 0 and step["action"] for step in decoded)
    losses = [step["expected_loss"] for step in decoded]
    assert sum(losses) / len(losses) == pytest.approx(answer["sol"]["expected_loss"])
    assert {step["requested_budget"] for step in decoded} == {0.6}
    assert decoded[-1]["achieved_budget"] == pytest.approx(answer["sol"]["achieved_budget"])
    figures = opened.page.locator(".pane:first-child dd").all_text_contents()
    assert figures[0] == f"{answer['sol']['achieved_budget']:.0%}"
    assert figures[2] == str(len(answer["steps"]))
    expect(opened.page.locator("#spoken p").last).to_contain_text("The answer is complete")


@pytest.fixture
def slow(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    """A page whose answers take seconds."""
    bundle = write_bundle(tmp_path / "medium", decoder=medium_decoder(), bits=(8, 4), losses=True)
    with served(bundle, "--sessions", "1") as address:
        opened = Opened(browser, address)
        yield opened
        opened.page.close()
    assert opened.said == []


def test_the_dial_moves_an_answer_that_runs(slow: Opened) -> None:
    opened = slow
    opened.ready(max_tokens=8000, temperature=0)
    opened.page.fill("#budget-A", "100")
    opened.ask()
    expect(opened.tokens.nth(5)).to_be_visible()
    opened.page.fill("#budget-A", "30")
    expect(opened.page.locator('.pane:first-child [data-of="achieved"]')).not_to_have_text("100%", timeout=30_000)
    opened.page.keyboard.press("Escape")
    opened.ended()
    (answer,) = trace(opened)["answers"]
    budgets = [step["requested_budget"] for step in answer["steps"]]
    assert (budgets[0], budgets[-1]) == (1.0, 0.3)
    assert answer["finish_reason"] is None
    expect(opened.page.locator("#spoken p").last).to_contain_text("Stopped")
    expect(opened.page.locator(".error:not(:empty)")).to_have_count(0)


@pytest.mark.parametrize("together", [False, True])
def test_two_budgets_side_by_side(opened: Opened, together: bool) -> None:
    opened.page.click("#compare")
    opened.page.set_checked("#together", together)
    opened.page.fill("#budget-A", "100")
    opened.page.fill("#budget-B", "30")
    opened.ask()
    opened.ended()
    (dense,), (cheap,) = trace(opened, 1)["answers"], trace(opened, 2)["answers"]
    assert dense["sol"]["achieved_budget"] == 1.0 > cheap["sol"]["achieved_budget"]
    assert dense["request"]["messages"] == cheap["request"]["messages"]
    assert dense["id"] != cheap["id"]
    expect(opened.page.locator(".answer")).to_have_count(2)
    opened.ask("w9")
    opened.ended()
    assert [len(trace(opened, pane)["answers"]) for pane in (1, 2)] == [2, 2]


def test_text_of_users_and_models_is_never_html(opened: Opened, address: str) -> None:
    title = opened.page.title()
    opened.ask(HOSTILE)
    opened.ended()
    expect(opened.page.locator(".turn")).to_have_text(HOSTILE)

    def hostile(route: Any) -> None:
        chunk = {"id": "x", "choices": [{"delta": {"content": HOSTILE}, "finish_reason": None}], "sol": {"cost": 1}}
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    opened.page.route("**/v1/chat/completions", hostile)
    opened.ask()
    expect(opened.page.locator(".answer").last).to_have_text(HOSTILE)
    expect(opened.page.locator("#panes img, #panes script")).to_have_count(0)
    assert opened.page.title() == title


def test_what_a_model_thinks_and_calls_is_shown_and_not_sent_back(opened: Opened) -> None:
    call = {"index": 0, "function": {"name": "weather", "arguments": "{}"}}
    deltas = [{"reasoning_content": "hm "}, {"content": "w7 "}, {"content": "w8"}, {"tool_calls": [call]}]
    chunks = [{"id": "x", "choices": [{"delta": each, "finish_reason": None}], "sol": {"cost": 1}} for each in deltas]
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"

    def answer(route: Any) -> None:
        route.fulfill(content_type="text/event-stream", body=lines)

    opened.page.route("**/v1/chat/completions", answer, times=1)
    opened.ask("w3")
    opened.ended()
    expect(opened.page.locator(".answer").last).to_have_text("hm w7 w8 weather {}")
    opened.ask("w4")
    opened.ended()
    assert trace(opened)["answers"][-1]["request"]["messages"] == [
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w7 w8"},
        {"role": "user", "content": "w4"},
    ]


def test_keys_walk_through_tokens_and_break_lines(opened: Opened) -> None:
    opened.page.press("#prompt", "Shift+Enter")
    expect(opened.page.locator("#prompt")).to_have_value("\n")
    opened.ask()
    opened.ended()
    opened.page.focus(".pane:first-child .log")
    opened.page.keyboard.press("ArrowRight")
    expect(opened.page.locator("#told")).to_contain_text("from the prompt's run")
    opened.page.keyboard.press("ArrowRight")
    expect(opened.page.locator("#told")).to_contain_text("of dense")
    expect(opened.page.locator("#tip")).to_be_visible()
    opened.page.keyboard.press("Tab")
    expect(opened.page.locator("#budget-A")).to_be_focused()


def test_a_refusal_and_a_setting_that_is_no_json_are_told(opened: Opened) -> None:
    opened.ask("w3 " * 9000)
    expect(opened.page.locator(".pane:first-child .error")).to_contain_text("shorten the conversation")
    opened.page.click("#tune")
    opened.page.fill("#tools", "[")
    opened.page.get_by_role("button", name="Done").click()
    expect(opened.page.locator("#settings-error")).to_contain_text("Tools: no JSON")
    opened.page.get_by_role("button", name="Clear all").click()
    opened.page.get_by_role("button", name="Done").click()
    expect(opened.page.locator("#settings")).to_be_hidden()
    opened.said.clear()  # the browser reports the status 400


@pytest.mark.parametrize(("mode", "background"), [("light", "rgb(251, 250, 248)"), ("dark", "rgb(21, 23, 26)")])
def test_a_phone_in_light_and_dark(browser: Any, address: str, mode: str, background: str) -> None:
    opened = Opened(browser, address, 360, 740, color_scheme=mode)
    opened.ready(max_tokens=40)
    opened.ask()
    opened.ended()
    for _ in range(2):
        expect(opened.page.locator("body")).to_have_css("background-color", background)
        for name in ("header", "#panes", ".pane:first-child .log", ".pane:first-child .dial", "footer", "#send"):
            box = opened.page.locator(name).bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 360, name
            assert box["y"] + box["height"] <= 740, name
        opened.page.mouse.wheel(200, 0)
        assert opened.page.locator("header").bounding_box()["x"] == 16
        opened.page.click("#compare")
    opened.page.close()
    assert opened.said == []


def test_a_key_is_asked_for_and_stays_in_the_tab(browser: Any, bundle: Any) -> None:
    with served(bundle, SOL_RT_API_KEY=KEY) as address:
        opened = Opened(browser, address)
        for key, told in (("wrong", ""), (KEY, "The server refuses this key.")):
            expect(opened.page.locator("#key-error")).to_have_text(told)
            opened.page.fill("#secret", key)
            opened.page.get_by_role("button", name="Continue").click()
        opened.ready(max_tokens=5)
        opened.ask()
        opened.ended()
        assert KEY not in json.dumps(trace(opened))
        opened.page.reload()
        expect(opened.page.locator("#model")).to_contain_text("costs in")
        expect(opened.page.locator("#key")).to_be_hidden()
        opened.page.close()
        assert all("401" in line for line in opened.said), opened.said
