import pytest
import torch
from rich.console import Console

from policies.vlm.pretrain import ROWS, PretrainConfig, look, make_processor, open_rows, pixels_of, start, tokens_of, validate
from policies.vlm.pretrain_facts import FACTS
from policies.vlm.pretrain_read import Phase, make_heads, make_lessons, teach_to_read
from portraitkit.vlm.tiny import build_model

CONFIG = PretrainConfig(scale=0.001, validation_rows=2000)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("rows")
    return {name: open_rows(CONFIG, work, name, "train", Console(quiet=True)) for name in ROWS}


@pytest.fixture(scope="module")
def started(rows):
    torch.manual_seed(0)
    processor = make_processor(rows)
    model = build_model(processor)
    start(model, processor, rows, every=1)
    return model, processor


def test_tokens_start_with_mean_0_and_spread_1(rows, started):
    model, processor = started
    with torch.no_grad():
        tokens = torch.cat([look(model, *pixels_of(processor, some)).flatten(0, 1) for some in rows.values()])
    assert tokens.mean(0).abs().max() < 0.02 and (tokens.std(0) - 1).abs().max() < 0.05


def test_layers_start_as_the_identity(started):
    text = started[0].model.language_model
    ids = torch.randint(0, 300, (1, 7))
    with torch.no_grad():
        assert torch.allclose(text(input_ids=ids).last_hidden_state, text.norm(text.embed_tokens(ids)), atol=1e-5)


def test_every_row_has_facts_of_one_size(rows):
    for facts in FACTS.values():
        found = {len(facts.read(row["columns"])) for name in facts.tasks for row in rows[name]}
        assert len(found) == 1


def test_reading_is_learned_kept_and_not_done_twice(rows, started, tmp_path):
    model, processor = started
    tower = [value.clone() for value in model.model.visual.parameters()]
    console = Console(record=True, quiet=True)

    def teach(steps):
        phase = Phase(steps, 3e-3, 0.02, 0.5, dict.fromkeys(FACTS, 4))
        heads = make_heads(model.config.text_config.hidden_size)
        teach_to_read(model, heads, lambda: make_lessons(model, processor, rows, tokens), phase, tmp_path / "read.pt", console)

    def tokens(some):
        return tokens_of(model, processor, some)

    teach(50)
    state = torch.load(tmp_path / "read.pt", weights_only=True)
    assert state["done"] == 50 and all(torch.equal(a, b) for a, b in zip(tower, model.model.visual.parameters(), strict=True))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    teach(50)
    assert torch.equal(model.lm_head.weight, state["model"]["lm_head.weight"])
    assert set(validate(model, processor, rows)) == set(ROWS)
