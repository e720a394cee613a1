import pytest
import torch

from portraitkit.vlm.generate import complete


def test_greedy_answers_do_not_depend_on_the_batch(tiny_vlm, rows):
    model, processor, _ = tiny_vlm
    together = complete(model, processor, "Light?", rows[:5], max_tokens=6)
    apart = complete(model, processor, "Light?", rows[:5], max_tokens=6, batch_size=1)
    assert together == apart and all(len(answers) == 1 for answers in together)


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(tiny_vlm, rows):
    model, processor, _ = tiny_vlm
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    how = {"max_tokens": 6, "temperature": 1.0, "samples": 3}
    first = complete(model, processor, "Light?", rows[:2], seed=1, **how)
    assert torch.equal(torch.rand(1), expected)
    assert complete(model, processor, "Light?", rows[:2], seed=1, **how) == first
    assert complete(model, processor, "Light?", rows[:2], seed=2, **how) != first
    assert [len(answers) for answers in first] == [3, 3] and len({answer.text for answer in first[0]}) > 1


@pytest.mark.parametrize("training", [True, False])
def test_cut_answers_are_told_from_finished_ones(tiny_vlm, rows, training):
    model, processor, _ = tiny_vlm
    model.train(training)
    done = []
    answers = [answer for group in complete(model, processor, "Light?", rows[:4], max_tokens=4, advance=done.append) for answer in group]
    assert all(answer.cut == (answer.tokens == 4) or not answer.cut for answer in answers)
    assert sum(done) == 4 and model.training == training
    ends = model.generation_config.eos_token_id
    model.lm_head.weight.data[ends] += 0  # the shape is what indexing needs
    assert all(1 <= answer.tokens <= 4 for answer in answers)
    model.eval()
