"""The annotation page in a real headless Chromium: keyboard alone, reload, senior, merge."""

import errno
import re
import shutil
import threading
from asyncio import sleep

import pytest
import torch
import uvicorn
from patience import LONGEST, wait_until

from portraitkit.errors import RunFolderError
from portraitkit.pictures.images import write_image
from portraitkit.serving import listen
from preference_data.annotations import Judgement, append_judgement, read_judgements
from preference_data.commands.merge import merge
from preference_data.commands.options import MergeConfig
from preference_data.pair_set import read_pairs
from preference_data.schema import DIMENSIONS
from preference_data.web import app
from preference_data.web.app import Desk, make_app

NOW = ".question.now"


class Served:
    """The page of a set. `late` is a pattern of paths whose answers are held back for as long as it stands there, `held` which were."""

    def __init__(self, folder):
        self.folder, self.running, self.late, self.held = folder, [], None, []

    def start(self, port=0):
        """Serve the set; gives the address."""
        listening = listen("127.0.0.1", port)
        pages = make_app(Desk(self.folder, read_pairs(self.folder)))

        async def app(scope, receive, send):
            if self.late and re.match(self.late, scope["path"]):
                self.held.append(scope["path"])
                while self.late:
                    await sleep(0.01)
            await pages(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        self.running.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    def stop(self):
        """End every server, as when it is lost: nothing listens any more when this returns."""
        for server, thread, listening in self.running:
            server.should_exit = True
            thread.join(LONGEST)
            listening.close()
            assert not thread.is_alive()
        self.running.clear()

    def lost(self, page):
        """End the server that `page` is of; gives its port, so that it can come back there."""
        self.stop()
        return int(re.search(r":(\d+)/", page.url)[1])


@pytest.fixture
def served(pair_set):
    served = Served(pair_set)
    yield served
    served.late = None
    served.stop()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1000 * LONGEST)
    page = context.new_page()
    page.troubles = []
    page.on("console", lambda message: page.troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    yield page
    assert page.troubles == []
    context.close()


def enter(page, url, name):
    page.goto(url)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#desk:not([hidden])")
    pictures_shown(page)


def until(page, condition):
    """Wait for a JavaScript condition; Playwright's own wait_for_function needs an eval that the page's policy forbids."""
    wait_until(lambda: page.evaluate(condition), condition, lambda seconds: page.wait_for_timeout(1000 * seconds))


def pictures_shown(page):
    until(page, "[...document.querySelectorAll('.frame img')].every(i => i.complete && i.naturalWidth)")


def answers(page):
    """What is pressed on the screen, as a string of 1, =, 2 and ."""
    cards = page.locator(".question").all()
    return "".join(
        card.locator("button[aria-pressed=true]").text_content() if card.locator("button[aria-pressed=true]").count() else "."
        for card in cards
    )


def press(page, keys):
    for key in keys:
        page.keyboard.press(key)


def test_a_pair_is_judged_by_keyboard_alone(page, served):
    enter(page, served.start(), "anna")
    before = page.url
    press(page, ["1", "ArrowRight", "ArrowDown", "0", "2"])
    assert answers(page) == "12==2." and page.locator(NOW).get_attribute("data-name") == "overall"
    press(page, ["Enter"])
    assert "Still open: Overall" in page.locator("#hint").text_content() and page.url == before
    press(page, ["ArrowUp", "ArrowUp", "1", "Tab", "ArrowLeft"])
    assert answers(page) == "12=121"
    press(page, ["Enter"])
    until(page, "document.getElementById('count').textContent == '2 / 8, 1 judged'")
    assert page.url != before and answers(page) == "......"
    (row,) = read_judgements(served.folder)[0]
    first, second = row.order
    assert list(row.verdicts.values()) == [first, second, "tie", first, second] and row.overall == first and (row.seconds or 0) > 0


def test_reload_loses_nothing(page, served):
    enter(page, served.start(), "anna")
    press(page, ["1", "1", "1", "1", "1", "1", "Enter"])
    until(page, "document.getElementById('count').textContent == '2 / 8, 1 judged'")
    press(page, ["2", "0"])
    where = page.url
    page.reload()
    page.wait_for_selector("#desk:not([hidden])")
    page.wait_for_selector(NOW)
    assert page.url == where and answers(page) == "2=...." and page.locator(NOW).get_attribute("data-name") == DIMENSIONS[2]
    press(page, ["p"])
    until(page, "document.getElementById('count').textContent.startsWith('1 /')")
    assert answers(page) == "111111"


def test_a_restarted_server_knows_what_was_judged(page, served):
    enter(page, served.start(), "anna")
    press(page, ["1", "1", "1", "1", "1", "2", "Enter"])
    until(page, "document.getElementById('count').textContent.includes('1 judged')")
    enter(page, served.start(), "anna")
    assert page.locator("#count").text_content() == "2 / 8, 1 judged"


def test_the_three_pictures_move_together(page, served):
    enter(page, served.start(), "anna")
    transforms = "[...document.querySelectorAll('.frame img')].map(i => i.style.transform)"
    press(page, ["+", "+", "d"])
    moved = page.evaluate(transforms)
    assert len(set(moved)) == 1 and "scale(1.96)" in moved[0]
    box = page.locator("figure[data-side='2'] .frame").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 60)
    page.mouse.wheel(0, -300)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 90, steps=3)
    page.mouse.up()
    dragged = page.evaluate(transforms)
    assert len(set(dragged)) == 1 and dragged != moved
    press(page, ["z"])
    assert page.evaluate("document.body.dataset.view") == "1.0000 0.5000 0.5000"


