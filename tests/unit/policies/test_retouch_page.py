"""`retouch-portrait --serve`: the page in a real headless Chromium, and what its server answers and refuses."""

import os
import signal
import subprocess
import sys
import threading
import zipfile
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import pytest
import torch
import uvicorn
from patience import LONGEST
from PIL import Image as PilImage
from starlette.testclient import TestClient

from policies.retoucher.retouch.command import retouch_main
from policies.retoucher.retouch.controls import split_edit
from policies.retoucher.retouch.faces import FacePlan
from policies.retoucher.retouch.options import RetouchConfig
from policies.retoucher.retouch.page_server import Studio, make_app, read_settings, safe_name
from portraitkit.errors import ConfigError
from portraitkit.faces.align import align_face
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import to_uint8, write_image
from portraitkit.serving import listen

CONFIG = RetouchConfig(serve=True)


def analyse(pixels, faces):
    """A retoucher that changes nothing: what the controls find on their own."""
    plans = []
    for mesh in faces.meshes:
        aligned = align_face(pixels, mesh, 128)
        plans.append(FacePlan(aligned, mesh, split_edit(aligned.pixels, aligned.pixels, aligned.to_crop(mesh))))
    return plans


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Both portraits that packages ship; the second's profile and EXIF are to be kept."""
    folder = tmp_path_factory.mktemp("photos")
    pictures = bundled_portraits()
    write_image(folder / "grace.png", pictures["grace_hopper"])
    exif = PilImage.Exif()
    exif[0x010F] = "Maker"
    PilImage.fromarray(to_uint8(pictures["astronaut"])).save(folder / "eileen.jpg", quality=97, exif=exif)
    write_image(folder / "nobody.png", torch.full((3, 96, 96), 0.5))
    return folder


@pytest.fixture
def client(tmp_path):
    app = make_app(Studio(tmp_path, CONFIG, analyse), hosts=("127.0.0.1", "testserver"))
    with TestClient(app) as client:
        yield client


def test_a_photo_comes_back_in_its_own_terms(client, photos):
    told = client.post("/api/photo?name=../../eileen.jpg", content=(photos / "eileen.jpg").read_bytes()).json()
    assert (told["name"], told["width"], told["height"], told["faces"]) == ("eileen.jpg", 512, 512, 1)
    assert all(0 < spot["x"] < 1 and 0 < spot["y"] < 1 and spot["kind"] in ("blemish", "mole") for spot in told["spots"])
    pictures = {}
    for settings in ("tone=0&texture=0&blemishes=0", "tone=1&texture=1"):
        answer = client.get(f"/photo/{told['id']}/after.jpg?{settings}")
        assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-left"] == ""
        pictures[settings] = np.asarray(PilImage.open(BytesIO(answer.content))).astype(int)
    before = client.get(f"/photo/{told['id']}/before.jpg?tone=1").content
    untouched, retouched = pictures.values()
    assert np.array_equal(np.asarray(PilImage.open(BytesIO(before))), untouched)
    assert np.abs(retouched - untouched).max() > 4
    answer = client.get(f"/photo/{told['id']}/download?tone=1")
    assert 'filename="eileen-retouched.jpg"' in answer.headers["content-disposition"]
    with PilImage.open(BytesIO(answer.content)) as kept:
        assert kept.size == (512, 512) and kept.getexif()[0x010F] == "Maker"


def test_all_photos_in_one_archive(client, photos):
    data = (photos / "grace.png").read_bytes()
    tokens = [client.post("/api/photo?name=grace.png", content=data).json()["id"] for _ in range(2)]
    url = client.post("/api/archive", json=[{"id": token, "settings": "strength=0"} for token in tokens]).json()["url"]
    with zipfile.ZipFile(BytesIO(client.get(url).content)) as archive:
        assert archive.namelist() == ["grace-retouched.png", "2-grace-retouched.png"]
        with archive.open("grace-retouched.png") as file, PilImage.open(file) as kept, PilImage.open(photos / "grace.png") as source:
            assert np.array_equal(np.asarray(kept), np.asarray(source))


