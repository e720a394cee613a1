"""The README keeps its promises: one screen, code that runs, links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_it_is_one_screen() -> None:
    assert len(README.splitlines()) <= 90


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "blemish_removal" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    own = [(page.parent / target if target else page, anchor) for target, anchor in links if "://" not in target]
    assert not [target for target, _ in own if not target.exists()]
    assert not [(target, anchor) for target, anchor in own if anchor and anchor not in anchors_of(target)]


def anchors_of(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes addresses of them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def test_the_index_names_every_guide() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)\s#]+)", index))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= named
