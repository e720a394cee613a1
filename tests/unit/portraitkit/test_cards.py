"""Model cards: metadata that the hub reads, the base's licence, and text that cannot break the page."""

import math

import pytest
import torch
from huggingface_hub import ModelCard

from portraitkit.report.card import (
    EMBEDDED,
    Base,
    Card,
    Licence,
    Table,
    base_of,
    by_group,
    counted,
    group_tables,
    named_licence,
    write_card,
)

RESEARCH = Licence("other", "qwen-research", "https://example.org/LICENSE")


def card(**changes):
    values = {
        "title": "A model",
        "what": "It does things.",
        "headline": "It rose.",
        "base": Base("Qwen/Base", "Qwen/Base", RESEARCH),
        "data": ("**Synthetic**: made by code.",),
        "synthetic": False,
        "held_out": "rows",
        "tables": (Table("Reward", ("", "after"), (("greedy | best", "1.0"), ("two\nlines", "<script>"))),),
        "limits": ("One seed.",),
        "settings": {"seed": 0},
        "versions": {"torch": "2.9", "trl": None},
        "usage": "load()",
        "results": {"greedy reward": 1.25, "nothing": math.nan},
        "task": "image-text-to-text",
        "library": "transformers",
        "tags": ("grpo",),
    }
    return Card(**{**values, **changes})


def test_the_hub_reads_what_was_written(tmp_path):
    (tmp_path / "README.md").write_text("what a library left here")
    path = write_card(tmp_path, card(adapter=True))
    read = ModelCard.load(path)
    assert read.data.license == "other" and read.data.license_name == "qwen-research" and read.data.base_model == "Qwen/Base"
    assert read.data.to_dict()["base_model_relation"] == "adapter" and set(read.data.tags) == {"portraitkit", "grpo"}
    (result,) = read.data.eval_results
    assert (result.metric_name, result.metric_value, result.dataset_name) == ("greedy reward", 1.25, "own held-out rows")
    text = read.text
    assert "what a library" not in text and "[qwen-research](https://example.org/LICENSE)" in text and "**Synthetic**" in text
    assert "greedy \\| best" in text and "two lines" in text and "<script>" not in text
    assert "| seed | 0 |\n| torch | 2.9 |" in text and "| trl |" not in text and "rows do not say who is shown" in text
    for heading in ("## Base and licence", "## Data", "## Measured on held-out data", "## Limits", "## Training", "## Use"):
        assert f"\n{heading}\n" in text


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path):
    path = write_card(tmp_path, card(base=Base("somebody/model", "somebody/model", Licence()), results={}))
    assert ModelCard.load(path).data.license == "unknown" and "look it up before you pass the model on" in path.read_text()


def test_the_base_carries_its_licence_over(tmp_path):
    assert base_of("embedded") == EMBEDDED and EMBEDDED.licence == Licence("apache-2.0")
    assert base_of("Qwen/Qwen2.5-VL-3B-Instruct").licence.name == "qwen-research"
    assert base_of("Qwen/Qwen2.5-VL-7B-Instruct") == Base(*["Qwen/Qwen2.5-VL-7B-Instruct"] * 2, Licence("apache-2.0"))
    assert base_of("nobody/knows-this-one").licence == Licence()
    run = tmp_path / "run" / "model"
    run.mkdir(parents=True)
    assert base_of(str(run)) == Base("the local model `run/model`", None, Licence())
    write_card(run, card())
    again = base_of(str(run))  # a model made of a model keeps what holds for the first
    assert again.hub_id == "Qwen/Base" and again.licence == RESEARCH and "itself made from Qwen/Base" in again.words
    (run / "README.md").write_text("---\nlicense: [1, {\n---\n")
    assert base_of(str(run)).licence == Licence()
    assert base_of(str(run), Licence("mit")).licence == Licence("mit")
    flux = named_licence("flux-1-dev-non-commercial-license")
    assert flux.key == "other" and flux.link and flux.link.startswith("https://huggingface.co/black-forest-labs/")


@pytest.mark.parametrize("name", ["{}/run/model", "./run/model", "run/model", "run/deep/model"])
def test_a_base_whose_folder_was_deleted_since(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    base = base_of(name.format(tmp_path))
    assert base == Base(f"the local model `{'/'.join(name.rsplit('/', 2)[-2:])}`, whose folder is gone", None, Licence())
    write_card(tmp_path, card(base=base))
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None


def test_counts_and_groups():
    assert counted(["mit", "", "mit", "a|b"]) == "mit (2), not given (1), a\\|b (1)"
    rows = [{"gender": "woman", "meta_info": {"age": 30}}, {"gender": "man"}, {"gender": "woman", "race": ""}]
    found = by_group(rows, torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.5, torch.nan]))
    assert list(found) == ["age", "gender"] and found["age"]["30"]["n"] == 1
    assert (found["gender"]["woman"]["before"], found["gender"]["woman"]["after"], found["gender"]["woman"]["n"]) == (0.5, 1.0, 2)
    assert counted(map(str, range(10)), most=2).endswith("8 others")
    (table,) = group_tables({"age_band": {"18-29": {"before": 0.5, "after": 0.75, "ci95": (0.5, 1.0), "n": 4}}}, "Reward")
    assert table.heading == "Reward by age band" and table.rows == [("18-29 *", 4, "0.500", "0.750", "0.500 to 1.000")]
    assert "fewer than 20" in table.note
    with pytest.raises(KeyError):
        group_tables({"gender": {"woman": {"after": 1.0}}}, "Reward")
