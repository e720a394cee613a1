from dataclasses import replace

import pytest
import torch

from portraitkit.vlm.context import limit_of, shown
from portraitkit.vlm.rows import messages
from portraitkit.vlm.shared_prefix import TOWERS, tower_once


@pytest.fixture
def asked(tiny_vlm, rows):
    """(model, its tower, inputs): five pictures of which two are different, also in size, in the order 0 1 0 0 1."""
    model, processor, _ = tiny_vlm
    text = processor.apply_chat_template(messages("Light?"), tokenize=False, add_generation_prompt=True)
    two = [rows[0], replace(rows[1], pictures=(torch.rand(3, 112, 56, generator=torch.Generator().manual_seed(0)),))]
    pictures = [shown(two[index], limit_of(processor)) for index in (0, 1, 0, 0, 1)]
    inputs = processor(images=pictures, text=[text] * 5, padding=True, return_tensors="pt")
    return model, next(module for module in model.modules() if type(module).__name__ in TOWERS), inputs


def _counted(tower, seen):
    """A hook on the tower's first layer that records how many patches come in."""
    return tower.patch_embed.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))


def test_each_different_picture_is_read_once_with_the_same_answers_and_gradients(asked):
    model, tower, inputs = asked
    weight, seen = tower.patch_embed.proj.weight, []
    hook = _counted(tower, seen)
    model.zero_grad()
    plain = model(**inputs).logits
    plain.square().mean().backward()
    gradient = weight.grad.clone()
    model.zero_grad()
    with tower_once(model):
        once = model(**inputs).logits
        once.square().mean().backward()
    hook.remove()
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    assert seen == [sum(patches), patches[0] + patches[1]]
    torch.testing.assert_close(once, plain)
    torch.testing.assert_close(weight.grad, gradient)
    model.zero_grad()


def test_pictures_that_differ_in_one_value_are_both_read(asked):
    model, tower, inputs = asked
    first = inputs["image_grid_thw"].prod(-1).tolist()[0]
    inputs["pixel_values"][:first] = inputs["pixel_values"][:first].flip(1)  # the same values elsewhere: an equal sum
    seen = []
    hook = _counted(tower, seen)
    with tower_once(model):
        model(**inputs)
    hook.remove()
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    assert seen == [patches[0] + patches[1] + patches[2]]


def test_it_can_stand_inside_itself_and_leaves_the_tower_as_it_was(asked):
    model, tower, inputs = asked
    with torch.no_grad():
        plain = model(**inputs).logits
        with pytest.raises(KeyError), tower_once(model):
            with tower_once(model):
                torch.testing.assert_close(model(**inputs).logits, plain)
            assert "forward" in vars(tower)
            torch.testing.assert_close(model(**inputs).logits, plain)
            raise KeyError
    assert "forward" not in vars(tower)