def test_an_archive_names_the_faces_that_were_left(client, photos, monkeypatch):
    token = client.post("/api/photo?name=grace.png", content=(photos / "grace.png").read_bytes()).json()["id"]
    monkeypatch.setattr("policies.retoucher.retouch.faces.IDENTITY_BOUND", -1.0)
    url = client.post("/api/archive", json=[{"id": token, "settings": ""}]).json()["url"]
    with zipfile.ZipFile(BytesIO(client.get(url).content)) as archive:
        assert archive.namelist() == ["grace-retouched.png", "left as it is.txt"]
        assert archive.read("left as it is.txt").decode().startswith("grace-retouched.png: face at (")


def test_one_photo_at_a_time_at_its_full_size(tmp_path, photos, monkeypatch):
    """And previews, which are small, go on meanwhile."""
    studio, at_work, most = Studio(tmp_path, CONFIG, analyse), [], []
    token = studio.add("eileen.jpg", photos / "eileen.jpg")["id"]

    def write(*_):
        at_work.append(1)
        most.append(len(at_work))
        assert studio.open(token).shown is studio.before(token)
        threading.Event().wait(0.05)
        at_work.pop()

    monkeypatch.setattr("policies.retoucher.retouch.page_server.write_edited", write)
    threads = [threading.Thread(target=studio.write, args=(token, CONFIG, {})) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
    assert most == [1, 1, 1]


def test_what_was_sent_is_not_kept(client, photos, tmp_path):
    token = client.post("/api/photo?name=eileen.jpg", content=(photos / "eileen.jpg").read_bytes()).json()["id"]
    assert client.get(f"/photo/{token}/download").status_code == 200
    url = ""
    for _ in range(2):
        url = client.post("/api/archive", json=[{"id": token, "settings": "strength=1"}]).json()["url"]
        assert client.get(url).status_code == 200
    for settings in ("strength=2", "children=yes"):
        assert client.post("/api/archive", json=[{"id": token, "settings": settings}]).status_code == 400
    assert client.post("/api/archive", json=[{"id": token, "settings": ""}] * 2).status_code == 400
    assert {path.name for path in tmp_path.rglob("*.*")} == {"eileen.jpg", f"{url.rpartition('/')[2]}.zip"}


@pytest.mark.parametrize(
    ("name", "kept"),
    [("..", "photo.png"), ("C:\\a\0b.jpg", "ab.jpg"), ("é" * 300 + ".jpg", "é" * 60 + ".jpg"), ("a." + "b" * 300, "a." + "b" * 118)],
)
def test_any_name(name, kept):
    assert safe_name(name) == kept


def test_a_name_that_is_none(client, photos):
    answer = client.post("/api/photo", params={"name": "/a/.."}, content=(photos / "eileen.jpg").read_bytes())
    assert answer.status_code == 200 and answer.json()["name"] == "photo.png"


def test_the_strip_does_not_ask_the_retoucher(tmp_path, photos):
    asked = []
    studio = Studio(tmp_path, CONFIG, lambda *of: asked.append(1) or analyse(*of))
    token = studio.add("eileen.jpg", photos / "eileen.jpg")["id"]
    shown = studio.before(token)
    studio._opened.clear()
    assert torch.equal(studio.before(token), shown) and len(asked) == 1


def test_no_photo_stays_behind(tmp_path):
    """A closed terminal goes on as SIGTERM, and that as Ctrl-C; under `nohup`, which the tests may run under, it would be ignored."""
    start = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    command = f"{start}from policies.retoucher.main import retouch_portrait as main; sys.argv[1:] = ['--serve', '--port', '0']; main()"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert urlopen(process.stdout.readline().split()[1]).status == 200
        folder = next(tmp_path.glob("retouch-portrait-*"))
        (folder / "photo.png").write_text("of somebody")
        process.send_signal(signal.SIGHUP)
        try:
            assert process.wait(LONGEST) == 0 and not folder.exists()
        finally:
            process.kill()


def test_what_is_refused(client, photos, tmp_path):
    for name, said in (("nobody.png", "nobody.png: no face found"), ("grace.png", "grace.png: cannot be read")):
        data = (photos / "nobody.png").read_bytes() if name == "nobody.png" else b"no picture"
        answer = client.post(f"/api/photo?name={name}", content=data)
        assert answer.status_code == 400 and said in answer.json()["error"] and str(tmp_path) not in answer.text
    assert not list(tmp_path.iterdir())
    assert client.get("/photo/unknown/after.jpg").status_code == 404
    assert client.post("/api/archive", content=b"[1]").status_code == 400
    assert client.post("/api/photo", content=b"x", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"tone": "2"}, r"--tone 2: must be a share"),
        ({"tone": "much"}, "tone 'much': must be a number"),
        ({"moles": "burn"}, "moles 'burn': must be one of keep, remove"),
        ({"chosen": "1.2"}, r"chosen '1\.2': must be face\.spot\.1"),
        ({"chosen": "1.2.3"}, r"chosen '1\.2\.3': must be face\.spot\.1"),
        ({"children": "yes"}, "children 'yes': must be 0 or 1"),
        ({"tone": "nan"}, "--tone nan: must be a share"),
    ],
)
def test_impossible_settings(query, said):
    with pytest.raises(ConfigError, match=said):
        read_settings(query, CONFIG)


