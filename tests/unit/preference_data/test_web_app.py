"""The annotation page's server, without a browser: blind, idempotent, and closed to whatever is not the page."""

import json
import subprocess
from io import BytesIO

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from portraitkit.pictures.images import write_image
from preference_data.annotations import FOLDER, Judgement, append_judgement, read_judgements
from preference_data.pair_set import read_pairs
from preference_data.schema import DIMENSIONS
from preference_data.web.app import Desk, make_app

ANSWERS = dict.fromkeys([*DIMENSIONS, "overall"], "1")


@pytest.fixture
def client(pair_set):
    (pair_set / FOLDER).mkdir(exist_ok=True)
    (pair_set / FOLDER / ".salt").write_text("0" * 32, encoding="utf-8")  # whose pairs come in both orders: one salt in 128 shows one alone
    desk = Desk(pair_set, read_pairs(pair_set))
    with TestClient(make_app(desk), base_url="http://127.0.0.1:1") as client:
        client.folder, client.desk = pair_set, desk
        yield client


def queue(client, name="anna", role="annotator"):
    return client.get("/api/state", params={"name": name, "role": role}).json()["queue"]


def judge(client, token, answers=ANSWERS, **extra):
    return client.post("/api/judgement", json={"pair": token, "name": "anna", "role": "annotator", "answers": answers} | extra)


def test_a_judgement_is_about_the_files_and_survives_a_restart(client):
    rows = queue(client)
    assert len(rows) == 8 and not any(row["done"] for row in rows)
    for row in rows:
        assert judge(client, row["pair"], seconds=2.5).json() == {"saved": True, "new": True}
    found = {row.pair: row for row in read_judgements(client.folder)[0]}
    desk = Desk(client.folder, read_pairs(client.folder))
    for token, pair in desk.pairs.items():
        shown = desk.view(token, "anna", "annotator")
        assert shown["answers"] == ANSWERS
        first = {"ab": pair.a, "ba": pair.b}[found[pair.id].order]
        assert desk.files[shown["pictures"]["1"].rsplit("/", 1)[1]] == first
        assert getattr(pair, found[pair.id].overall) == first  # "1" was said, and the file that was shown as 1 has won
    assert {row.order for row in found.values()} == {"ab", "ba"}
    assert all(row["done"] for row in desk.queue("anna", "annotator")) and not any(row["done"] for row in desk.queue("max", "annotator"))


def test_the_same_word_twice_is_one_row_and_another_word_counts(client):
    token = queue(client)[0]["pair"]
    judge(client, token)
    assert judge(client, token).json()["new"] is False
    (file,) = (client.folder / "annotations").glob("*.jsonl")
    assert len(file.read_text().splitlines()) == 1
    assert judge(client, token, ANSWERS | {"overall": "2"}).json()["new"] is True
    (row,) = read_judgements(client.folder)[0]
    assert row.overall != row.verdicts["texture"]


def test_nothing_tells_which_file_is_which(client):
    row = queue(client)[0]
    text = json.dumps(client.get(f"/api/pair/{row['pair']}", params={"name": "anna"}).json())
    pairs = read_pairs(client.folder)
    for word in (*{pair.id for pair in pairs}, *{pair.a for pair in pairs}, "degradations", "blur", "label", ".png"):
        assert word not in text
    picture = client.get(json.loads(text)["pictures"]["1"])
    assert picture.headers["content-type"] == "image/png" and "disposition" not in str(picture.headers)


def test_only_conflicts_reach_the_senior(client):
    pairs = read_pairs(client.folder)
    for name, overall in (("max", "a"), ("eva", "b")):
        append_judgement(client.folder, Judgement(pairs[2].id, name, "annotator", "ab", dict.fromkeys(DIMENSIONS, "tie"), overall))
        append_judgement(client.folder, Judgement(pairs[3].id, name, "annotator", "ab", dict.fromkeys(DIMENSIONS, "tie"), "a"))
    desk = Desk(client.folder, pairs)
    (row,) = desk.queue("sue", "senior")
    assert desk.pairs[row["pair"]].id == pairs[2].id and row["disputed"] == ["overall"] and not row["done"]
    desk.save(row["pair"], "sue", "senior", ANSWERS, "", None)
    (row,) = desk.queue("sue", "senior")
    assert row["done"] and row["disputed"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"pair": "forged"}, 404),
        ({"answers": {"overall": "1"}}, 400),
        ({"answers": ANSWERS | {"overall": "3"}}, 400),
        ({"answers": ["1"]}, 400),
        ({"name": ""}, 400),
        ({"name": "x" * 61}, 400),
        ({"name": "a\nb"}, 400),
        ({"role": "boss"}, 400),
        ({"note": 3}, 400),
        ({"seconds": -1}, 400),
        ({"seconds": 10**400}, 400),
        ({"note": "x" * 70_000}, 413),
    ],
)
def test_forged_judgements_change_nothing(client, body, status):
    token = queue(client)[0]["pair"]
    reply = client.post("/api/judgement", json={"pair": token, "name": "anna", "role": "annotator", "answers": ANSWERS} | body)
    assert reply.status_code == status and "error" in reply.json()
    assert not list((client.folder / "annotations").glob("*.jsonl"))


