"""`blind-test make`, `report` and `export` as a user runs them; what the files give away, and what is refused."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from benchmarks.blind_test.commands import blind_test
from benchmarks.blind_test.study import VOTES, read_study
from benchmarks.blind_test.vote_store import VoteStore
from portraitkit.pictures.images import read_image, write_image


def test_pictures_say_nothing_about_their_method(make):
    folder = make()
    study = read_study(folder)
    assert len(study.photos) == 12 and len(study.pairs) == 3
    assert len(study.pictures) == len(list((folder / "pictures").iterdir())) == 12 * 5  # three methods, the reference, a spoiled copy
    for token, path in study.pictures.items():
        assert len(token) >= 22 and not any(word in token for word in ("input", "person"))
        assert path.stat().st_mtime == 0
        with Image.open(path) as picture:
            assert not picture.getexif() and picture.size == (96, 96)
            assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert {photo.groups["gender"] for photo in study.photos} == {"female", "male"}
    assert [photo.name for photo in study.photos] != sorted(photo.name for photo in study.photos)


def test_a_method_that_raters_can_hold_beside_itself_is_named(folders, tmp_path, command):
    methods = [f"--method={name}={folders / name}" for name in ("ours", "input")]
    for reference, warns in (([], False), (["--reference", folders / "input"], True)):
        code, _, said = command(blind_test, "make", *methods, *reference, "--output-dir", tmp_path / "out", "--overwrite")
        assert code == 0 and ("not blind: --method input is also the --reference" in said) is warns


def test_a_check_shows_a_plainly_worse_copy(make):
    study = read_study(make("--image-format", "png"))
    for photo in study.photos:
        original, spoiled = (read_image(study.pictures[token]).pixels for token in (photo.original, photo.spoiled))
        assert (original - spoiled).abs().mean() > 0.05
        assert spoiled.diff(dim=2).abs().mean() < 0.5 * original.diff(dim=2).abs().mean()


def test_exif_and_sizes_are_levelled(tmp_path, command):
    pixels = torch.rand(3, 80, 60, generator=torch.Generator().manual_seed(0))
    for name, size in (("a", (80, 60)), ("b", (160, 120))):
        (tmp_path / name).mkdir()
        exif = Image.Exif()
        exif[0x010E] = f"made by method {name}"
        big = torch.nn.functional.interpolate(pixels[None], size=size)[0]
        write_image(tmp_path / name / "x.jpg", big, exif=exif.tobytes())
    out = tmp_path / "out"
    methods = [f"--method={name}={tmp_path / name}" for name in "ab"]
    code, _, said = command(blind_test, "make", *methods, "--output-dir", out)
    assert code == 0, said
    for path in (out / "pictures").iterdir():
        assert b"made by" not in path.read_bytes()
        with Image.open(path) as picture:
            assert picture.size == (60, 80)


def test_photos_that_do_not_fit_are_set_aside_and_named(folders, tmp_path, command):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folders / "other", broken)
    (broken / "person_03.png").write_bytes((broken / "person_03.png").read_bytes()[:500])
    (broken / "person_04.png").unlink()
    out = tmp_path / "out"
    code, _, said = command(blind_test, "make", f"--method=a={folders / 'ours'}", f"--method=b={broken}", "--output-dir", out)
    assert code == 0 and "2 photos skipped" in said
    rows = {row["photo"]: row["reason"] for row in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}
    assert rows.keys() == {"person_03", "person_04"} and "missing in b" in rows["person_04"]
    code, _, said = command(
        blind_test,
        "make",
        f"--method=a={folders / 'ours'}",
        f"--method=b={broken}",
        "--output-dir",
        tmp_path / "strict",
        "--max-unusable",
        "0.1",
    )
    assert code == 2 and "--max-unusable 0.1" in said and not (tmp_path / "strict").exists()


def test_what_make_refuses_before_it_writes(folders, tmp_path, command):
    ours, other = f"--method=ours={folders / 'ours'}", f"--method=other={folders / 'other'}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    cases = [
        ([ours], "two or more"),
        ([ours, ours], "given before"),
        (["--method", ours.removeprefix("--method="), ours.removeprefix("--method=")], "given before"),
        ([ours, "--method=other"], "must be NAME=DIR"),
        ([ours, f"--method=<b>x</b>={tmp_path}"], "must be NAME=DIR"),
        ([ours, f"--method=x={tmp_path / 'nowhere'}"], "no such folder"),
        ([ours, f"--method=x={tmp_path / 'empty'}"], "holds no pictures"),
        ([ours, other, "--photos-per-rater", "0"], "from 1 to 1000"),
        ([ours, other, "--output-dir", tmp_path / "taken"], "no study"),
        ([ours, other, "--photo-per-rater", "3"], "did you mean"),
    ]
    for arguments, words in cases:
        code, _, said = command(blind_test, "make", "--output-dir", tmp_path / "out", *arguments)
        assert code == 2 and words in said and said.count("\n") == 1, (arguments, said)
    assert not (tmp_path / "out").exists() and (tmp_path / "taken" / "letter.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_bad_metadata_is_refused_with_its_line(folders, tmp_path, command):
    path = tmp_path / "metadata.jsonl"
    for text, words in [('{"file_name": "a.png"}\n{"file_name', "line 2: not JSON"), ('{"gender": "x"}', "line 1: needs a text"),
                        ('{"file_name": "a", "gender": ["x"]}', "must be text")]:  # fmt: skip
        path.write_text(text)
        methods = [f"--method={name}={folders / name}" for name in ("ours", "other")]
        code, _, said = command(blind_test, "make", *methods, "--metadata", path, "--output-dir", tmp_path / "out")
        assert code == 2 and words in said


def test_a_study_with_votes_is_never_replaced(make, command, folders):
    folder = make()
    methods = [f"--method={name}={folders / name}" for name in ("ours", "other")]
    code, _, said = command(blind_test, "make", *methods, "--output-dir", folder)
    assert code == 2 and "use --overwrite" in said
    answer(folder, lambda first, second: 0, raters=1)
    code, _, said = command(blind_test, "make", *methods, "--output-dir", folder, "--overwrite")
    assert code == 2 and "22 votes" in said and read_study(folder).methods == ("input", "ours", "other")


def answer(folder, choose, *, raters: int, careless: int = 0, shown: bool = False) -> None:
    """Votes without a server: `choose(first, second)` gives 0 for the first, 1 a tie, 2 the second; careless ones say left. What was
    `shown` is answered at once, in no second; else nobody knows how long it took."""
    study = read_study(folder)
    store = VoteStore(folder / VOTES, study)
    for number in range(raters + careless):
        rater = store.find_rater(store.add_rater())
        for trial in store.trials(rater):
            first, second = ("original", "spoiled") if trial.cell.pair < 0 else study.pairs[trial.cell.pair]
            outcome = 0 if trial.cell.pair < 0 else choose(first, second)
            choice = "left" if number >= raters else "tie" if outcome == 1 else "left" if (outcome == 0) != trial.cell.swapped else "right"
            if shown:
                store.mark_shown(trial)
            store.vote(rater, trial.token, choice)
    store.close()


def test_report_and_export(make, command, tmp_path):
    folder = make()
    answer(folder, lambda first, second: 2 if second == "ours" else 0 if first == "ours" else 1, raters=9, careless=2)
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and said.startswith("ours is preferred to")
    results = json.loads((folder / "results.json").read_text())
    assert results["raters"]["voted"] == 11 and results["raters"]["left_out"] == [10, 11]
    assert results["votes"] | {"median_seconds": 0} == {"counted": 180, "left_out": 40, "checks": 22, "ties": 60, "median_seconds": 0}
    by_pair = {(pair["first"], pair["second"]): pair for pair in results["pairs"]}
    assert by_pair["input", "ours"]["rate"]["value"] == 0 and by_pair["ours", "other"]["rate"]["value"] == 1
    assert by_pair["input", "other"]["ties"] == 60 and by_pair["input", "other"]["preferred"] is None
    assert results["best"] == "ours" and set(results["groups"]["tables"]) == {"gender"}
    assert results["agreement"]["value"] == pytest.approx(1)
    page = (folder / "report.html").read_text()
    assert "default-src 'none'" in page and "<svg" in page and "http://" not in page and "https://" not in page and "<script" not in page
    assert "| input against ours | 9 | 0 | 0 | 60 |" in (folder / "report.md").read_text()

    code, _, _ = command(blind_test, "export", folder, "--output", tmp_path / "votes.csv")
    rows = list(csv.DictReader((tmp_path / "votes.csv").read_text().splitlines()))
    assert code == 0 and len(rows) == 11 * 22
    assert {row["preferred"] for row in rows if row["failed_checks_of_rater"] == "0" and "ours" in (row["left"], row["right"])} == {"ours"}
    code, _, said = command(blind_test, "export", folder, "--output", tmp_path / "votes.csv")
    assert code == 2 and "--overwrite" in said
    command(blind_test, "export", folder, "--output", tmp_path / "votes.jsonl")
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 11 * 22


def test_few_raters_who_agree_get_no_verdict(make, command):
    folder = make()
    answer(folder, lambda first, second: 2 if second == "ours" else 0 if first == "ours" else 1, raters=4)
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and said.startswith("No verdict: 4 raters compared ours with") and "it takes 7" in said
    results = json.loads((folder / "results.json").read_text())
    assert not any(pair["preferred"] or pair["detectable"] for pair in results["pairs"])
    assert results["strengths"][0]["method"] == "ours" and results["strengths"][0]["strength"]["low"] is None
    assert results["power"]["more_raters"] >= 3
    for name in ("report.html", "report.md"):
        page = (folder / name).read_text()
        assert page.count("too few raters") >= 3 and "ours preferred" not in page and "nan" not in page.lower()


def test_raters_in_a_hurry_are_named(make, command):
    folder = make()
    answer(folder, lambda first, second: 0, raters=2)
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and "less than" not in said and "in a hurry" not in (folder / "report.html").read_text()
    answer(folder, lambda first, second: 0, raters=1, shown=True)
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and "1 rater took less than 1 s a vote (median); their votes count" in said
    found = json.loads((folder / "results.json").read_text())["raters"]
    assert (found["voted"], found["counted"], found["hurried"]) == (3, 3, [3])
    assert "1 of 3 took less than 1 s a vote (median); their votes count. Raters 3." in (folder / "report.html").read_text()
    assert "1 rater took less than 1 s a vote" in (folder / "report.md").read_text()


def test_raters_who_lean_apart_name_no_winner(make, command):
    """Twelve raters, each always of one opinion, eight for ours: two thirds of 160 votes, and no sign of what others would say."""
    folder = make()
    sides = iter([True] * 8 + [False] * 4)
    study, current = read_study(folder), {}

    def choose(first: str, second: str) -> int:
        if current.setdefault("left", 0) == 0:
            current["for_ours"], current["left"] = next(sides), study.photos_per_rater
        current["left"] -= 1
        return 1 if "ours" not in (first, second) else 0 if (first == "ours") == current["for_ours"] else 2

    answer(folder, choose, raters=12)
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and said.startswith("No clear winner between ours and") and " of votes for ours, 95 % interval" in said
    results = json.loads((folder / "results.json").read_text())
    pair = next(pair for pair in results["pairs"] if (pair["first"], pair["second"]) == ("input", "ours"))
    assert pair["wilson"]["high"] < 0.5 < pair["rate"]["high"] and pair["design_effect"] > 5 and pair["preferred"] is None


def test_a_photo_named_like_a_formula_is_text_in_the_export(folders, command, tmp_path):
    methods = []
    for method in ("input", "ours"):
        (tmp_path / method).mkdir()
        for number, start in enumerate("=+-@a"):
            shutil.copy(folders / method / f"person_{number:02d}.png", tmp_path / method / f"{start}1+1.png")
        methods += ["--method", f"{method}={tmp_path / method}"]
    folder = tmp_path / "study"
    code, _, said = command(blind_test, "make", *methods, "--photos-per-rater", "5", "--attention-checks", "0", "--output-dir", folder)
    assert code == 0, said
    answer(folder, lambda first, second: 2, raters=1)
    command(blind_test, "export", folder, "--output", tmp_path / "votes.csv")
    rows = list(csv.DictReader((tmp_path / "votes.csv").read_text().splitlines()))
    assert {row["photo"] for row in rows} == {"'=1+1", "'+1+1", "'-1+1", "'@1+1", "a1+1"}


def test_hostile_groups_and_titles_are_escaped(make, command, folders, tmp_path):
    bad = "<script>alert(1)</script>|x"
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps({"file_name": "person_00.png", "gender": bad}))
    folder = make("--metadata", path, "--title", bad)
    answer(folder, lambda first, second: 0, raters=3)
    assert command(blind_test, "report", folder)[0] == 0
    for name in ("report.html", "report.md"):
        assert "<script" not in (folder / name).read_text()


def test_what_report_refuses(make, command, tmp_path):
    assert "holds no study" in command(blind_test, "report", tmp_path)[2]
    folder = make()
    assert "nobody has voted" in command(blind_test, "report", folder)[2]
    answer(folder, lambda first, second: 0, raters=0, careless=2)
    code, _, said = command(blind_test, "report", folder)
    assert code == 2 and "all 2 raters failed" in said
    (folder / VOTES).unlink()
    answer(folder, lambda first, second: 0, raters=0, careless=1)
    assert "the only rater failed attention checks; invite more raters, or raise" in command(blind_test, "report", folder)[2]
    next((folder / "pictures").iterdir()).unlink()
    assert "missing; copy" in command(blind_test, "serve", folder)[2]
    (folder / "study.json").write_text('{"version": 1, "photos": [{"name": 3}]}')
    assert "damaged" in command(blind_test, "report", folder)[2]


def test_a_damaged_votes_file_is_named_and_kept(make, command):
    folder = make()
    (folder / VOTES).write_bytes(b"not a database at all" * 50)
    for subcommand in ("report", "export", "serve"):
        code, _, said = command(blind_test, subcommand, folder)
        assert code == 2 and "restore" in said, said
    assert (folder / VOTES).read_bytes().startswith(b"not a database")


def test_unknown_subcommands_are_named(command):
    code, _, said = command(blind_test, "sevre")
    assert code == 2 and "did you mean 'serve'" in said
    assert command(blind_test)[0] == 2 and command(blind_test, "--help")[0] == 0
