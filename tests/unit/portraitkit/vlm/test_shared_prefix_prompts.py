from dataclasses import replace

import pytest
import torch

from portraitkit.vlm.context import limit_of, shown
from portraitkit.vlm.rows import messages
from portraitkit.vlm.shared_prefix import LANGUAGE_MODELS, prompt_once

ANSWERS = {
    "equal groups": (0, 0, 0, 1, 1, 1),
    "shuffled": (1, 0, 1, 0, 0, 1),
    "unequal groups": (0, 1, 0, 0, 0, 0, 0),
}


@pytest.fixture(params=["sdpa", "eager"])
def model(request, tiny_vlm):
    model = tiny_vlm[0]
    before = model.config._attn_implementation
    model.set_attn_implementation(request.param)
    yield model
    model.set_attn_implementation(before)
    model.zero_grad()


@pytest.fixture
def ask(tiny_vlm, rows):
    """(which of two questions each row asks) -> inputs, padded on the left; the questions differ in picture, its size, and words."""
    _, processor, _ = tiny_vlm
    two = [rows[0], replace(rows[1], pictures=(torch.rand(3, 112, 56, generator=torch.Generator().manual_seed(0)),))]

    def inputs(which):
        texts = [processor.apply_chat_template(messages("Light?" * (1 + q)), tokenize=False, add_generation_prompt=True) for q in which]
        pictures = [shown(two[q], limit_of(processor)) for q in which]
        return processor(images=pictures, text=texts, padding=True, return_tensors="pt")

    return inputs


def _answered(inputs, lengths):
    """The questions with answers of these lengths behind, random tokens, padded on the right as TRL does."""
    random = torch.Generator().manual_seed(1)
    answers = torch.randint(12, 20, (len(lengths), max(lengths)), generator=random)
    kept = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    more = {"input_ids": answers, "attention_mask": kept.long(), "mm_token_type_ids": torch.zeros_like(answers)}
    return {name: torch.cat([value, more[name]], 1) if name in more else value for name, value in inputs.items()}


def _counted(model, seen):
    """A hook that records how many tokens the first layer reads."""
    reader = next(module for module in model.modules() if type(module).__name__ in LANGUAGE_MODELS)
    return reader.layers[0].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[0] * given[0].shape[1]))


def _read(model, inputs):
    """Outputs at real tokens and every gradient, of a loss on the answers."""
    model.zero_grad()
    logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    logits.log_softmax(-1)[:, 3].square().sum().backward()
    return logits.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("which", ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_behind_one_reading_of_their_prompt_have_the_same_values_and_gradients(model, ask, which):
    inputs = _answered(ask(which), [3 + 2 * place % 7 for place in range(len(which))])
    plain, gradients = _read(model, inputs)
    seen = []
    hook = _counted(model, seen)
    with prompt_once(model):
        once, shared = _read(model, inputs)
    hook.remove()
    assert seen[0] < 0.9 * inputs["input_ids"].numel()
    torch.testing.assert_close(once, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == shared.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-8, msg=name)


def test_answers_generated_to_equal_prompts_are_the_same(model, ask):
    inputs, seen = ask((0, 1, 0, 0, 1)), []
    options = {"max_new_tokens": 6, "do_sample": True, "pad_token_id": 0}
    torch.manual_seed(0)
    plain = model.generate(**inputs, **options)
    hook = _counted(model, seen)
    torch.manual_seed(0)
    with prompt_once(model):
        once = model.generate(**inputs, **options)
    hook.remove()
    assert seen[0] == 2 * inputs["input_ids"].shape[1]
    assert once.equal(plain)


def test_prompts_that_differ_in_one_place_are_both_read(model, ask):
    inputs, seen = ask((0, 0, 0)), []
    inputs["input_ids"][1, -2:] = inputs["input_ids"][1, -2:].flip(0)
    hook = _counted(model, seen)
    with torch.no_grad(), prompt_once(model):
        once = model(**inputs).logits
    hook.remove()
    torch.testing.assert_close(once, model(**inputs).logits.detach(), rtol=1e-4, atol=1e-5)


def test_different_prompts_are_read_as_they_came(model, ask):
    inputs = ask((0, 1))
    with torch.no_grad():
        plain = model(**inputs).logits
        with prompt_once(model):
            assert model(**inputs).logits.equal(plain)


def test_it_can_stand_inside_itself_and_leaves_the_model_as_it_was(model, ask):
    inputs = _answered(ask((0, 0, 1, 1)), [4, 5, 6, 7])
    real = inputs["attention_mask"].bool()
    reader = next(module for module in model.modules() if type(module).__name__ in LANGUAGE_MODELS)
    with torch.no_grad():
        plain = model(**inputs).logits[real]
        with pytest.raises(KeyError), prompt_once(model):
            with prompt_once(model):
                torch.testing.assert_close(model(**inputs).logits[real], plain, rtol=1e-4, atol=1e-5)
            assert "forward" in vars(reader)
            raise KeyError
    assert "forward" not in vars(reader)
