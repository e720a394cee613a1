"""The JSONL format of facial emotion data: what is taken, what is refused, and where."""

import json

import pytest

from portraitkit.errors import DataError
from portraitkit.files.jsonl import write_lines
from preference_data.emotion_rows import parse_row, read_emotion_rows

GOOD = {"id": "1", "dataset": "FABA", "image": "a/b.jpg", "AUs": ["AU15", "AU4"], "labels": ["Sad"], "description": "d"}


def test_rows_survive_writing_and_reading(tmp_path):
    row = parse_row(GOOD | {"target": "t", "meta_info": {"age": 3}})
    assert row.AUs == ("AU4", "AU15") and row.labels == ("sadness",) and row.question
    write_lines(tmp_path / "rows.jsonl", [row.to_dict()])
    assert read_emotion_rows(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize("dataset", ["FER2013", "AffectNet", "RAF-DB", "ExpW"])
def test_an_empty_list_means_unlabelled_where_no_units_are_labelled(dataset):
    assert parse_row(GOOD | {"dataset": dataset, "AUs": []}).AUs is None
    assert parse_row(GOOD | {"AUs": []}).AUs == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AUs": ["AU3"]}, "AU3"),
        ({"AUs": ["au4"]}, "au4"),
        ({"AUs": "AU4"}, "must be a list"),
        ({"AUs": [4]}, "4"),
        ({"AUs": ["4"]}, "'4'"),
        ({"labels": ["sadnes"]}, "did you mean 'sadness'"),
        ({"labels": "sadness"}, "list of one"),
        ({"labels": ["fear", "anger"]}, "list of one"),
        ({"image": "../b.jpg"}, "inside the image folder"),
        ({"image": "/b.jpg"}, "inside the image folder"),
        ({"image": "C:\\b.jpg"}, "inside the image folder"),
        ({"image": ""}, "not empty"),
        ({"id": 5}, "id 5"),
        ({"meta_info": []}, "meta_info"),
        ({"description": 1}, "description"),
        ({"lables": []}, "did you mean 'labels'"),
    ],
)
def test_bad_rows_name_the_value_and_the_line(tmp_path, change, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"id": "2"} | change) + "\n")
    with pytest.raises(DataError, match="line 3") as caught:
        read_emotion_rows(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"id": "1", "id": "2"}', "'id' is given twice"),
        (json.dumps(GOOD)[:-5], "not JSON"),
        ("[1]", "JSON object"),
        ("NaN", "NaN"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "AUs"}), "'AUs' is missing"),
        (f"{json.dumps(GOOD)}\r\n{json.dumps(GOOD)}", "stands in line 1, too"),
        ("\n", "no rows"),
    ],
)
def test_bad_files(tmp_path, text, words):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        read_emotion_rows(tmp_path / "rows.jsonl")
    assert words in str(caught.value)


def test_a_byte_order_mark_and_other_encodings(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_emotion_rows(tmp_path / "rows.jsonl")) == 1
    (tmp_path / "rows.jsonl").write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_emotion_rows(tmp_path / "rows.jsonl")
