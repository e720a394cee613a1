import json
import random
import re
import shutil
from collections import Counter
from functools import partial
from hashlib import sha256

import pytest
import torch
from rich.console import Console

from policies.vlm.tasks import load_task
from portraitkit.vlm.generate import complete
from preference_data.people.synthetic import make_case, stage
from preference_data.people.synthetic_pairs import SPOTS, make_pair
from reward_models.judge.settings import EMBEDDED_FOLDER, read_settings
from tools.embedded import vlm, vlm_see
from tools.embedded.judge import JudgePhase, blemish_cells, calibrate_embedded, mirrored_pairs, open_cells, teach_judge
from tools.embedded.judge import make_heads as make_judge_heads
from tools.embedded.people import WANTED, Faces, those
from tools.embedded.tiny_vlm import build_model
from tools.embedded.vlm import (
    ON_PEOPLE,
    ROWS,
    PretrainConfig,
    look,
    make_processor,
    pixels_of,
    start,
    tokens_of,
    training_rows,
    validate,
    validation_rows,
)
from tools.embedded.vlm_facts import FACTS
from tools.embedded.vlm_read import Phase, careless, coarse, make_heads, make_lessons, read, teach_to_read
from tools.embedded.vlm_see import MIRRORED, POINTS, See, landmarks_of, moved, teach_to_see

CONFIG = PretrainConfig(scale=0.003, validation_rows=1000)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return training_rows(CONFIG, None, tmp_path_factory.mktemp("rows"), Console(quiet=True))


@pytest.fixture(scope="module")
def started(rows):
    torch.manual_seed(0)
    processor = make_processor(rows)
    model = build_model(processor, hidden_size=96, layers=2, vision_size=64, vision_layers=2)
    start(model, processor, rows, every=1)
    return model, processor


def test_tokens_start_with_mean_0_and_spread_1(rows, started):
    model, processor = started
    with torch.no_grad():
        tokens = torch.cat([look(model, *pixels_of(processor, some)).flatten(0, 1) for some in rows.values()])
    assert tokens.mean(0).abs().max() < 0.02 and (tokens.std(0) - 1).abs().max() < 0.05


def test_layers_start_as_the_identity(started):
    text = started[0].model.language_model
    ids = torch.randint(0, 300, (1, 7))
    with torch.no_grad():
        assert torch.allclose(text(input_ids=ids).last_hidden_state, text.norm(text.embed_tokens(ids)), atol=1e-5)


def test_every_row_has_facts_of_one_size(rows):
    for facts in FACTS.values():
        found = {len(facts.read(row["columns"])) for name in facts.tasks for row in rows[name]}
        assert len(found) == 1


@torch.no_grad()
def losses(model, lessons):
    """Of the answers of each task's first rows."""
    return {name: float(read(model, lesson, torch.arange(min(4, len(lesson.answers))))[0]) for name, lesson in lessons.items()}


