"""Files in one piece: whole, or as they were."""

import pytest

from portraitkit.files.atomic import replacing, write_text


def test_a_text_replaces_another(tmp_path):
    for text in ("one", "zwölf"):
        write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwölf" and len(list(tmp_path.iterdir())) == 1


def test_what_fails_on_the_way_changes_nothing(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="none"):
        write_text(tmp_path / "none" / "a.txt", "x")
