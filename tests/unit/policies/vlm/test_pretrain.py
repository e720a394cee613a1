import json
import random
import re
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from functools import partial
from hashlib import sha256

import pytest
import torch
from rich.console import Console

from policies.vlm.tasks import load_task
from portraitkit.errors import DataError
from portraitkit.pictures.images import write_image
from portraitkit.vlm.generate import complete
from preference_data.contract import Answer
from preference_data.pair_set import read_pairs, write_pairs
from preference_data.people.synthetic import make_case, stage
from preference_data.people.synthetic_pairs import SPOTS, make_pair
from preference_data.schema import DIMENSIONS, Fault, Origin, Pair
from tools.embedded import vlm, vlm_see
from tools.embedded.judge import CHOICE, SHARES, Teacher, Teaching, described, examples, imitated, nearest, seen_scores, teach
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


def pair_set(folder, kinds):
    """A pair of each kind: of rollouts, of a rollout and its photo, of faults that retouchers make, of gross ones, of a clean face."""
    pairs = []
    for number, kind in enumerate(kinds):
        made = make_pair("train", number)
        names = {name: f"{kind}-{name}.png" for name in ("input", "a", "b")}
        for name, file in names.items():
            write_image(folder / file, made[name])
        origin = Origin("rollout") if kind in ("rollout", "photo") else Origin(kind, (Fault("blur", 0.5),))
        other = replace(origin, model="none, the photo untouched") if kind == "photo" else origin
        scores = {name: (float(a), float(b)) for name, (a, b) in made["scores"].items()}
        known = {"verdicts": made["verdicts"], "overall": made["overall"], "scores": scores, "annotator": "degradation"}
        pairs.append(Pair(kind, **names, **known, origin_a=origin, origin_b=other, identity="x", split="train", licence="cc0", source="s"))
    write_pairs(folder, pairs)
    return read_pairs(folder)


def test_the_judge_is_taught_on_pairs_and_kept(started, tmp_path):
    model, processor = deepcopy(started[0]), started[1]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "gross").mkdir()
    sets = {str(tmp_path / "pairs"): pair_set(tmp_path / "pairs", ["rollout", "photo", "degradations"])}
    teacher, console, keep = Teacher(model, processor), Console(quiet=True), tmp_path / "judge.pt"
    with pytest.raises(DataError, match="no degradations:gross pair"):
        teach(teacher, list(examples(sets, "train", teacher)), Teaching(2), keep, console)
    sets[str(tmp_path / "gross")] = pair_set(tmp_path / "gross", ["degradations:gross", "degradations:clean"])
    pairs = list(examples(sets, "train", teacher))
    assert [pair.kind for pair in pairs] == list(SHARES) and not list(examples(sets, "held_out", teacher))
    assert described(sets) == {"pairs": 5, "people": 1, "photos": {"s, cc0": 5}}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers, scores = torch.stack([pair.answers["ab"][0] for pair in pairs]), torch.stack([pair.scores for pair in pairs])
    sure = torch.zeros(*answers.shape, len(processor.tokenizer)).scatter(2, answers[..., None], 40.0)
    told, apart = imitated(sure, answers, scores, teacher)  # whole scores, said for certain
    other = answers.clone()
    other[:, teacher.choice] = teacher.digits[:2].sum() - answers[:, teacher.choice]  # 1 for 2, 2 for 1
    assert float(imitated(sure, other, scores, teacher)[0]) > 40 * CHOICE
    assert float(told) < 1e-3 and float(apart) < 1e-6 and float(imitated(sure, answers, scores.flip(1), teacher)[1]) > 0.1
    assert float(seen_scores(((scores - 3) / 2).flatten(0, 1), scores)) == 0
    teach(teacher, pairs, Teaching(2), keep, console)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("proj.weight") or "merger.mlp" in name)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    teach(teacher, pairs, Teaching(2), keep, console)
    assert torch.equal(model.lm_head.weight, after["lm_head.weight"])


def test_scores_before_the_choice_are_rounded_where_they_leave_it_open():
    pair = Pair("p", input="i", a="a", b="b", overall="b", scores={name: (3.4, 3.45) for name in DIMENSIONS})
    answer = Answer({name: (3, 4) for name in DIMENSIONS}, "second", "")
    found = nearest(pair, answer, "ab")
    assert found.scores == dict.fromkeys(DIMENSIONS, (3, 3)) and found.better == "second"
    against = replace(pair, scores={name: (3.6, 3.4) for name in DIMENSIONS})
    assert nearest(against, answer, "ab") == answer