def test_settings():
    controls, chosen = read_settings({"tone": "0.25", "children": "1", "moles": "remove", "chosen": "0.3.1_1.4.0"}, CONFIG)
    assert (controls.tone, controls.children, controls.moles, controls.blemishes) == (0.25, True, "remove", CONFIG.blemishes)
    assert chosen == {0: {3: True}, 1: {4: False}}


def test_other_machines_need_the_key(tmp_path):
    with TestClient(make_app(Studio(tmp_path, CONFIG, analyse), hosts=("*",), key="secret"), follow_redirects=False) as client:
        for path in ("/", "/api/start", "/?key=wrong"):
            assert client.get(path).status_code == 403
        answer = client.get("/?key=secret")
        assert answer.status_code == 303 and "httponly" in answer.headers["set-cookie"].lower()
        assert client.get("/").status_code == 200 and client.get("/api/start").json()["moles"] == "keep"
    port = {"base_url": "http://testserver:8001", "follow_redirects": False}
    with TestClient(make_app(Studio(tmp_path, CONFIG, analyse), hosts=("*",), key="other"), **port) as page:
        assert set(page.get("/?key=other").cookies) == {"key-8001"}, "browsers give cookies to every port"


def test_places_or_the_page():
    with pytest.raises(ConfigError, match="IN and OUT are needed"):
        retouch_main([])
    with pytest.raises(ConfigError, match=r"--serve with IN me\.jpg"):
        retouch_main(["me.jpg", "--serve"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["me.jpg", "out.jpg", "--port", "9000"], "--port 9000: does nothing without --serve"),
        (["--serve", "--overwrite"], "--overwrite: --serve writes no file"),
        (["me.jpg", "out.jpg", "--children", "--tone", "0.8"], "--tone 0.8: --children leaves"),
        (["me.jpg", "out.jpg", "--children", "--moles", "remove"], "--moles remove: --children leaves"),
    ],
)
def test_options_that_would_do_nothing(options, said):
    with pytest.raises(ConfigError, match=said):
        retouch_main(options)


# ---- in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with listen("127.0.0.1", 0) as listening:
        app = make_app(Studio(tmp_path_factory.mktemp("studio"), CONFIG, analyse), hosts=("127.0.0.1",))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page(browser, address, request):
    width, height = getattr(request, "param", (1280, 800))
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.troubles, page.elsewhere = [], []
    page.on("console", lambda message: page.troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(address) else page.elsewhere.append(asked.url))
    page.goto(address)
    until(page, "document.body.dataset.ready === 'yes'")
    yield page
    assert page.troubles == [] and page.elsewhere == []
    context.close()


