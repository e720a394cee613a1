"""The planner of vision-language models against the memory of real TRL steps of a tiny one."""

from dataclasses import replace

import pytest
import torch
from tiny_qwen3_vl import build_qwen3_5
from transformers import TrainerCallback

from portraitkit.errors import ConfigError
from portraitkit.memory.plan import typed
from portraitkit.memory.trace import LiveBytes, tensors_of
from portraitkit.memory.vlm_plan import Planner, changes, plan, refuse_if_too_large
from portraitkit.memory.vlm_trace import Load, ModelSpec, _ready, model_sizes, read_bytes, update_bytes
from portraitkit.vlm.model import be_quiet, load_model, load_processor, meta_model
from portraitkit.vlm.shared_prefix import tower_once
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, sft_arguments
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import make_grpo_trainer, make_sft_trainer
from tools.embedded.tiny_vlm import build_model, build_processor

OPTIONS = TrainerOptions(
    device="cpu",
    dtype="float32",
    prompts_per_step=2,
    group_size=4,
    max_tokens=24,
    max_train_steps=2,
    sft_batch=8,
    sft_steps=2,
    generation_batch=1,
)


@pytest.fixture(scope="module")
def folder(brightness, tmp_path_factory):
    """A random model wide enough that its activations count."""
    torch.manual_seed(0)
    processor = build_processor([brightness.prompt, brightness.brief] * 3, ["<answer>", "</answer>", "dark", "light"])
    path = tmp_path_factory.mktemp("wide")
    build_model(processor, hidden_size=192, layers=3, vision_size=64, vision_layers=2).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def mixed(brightness, tmp_path_factory):
    """A Qwen3.5 of three rounds of linear and full attention, more than a trace runs."""
    path = tmp_path_factory.mktemp("mixed")
    for part in build_qwen3_5([brightness.prompt, brightness.brief] * 3, ["<answer>", "</answer>", "dark", "light"], rounds=3):
        part.save_pretrained(path)
    return path


def planner(folder, brightness, rows, stage: str) -> Planner:
    """One that knows the prompt's length and the pictures' size."""
    processor = load_processor(str(folder))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": brightness.prompt}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    made = processor(text=[text], images=[rows[0].images()[0]], return_tensors="pt")
    tokens = int(made["image_grid_thw"].prod()) // 4
    return Planner(str(folder), (stage,), picture_tokens=tokens, words=made["input_ids"].shape[1] - tokens)


def measured(folder, brightness, rows, tmp_path, options: TrainerOptions, stage: str) -> int:
    """Most bytes of live tensors in two steps of training."""
    be_quiet()
    model, processor = load_model(str(folder), freeze_vision=options.freeze_vision), load_processor(str(folder))
    lora, callback = lora_arguments(options), TrainerCallback()
    options = replace(options, checkpointing_steps=0)
    if stage == "sft":
        long = [replace(row, target=" ".join(["dark"] * 12)) for row in rows]
        trainer = make_sft_trainer(model, processor, brightness.prompt, long, sft_arguments(options, str(tmp_path)), callback, lora)
    else:
        arguments = grpo_arguments(options, str(tmp_path))
        trainer = make_grpo_trainer(model, processor, brightness.prompt, rows, arguments, callback, brightness, "fixed", lora)
    trainer.args.save_strategy = "no"
    held = [*tensors_of(trainer.model), *(tensors_of(trainer.ref_model) if getattr(trainer, "ref_model", None) else ())]
    with LiveBytes(held, ("cpu",)) as live, tower_once(trainer.model):
        trainer.train()
    return live.peak


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("grpo", {}),
        ("grpo", {"rank": 8, "gradient_checkpointing": True}),
        ("grpo", {"group_size": 8, "beta": 0.04, "accumulation_steps": 2}),
        ("sft", {}),
    ],
)
def test_the_plan_is_within_a_tenth_of_what_is_measured(folder, brightness, rows, tmp_path, stage, changes):
    options = replace(OPTIONS, **changes)
    memory = planner(folder, brightness, rows, stage).memory(options)
    assert memory is not None
    assert memory.peak == pytest.approx(measured(folder, brightness, rows, tmp_path, options, stage), rel=0.1)