def test_reading_is_learned_kept_and_not_done_twice(rows, started, tmp_path, monkeypatch):
    model, processor = started
    tower = [value.clone() for value in model.model.visual.parameters()]
    lessons = make_lessons(model, processor, rows, lambda some: tokens_of(model, processor, some))
    before = losses(model, lessons)

    def teach(steps, lessons, **options):
        phase = Phase(steps, 3e-2, 0.05, 0.5, dict.fromkeys(FACTS, 2), careless=0.5, **options)
        heads = make_heads(model.config.text_config.hidden_size)
        teach_to_read(model, heads, lambda: lessons, phase, lambda: {"area": 2.4}, tmp_path / "read.pt", Console(quiet=True))

    teach(12, lessons)
    state = torch.load(tmp_path / "read.pt", weights_only=True)
    assert state["done"] == 12 and all(torch.equal(a, b) for a, b in zip(tower, model.model.visual.parameters(), strict=True))
    after = losses(model, lessons)
    assert all(after[name] < before[name] - 1 for name in ROWS), (before, after)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    teach(12, {})  # no rows are needed: nothing is left to do
    assert torch.equal(model.lm_head.weight, state["model"]["lm_head.weight"].half().float())
    assert [json.loads(line)["step"] for line in (tmp_path / "read.jsonl").read_text().splitlines()] == [12]
    teach(20, lessons, stop=14)
    assert torch.load(tmp_path / "read.pt", weights_only=True)["done"] == 14 and (tmp_path / "read_0014.pt").is_file()
    monkeypatch.setattr(vlm, "complete", lambda *given, max_tokens: complete(*given, max_tokens=max_tokens // 12))
    assert {name.split(",")[0] for name in validate(model, processor, rows)} == set(ROWS)


def test_the_careless_round_and_stop_early(rows):
    said = {name: [careless(name, row["columns"], row["target"]) for row in some] for name, some in rows.items()}
    assert said["preference"] == [row["target"] for row in rows["preference"]]
    assert all(float(re.search(r"covers (\d+) %", text)[1]) % 10 == 0 for text in said["area"])
    assert coarse("#30C2F1") == "#40C0FF" and coarse("#1F9F60") == "#008080"
    for name, largest in (("area", 4), ("makeup-lips", 1), ("makeup", 1.3), ("emotion", 3)):
        task = load_task(name)
        earned = [task.score(text, task.read_truth(row["columns"]), "fixed") for text, row in zip(said[name], rows[name], strict=True)]
        assert all(0 < score.reward <= largest for score in earned) and any(score.reward < largest for score in earned)


def test_seeing_is_learned_kept_and_not_done_twice(rows, tmp_path, monkeypatch):
    torch.manual_seed(0)
    random.seed(0)
    processor = make_processor(rows)
    model = build_model(processor, hidden_size=96, layers=2, vision_size=64, vision_layers=2)
    start(model, processor, rows, every=1)
    monkeypatch.setattr(vlm_see, "FACES", 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    console = Console(record=True, quiet=True)

    def teach(steps):
        some = {name: part[:2] for name, part in rows.items()}
        teach_to_see(model, processor, rows, some, See(steps), partial(look, model), tmp_path / "see.pt", console)

    teach(20)
    kept = torch.load(tmp_path / "see.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("visual" in name), name
    found = json.loads((tmp_path / "see.jsonl").read_text())
    assert found["step"] == 20 and set(found) == {"step", *ROWS} and found["emotion"]["units"] > 0.5
    model.load_state_dict(before)
    teach(20)
    assert torch.equal(model.model.visual.patch_embed.proj.weight, kept["patch_embed.proj.weight"])


def test_landmarks_move_with_their_pictures():
    """The net finds them where `moved` says that they went, mirrored or not."""
    pictures = torch.stack([make_case("train", seed, size=128, count=SPOTS).clean for seed in (0, 1)])
    eighth = (pictures * 255).round().to(torch.uint8)
    landmarks = landmarks_of(eighth)
    assert [MIRRORED.index(place) for place in range(len(POINTS))] == MIRRORED
    random.seed(0)
    for _ in range(4):
        both = [moved(picture, points) for picture, points in zip(eighth, landmarks, strict=True)]
        seen = landmarks_of(torch.stack([picture for picture, _ in both]))
        assert (seen - torch.stack([points for _, points in both])).norm(dim=-1).mean() < 1.5


def test_rows_are_made_on_the_people_of_a_folder_and_never_on_held_out_ones(tmp_path):
    """A man, a woman at rest in a studio and a woman elsewhere; only the first two are made up in full, the second alone performs,
    the third smiles."""
    images, meshes = stage()
    rows, hashes = [], []
    for number, (split, gender) in enumerate([("train", "man"), ("train", "woman"), ("train", "woman"), ("held_out", "man")]):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]))
        hashes.append(sha256(bytes([number])).hexdigest()[:12])
        rows.append({"file_name": f"{number}.jpg", "split": split, "gender": gender})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "groups.csv").write_text("file_name,expression\n0.jpg,photo\n1.jpg,neutral\n2.jpg,smiling\n3.jpg,neutral\n")
    pixels = (images[[0, 1, 0, 1]] * 255).round().to(torch.uint8)
    faces = Faces(pixels, meshes[[0, 1, 0, 1]], list("abcd"), {}, hashes)
    assert those(faces, tmp_path, WANTED["makeup"]).identities == ["a", "b", "c"]
    assert those(faces, tmp_path, WANTED["smiles"]).identities == ["c"]
    assert those(faces, tmp_path, WANTED["emotion"]).identities == ["b"]
    for split in ("train", "validation"):
        torch.save(vars(faces), tmp_path / f"faces-{split}.pt")
    config = PretrainConfig(scale=0.0005, validation_rows=4000)
    made = training_rows(config, tmp_path, tmp_path, Console(quiet=True))
    extra = Counter()
    for task, count, _ in ON_PEOPLE.values():
        extra[task] += max(int(count * 0.0005), 1)
    assert all(len(made[name]) == int(ROWS[name] * 0.0005) + extra[name] for name in extra)
    known = validation_rows(config, tmp_path, tmp_path, Console(quiet=True))
    assert set(known) == {*ROWS, "makeup-lips, people", "makeup, people", "emotion, people", "emotion, smiles"}
    assert known["emotion, smiles"][0]["columns"]["labels"] == ["happiness"]
    assert all(row["columns"]["split"] == "validation" for row in known["emotion, people"])


