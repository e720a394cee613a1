"""The report: figures and pictures are right, nothing is fetched, nothing hostile gets through; the ablation's plot."""

import base64
import dataclasses
import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from policies.retoucher.ablate import ablation_plot, ablation_table_markdown, curves_plot
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.report.report import RANK_TITLES, featured, figure_of, ranked, write_report
from policies.retoucher.report.results import Measure, Photo, findings, headline, read_measures, read_run
from portraitkit.errors import RunFolderError
from portraitkit.report.page import zoom_box

HOSTILE = """x"'><script src=https://evil.example/a.js></script><img src=//evil.example/b onerror=a()>{{ 7 * 7 }}$\\x"""
MEASURED = {
    "reward": (0.5, 0.7),
    "blemish_removal": (0.4, 0.6),
    "texture": (0.8, 0.8),
    "blemish_residual": (0.6, 0.2),
    "texture_error": (0.3, 0.2),
}
SPOT = (30, 20)


def smooth_face(size: int, seed: int) -> np.ndarray:
    """A smooth picture (size, size, 3), uint8."""
    y, x = np.mgrid[0:size, 0:size] / size
    phases = np.random.default_rng(seed).uniform(0, 3, 3)
    return np.stack([120 + 50 * np.sin(3 * x + p) + 40 * np.cos(4 * y - p) for p in phases], 2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """A function that writes a run folder and returns it; keyword arguments change what is in it."""

    def make(
        *,
        photos: int = 12,
        size: int = 48,
        clean: bool = True,
        validations: int = 3,
        name: str = "x",
        folder: str = "run",
        **summary: object,
    ) -> Path:
        path = tmp_path / folder
        (path / "held_out").mkdir(parents=True)
        lines = []
        for row in range(photos):
            pictures = {"clean": smooth_face(size, row)}
            pictures["input"] = pictures["clean"].copy()
            pictures["input"][SPOT[1] : SPOT[1] + 8, SPOT[0] : SPOT[0] + 8] -= 20
            for kind, share in (("base", 0.4), ("aligned", 0.9)):
                mixed = (1 - share) * pictures["input"] + share * pictures["clean"]
                pictures[kind] = mixed.round().astype(np.uint8)
            for kind, pixels in pictures.items():
                if clean or kind != "clean":
                    Image.fromarray(pixels).save(path / "held_out" / f"{row:03d}_{kind}.png")
            before = {key: first + 0.001 * row for key, (first, _) in MEASURED.items()}
            after = {key: last + 0.01 * row for key, (_, last) in MEASURED.items()}
            lines.append({"id": f"{name}-{row}", "before": before, "after": after})
        write_lines(path / "held_out" / "values.jsonl", lines)
        metrics: list[dict[str, object]] = []
        for step in range(1, 5):
            metrics.append(
                {
                    "step": step,
                    "kind": "train",
                    "reward": 0.6,
                    "reward_std": 0.04,
                    "ratio_deviation": 0.0,
                    "gradient_norm": 0.2,
                    "loss": None,
                }
            )
        for step in range(validations):
            measured: dict[str, object] = {}
            for key, (first, _) in MEASURED.items():
                measured |= {key: first, f"{key}_ci95": [first - 0.1, first + 0.1]}
            metrics.append({"step": step, "kind": "validation", **measured, "rollout_reward": 0.6, "ode_reward": 0.5})
        write_lines(path / "metrics.jsonl", metrics)
        config = dataclasses.asdict(RetoucherConfig.of(rewards=("blemish_removal", "texture"), prompt=f"retouch {name}"))
        write_json(path / "config.json", config)
        write_json(
            path / "environment.json",
            {"command": ["align-retoucher", "--prompt", f"retouch {name}"], "versions": {"torch": "2.11"}},
        )
        held_out = {
            key: {
                "before": first,
                "after": last,
                "gain": last - first,
                "ci95": [last - first - 0.02, last - first + 0.02],
            }
            for key, (first, last) in MEASURED.items()
        }
        whole = {
            "held_out": held_out,
            "untouched": {"reward": 0.3, "texture": 1.0},
            "seconds": 61.0,
            "seconds_total": 240.0,
            "network_evaluations": 4200,
            "seeds": [3],
            "train_steps": 4,
            "best_step": 2,
            "unscorable": 0,
            "skipped_updates": 0,
            "photos": {"train": 16, "validation": 8, "held_out": photos},
            "alarms": [{"step": 2, "name": "spread", "message": f"alike {name}"}],
            "hardware": "2 cores",
        }
        write_json(path / "summary.json", whole | summary)
        return path

    return make


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def assert_self_contained(self) -> None:
        assert not {"link", "iframe", "object", "embed", "base", "form", "video", "audio"} & set(self.tags)
        assert self.tags.count("script") == 1
        for tag, name, value in self.attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"):
                assert value.startswith("data:image/" if tag == "img" else "#"), (tag, name, value[:80])
        for place in re.findall(r"url\(([^)]*)\)", self.source):
            assert place.startswith("#"), place
        assert "@import" not in self.source


def decode(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def test_a_report_holds_its_figures_pictures_curves_and_origin_in_one_file(make_run):
    path = write_report(make_run())
    page = Page(path)
    page.assert_self_contained()
    assert path.name == "report.html" and "http://" not in page.source and "https://" not in page.source
    assert "measurably better" in page.text and "from 0.500 to 0.700" in page.text and "+0.180 to +0.220" in page.text
    assert "20 % of the blemish error is left; the base left 60 %" in page.text
    assert "Rollout reward is not progress" in page.text and "synthetic" in page.text
    assert page.text.count("median, rank") == 4  # three photos, and the one to drag
    assert "best, rank 1 of 12" in page.text and "worst, rank 12 of 12" in page.text
    assert "All other held-out photos (3)" in page.text
    assert page.tags.count("img") == 9 * (4 + 4 + 3) + 3 * 4 + 3
    assert page.tags.count("svg") == 5 + 1 + 3  # validation, rollout, and the training signals that have values
    assert "align-retoucher --prompt 'retouch x'" in page.text
    assert "alike x" in page.text and "61 s (4 min in all)" in page.text
    assert f"Configuration: 2 of {len(dataclasses.fields(RetoucherConfig))} settings differ" in page.text


def test_only_the_reports_own_script_may_run_and_nothing_may_be_fetched(make_run):
    page = Page(write_report(make_run()))
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    script = page.source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and "img-src data:" in policy and f"script-src 'sha256-{digest}'" in policy


def test_hostile_names_and_settings_are_shown_as_text(make_run):
    folder = make_run(name=HOSTILE, folder='a"><b onclick=x>', hardware=HOSTILE)
    config = json.loads((folder / "config.json").read_text()) | {HOSTILE: HOSTILE, "rewards": ["texture", HOSTILE]}
    write_json(folder / "config.json", config)
    summary = json.loads((folder / "summary.json").read_text())
    summary["held_out"][HOSTILE] = summary["held_out"]["texture"]
    write_json(folder / "summary.json", summary)
    (folder / "<img src=x>").touch()
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 9, "kind": "validation", HOSTILE: 0.4, f"{HOSTILE}_ci95": [0.3, 0.5]}) + "\n")
    page = Page(write_report(folder))
    page.assert_self_contained()
    assert "b" not in {tag for tag, name, _ in page.attributes if name == "onclick"}
    assert page.text.count(HOSTILE) >= 20
    assert "{{ 7 * 7 }}" in page.text
    assert "<img src=x>" in page.text


