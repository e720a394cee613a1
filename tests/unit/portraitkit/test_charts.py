import math
import re

from portraitkit.report.charts import Series, curve_svg


def test_curves_follow_the_pages_colours_and_survive_odd_values():
    svg = curve_svg([Series([0, 10, 20], [0.1, math.nan, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4])], mark=10, least_span=0.04)
    assert svg.startswith('<svg viewBox="') and "var(--accent)" in svg and "xmlns" not in svg and "metadata" not in svg
    assert not re.search(r"(?:stroke|fill): #(?!var)", svg)
    assert curve_svg([Series([], [])]) == "" and curve_svg([Series([1], [math.nan])]) == ""
    assert "<svg" in curve_svg([Series([1, 2], [0.0, 0.0])], log=True)
    assert re.search(r">\d\.\de-7<", curve_svg([Series([1, 2], [0.0, 1e-6])]))
