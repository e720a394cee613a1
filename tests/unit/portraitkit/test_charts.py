import math
import re
from pathlib import Path

from portraitkit.report.charts import Series, curve_svg
from portraitkit.report.page import write_page


def test_a_page_shows_nobodys_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))
    (tmp_path / "own.html.j2").write_text("{{ words }} {{ picture }}")
    context = {"words": "align-vlm --data /home/anna/faces /home/annabel", "picture": "data:image/png;base64,/home/anna/x"}
    page = write_page(tmp_path / "own.html", tmp_path / "own.html.j2", context).read_text()
    assert page == "align-vlm --data ~/faces /home/annabel data:image/png;base64,/home/anna/x"


def test_curves_follow_the_pages_colours_and_survive_odd_values():
    svg = curve_svg([Series([0, 10, 20], [0.1, math.nan, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])], mark=10, least_span=0.04)
    assert svg.startswith('<svg viewBox="') and "var(--accent)" in svg and "xmlns" not in svg and "metadata" not in svg
    assert not re.search(r"(?:stroke|fill): #(?!var)", svg)
    assert curve_svg([Series([], [])]) == "" and curve_svg([Series([1], [math.nan])]) == ""
    assert "<svg" in curve_svg([Series([1, 2], [0.0, 0.0])], log=True)
    assert re.search(r">\d\.\de-7<", curve_svg([Series([1, 2], [0.0, 1e-6])]))