def test_cells_hold_all_blemish_that_the_pictures_show():
    """Removed and left add up to what the photo has; what is left grows with the fault; the second candidate's come second."""
    for seed in range(6):
        pair, cells = make_pair("train", seed), blemish_cells("train", seed)
        shown = make_case("train", seed, size=128, count=SPOTS).opacity[:, 16:112, 16:112]
        assert cells.shape == (2, 2, 36) and torch.allclose(cells.sum((1, 2)), shown.sum().expand(2), rtol=1e-4)
        left = cells[:, 1].sum(1)
        first, second = pair["scores"]["blemish_removal"][:: 1 if seed % 2 == 0 else -1]
        assert (left[0] > left[1]) == (first < second) or (first == second and torch.isclose(left[0], left[1]))


def test_the_judge_is_taught_on_pairs_and_kept(rows, started, tmp_path):
    model, processor = started
    console, rows = Console(quiet=True), {"preference": rows["preference"]}
    lesson = make_lessons(model, processor, rows, lambda some: tokens_of(model, processor, some))["preference"]
    width = model.config.text_config.hidden_size
    heads = make_judge_heads(width, make_heads(width)["preference"])
    phase = JudgePhase(2, 1e-3, 6e-3, mirrored=True, noise=0.1, batch=4)
    cells = open_cells(tmp_path / "cells.pt", 4, 0, console)
    assert torch.equal(cells, open_cells(tmp_path / "cells.pt", 4, 0, console))
    before, tower = model.lm_head.weight.clone(), model.model.visual.patch_embed.proj.weight.clone()
    lessons = (lesson, mirrored_pairs(model, processor, rows["preference"]))
    teach_judge(model, heads, lessons, cells, phase, tmp_path / "judge.pt", console)
    after = model.lm_head.weight.clone()
    assert not torch.equal(before, after) and torch.equal(tower, model.model.visual.patch_embed.proj.weight)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    teach_judge(model, heads, lessons, cells, phase, tmp_path / "judge.pt", console)
    assert torch.equal(model.lm_head.weight, after)


@pytest.mark.slow
def test_the_committed_judge_is_calibrated_as_its_recipe_does(tmp_path):
    folder = tmp_path / "judge"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    calibrate_embedded(folder, Console(quiet=True))
    found, committed = read_settings(folder), read_settings(EMBEDDED_FOLDER)
    assert found is not None and committed is not None and (found.shown, found.form) == (committed.shown, committed.form)
    assert found.temperature == pytest.approx(committed.temperature, rel=0.05)
