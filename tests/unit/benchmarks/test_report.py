"""What the tables and the page say of a run: digits, the best, escaped names, the pictures of a case."""

import base64
import math
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.inputs import Inputs, Item
from benchmarks.metrics import fidelity
from benchmarks.report import Extreme, show_cases, write_report
from benchmarks.stats import Comparison
from benchmarks.suite import Results
from benchmarks.tables import Analysis, best_methods, decimals, figure, gained, summary
from benchmarks.weight_files import MetricWeights
from portraitkit.pictures.images import write_image

COUNT = 12
COLOURS = {"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0), "photo": (0.0, 0.0, 1.0), "reference": (1.0, 1.0, 0.0)}


def run(methods: tuple[str, ...], values: torch.Tensor, **options) -> Results:
    """Values are (photos, methods), of ssim."""
    items = [Item(f"{place:02d}", method, path=Path("x")) for place in range(len(values)) for method in methods]
    found = {"ssim": MetricWeights({}, {}, ())}
    return Results(Inputs(items, list(methods), **options), [fidelity.SSIM], {"ssim": values.double().flatten()}, weights=found)


def drawn(*shifts: float, spread: float = 0.1) -> torch.Tensor:
    return 0.5 + spread * torch.randn(COUNT, len(shifts), generator=torch.Generator().manual_seed(0)) + torch.tensor(shifts)


def test_an_interval_that_leaves_zero_out_is_seen_to():
    entry = Comparison("m", "a", "b", 9, -0.00042, (-0.00061, -0.00003), False, 0.01, 0.02, 0.1, (0, 0.3), 0, 0.5)
    assert gained(entry) == ("-0.00042", "-0.00061 .. -0.00003")
    assert gained(replace(entry, gain=0.2, ci95=(-0.1, 0.5))) == ("+0.200", "-0.100 .. +0.500")
    assert gained(replace(entry, ci95=(math.nan, math.nan)))[1] == ""
    assert figure(0.99812, (0.99776, 0.99848)) == ("0.9981", "0.0004")
    assert figure(65.31, (64.9, 65.7)) == ("65.31", "0.40") and figure(0.5, (math.nan, math.nan)) == ("0.500", "")
    assert figure(0.99999998, (0.99999995, 1.00000001)) == ("1.000", "0.000")
    assert figure(math.nan, (0, 1)) == ("", "") and decimals(3.0, 0.0, math.nan) == 2 and decimals(0.0, 1e-30) == 9


def test_a_sure_difference_counts_from_a_tenth_of_a_standard_deviation_on(tmp_path):
    values = drawn(0, 0)
    for share, verdict in ((0.09, "undecided"), (0.11, "better"), (-0.11, "worse")):
        values[:, 1] = values[:, 0] + share * values[:, 0].std()
        analysis = Analysis.of(run(("a", "b"), values), 0)
        (entry,) = analysis.comparisons
        assert entry.p_holm < 0.01 and entry.effect == pytest.approx(abs(share), rel=1e-4) and entry.verdict == verdict
        (sides,) = analysis.sides()
        assert sides["unsure" if verdict == "undecided" else verdict] == ["ssim"]
        page = write_report(tmp_path, analysis).read_text()
        assert 'aria-label="Gains of b against a"' in page and f'<span class="words">{share:+.2f}</span>' in page
        assert ('<li class="strong"><span class="name">ssim' in page) == (verdict != "undecided")


def test_photos_that_differ_by_rounding_only_are_no_measure_of_a_gain(tmp_path):
    values = drawn(0, 0)
    values[:, 0] = 1 + 1e-7 * values[:, 0]
    analysis = Analysis.of(run(("photo", "b"), values), 0)
    (entry,) = analysis.comparisons
    assert entry.effect == math.inf and entry.verdict == "worse"
    assert "Gains of b against photo" not in write_report(tmp_path, analysis).read_text()


def test_the_best_is_best_on_the_same_photos():
    values = drawn(0, 1)
    analysis = Analysis.of(run(("a", "b"), values), 0)
    assert best_methods(analysis, fidelity.SSIM) == {"b"} and "**" in summary(analysis, "md") and "textbf" in summary(analysis, "tex")
    values[3, 0] = math.nan
    analysis = Analysis.of(run(("a", "b"), values), 0)
    assert (
        best_methods(analysis, fidelity.SSIM) == set() and "**" not in summary(analysis, "md") and "textbf" not in summary(analysis, "tex")
    )


def test_names_are_escaped_in_every_table():
    analysis = Analysis.of(run(("<script>|", "_x_ a_b*`[~"), drawn(0, 1)), 0)
    text = summary(analysis, "md")
    assert "<script" not in text and r"&lt;script&gt;\|" in text and r"\_x\_ a_b\*\`\[\~" in text
    assert r"\textless{}script\textgreater{}\textbar{}" in summary(analysis, "tex")


def test_too_few_photos_are_said_once_and_everywhere(tmp_path):
    analysis = Analysis.of(run(("a", "b"), drawn(0, 1)[:4]), 0)
    assert "no difference can be found with 4 photos" in analysis.verdicts()[0] and len(analysis.verdicts()) == 2
    assert "no difference can be found with 4 photos" in summary(analysis, "md")
    assert "No difference can be found with 4 photos" in write_report(tmp_path, analysis).read_text()
    enough = Analysis.of(run(("a", "b"), drawn(0, 1)), 0)
    assert len(enough.verdicts()) == 1 and "difference can be found" not in write_report(tmp_path, enough).read_text()


def test_the_page_has_no_interval_for_one_photo(tmp_path):
    analysis = Analysis.of(run(("a", "b"), drawn(0, 1)[:1], groups={"00": {"gender": "f"}}), 0)
    page = write_report(tmp_path, analysis).read_text()
    assert "± 0" not in page and not re.search(r"\bnan\b", page) and "n 1<" in page


@pytest.mark.parametrize("methods", [("a", "photo", "reference"), ("photo", "reference"), ("reference", "b")])
def test_a_method_may_be_called_like_the_photo_or_the_reference(tmp_path, methods):
    for name, colour in COLOURS.items():
        write_image(tmp_path / f"{name}.png", torch.tensor(colour)[:, None, None].expand(3, 32, 32))
    write_image(tmp_path / "source.png", torch.zeros(3, 32, 32))
    write_image(tmp_path / "good.png", torch.ones(3, 32, 32))
    source, good = tmp_path / "source.png", tmp_path / "good.png"
    results = run(methods, torch.rand(1, len(methods)))
    items = [replace(item, path=tmp_path / f"{item.method}.png", source=source, reference=good) for item in results.inputs.items]
    results.inputs = replace(results.inputs, items=items)
    case = show_cases(Analysis.of(results, 0), {fidelity.PSNR.name: [Extreme("best", "00", 1.0)]})["00"]
    shown = {tile.title: _middle(tile.picture) for tile in case.tiles}
    expected = {method: COLOURS[method] for method in methods}
    expected["photo (--source)" if "photo" in methods else "photo"] = (0.0, 0.0, 0.0)
    expected["reference (--reference)"] = (1.0, 1.0, 1.0)
    assert shown == expected and len(case.tiles) == len(expected)
    assert (case.after.title, _middle(case.after.picture)) == (methods[-1], COLOURS[methods[-1]])


def _middle(uri: str) -> tuple[float, ...]:
    picture = Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    return tuple(band.getpixel((16, 16)) / 255 for band in picture.split())
