import torch


def test_two_portraits_as_floats(portraits):
    assert {name: tuple(pixels.shape) for name, pixels in portraits.items()} == {
        "astronaut": (3, 512, 512),
        "grace_hopper": (3, 600, 512),
    }
    for pixels in portraits.values():
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0 and pixels.max() <= 1


def test_known_pixel(portraits):
    # scikit-image's astronaut starts with (154, 147, 151).
    assert (portraits["astronaut"][:, 0, 0] * 255).round().tolist() == [154, 147, 151]