def test_frames_of_other_shapes_show_the_same_part(page, served):
    """On a narrow screen the photo's frame is wide, the candidates' are square."""
    page.set_viewport_size({"width": 390, "height": 844})
    enter(page, served.start(), "anna")
    press(page, ["+", "+", "+", "d", "s"])
    middles = page.evaluate("""[...document.querySelectorAll('.frame')].map(frame => {
        const image = frame.firstElementChild, box = frame.getBoundingClientRect(), at = image.getBoundingClientRect();
        const zoom = at.width / box.width, fit = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight) * zoom;
        const left = at.left + (at.width - image.naturalWidth * fit) / 2, top = at.top + (at.height - image.naturalHeight * fit) / 2;
        const middle = [box.left + box.width / 2 - left, box.top + box.height / 2 - top];
        return [middle[0] / (image.naturalWidth * fit), middle[1] / (image.naturalHeight * fit)];
    })""")
    for x, y in middles[1:]:
        assert x == pytest.approx(middles[0][0], abs=0.01) and y == pytest.approx(middles[0][1], abs=0.01)
    assert middles[0][0] > 0.5 and page.evaluate("document.documentElement.scrollWidth") <= 390


def test_space_shows_the_photo_in_place_of_the_retouches(page, served):
    enter(page, served.start(), "anna")
    sources = "[...document.querySelectorAll('.frame img')].map(i => i.getAttribute('src'))"
    photo, one, two = page.evaluate(sources)
    page.keyboard.down(" ")
    assert page.evaluate(sources) == [photo] * 3
    page.keyboard.up(" ")
    assert page.evaluate(sources) == [photo, one, two]


def test_a_name_with_markup_stays_text(page, served):
    enter(page, served.start(), "<b>x</b>")
    assert page.locator("#who").text_content() == "<b>x</b>" and page.locator("#who b").count() == 0


def test_a_lost_server_loses_no_answers(page, served):
    enter(page, served.start(), "anna")
    press(page, ["1", "1", "1", "1", "1", "2"])
    port = served.lost(page)
    press(page, ["Enter"])
    until(page, "document.getElementById('hint').textContent.startsWith('Not saved')")
    assert answers(page) == "111112" and read_judgements(served.folder)[0] == []
    served.start(port)
    press(page, ["Enter"])
    until(page, "document.getElementById('count').textContent.includes('1 judged')")
    assert len(read_judgements(served.folder)[0]) == 1
    page.troubles.clear()  # Chromium reports the request that was refused


def test_a_full_disk_is_tried_again_until_there_is_room(page, served, monkeypatch):
    def full(*_):
        raise RunFolderError("full") from OSError(errno.ENOSPC, "No space left on device")

    enter(page, served.start(), "anna")
    press(page, ["1", "1", "1", "1", "1", "2"])
    with monkeypatch.context() as patch:
        patch.setattr(app, "append_judgement", full)
        press(page, ["Enter"])
        until(page, "document.getElementById('hint').textContent.includes('not stored: disk full')")
        assert answers(page) == "111112" and "trying again" in page.locator("#hint").text_content()
    until(page, "document.getElementById('count').textContent.includes('1 judged')")
    assert len(read_judgements(served.folder)[0]) == 1
    page.troubles.clear()  # Chromium reports the answer 507


