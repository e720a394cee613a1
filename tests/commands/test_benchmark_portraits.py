"""`benchmark-portraits` as a user runs it."""

import json
import re
from pathlib import Path

import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file

from benchmarks.inputs import ADAPTER
from benchmarks.main import benchmark_portraits
from policies.retoucher.main import align_retoucher, retouch_portrait
from portraitkit.pictures.images import read_image, resize, write_image

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def pictures(place) -> Path:
    """photos/, base/ and ours/ with three pictures each."""
    portrait = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    for name, gain in (("photos", 1.0), ("runs/base", 0.9), ("runs/ours", 1.05)):
        (place / name).mkdir(parents=True)
        for number in range(3):
            crop = resize(portrait[:, 20:300, 90 + 10 * number : 370 + 10 * number], (96, 96))
            write_image(place / name / f"p{number}.png", (crop * gain).clamp(0, 1))
    return place


def test_without_options_the_embedded_retoucher_is_measured(command, place):
    code, out, err = command(benchmark_portraits, "--limit", 3)
    assert code == 0, err
    assert "holds no aligned retoucher" in err and out.strip() == "runs/benchmark/report.html"
    results = json.loads((place / "runs/benchmark/results.json").read_text())
    metrics = {row["metric"] for row in results["summary"]}
    assert {"brisque", "piqe", "identity_cosine", "psnr", "reward"} <= metrics
    assert {row["method"] for row in results["rows"]} == {"input", "base"} and set(results["rows"][0]) == {
        "image",
        "method",
        "metric",
        "value",
    }
    skipped = {entry["metric"]: entry["reason"] for entry in results["skipped"]}
    assert f"skipped, the report says why: {', '.join(skipped)}" in err and "put it into" not in err
    (psnr,) = [row for row in results["summary"] if row["metric"] == "psnr" and row["method"] == "base"]
    (line,) = [line for line in err.splitlines() if line.startswith("psnr ↑")]
    assert line.count("±") == 2 and f" {psnr['mean']:.1f}" in line
    assert "put it into" in skipped["musiq"] and "192 px" in skipped["niqe"]
    assert not metrics & skipped.keys()
    page = (place / "runs/benchmark/report.html").read_text()
    assert "default-src 'none'" in page and not re.search(r'(src|href)="(https?:)?//', page)
    code, out, err = command(benchmark_portraits, "--limit", 3)
    assert code == 0 and " 0 values computed" in err


def test_methods_pairs_and_tables(command, pictures):
    (pictures / "pairs.jsonl").write_text('{"image": "p0", "better": "ours", "worse": "base"}\n')
    options = ["--metrics", "brisque", "psnr", "reward", "--source", "photos", "--reference", "photos", "--pairs", "pairs.jsonl"]
    code, _, err = command(benchmark_portraits, *options, "--method", "base=runs/base", "ours=runs/ours", "--output-dir", "out")
    assert code == 0, err
    results = json.loads((pictures / "out/results.json").read_text())
    assert [row["n"] for row in results["pairs"]] == [1, 1, 1]
    assert len(results["rows"]) == 2 * 3 * 3 and len(results["comparisons"]) == 3
    assert (pictures / "out/summary.tex").read_text().startswith(r"\begin{tabular}{lrr}")
    assert "| metric | base | ours |" in (pictures / "out/summary.md").read_text()
    code, _, err = command(benchmark_portraits, *options, "--method", "base=runs/ours", "ours=runs/base", "--output-dir", "out")
    assert code == 2 and "--overwrite" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs"),
        ('{"image": "p0", "better": "ours", "worse": "nobody"}', "line 1: 'nobody' is no method of this run; it has base, ours"),
        ('{"image": "p9", "better": "ours", "worse": "base"}', "line 1: 'p9' is no picture"),
    ],
)
def test_pairs_are_checked_before_anything_is_measured(command, pictures, text, message, monkeypatch):
    (pictures / "pairs.jsonl").write_text(text)
    monkeypatch.setattr("benchmarks.suite.Suite.run", None)
    options = ["--metrics", "piqe", "--pairs", "pairs.jsonl", "--method", "base=runs/base", "ours=runs/ours", "--output-dir", "out"]
    code, _, err = command(benchmark_portraits, *options)
    assert code == 2 and message in err and err.count("\n") == 1 and not (pictures / "out").exists()