@pytest.mark.parametrize(("stage", "changes"), [("grpo", {"rank": 8, "gradient_checkpointing": True}), ("sft", {})])
def test_the_plan_of_linear_and_full_attention_in_turns_is_within_a_tenth(mixed, brightness, rows, tmp_path, stage, changes):
    options = replace(OPTIONS, **changes)
    memory = planner(mixed, brightness, rows, stage).memory(options)
    assert memory is not None
    found = measured(mixed, brightness, rows, tmp_path, options, stage)
    assert memory.peak == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("name", "parameters"), [("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976), ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656)]
)
def test_published_models_have_their_published_sizes(name, parameters):
    known = model_sizes(ModelSpec(name, "bfloat16"))
    assert known is not None and known.parameters == parameters and known.weights == pytest.approx(2 * parameters, rel=1e-3)
    rank = model_sizes(ModelSpec(name, "bfloat16", (8, 16, 0.0, ("q_proj", "v_proj"))))
    assert rank is not None and 0 < rank.trained.values < parameters / 1000 and rank.adapter == rank.trained.size


def test_a_model_that_is_not_known_is_said_to_be(monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda path, **options: (_ for _ in ()).throw(OSError(path)))
    assert meta_model("nobody/nothing-of-this-name") is None
    assert Planner("nobody/nothing-of-this-name", ("grpo",), picture_tokens=64).memory(OPTIONS) is None


def test_what_cannot_fit_is_refused_with_what_would(folder):
    tiny = Planner(str(folder), ("grpo",), picture_tokens=64)
    memory = tiny.memory(OPTIONS)
    assert memory is not None
    refuse_if_too_large(replace(OPTIONS, device_memory=memory.peak * 1.01 / 2**30), tiny)
    with pytest.raises(ConfigError, match="makes it fit") as refusal:
        refuse_if_too_large(replace(OPTIONS, device_memory=memory.peak * 0.8 / 2**30), tiny)
    words = str(refusal.value).partition("; ")[2]
    assert any(words.startswith(typed(OPTIONS, changed)) for change in changes() if (changed := change(OPTIONS)))
    with pytest.raises(ConfigError, match="no change that is known here makes it fit"):
        refuse_if_too_large(replace(OPTIONS, device_memory=0.0001), tiny)


def test_zero_divides_what_it_should(folder):
    tiny = Planner(str(folder), ("grpo",), picture_tokens=64)
    whole, two, three = (tiny.memory(replace(OPTIONS, deepspeed=kind, plan_devices=4)) for kind in (None, "zero2", "zero3"))
    assert whole and two and three
    assert two.held["optimiser states"] * 4 == whole.held["optimiser states"]
    assert two.held["weights"] == whole.held["weights"] > three.held["weights"]


def test_changes_that_need_each_other_are_made_together():
    """Fewer answers than an update has parts: the parts are fewer, too, and none is larger than before."""
    made = replace(OPTIONS, prompts_per_step=16, group_size=8, accumulation_steps=128)
    for change in changes():
        changed = change(made)
        if changed is not None:
            assert changed.prompts_per_step * changed.group_size // changed.accumulation_steps == 1
    some = replace(OPTIONS, prompts_per_step=6, group_size=8, accumulation_steps=12)
    assert [typed(some, changed) for change in changes() if (changed := change(some))] == [
        "--gradient-checkpointing",
        "--accumulation-steps 48",
        "--sft-batch 1",
        "--rank 64 --lora-alpha 128",
        "--max-pixels 401408",
        "--group-size 4 --accumulation-steps 6",
        "--prompts-per-step 1 --accumulation-steps 2",
    ]


def test_the_plan_says_what_all_devices_take_together(folder):
    tiny = Planner(str(folder), ("sft", "grpo"), picture_tokens=64, rows=16)
    lines = dict(plan(replace(OPTIONS, deepspeed="zero2", plan_devices=8, max_train_steps=3), tiny))
    assert lines["grpo"] == "16 prompts x 4 answers an update: 8 answers x 8 devices; 3 updates take 48, 3 epochs of 16 rows"
    assert lines["sft"] == "64 rows an update: 8 rows x 8 devices; 2 updates take 128, 8 epochs of 16 rows"
    fewer = replace(OPTIONS, plan_devices=8, trl=("per_device_train_batch_size=1", "gradient_accumulation_steps=1"))
    assert dict(plan(fewer, tiny))["grpo"].startswith("2 prompts x 4 answers an update: 1 answers x 8 devices; ")
    alone, shared = (tiny.memory(replace(options, plan_devices=1)) for options in (OPTIONS, fewer))
    assert alone and shared and shared.peak < alone.peak, "what --trl says is planned"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, (4, 8, 0.0, ("q_proj",))])
def test_a_vision_tower_at_once_holds_as_much_as_window_by_window(folder, monkeypatch, lora, checkpointing):
    many = Load(rows=6, pictures=2, picture_tokens=150, words=20, answer=24)
    made = ModelSpec(str(folder), "float32", lora, checkpointing=checkpointing)

    def planned() -> list[int]:
        update = update_bytes.__wrapped__(made, many, accumulated=False)
        return [update, *(read_bytes.__wrapped__(made, many, scored=scored) for scored in (False, True))]

    at_once = planned()
    calls = []
    monkeypatch.setattr("portraitkit.memory.vlm_trace._all_at_once", lambda attention, args, kwargs: calls.append(kwargs["cu_seqlens"]))
    _ready.cache_clear()
    assert planned() == pytest.approx(at_once, rel=1e-3)
    assert max(len(ends) for ends in calls) > 2 * 6 * 4, "no windows"