def test_what_is_missing_is_left_out_or_named(make_run):
    page = Page(write_report(make_run(clean=False, validations=1, alarms=[], untouched={}, hardware=None, best_step=None)))
    page.assert_self_contained()
    assert "Clean reference" not in page.text
    assert "Alarms None." in " ".join(page.text.split())
    assert page.tags.count("img") == 9 * (3 + 3 + 2) + 3 * 3 + 3
    assert page.tags.count("svg") == 5 + 1 + 3


def test_a_run_without_pictures_or_logs_still_reports(make_run):
    folder = make_run(photos=0, held_out={})
    (folder / "held_out" / "values.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("")
    page = Page(write_report(folder))
    page.assert_self_contained()
    assert "has no result" in page.text and "holds no pictures" in page.text
    assert "No validation was logged" in page.text and "No training step was logged" in page.text


@pytest.mark.parametrize("name", ["config.json", "environment.json", "summary.json", "metrics.jsonl"])
def test_a_missing_or_damaged_file_is_named(make_run, name):
    folder = make_run(photos=1)
    (folder / name).write_text('{"step": 1,\n', encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"{name}.*not (valid )?JSON"):
        write_report(folder)
    (folder / name).write_text("[1]\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"{name}.*(holds|a) list"):
        write_report(folder)
    (folder / name).unlink()
    with pytest.raises(RunFolderError, match=f"{name}: (missing|cannot be read)"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_unknown_values_are_dashes_and_never_win(make_run):
    folder = make_run(photos=3)
    lines = [json.loads(line) for line in (folder / "held_out" / "values.jsonl").read_text().splitlines()]
    lines[2]["after"]["reward"] = None
    write_lines(folder / "held_out" / "values.jsonl", lines)
    summary = json.loads((folder / "summary.json").read_text())
    summary["held_out"]["blemish_residual"] = {
        "before": math.nan,
        "after": math.nan,
        "gain": math.nan,
        "ci95": [math.nan, math.nan],
    }
    write_json(folder / "summary.json", summary)
    run = read_run(folder)
    assert [photo.row for photo in ranked(run.photos)] == [1, 0, 2]
    measures = read_measures(run)
    assert list(measures) == ["reward", "blemish_removal", "texture", "blemish_residual", "texture_error"]
    assert measures["blemish_residual"].verdict == ""
    page = Page(write_report(folder))
    assert "of the blemish error is left" not in page.text and "nan" not in page.text.lower()


def test_the_featured_photos_are_best_median_and_worst():
    photos = [Photo(row, str(row), {"reward": 0.0}, {"reward": float(gain)}) for row, gain in enumerate([5, 1, 9, 3, 7, 0, 8, 2, 6, 4, 10])]
    picked = featured(photos)
    assert [int(photo.gain) for _, photo in picked] == [10, 9, 8, 6, 5, 4, 2, 1, 0]
    assert [label.split(",")[0] for label, _ in picked] == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert [label for label, _ in featured(photos[:2])] == ["best, rank 1 of 2", "worst, rank 2 of 2"]
    assert featured(photos[:1])[0][0] == "best, rank 1 of 1" and featured([]) == []


def test_the_zoom_finds_the_blemish_and_the_difference_map_is_grey_elsewhere(make_run):
    folder = make_run(photos=1)
    figure = figure_of(folder / "held_out", Photo(0, "a", {}, {}), "best")
    assert figure is not None and figure.box is not None
    left, top, width, height = (share * 48 / 100 for share in figure.box)
    assert left <= SPOT[0] and top <= SPOT[1] and left + width >= SPOT[0] + 8 and top + height >= SPOT[1] + 8
    tiles = {tile.kind: tile for tile in figure.tiles}
    assert tiles["input"].difference == "" and decode(tiles["aligned"].picture).size == (48, 48)
    assert decode(tiles["aligned"].zoom).width >= 192
    change = np.asarray(decode(tiles["clean"].difference)).astype(int)
    inside = change[SPOT[1] : SPOT[1] + 8, SPOT[0] : SPOT[0] + 8]
    assert (inside == 128 + 4 * 20).all()
    change[SPOT[1] : SPOT[1] + 8, SPOT[0] : SPOT[0] + 8] = 128
    assert (change == 128).all()
    flat = Image.new("RGB", (5, 4))
    assert zoom_box(flat, flat) == (0, 0, 1, 1)


def test_large_pictures_are_reduced(make_run):
    figure = figure_of(make_run(photos=1, size=700) / "held_out", Photo(0, "a", {}, {}), "best")
    assert figure is not None
    picture = decode(figure.tiles[0].picture)
    assert picture.size == (512, 512) and picture.format == "JPEG"


def test_words_claim_no_more_than_the_interval():
    def measure(name: str, before: float, after: float, half: float, higher: bool) -> Measure:
        gain = after - before
        return Measure(name, higher, math.nan, before, after, gain, gain - half, gain + half)

    assert headline(measure("reward", 0.5, 0.7, 0.1, True)).startswith("The aligned retoucher is measurably better")
    assert headline(measure("reward", 0.5, 0.3, 0.1, True)).startswith("The aligned retoucher is measurably worse")
    assert headline(measure("reward", 0.5, 0.55, 0.1, True)).startswith("No measurable change")
    assert "no result" in headline(None)
    found = findings(
        {
            "texture_error": measure("texture_error", 0.3, 0.31, 0.1, False),
            "identity_distance": measure("identity_distance", 0.1, 0.4, 0.1, False),
        }
    )
    assert [verdict for _, verdict, _ in found] == ["unclear", "worse"]
    assert "did not clearly change" in found[0][2] and "went from 0.100 to 0.400" in found[1][2]


def test_a_policy_that_loses_to_doing_nothing_is_called_so(make_run):
    page = Page(write_report(make_run(untouched={"reward": 0.9})))
    assert "Doing nothing scores as well or better: the untouched photos have reward 0.900" in page.text


def test_the_ablation_is_drawn_and_tabled_arm_by_arm(tmp_path):
    rows: list[dict[str, object]] = []
    for seed, shift in enumerate((-0.01, 0.0, 0.02)):
        for arm, gain in (("all|steps", 0.04), ("DPG $x_", 0.1)):
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "reward_gain": gain + shift,
                    "ci_low": gain + shift - 0.02,
                    "ci_high": gain + shift + 0.02,
                    "identity_distance_gain": -0.01,
                    "residual_grain": 0.6 + shift,
                    "texture_error": math.nan,
                    "blemish_residual": None,
                    "seconds": 100 + seed,
                    "network_evaluations": 42000,
                    "rollout_reward": 0.5,
                    "curve": [{"network_evaluations": 21000, "seconds": 50.0, "validation_gain": gain + shift}],
                }
            )
    lines = ablation_table_markdown(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| all\\|steps", "| DPG $x_"]
    known = "–", "–", "–", "−0.010", "–", "–", "–", "0.603 (0.590 … 0.620)", "–", "–", "0.500", "42,000", "101 (100 … 102)"
    assert "| 3 | +0.043 (+0.030 … +0.060) | " + " | ".join(known) + " |" in lines[2]
    assert "| 1 | +0.030 [+0.010, +0.050] | " in ablation_table_markdown(rows[:1])
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ablation_plot(rows, tmp_path / "ablation.png")
        ablation_plot(rows[:1], tmp_path / "one.png")
        curves_plot([*rows, {"arm": "a run of before, without a curve"}], tmp_path / "curves.png")
    curves = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    assert all((abs(curves - np.array(colour)).sum(2) < 20).sum() > 200 for colour in ([31, 119, 180], [255, 127, 14]))  # an arm each
    picture = np.asarray(Image.open(tmp_path / "ablation.png").convert("RGB")).astype(int)
    accent = (abs(picture - np.array([0x0B, 0x7A, 0x75])).sum(2) < 20).sum()
    assert picture.shape[1] == round(9.6 * 160) and accent > 200


def test_a_judge_stands_beside_its_check(make_run, browser):
    """Both curves on one page, the judge by its name and form, the check as what it is; unreadable answers are told. A phone shows all."""
    name = "judge:runs/model:versus_anchor"
    rank = {key: {"rank": 0.512, "ci95": [0.388, 0.737], "groups": 12} for key in RANK_TITLES}
    folder = make_run(validations=8, judge_asked=96, judge_unreadable=5, judge_rank=rank)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"reward": [name]})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for place, line in enumerate(lines):
        hacked = {name: 0.5 + 0.02 * place, "verifiable": 0.7 - 0.01 * place}
        line |= hacked | {f"parts/{name}": hacked[name], "judge_agreement": -0.05 * place}
        if line["kind"] == "validation":
            line |= {f"{key}_ci95": [value - 0.03, value + 0.03] for key, value in hacked.items()}
    write_lines(folder / "metrics.jsonl", lines)
    summary = json.loads((folder / "summary.json").read_text())
    for key, (first, last) in {name: (0.5, 0.7), "verifiable": (0.7, 0.6)}.items():
        gain = last - first
        summary["held_out"][key] = {"before": first, "after": last, "gain": gain, "ci95": [gain - 0.02, gain + 0.02]}
    write_json(folder / "summary.json", summary)
    page = write_report(folder).read_text()
    assert "The judge and its check" in page and "Judge runs/model, at validation" in page and "Judge runs/model, of the rollouts" in page
    assert "versus anchor: calibrated probability" in page and "the independent check of the judge" in page
    assert "5 answers of the judge could not be read" in page and "Judge&#39;s agreement" in page
    measures = read_measures(read_run(folder))
    assert list(measures)[:5] == ["reward", "blemish_removal", "texture", name, "verifiable"]
    assert measures[name].verdict == "better" and measures["verifiable"].verdict == "worse"
    phone = browser.new_page(viewport={"width": 390, "height": 844})
    phone.goto(f"file://{folder / 'report.html'}")
    assert phone.locator("th", has_text="rank correlation").is_visible() and phone.evaluate("document.documentElement.scrollWidth") == 390
    assert "The judge and its check" not in write_report(make_run(folder="plain")).read_text()
