"""Pair sets on disk: every bad line is named, quarantined, and stops nobody else."""

import json

import pytest

from portraitkit.errors import DataError
from preference_data.pair_set import METADATA, QUARANTINE, read_pairs, scan_pairs, write_pairs

ROW = {"id": "p", "input_file_name": "i.png", "a_file_name": "a.png", "b_file_name": "b.png"}


@pytest.fixture
def folder(tmp_path):
    for name in "iab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    (tmp_path.parent / "outside.png").write_bytes(b"")
    return tmp_path


def write(folder, *lines):
    (folder / METADATA).write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))


def test_what_is_written_is_read(pair_set):
    pairs = read_pairs(pair_set)
    write_pairs(pair_set, pairs)
    assert read_pairs(pair_set) == pairs and not (pair_set / QUARANTINE).exists()


def test_bom_crlf_and_blank_lines_are_taken(folder):
    write(folder, b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n", b"\r\n", ROW | {"id": "q"})
    assert [pair.id for pair in read_pairs(folder)] == ["p", "q"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"id": "x\n', "not JSON"),
        (b'{"id": "x", "scores": NaN}\n', "NaN is no JSON number"),
        (b'{"id": "x", "id": "y"}\n', "'id' is given twice"),
        (b'{"id": "\xff"}\n', "not UTF-8 at byte 9"),
        (b"[1, 2]\n", "a list, not a JSON object"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'{"id": "' + b"x" * (10 * 2**20) + b'"}\n', "longer than 4 MiB"),
        (json.dumps(ROW | {"id": "x"}).encode()[:-9], "not JSON"),
        (json.dumps(ROW).encode() + b"\n", "used by an earlier row"),
        (json.dumps(ROW | {"id": "x", "a_file_name": "../outside.png"}).encode() + b"\n", "leaves the data folder"),
        (json.dumps(ROW | {"id": "x", "a_file_name": "/etc/passwd"}).encode() + b"\n", "leaves the data folder"),
        (json.dumps(ROW | {"id": "x", "a_file_name": "https://a.b/c.png"}).encode() + b"\n", "is an address"),
        (json.dumps(ROW | {"id": "x", "a_file_name": "none.png"}).encode() + b"\n", "no such file"),
        (json.dumps(ROW | {"id": "x", "a_file_name": "a\0.png"}).encode() + b"\n", "no file name"),
    ],
)
def test_a_bad_line_is_named_and_quarantined(folder, line, word):
    write(folder, ROW, line)
    with pytest.raises(DataError, match="line 2") as error:
        read_pairs(folder)
    assert word in str(error.value)
    quarantined = [json.loads(text) for text in (folder / QUARANTINE).read_text().splitlines()]
    assert [row["line"] for row in quarantined] == [2] and word in quarantined[0]["reason"] and len(quarantined[0]["text"]) <= 500
    assert [pair.id for pair in scan_pairs(folder).rows] == ["p"]


def test_a_symlink_out_of_the_folder_is_refused(folder):
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "outside.png")
    write(folder, ROW)
    assert "leaves" in scan_pairs(folder).rejected[0].reason


def test_an_old_quarantine_goes_when_all_is_well(folder):
    write(folder, ROW, b"{\n")
    with pytest.raises(DataError):
        read_pairs(folder)
    write(folder, ROW)
    read_pairs(folder)
    assert not (folder / QUARANTINE).exists()


def test_missing_and_empty_sets_are_refused(folder):
    with pytest.raises(DataError, match="no such file"):
        read_pairs(folder / "none")
    write(folder, b"")
    with pytest.raises(DataError, match="holds no row"):
        read_pairs(folder)