def until(page, condition):
    """Wait for a JavaScript condition; Playwright's own wait_for_function needs an eval that the page's policy forbids."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {condition}")


def drop(page, *files):
    page.set_input_files("#files", files)
    until(page, f"document.querySelectorAll('#strip button').length === {len(files)}")
    settled(page)


def settled(page):
    until(page, "document.body.dataset.drawing === '' && document.getElementById('after').src.includes('after.jpg')")


def shown(page):
    return page.locator("#after").get_attribute("src")


def test_sliders_spots_and_download(page, photos):
    drop(page, photos / "eileen.jpg")
    assert "1 face" in page.locator("#facts").text_content() and "512 × 512" in page.locator("#facts").text_content()
    assert f"tone={CONFIG.tone:g}" in shown(page) and "moles=keep" in shown(page)
    page.locator("#tone").focus()
    page.keyboard.press("End")
    settled(page)
    assert "tone=1&" in shown(page)
    page.locator("[data-moles=remove]").click()
    settled(page)
    assert "moles=remove" in shown(page)
    for _ in range(2):  # the second changes nothing, and what is shown is the retouch still
        page.keyboard.press("r")
        settled(page)
    assert "moles=keep" in shown(page) and f"tone={CONFIG.tone:g}" in shown(page)
    spot = page.locator(".spot").first
    was = spot.get_attribute("aria-pressed")
    spot.click()
    settled(page)
    assert spot.get_attribute("aria-pressed") != was and "chosen=0." in shown(page)
    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename == "eileen-retouched.jpg"


def test_the_line_and_the_zoom(page, photos):
    drop(page, photos / "grace.png")
    page.locator("#divider").focus()
    page.keyboard.press("Home")
    hidden = page.evaluate("parseFloat(document.getElementById('before').style.clipPath.split(' ')[1])")
    assert abs(hidden - page.locator("#picture").bounding_box()["width"]) < 1
    page.keyboard.down("b")
    assert page.evaluate("document.body.className") == "before"
    page.keyboard.up("b")
    page.keyboard.press("+")
    assert page.locator("#zoom").text_content() == "150 %"
    box = page.locator("#stage").bounding_box()
    before = page.evaluate("document.body.dataset.view")
    page.mouse.move(box["x"] + 80, box["y"] + box["height"] - 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + box["height"] - 160, steps=3)
    page.mouse.up()
    moved = page.evaluate("document.body.dataset.view")
    assert moved != before
    page.keyboard.press("r")
    settled(page)
    assert page.evaluate("document.body.dataset.view") == moved, "Reset is of the controls: who looks at a spot goes on looking at it"


def test_several_photos_and_one_that_has_no_face(page, photos):
    page.set_input_files("#files", [photos / "grace.png", photos / "nobody.png", photos / "eileen.jpg"])
    until(
        page, "document.querySelectorAll('#strip button').length === 2 && document.getElementById('status').textContent.includes('no face')"
    )
    settled(page)
    page.troubles[:] = [
        trouble for trouble in page.troubles if "400 (Bad Request)" not in trouble
    ]  # the browser's word on the photo that was refused
    first = shown(page)
    page.locator("#texture").focus()
    page.keyboard.press("Home")
    page.locator("#same").click()
    page.keyboard.press("]")
    settled(page)
    assert shown(page).split("/after")[0] != first.split("/after")[0] and "texture=0&" in shown(page)
    page.locator("#children").check()
    page.keyboard.press("[")
    settled(page)
    page.locator("#same").click()
    page.keyboard.press("]")
    settled(page)
    assert "children=1" in shown(page)  # what was said to be a child stays one
    with page.expect_download() as download:
        page.locator("#all").click()
    assert download.value.suggested_filename == "retouched.zip"


@pytest.mark.parametrize("page", [(390, 844), (844, 390)], indirect=True)
def test_a_phone(page, photos):
    drop(page, photos / "eileen.jpg")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    for name in ("#blemishes", "#tone", "#texture", "#strength", "#download"):
        page.locator(name).scroll_into_view_if_needed()
        assert page.locator(name).bounding_box()["width"] > 60
    small = page.evaluate(
        "[...document.querySelectorAll('aside button:not([hidden]), aside a')].filter(b => b.offsetHeight && b.offsetHeight < 36).length"
    )
    assert small == 0
