import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portraitkit.vlm.generate import complete
from portraitkit.vlm.model import load_model, load_processor
from portraitkit.vlm.rows import Row
from tests.picture_tokens import count_tokens


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives_the_tokenizer(tiny_vlm, text):
    tokenizer = tiny_vlm[1].tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_and_hex_digits_stand_alone_and_words_are_whole(tiny_vlm):
    tokens = tiny_vlm[1].tokenizer.tokenize('<answer>634.07 "#B0CAFE"</answer>')
    assert tokens[0] == "<answer>" and tokens[-1] == "</answer>"
    assert [token for token in tokens if token.isalnum() and token.isascii()] == [*"63407", *"B0CAFE"]


def test_a_saved_model_answers_the_same(tiny_vlm, rows):
    model, processor, folder = tiny_vlm
    again, reread = load_model(str(folder)), load_processor(str(folder))
    first = complete(model, processor, "Light?", rows[:3], max_tokens=8)
    assert complete(again, reread, "Light?", rows[:3], max_tokens=8) == first
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_large_pictures_are_capped(tiny_vlm):
    _, processor, folder = tiny_vlm
    large = Row((torch.rand(3, 600, 500),), "dark", "", {})
    (tokens,), longest = count_tokens(processor, "Light?", [large])
    assert 48 < tokens <= 72 < longest
    (fewer,), _ = count_tokens(load_processor(str(folder), max_pixels=64 * 64), "Light?", [large])
    assert fewer <= 16
