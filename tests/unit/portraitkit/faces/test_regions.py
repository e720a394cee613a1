import pytest
import torch

from portraitkit.faces.regions import REGIONS, region_masks, soft_polygon


@pytest.fixture(scope="module")
def masks(portraits, meshes):
    return {name: region_masks(meshes[name], *pixels.shape[1:]) for name, pixels in portraits.items()}


def test_a_square_keeps_its_area_and_is_half_on_its_edge():
    square = torch.tensor([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    mask = soft_polygon(square, 40, 40, 1.0)
    assert mask.sum() == pytest.approx(400, rel=0.01)
    assert mask[20, 20] == pytest.approx(1, abs=1e-6) and mask[2, 2] == pytest.approx(0, abs=1e-6)
    assert ((mask[20, 9] + mask[20, 10]) / 2).item() == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(mask, soft_polygon(square.flip(0), 40, 40, 1.0))


def test_a_straight_edge_is_a_gaussian_blur_of_the_hard_mask():
    square = torch.tensor([[20.0, -50], [90, -50], [90, 90], [20, 90]])
    row = soft_polygon(square, 40, 40, 2.0)[20].double()
    edge = (torch.arange(40) + 0.5 - 20).double() / 2
    assert torch.allclose(row, torch.special.ndtr(edge), atol=1e-4)


def test_a_concave_polygon():
    arrow = torch.tensor([[0.0, 0], [20, 0], [20, 20], [10, 5], [0, 20]])
    mask = soft_polygon(arrow, 20, 20, 0.25)
    assert mask[15, 10] < 1e-3 and mask[2, 10] > 0.999


def test_a_polygon_beyond_the_picture_draws_nothing():
    away = torch.tensor([[100.0, 100], [120, 100], [110, 120]])
    assert soft_polygon(away, 50, 50, 1.0).sum() == 0


def test_names_shapes_and_ranges(portraits, masks):
    for name, regions in masks.items():
        assert tuple(regions) == REGIONS
        for mask in regions.values():
            assert mask.shape == (1, *portraits[name].shape[1:])
            assert mask.min() >= 0 and mask.max() <= 1


def test_shares_of_the_face(masks):
    """Wide bounds around what a frontal face has; the masks themselves were looked at."""
    bounds = {"skin": (0.8, 0.95), "lips": (0.02, 0.07), "cheeks": (0.05, 0.12), "eyelids": (0.01, 0.06),
              "eyes": (0.01, 0.04), "brows": (0.015, 0.06)}  # fmt: skip
    for regions in masks.values():
        for region, (low, high) in bounds.items():
            assert low < (regions[region].sum() / regions["face_oval"].sum()).item() < high, region


def test_skin_holds_no_feature(masks):
    for regions in masks.values():
        for region in ("eyes", "brows", "lips"):
            assert (regions["skin"] * regions[region]).max() <= 0.26  # only where two soft edges meet
        assert (regions["skin"] <= regions["face_oval"]).all()
        assert (regions["eyelids"] * regions["eyes"]).max() <= 0.26


def test_colours_of_the_regions(portraits, masks):
    for name, regions in masks.items():
        red, green, blue = portraits[name]

        def mean(value, region, regions=regions):
            return ((value * regions[region][0]).sum() / regions[region].sum()).item()

        assert mean(red - green, "lips") > mean(red - green, "skin")
        assert mean(red, "eyes") < mean(red, "skin") < mean(red, "cheeks")
        assert mean(red - blue, "skin") > 0.1


def test_masks_scale_with_the_picture(meshes):
    small = region_masks(meshes["grace_hopper"], 600, 512)
    large = region_masks(meshes["grace_hopper"] * 2, 1200, 1024)
    for region in REGIONS:
        assert large[region].sum() == pytest.approx(4 * small[region].sum().item(), rel=0.03)


def test_two_coordinates_are_enough(meshes, masks):
    flat = region_masks(meshes["astronaut"][:, :2], 512, 512)
    assert torch.equal(flat["lips"], masks["astronaut"]["lips"])