@pytest.mark.parametrize("text", ["[" * 60_000, '{"pair":' * 8000, '{"seconds": 1e999}', '{"seconds": ' + "9" * 5000 + "}"])
def test_json_that_nobody_writes_is_refused(client, text):
    reply = client.post("/api/judgement", content=text, headers={"content-type": "application/json"})
    assert reply.status_code == 400 and "error" in reply.json()


def test_infinite_seconds_leave_no_file(client):
    body = json.dumps({"pair": queue(client)[0]["pair"], "name": "anna", "answers": ANSWERS, "seconds": float("inf")})
    assert client.post("/api/judgement", content=body, headers={"content-type": "application/json"}).status_code == 400
    assert not list((client.folder / "annotations").glob("*.jsonl"))


def test_forms_of_other_pages_and_other_hosts_are_refused(client):
    token = queue(client)[0]["pair"]
    body = json.dumps({"pair": token, "name": "anna", "answers": ANSWERS})
    assert client.post("/api/judgement", content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/api/judgement", content="[", headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/picture/none", "/picture/../metadata.jsonl", "/picture/%2e%2e%2fmetadata.jsonl", "/api/pair/x?name=a", "/metadata.jsonl"]
)
def test_there_is_no_way_to_other_files(client, path):
    assert client.get(path).status_code == 404


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for path in ("/", "/page.css", "/page.js", "/view.js"):
        assert "http" not in client.get(path).text.replace("http-equiv", "")


def test_export_is_the_annotators_file(client):
    assert client.get("/export", params={"name": "anna"}).status_code == 404
    judge(client, queue(client)[0]["pair"])
    rows = client.get("/export", params={"name": "anna"}).text.splitlines()
    assert len(rows) == 1 and json.loads(rows[0])["annotator"] == "anna"


def test_a_damaged_picture_is_an_answer_not_a_crash(client):
    row = queue(client)[0]
    pictures = client.get(f"/api/pair/{row['pair']}", params={"name": "anna"}).json()["pictures"]
    for pair in read_pairs(client.folder):
        (client.folder / pair.input).write_bytes(b"x")
    reply = client.get(pictures["photo"])
    assert reply.status_code == 410 and str(client.folder) not in reply.text


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 300 KiB of room."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", tmp_path / "disk"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)


def test_a_full_disk_is_said_and_loses_nothing(client, small_disk):
    tokens = [row["pair"] for row in queue(client)]
    (client.folder / FOLDER).rename(client.folder / "before")
    (client.folder / FOLDER).symlink_to(small_disk, target_is_directory=True)
    assert judge(client, tokens[0]).status_code == 200
    (small_disk / "ballast").write_bytes(b"0" * (300 * 1024 - 4096 - 4096))  # the rows' last page holds a few more
    statuses = [200]
    while statuses[-1] == 200 and len(statuses) < 60:
        statuses.append(judge(client, tokens[1], note=f"{len(statuses):03}" * 200).status_code)
    assert statuses[-1] == 507 and len(statuses) > 2
    reply = judge(client, tokens[2], note="y" * 900)
    assert reply.json() == {"error": "not stored: disk full"} and str(client.folder) not in reply.text
    rows, rejected = read_judgements(client.folder)
    assert {row.pair for row in rows} == {client.desk.pairs[token].id for token in tokens[:2]} and not rejected
    (small_disk / "ballast").unlink()
    assert judge(client, tokens[2], note="y" * 900).json() == {"saved": True, "new": True}
    rows, rejected = read_judgements(client.folder)
    assert len(rows) == 3 and not rejected


def test_large_pictures_come_reduced_and_whole_on_demand(client):
    pair = read_pairs(client.folder)[0]
    write_image(client.folder / pair.input, torch.rand(3, 1000, 1500))
    views = [client.get(f"/api/pair/{row['pair']}", params={"name": "anna"}).json() for row in queue(client)]
    views = [next(view for view in views if (view["pictures"] == view["whole"]) == small) for small in (True, False)]
    sizes = set()
    for view in views:
        shown, whole = (Image.open(BytesIO(client.get(view[key]["photo"]).content)).size for key in ("pictures", "whole"))
        sizes.add((shown, whole))
        assert (view["pictures"] == view["whole"]) == (shown == whole)
    assert sizes == {((64, 64), (64, 64)), ((1280, 853), (1500, 1000))}
