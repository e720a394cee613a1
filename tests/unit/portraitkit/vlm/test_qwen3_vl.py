"""What was made for Qwen2-VL, with a tiny Qwen3-VL and a tiny Qwen3.5: read-once, the frozen tower, tokens, `--max-pixels`, GRPO."""

from pathlib import Path

import pytest
import torch
import trl
from tiny_qwen3_vl import build_qwen3_5, build_qwen3_vl
from tiny_vlm import CHANCE
from transformers import TrainerCallback

from portraitkit.memory.vlm_trace import Load, ModelSpec, generation_bytes, model_sizes
from portraitkit.vlm import generate
from portraitkit.vlm.context import limit_of, picture_tokens
from portraitkit.vlm.generate import complete
from portraitkit.vlm.model import be_quiet, check_frozen, load_model, load_processor, train_last_norm, vision_tower
from portraitkit.vlm.rows import Row, messages
from portraitkit.vlm.shared_prefix import other_forward
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, start_processes
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import make_grpo_trainer
from tests.picture_tokens import count_tokens

BUILDS = {"qwen3_vl": build_qwen3_vl, "qwen3_5": build_qwen3_5}


@pytest.fixture(scope="module", params=BUILDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    for part in BUILDS[request.param](["Area? one two three"] * 3):
        part.save_pretrained(path)
    return str(path)


def rows(*sides: int) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    return [Row((torch.rand(3, side, side, generator=generator),), None, "", {}) for side in sides]


def test_answers_are_the_same_with_and_without_reading_once(folder, monkeypatch):
    """Its tower adds features of deeper layers, and its language model takes them: nothing is shared, and nothing changes."""
    model, processor = load_model(folder), load_processor(folder)
    same = rows(64)[0]
    asked = {"max_tokens": 6, "samples": 3, "temperature": 1.0, "batch_size": 6}
    found = complete(model, processor, "Area?", [same, same], **asked)
    monkeypatch.setattr(generate, "read_once", lambda model: other_forward(model, (), lambda part, forward: forward))
    plain = complete(model, processor, "Area?", [same, same], **asked)
    assert [[one.text for one in group] for group in found] == [[one.text for one in group] for group in plain]


def test_pictures_take_the_tokens_that_are_planned(folder):
    processor = load_processor(folder)
    limit = limit_of(processor)
    assert limit is not None and limit.factor == 16
    for side in (64, 100, 150):
        counted, _ = count_tokens(processor, "Area?", rows(side))
        assert counted == [picture_tokens(processor, [(side, side)])]
    small = load_processor(folder, max_pixels=64 * 64)
    assert picture_tokens(small, [(150, 150)]) <= 16


def test_the_frozen_tower_includes_its_deeper_mergers(folder):
    model = load_model(folder, freeze_vision=True)
    check_frozen(model)
    tower = dict(vision_tower(model).named_parameters())
    assert any("deepstack" in name for name in tower) == ("qwen3_vl" in folder) and not any(value.requires_grad for value in tower.values())
    train_last_norm(model)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["model.language_model.norm.weight"]


def test_grpo_trains_a_lora_and_leaves_the_tower(folder, tmp_path):
    be_quiet()
    sizes = {"prompts_per_step": 2, "group_size": 4, "max_tokens": 6, "max_train_steps": 1, "warmup_steps": 0, "temperature": 2.0}
    options = TrainerOptions(device="cpu", dtype="float32", rank=4, **sizes)
    start_processes(options)
    model, processor = load_model(folder, freeze_vision=True), load_processor(folder)
    arguments = grpo_arguments(options, str(tmp_path))
    arguments.save_strategy = "no"
    given = (model, processor, CHANCE.prompt, rows(64, 64, 64, 64), arguments, TrainerCallback(), CHANCE, "fixed", lora_arguments(options))
    trainer = make_grpo_trainer(*given, frozen=True)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    assert changed and all("lora_" in name and "visual" not in name for name in changed)


@pytest.mark.parametrize("kind", ["think", "nothink"])
def test_an_answer_begins_with_its_own_thought(kind, tmp_path):
    """Qwen3.5's published templates, as TRL ships them, open or close one in the prompt: `<think>` would be missing from what is read."""
    model, processor = build_qwen3_5(["Area? one two three"] * 3)
    model.save_pretrained(tmp_path)
    processor.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"qwen3_5_{kind}.jinja").read_text()
    processor.save_pretrained(tmp_path)
    turns, target = messages("Area?", pictures=2), "<think>\nsmall</think><answer>1</answer>"
    asked = "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "Area?<|im_end|>\n<|im_start|>assistant\n"
    own = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert own.removeprefix(asked) == ("<think>\n" if kind == "think" else "<think>\n\n</think>\n\n")
    loaded = load_processor(str(tmp_path))
    assert loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == asked
    assert loaded.apply_chat_template(messages("Area?", target, pictures=2), tokenize=False) == f"{asked}{target}<|im_end|>\n"


@pytest.mark.parametrize(
    ("name", "parameters", "bytes_per_token", "bytes_per_row"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696, 36 * 2 * 8 * 128 * 2, 0),
        ("Qwen/Qwen3.5-9B", 9_409_813_744, 8 * 2 * 4 * 256 * 2, 24 * (32 * 128 * 128 * 4 + (2 * 16 + 32) * 128 * 4 * 2)),
    ],
)
def test_the_published_models_are_planned(name, parameters, bytes_per_token, bytes_per_row):
    """Of Qwen3.5's 32 layers 8 keep keys and values; the others have a state, in float32, and the last 4 tokens of a convolution."""
    spec = ModelSpec(name, "bfloat16", gpu=True)
    known = model_sizes(spec)
    assert known is not None and known.parameters == parameters and known.token_side == 32
    assert (known.cache_per_token, known.cache_per_row) == (bytes_per_token, bytes_per_row)
    assert generation_bytes(spec, Load(1, 1, 64, 20, 8)) > 0
