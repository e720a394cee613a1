"""How large pictures are shown, how many tokens that is, and rows that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.pictures.images import write_image
from portraitkit.vlm.context import capped, check_lengths, context_of, limit_of, picture_tokens, shown
from portraitkit.vlm.model import load_processor
from portraitkit.vlm.rows import Row, shuffled
from portraitkit.vlm.trainers import _dataset
from tests.picture_tokens import count_tokens

SIZES = [(40, 48), (64, 64), (300, 200), (97, 501), (600, 500), (20, 1600)]


@pytest.fixture
def mixed(rows, tmp_path):
    """A row for each size, the pictures in files."""
    made = []
    for place, (height, width) in enumerate(SIZES):
        write_image(tmp_path / f"{place}.png", torch.rand(3, height, width, generator=torch.Generator().manual_seed(place)))
        made.append(replace(rows[0], pictures=(tmp_path / f"{place}.png",), name=f"train.jsonl line {place + 1}"))
    return made


def test_tokens_are_counted_as_the_processor_makes_them(tiny_vlm, mixed, brightness):
    _, _, folder = tiny_vlm
    for most in (None, 96 * 96, 784):
        processor = load_processor(str(folder), max_pixels=most)
        counted, longest = count_tokens(processor, brightness.prompt, mixed)
        assert [picture_tokens(processor, [size]) for size in SIZES] == counted
        found = check_lengths(processor, mixed, brightness.prompt, max_tokens=10, context=2048)
        assert found.pictures == (min(counted), max(counted)) and found.prompt == longest and found.answer == 10


def test_a_processor_without_limits_is_asked(tiny_vlm, mixed):
    _, processor, folder = tiny_vlm
    other = load_processor(str(folder))
    other.image_processor.size = {"height": 64, "width": 64, **dict(other.image_processor.size)}
    assert picture_tokens(other, SIZES[:2]) == sum(picture_tokens(processor, [size]) for size in SIZES[:2])


def test_pictures_are_capped_before_the_processor(tiny_vlm, mixed, brightness):
    _, _, folder = tiny_vlm
    processor = load_processor(str(folder), max_pixels=96 * 96)
    limit = limit_of(processor)
    assert limit is not None and limit.most == 96 * 96
    in_memory = [replace(row, pictures=(torch.from_numpy(np.asarray(row.images()[0]) / 255.0).permute(2, 0, 1).float(),)) for row in mixed]
    for rows in (mixed, in_memory):
        data = _dataset(rows, brightness.prompt, limit)
        for row, size, item in zip(rows, SIZES, data, strict=True):
            (image,) = shown(row, limit)
            assert np.array_equal(np.asarray(item["images"][0]), np.asarray(image))
            assert image.width * image.height <= limit.most or min(image.size) == limit.factor
            if size[0] * size[1] <= limit.most:
                assert (image.height, image.width) == size  # nothing is done to what is small enough
            else:
                again = limit.size(image.height, image.width)
                assert again == (image.height, image.width)  # so that no processor has anything left to scale
    for most in range(784, 20_000, 97):
        other = replace(limit, least=min(4096, most // 4), most=most)
        for size in SIZES:
            once = other.size(*size)
            assert once == other.size(*once)
    assert capped(mixed[4].images()[0], None).size == (500, 600)


def test_a_row_that_does_not_fit_is_named(tiny_vlm, mixed, brightness):
    _, processor, folder = tiny_vlm
    assert context_of(str(folder)) == 2048
    fits = check_lengths(processor, mixed, brightness.prompt, max_tokens=10, context=None)
    check_lengths(processor, mixed, brightness.prompt, max_tokens=10, context=fits.prompt + 10)
    with pytest.raises(DataError, match=r"^train.jsonl line \d: prompt \d+ \+ pictures \d+ \+ answer 11 tokens: must fit into .* of \d+;"):
        check_lengths(processor, mixed, brightness.prompt, max_tokens=11, context=fits.prompt + 10)
    long = [*mixed[:2], replace(mixed[2], target="word " * 500)]
    with pytest.raises(DataError, match="line 3.*vLLM"):
        check_lengths(processor, long, brightness.prompt, max_tokens=10, context=400, targets=True, limit="vLLM's longest sequence")


def test_rows_have_names(rows):
    assert rows[0].name == "train row 1" and shuffled(rows)[0].name == "train row 1"
    assert Row((), None, "", {}).name == ""
