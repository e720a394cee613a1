"""Public benchmarks, on small files of their published layouts that the test makes."""

import io
import json

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PilImage

from portraitkit.errors import DataError
from reward_models.evaluation.public_pairs import benchmark_files, read_benchmark


def picture(level):
    return PilImage.new("RGB", (12, 10), (level, 40, 90))


def encoded(level):
    file = io.BytesIO()
    picture(level).save(file, "PNG")
    return file.getvalue()


def table(rows, **features):
    return Dataset.from_list(rows, features=Features(features))


def test_editreward_bench_of_tiger(tmp_path):
    features = dict.fromkeys(("source_image", "candidate_1", "candidate_2"), Image())
    features |= dict.fromkeys(("id", "instruction", "ranking", "comparison_type", "dataset"), Value("string"))
    rows = [("A>B", "AvsB"), ("C>A", "AvsC"), ("B=C", "BvsC")]
    made = [
        {
            **{name: picture(level) for level, name in enumerate(("source_image", "candidate_1", "candidate_2"))},
            **{"id": "7_x", "instruction": "x", "ranking": ranking, "comparison_type": kind, "dataset": "3pair"},
        }
        for ranking, kind in rows
    ]
    (tmp_path / "3pair").mkdir()
    table(made, **features).to_parquet(tmp_path / "3pair" / "train-00000-of-00001.parquet")
    pairs, left_out = read_benchmark("editreward-bench-tiger", tmp_path, tmp_path / "pictures")
    assert [pair.overall for pair in pairs] == ["a", "b", "tie"] and left_out == 0
    assert len({pair.id for pair in pairs}) == 3 and len({pair.identity for pair in pairs}) == 1  # one photo, one cluster
    assert pairs[0].pixels()[2].shape == (3, 10, 12) and len(list((tmp_path / "pictures").iterdir())) == 3
    assert len(read_benchmark("editreward-bench-tiger", tmp_path, tmp_path / "pictures", limit=2)[0]) == 2
    made[0]["ranking"] = "A>C"
    table(made, **features).to_parquet(tmp_path / "3pair" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"row 1: ranking 'A>C' of 'AvsB'"):
        read_benchmark("editreward-bench-tiger", tmp_path, tmp_path / "pictures")


def test_editreward_bench_of_editscore_takes_the_overall_rows_the_better_one_first(tmp_path):
    pictures = {"input_image": picture(1), "output_images": [picture(2), picture(3)]}
    names = ("overall", "consistency", "prompt_following", "overall")
    rows = [{"key": ["k1", "k2"], **pictures, "dimension": name, "task_type": "ps_human"} for name in names]
    features = {"key": List(Value("string")), "input_image": Image(), "output_images": List(Image())}
    features |= {"dimension": Value("string"), "task_type": Value("string")}
    table(rows, **features).save_to_disk(tmp_path / "bench")
    pairs, left_out = read_benchmark("editreward-bench-editscore", tmp_path / "bench", tmp_path / "pictures")
    assert [pair.overall for pair in pairs] == ["a", "a"] and left_out == 2
    photo, a, b = pairs[0].pixels()
    assert [round(float(one[0, 0, 0]) * 255) for one in (photo, a, b)] == [1, 2, 3]


def test_mmrb2_edit(tmp_path):
    for folder in ("images", "input_images"):
        (tmp_path / folder).mkdir()
    for name, level in (("images/a.png", 2), ("images/b.png", 3), ("input_images/in.png", 1)):
        (tmp_path / name).write_bytes(encoded(level))

    def pair(number, chosen, inputs=1, **more):
        prompt = [["image", "input_images/in.png"]] * inputs + [["text", "brighter"]]
        responses = {f"response_{side}": {"model": "m", "response_content": [["image", f"images/{side}.png"]]} for side in "ab"}
        return {"id": f"p{number}", "prompt_content": prompt, **responses, **chosen, **more}

    rows = [pair(0, {"chosen": "A"}), pair(1, {"human_preference": "B"}), pair(2, {"chosen": "A"}, inputs=2)]
    (tmp_path / "edit.json").write_text(json.dumps({"pairs": rows}))
    pairs, left_out = read_benchmark("mmrb2-edit", tmp_path, tmp_path / "pictures")
    assert [pair.overall for pair in pairs] == ["a", "b"] and left_out == 1
    rows[0]["response_a"]["response_content"] = [["image", "../../etc/passwd"]]
    (tmp_path / "edit.json").write_text(json.dumps({"pairs": rows}))
    with pytest.raises(DataError, match="row 1.*leaves the data folder"):
        read_benchmark("mmrb2-edit", tmp_path, tmp_path / "pictures")


def test_genai_bench(tmp_path):
    names = ("source_image", "left_output_image", "right_output_image")
    features = dict.fromkeys(names, Image()) | {"vote_type": Value("string"), "instruct_prompt": Value("string")}
    votes = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    rows = [{**{name: picture(level) for level, name in enumerate(names)}, "vote_type": vote, "instruct_prompt": "x"} for vote in votes]
    for folder in ("image_edition", "image_generation"):
        (tmp_path / folder).mkdir()
    table(rows, **features).to_parquet(tmp_path / "image_edition" / "test_v1-00000-of-00001.parquet")
    (tmp_path / "image_generation" / "test.parquet").write_bytes(b"another task's, never opened")
    pairs, _ = read_benchmark("genai-bench", tmp_path, tmp_path / "pictures")
    assert [pair.overall for pair in pairs] == ["a", "b", "tie", "tie"]


def test_what_is_no_such_benchmark_is_named_before_a_row_is_read(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        benchmark_files("genai-bench", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        benchmark_files("genai-bench", tmp_path)
    table([{"other": "x"}], other=Value("string")).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has no column 'source_image'"):
        benchmark_files("genai-bench", tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"garbage")
    with pytest.raises(DataError, match="no parquet table, or damaged"):
        benchmark_files("genai-bench", tmp_path)
    (tmp_path / "edit.json").write_text("[]")
    with pytest.raises(DataError, match="no MMRB2 file"):
        benchmark_files("mmrb2-edit", tmp_path)
