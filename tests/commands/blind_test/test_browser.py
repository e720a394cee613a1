"""The pages in a real browser: voting by key and by button, zoom, the original, resume; desktop and mobile."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

from patience import LONGEST

from benchmarks.blind_test.commands import blind_test
from benchmarks.blind_test.study import VOTES
from benchmarks.blind_test.vote_store import read_votes

KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}


def new_page(browser, **options):
    """A page of a new person; whatever its console complains about is collected."""
    context = browser.new_context(**options)
    context.set_default_timeout(1000 * LONGEST)
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.faults.append(request.url) if not request.url.startswith("http://127.0.0.1") else None)
    return page


def begin(page, address: str) -> None:
    page.goto(address)
    page.get_by_label("I have read this").check()
    page.get_by_role("button", name="Start").click()
    ready(page, 1)


def ready(page, number: int) -> None:
    page.locator("#count", has_text=f"{number} of ").wait_for()
    page.wait_for_selector("#pictures[aria-busy=false]")


def trial_of(page) -> str:
    return page.locator(".frame[data-side=left] .version").get_attribute("src").split("/")[2]


def transforms(page) -> list[str]:
    return [stage.get_attribute("style") or "" for stage in page.locator(".stage").all()]


def test_a_rater_by_keyboard_among_19_others(browser, make, serve, crowd, command):
    """20 raters of 10 comparisons at once, one of them in a real browser; the report gives back what they prefer."""
    folder = make("--photos-per-rater", "8", "--attention-checks", "2")
    people, generator, said = crowd(folder), random.Random(0), []
    with serve(folder) as address, ThreadPoolExecutor(1) as pool:
        others = pool.submit(people.vote, address, people.careful(19))
        page = new_page(browser, viewport={"width": 1200, "height": 800})
        begin(page, address)
        for number in range(1, 11):
            ready(page, number)
            choice = people.answer(trial_of(page), generator)
            said.append(choice)
            page.keyboard.press(KEYS[choice])
            page.keyboard.press(KEYS[choice])  # too soon: must not answer the next one unseen
        page.wait_for_url("**/done")
        assert page.get_by_role("heading", name="Thank you").is_visible() and not page.faults
        page.context.close()
        others.result(LONGEST)
    everything = read_votes(folder / VOTES)
    assert len(everything) == 20 * 10
    by_rater = [[vote for vote in everything if vote.rater == rater] for rater in range(1, 21)]
    votes = next(votes for votes in by_rater if [vote.choice for vote in votes] == said)
    assert command(blind_test, "report", folder)[0] == 0
    phone = new_page(browser, viewport={"width": 390, "height": 844})
    phone.goto(f"file://{folder / 'report.html'}")
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    for box in (part.bounding_box() for part in phone.locator(".pairs td, .dot, .reach, .words, .badge, .stack td:not(:empty)").all()):
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    phone.context.close()
    for row in json.loads((folder / "results.json").read_text())["strengths"]:
        assert row["strength"]["low"] <= people.strengths[row["method"]] <= row["strength"]["high"], row
    assert all(vote.seconds is not None and 0 < vote.seconds < LONGEST for vote in votes)


def test_zoom_original_back_and_resume(browser, make, serve):
    folder = make("--photos-per-rater", "5", "--attention-checks", "0")
    with serve(folder) as address:
        page = new_page(browser, viewport={"width": 1200, "height": 800})
        begin(page, address)
        frame = page.locator(".frame").first.bounding_box()
        page.mouse.move(frame["x"] + frame["width"] * 0.3, frame["y"] + frame["height"] * 0.5)
        page.mouse.wheel(0, -600)
        page.wait_for_selector(".zoomed")
        zoomed = transforms(page)
        assert zoomed[0] == zoomed[1] and "scale(2.6" in zoomed[0]
        page.mouse.down()
        page.mouse.move(frame["x"] + frame["width"] * 0.1, frame["y"] + frame["height"] * 0.4, steps=3)
        page.mouse.up()
        panned = transforms(page)
        assert panned[0] == panned[1] != zoomed[0]
        page.keyboard.press("0")
        assert "scale(1)" in transforms(page)[0]

        original, version = page.locator(".reference").first, page.locator(".version").first
        assert not original.is_visible()
        page.keyboard.down("o")
        assert original.is_visible() and not version.is_visible()
        page.keyboard.up("o")
        assert version.is_visible() and not original.is_visible()

        page.get_by_role("button", name="A is better").click()
        ready(page, 2)
        page.keyboard.press("Backspace")
        ready(page, 1)
        assert page.get_by_role("button", name="A is better").get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="No difference").click()
        ready(page, 2)
        page.reload()
        ready(page, 2)
        page.get_by_role("link", name="Go on later").click()
        link = page.get_by_role("textbox").input_value()
        assert not page.faults
        page.context.close()

        phone = new_page(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        phone.goto(link)
        ready(phone, 2)
        above, below = (frame.bounding_box() for frame in phone.locator(".frame").all())
        assert above["x"] == below["x"] and above["y"] + above["height"] <= below["y"]
        for button in phone.locator("[data-choice]").all():
            box = button.bounding_box()
            assert box["height"] >= 44 and box["y"] + box["height"] <= 844 and box["x"] + box["width"] <= 390
        for width, height in ((390, 844), (320, 480), (480, 320)):
            phone.set_viewport_size({"width": width, "height": height})
            assert phone.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [width, height]
            boxes = [button.bounding_box() for button in phone.locator("footer button:visible, footer a").all()]
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= height for box in boxes)
            assert all(button.bounding_box()["width"] >= 60 for button in phone.locator("[data-choice]").all())
        phone.locator("[data-choice=right]").tap()
        ready(phone, 3)
        assert not phone.faults
        phone.context.close()
    assert [vote.choice for vote in read_votes(folder / VOTES)] == ["tie", "right"]


def test_a_lost_connection_loses_no_answer(browser, make, serve):
    folder = make("--photos-per-rater", "3", "--attention-checks", "0")
    with serve(folder) as address:
        page = new_page(browser)
        begin(page, address)
        page.context.set_offline(True)
        page.keyboard.press("ArrowLeft")
        page.get_by_text("No connection").wait_for()
        page.context.set_offline(False)
        ready(page, 2)
        assert page.get_by_text("No connection").is_hidden()
        page.context.close()
    assert [vote.choice for vote in read_votes(folder / VOTES)] == ["left"]