def test_a_retoucher_with_its_adapter_is_run_on_the_photos(command, pictures):
    options = ["--photos-per-step", 1, "--group-size", 2, "--max-train-steps", 1, "--validation-photos", 1, "--held-out-photos", 2]
    code, _, err = command(align_retoucher, "--config", "demo", "--output-dir", "run", "--warmup-steps", 0, *options)
    assert code == 0, err
    generator = torch.Generator().manual_seed(0)  # after one step the adapter still does nothing: its second factors become random
    trained = load_file(f"run/{ADAPTER}")
    assert {"lora_A" in name or "lora_B" in name for name in trained} == {True}
    noise = {name: 0.02 * torch.randn(value.shape, generator=generator) for name, value in trained.items() if "lora_B" in name}
    save_file(trained | noise, f"run/{ADAPTER}")
    methods = ["base=retoucher:tiny+none", "ours=retoucher:tiny+run"]
    options = ["--source", "photos", "--metrics", "reward", "identity_cosine", "--limit", 2, "--output-dir", "out"]
    code, _, err = command(benchmark_portraits, "--method", *methods, *options)
    assert code == 0, err
    assert "retouching 2 photos by tiny+run" in err
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    cosine = {
        method: [row["value"] for row in rows if (row["method"], row["metric"]) == (method, "identity_cosine")]
        for method in ("base", "ours")
    }
    assert all(len(values) == 2 for values in cosine.values())
    assert all(a != b for a, b in zip(cosine["base"], cosine["ours"], strict=True))
    shipped = [
        "--source",
        "photos",
        "--method",
        "x=retoucher:tiny",
        "--metrics",
        "reward",
        "--limit",
        1,
        "--output-dir",
        "out",
        "--overwrite",
    ]
    before = set(Path("out").rglob("retouched/*/*.png"))
    assert len(before) == 2 * 2 and command(benchmark_portraits, *shipped)[0] == 0
    (made,) = set(Path("out").rglob("retouched/*/*.png")) - before
    photo = min(Path("photos").glob("*.png"))
    assert command(retouch_portrait, photo, "as.png")[0] == 0
    assert torch.equal(read_image(made).pixels, read_image(Path("as.png")).pixels)
    missing = ["--source", "photos", "--method", "ours=retoucher:tiny+nowhere", "--output-dir", "none"]
    code, _, err = command(benchmark_portraits, *missing)
    assert code == 2 and "nowhere" in err.splitlines()[-1]


def test_hostile_names_are_escaped(command, pictures):
    name = '<img src=x onerror=alert(1)>"'
    (pictures / "runs/base/p0.png").rename(pictures / f"runs/base/{name.replace('/', '')}.png")
    code, _, err = command(benchmark_portraits, "--metrics", "piqe", "--method", f"{name}=runs/base", "--output-dir", "out")
    assert code == 2 and not (pictures / "out").exists(), "the name ends at its first equals sign"
    code, _, err = command(benchmark_portraits, "--metrics", "piqe", "--method", "<b>x</b>&=runs/base", "--output-dir", "out")
    assert code == 0, err
    page = (pictures / "out/report.html").read_text()
    assert "<b>x</b>&" not in page and "<img src=x" not in page


def test_weights_are_listed(command, place):
    code, out, _ = command(benchmark_portraits, "--weights", "--metrics", "musiq", "niqe", "piqe")
    assert code == 0 and "musiq_koniq" in out.replace("\n", "") and "needs none" in out
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "brisk"], "did you mean 'brisque'"),
        (["--method", "x"], "NAME=PLACE"),
        (["--method", "x=nowhere"], "no such folder"),
        (["--limit", "0"], "at least 1"),
        (["--method", "x=retoucher:tiny"], "needs --source"),
        (["--pairs", "nowhere.jsonl"], "no such file"),
        (["--method", "x=."], "holds no pictures"),
        (["--method", "x=a", "--method", "x=b"], "x was given before"),
    ],
)
def test_mistakes_are_one_line(command, place, options, message):
    code, _, err = command(benchmark_portraits, *options)
    assert code == 2 and message in err.splitlines()[-1] and err.count("error:") == 1
    assert not (place / "runs/benchmark").exists()


def test_the_run_of_another_command_is_left_alone(command, pictures):
    """config.json is also what a model's folder and every other run has; going on would write over it."""
    other = pictures / "other"
    other.mkdir()
    for name in ("config.json", "environment.json"):
        (other / name).write_text('{"task": "area"}')
    for more in ((), ("--overwrite",)):
        code, _, err = command(benchmark_portraits, "--metrics", "piqe", "--method", "base=runs/base", "--output-dir", other, *more)
        assert code == 2 and "did not make" in err and err.count("\n") == 1
        assert {path.name: path.read_text() for path in other.iterdir()} == dict.fromkeys(
            ("config.json", "environment.json"), '{"task": "area"}'
        )


def test_the_guide_to_a_metric_works_as_written(command, pictures):
    """docs/add_a_metric.md, followed literally."""
    guide = (DOCS / "add_a_metric.md").read_text()
    name = re.search(r"Write `(\w+\.py)`", guide)[1]
    (pictures / name).write_text(re.search(r"```python\n(.*?)```", guide, re.S)[1])
    line = re.search(r"```bash\n.venv/bin/benchmark-portraits (.*?)\n```", guide, re.S)[1]
    code, _, err = command(benchmark_portraits, *line.split())
    assert code == 0, err
    results = json.loads((pictures / "runs/benchmark/results.json").read_text())
    assert {row["metric"] for row in results["summary"]} == {"colourfulness", "brisque"}
    assert {row["method"] for row in results["summary"]} == {"ours", "base"}
    source = (pictures / name).read_text()
    (pictures / name).write_text(source.replace("return spread + 0.3 * middle", "return (spread + 0.3 * middle).sum()"))
    code, _, err = command(benchmark_portraits, *line.split(), "--overwrite")
    assert code == 2 and "error: metric colourfulness: returned () for " in err and "one value a picture" in err
