"""JSON lines: the reader that sets bad lines aside, the one that stops at the first, and what a crash leaves behind."""

import errno
import io
import json
import math

import pytest

from portraitkit.errors import DataError, RunFolderError
from portraitkit.files.jsonl import append_line, finite, read_json_lines, read_objects, write_lines


def test_a_line_after_one_that_was_cut_off_stays_whole(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    append_line(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "cut')
    append_line(path, {"n": 3})
    found = read_json_lines(path, dict)
    assert [row["n"] for row in found.rows] == [1, 3] and [bad.line for bad in found.rejected] == [2]


@pytest.mark.parametrize("another", [False, True])
def test_a_row_that_cannot_be_stored_takes_no_other_with_it(tmp_path, monkeypatch, another):
    path = tmp_path / "rows.jsonl"
    append_line(path, {"n": 1})

    def full(_):
        monkeypatch.undo()
        if another:  # of another process, in between
            append_line(path, {"n": 3})
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("portraitkit.files.jsonl.os.fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        append_line(path, {"n": 2})
    assert [row["n"] for row in read_json_lines(path, dict).rows] == ([1, 2, 3] if another else [1])


def test_every_text_comes_back(tmp_path):
    """Also line separators of Unicode, which end no JSON line, and half a surrogate pair, as in file names that are not UTF-8."""
    rows = [{"text": text} for text in ("é", "a\u2028b", "a\x85b", "a\nb", "\udce9.png")]
    write_lines(tmp_path / "rows.jsonl", rows)
    for row in rows:
        append_line(tmp_path / "more.jsonl", row)
    for name in ("rows.jsonl", "more.jsonl"):
        assert list(read_objects(tmp_path / name)) == list(enumerate(rows, start=1))
        assert read_json_lines(tmp_path / name, dict).rows == rows
    assert "é" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


def test_bom_crlf_and_blank_lines_are_taken(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n \r\n{"n": 2}')
    assert list(read_objects(tmp_path / "rows.jsonl")) == [(1, {"n": 1}), (3, {"n": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [(b"{", "not JSON"), (b"[1]", "not a JSON object"), (b'{"a": "\xff"}', "not UTF-8 at byte 8"), (b"[" * 100_000, "not JSON")],
)
def test_the_first_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    with pytest.raises(DataError, match="line 3") as error:
        list(read_objects(path))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_only_strict_readers_refuse_what_json_does_not_know(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text, words in (('{"a": NaN}', "NaN is no JSON number"), ('{"a": 1, "a": 2}', "'a' is given twice")):
        path.write_text(text)
        assert len(list(read_objects(path))) == 1
        with pytest.raises(DataError, match=words):
            list(read_objects(path, strict=True))


def test_the_standard_input_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": "é"}\n'))
    assert list(read_objects(type(tmp_path)("-"))) == [(1, {"a": "é"})]


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_objects(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        read_json_lines(tmp_path / "none", dict)
    for write in (lambda path: write_lines(path, [{}]), lambda path: append_line(path, {})):
        with pytest.raises(RunFolderError, match="could not be written"):
            write(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"n": 1}])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_lines(path, [{"n": 2}, {"n": float("nan")}])
    assert json.loads(path.read_text()) == {"n": 1} and list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_becomes_none_wherever_it_stands():
    assert finite({"a": math.nan, 1: (1.0, [-math.inf, "x", 2])}) == {"a": None, "1": [1.0, [None, "x", 2]]}