def test_large_pictures_are_fetched_whole_when_there_is_more_to_see(page, served):
    for pair in read_pairs(served.folder):
        write_image(served.folder / pair.a, torch.rand(3, 1500, 1500))
    enter(page, served.start(), "anna")
    widths = "[...document.querySelectorAll('figure img')].map(image => image.naturalWidth).sort((a, b) => a - b).join()"
    until(page, f"{widths} === '64,64,1280'")
    press(page, ["+"])
    until(page, f"{widths} === '64,64,1500'")
    press(page, ["z"])
    until(page, f"{widths} === '64,64,1280'")


@pytest.mark.parametrize("late", ["/api/pair/", "/picture/"])
def test_keys_before_the_next_pair_is_shown_answer_nothing(page, served, late):
    """The next pair, or its pictures, take their time, and the annotator goes on typing."""
    enter(page, served.start(), "anna")
    before, served.late = page.url, late
    press(page, ["p", "p", "2", "2", "Enter"])  # to the last pair: the second one's pictures are fetched ahead
    press(page, ["ArrowUp", "1"])
    assert page.url == before and answers(page) == "......" and page.locator("#desk").get_attribute("aria-busy") == "true"
    wait_until(lambda: served.held, "a request")
    served.late = None  # and what was held back goes on
    until(page, "document.getElementById('count').textContent.startsWith('8 /')")
    pictures_shown(page)
    assert page.url != before and answers(page) == "......" and page.locator("#desk").get_attribute("aria-busy") is None
    press(page, ["1", "n"])
    until(page, "document.getElementById('count').textContent.startsWith('1 /')")
    assert answers(page) == "......" and read_judgements(served.folder)[0] == []
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('draft')).length") == 1


def test_a_pair_that_does_not_come_leaves_the_one_before(page, served):
    enter(page, served.start(), "anna")
    press(page, ["1", "2"])
    port = served.lost(page)
    press(page, ["n"])
    until(page, "document.getElementById('hint').textContent.includes('try again')")
    assert answers(page) == "12...." and page.locator("#count").text_content().startswith("1 /")
    served.start(port)
    press(page, ["n"])
    until(page, "document.getElementById('count').textContent.startsWith('2 /')")
    page.troubles.clear()  # Chromium reports the request that was refused


def test_two_annotators_merge_and_a_senior_settles(page, served, capsys):
    """Max worked on a copy of the set; they differ on one pair."""
    pairs = read_pairs(served.folder)
    for pair in pairs:
        append_judgement(served.folder, Judgement(pair.id, "anna", "annotator", "ab", dict.fromkeys(DIMENSIONS, "tie"), "a"))
    copy = shutil.copytree(served.folder, served.folder.parent / "copy")
    for pair in pairs:
        overall = "b" if pair is pairs[0] else "a"
        append_judgement(copy, Judgement(pair.id, "max", "annotator", "ba", dict.fromkeys(DIMENSIONS, "tie"), overall))
    assert merge(MergeConfig(served.folder, (copy / "annotations" / "max.jsonl",), relabel=True)) == 1
    assert {row.annotator for row in read_judgements(served.folder)[0]} == {"anna", "max"}
    kept = {pair.id: pair for pair in read_pairs(served.folder)}
    assert kept[pairs[0].id].overall is None and all(kept[pair.id].overall == "a" for pair in pairs[1:])

    page.goto(served.start())
    page.keyboard.type("sue")
    page.check("#senior")
    page.keyboard.press("Enter")
    page.wait_for_selector(".question.disputed")
    assert page.locator("#count").text_content() == "1 / 1, 0 judged"
    assert [card.get_attribute("data-name") for card in page.locator(".question.disputed").all()] == ["overall"]
    press(page, ["0", "0", "0", "0", "0", "1", "Enter"])
    until(page, "document.getElementById('hint').textContent.startsWith('All judged')")
    assert merge(MergeConfig(served.folder, relabel=True)) == 0
    settled = {pair.id: pair for pair in read_pairs(served.folder)}[pairs[0].id]
    assert settled.annotator == "sue" and settled.overall in ("a", "b")
