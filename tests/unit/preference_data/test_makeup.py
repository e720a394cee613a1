"""The makeup renderer: what it must leave alone, what it must reach, at every size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from portraitkit.errors import DataError
from portraitkit.faces.align import align_face
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.faces.regions import LEFT_EYE, LIPS_INNER, LIPS_OUTER, OVAL, RIGHT_EYE
from portraitkit.pictures.images import srgb_to_lab
from preference_data import makeup_prompts
from preference_data.people.makeup import render_makeup
from preference_data.people.makeup_shapes import SHAPES, Shape, draw_shape, face_scale, shapes_of, smooth_outline
from preference_data.people.synthetic import make_person

COLORS = st.integers(0, 0xFFFFFF).map(lambda value: f"#{value:06X}")
ITEMS = st.fixed_dictionaries(
    {"shape": st.sampled_from(list(SHAPES)), "color": COLORS},
    optional={name: st.integers(0, 255) for name in ("alpha", "sigma", "gamma", "split")},
)
FULL = ["LIP_FULL_BASIC", "BLUSHER_CENTER_WIDE_BASIC", "EYESHADOW_OVEREYE_FULL_BASIC"]
quick = settings(max_examples=25, deadline=None)


def draw(shape: Shape, mesh, size: int):
    """The mask in a whole picture of size x size."""
    drawn = draw_shape(shape, mesh, size, size, sigma=shape.sigma, split=shape.split)
    whole = torch.zeros(size, size)
    whole[drawn.top : drawn.top + drawn.mask.shape[0], drawn.left : drawn.left + drawn.mask.shape[1]] = drawn.mask
    return whole


def inside(mesh, outline, size: int):
    """Pixels whose centre is inside an outline, by scikit-image."""
    corners = (mesh[list(outline), :2].flip(1) - 0.5).numpy()
    return torch.from_numpy(polygon2mask((size, size), corners))


@pytest.fixture(scope="module")
def faces():
    """The two portraits as 256 px crops, and a synthetic person: (photo, mesh)."""
    out = []
    for photo in bundled_portraits().values():
        mesh = require_mesh(photo)[1].detach()
        aligned = align_face(photo, mesh, 256)
        out.append((aligned.pixels, aligned.to_crop(mesh)[:, :2]))
    person = make_person("train", torch.Generator().manual_seed(5), size=256)
    return [*out, (person.clean, person.mesh)]


def test_the_published_parameters():
    published = {FULL[0]: (190, 70, 0, 0), FULL[1]: (80, 200, 0, 0), FULL[2]: (180, 100, 50, 0)}
    for name, values in published.items():
        shape = SHAPES[name]
        assert (shape.alpha, shape.sigma, shape.gamma, shape.split) == values
        assert shapes_of(shape.region)[0] == name and len(shapes_of(shape.region)) >= 3


@quick
@given(st.lists(ITEMS, min_size=1, max_size=3))
def test_alpha_0_is_the_identity(faces, look):
    photo, mesh = faces[2]
    assert torch.equal(render_makeup(photo, mesh, [item | {"alpha": 0} for item in look]), photo)


@quick
@given(st.lists(ITEMS, min_size=1, max_size=3), st.integers(0, 2))
def test_eyes_mouth_and_what_is_off_the_face_stay_bit_for_bit(faces, look, which):
    photo, mesh = faces[which]
    before = photo.clone()
    out = render_makeup(photo, mesh, look)
    assert torch.equal(photo, before)
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    changed = (out != photo).any(0)
    for outline in (RIGHT_EYE, LEFT_EYE, LIPS_INNER):
        if outline != LIPS_INNER or all(item["shape"].startswith("LIP") for item in look):
            assert not (changed & inside(mesh, outline, 256)).any()
    oval = mesh[list(OVAL)]
    middle, reach = oval.mean(0), 1.25 * (oval - oval.mean(0)).norm(dim=1).max()
    y, x = torch.meshgrid(torch.arange(256) + 0.5, torch.arange(256) + 0.5, indexing="ij")
    assert not changed[(torch.stack([x, y], -1) - middle).norm(dim=-1) > reach].any()


@quick
@given(ITEMS, st.integers(0, 2))
def test_nothing_changes_where_the_mask_is_0(faces, item, which):
    photo, mesh = faces[which]
    shape = SHAPES[item["shape"]]
    values = {name: item.get(name, getattr(shape, name)) for name in ("sigma", "split")}
    drawn = draw_shape(shape, mesh, 256, 256, **values)
    window = (slice(drawn.top, drawn.top + drawn.mask.shape[0]), slice(drawn.left, drawn.left + drawn.mask.shape[1]))
    may = torch.zeros(256, 256, dtype=torch.bool)
    may[window] = drawn.mask > 0
    assert drawn.mask.min() >= 0 and drawn.mask.max() <= 1
    changed = (render_makeup(photo, mesh, [item]) != photo).any(0)
    assert not (changed & ~may).any()


@quick
@given(COLORS, st.integers(0, 255), st.integers(0, 255), st.sampled_from(FULL), st.integers(0, 2))
def test_a_stronger_alpha_brings_the_region_nearer_to_the_product(faces, color, one, other, name, which):
    photo, mesh = faces[which]
    weight = draw(SHAPES[name], mesh, 256)
    weight = weight / weight.sum()
    product = srgb_to_lab(torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]).view(3, 1, 1)).view(3)

    def difference(alpha: int) -> float:
        out = render_makeup(photo, mesh, [{"shape": name, "color": color, "alpha": alpha, "gamma": 0}])
        return float(((srgb_to_lab(out) * weight).sum((1, 2)) - product).norm())

    weak, strong = sorted((one, other))
    assert difference(strong) <= difference(weak) + 1.0  # clipped highlights and colours outside sRGB cost a little


@pytest.mark.parametrize("color", ["#B03050", "#5A1430", "#E8909C", "#808080"])
def test_full_opacity_gives_the_product_and_keeps_the_shading(faces, color):
    for photo, mesh in faces:
        core = draw(SHAPES[FULL[0]], mesh, 256) > 0.99
        out = srgb_to_lab(render_makeup(photo, mesh, [{"shape": FULL[0], "color": color, "alpha": 255}]))[:, core]
        product = srgb_to_lab(torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]).view(3, 1, 1)).view(3)
        assert (out.mean(1) - product).norm() < 9
        before = srgb_to_lab(photo)[0, core]
        assert torch.corrcoef(torch.stack([before, out[0]]))[0, 1] > 0.97


def test_order_of_regions_does_not_matter(faces):
    photo, mesh = faces[0]
    look = [{"shape": name, "color": color} for name, color in zip(FULL, ("#B03050", "#E8909C", "#6B4A3A"), strict=True)]
    assert torch.equal(render_makeup(photo, mesh, look), render_makeup(photo, mesh, look[::-1]))


def test_a_person_wears_the_same_at_any_size():
    look = [{"shape": name, "color": color, "gamma": 0} for name, color in zip(FULL, ("#B03050", "#E8909C", "#6B4A3A"), strict=True)]
    generator = torch.Generator().manual_seed(2)
    large = make_person("train", generator, size=512)
    small = torch.nn.functional.avg_pool2d(large.clean[None], 4)[0]
    one = render_makeup(small, large.mesh / 4, look) - small
    other = torch.nn.functional.avg_pool2d((render_makeup(large.clean, large.mesh, look) - large.clean)[None], 4)[0]
    assert one.abs().max() > 0.1
    assert (one - other).abs().mean() < 0.05 * one.abs().mean() + 2e-3


def test_colours_may_be_tensors_with_a_gradient(faces):
    photo, mesh = faces[1]
    for name, shape in SHAPES.items():
        color = torch.tensor([0.6, 0.2, 0.3], requires_grad=True)
        out = render_makeup(photo, mesh, [{"shape": name, "color": color}])
        out.mean().backward()
        assert color.grad is not None and color.grad.isfinite().all() and (color.grad > 0).all(), shape
    black = torch.zeros(3, requires_grad=True)
    render_makeup(photo, mesh, [{"shape": FULL[0], "color": black}]).mean().backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_a_colour_can_be_found_again_by_gradient_descent(faces):
    photo, mesh = faces[0]
    truth = torch.tensor([0.69, 0.19, 0.31])
    seen = render_makeup(photo, mesh, [{"shape": FULL[0], "color": truth}])
    color = torch.full((3,), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([color], lr=0.05)
    for _ in range(80):
        loss = (render_makeup(photo, mesh, [{"shape": FULL[0], "color": color}]) - seen).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (color.detach() - truth).abs().max() < 0.01


def test_shapes_differ_from_each_other(faces):
    photo, mesh = faces[0]
    for region in ("lips", "blush", "eyeshadow"):
        assert all(draw(SHAPES[name], mesh, 256).max() > 0.6 for name in shapes_of(region))
        pictures = [render_makeup(photo, mesh, [{"shape": name, "color": "#802040"}]) for name in shapes_of(region)]
        for i, one in enumerate(pictures):
            for other in pictures[:i]:
                assert (one - other).abs().sum() > 0.1 * (one - photo).abs().sum(), region


def test_split_parts_the_region(faces):
    _, mesh = faces[0]
    shape = SHAPES["EYESHADOW_OVEREYE_FULL_BASIC"]

    def area(split: int) -> float:
        return float(draw_shape(shape, mesh, 256, 256, sigma=40, split=split).mask.sum())

    assert area(60) < area(120) < area(200) < area(0)
    lips = SHAPES["LIP_FULL_BASIC"]
    drawn = draw_shape(lips, mesh, 256, 256, sigma=40, split=100)
    near_parting, near_rim = (mesh[point].round().long() - torch.tensor([drawn.left, drawn.top]) for point in (15, 17))
    assert drawn.mask[near_parting[1], near_parting[0]] > 0.6 > 0.1 > drawn.mask[near_rim[1] - 1, near_rim[0]]


def test_sigma_softens_the_edge(faces):
    _, mesh = faces[0]
    shape = SHAPES["BLUSHER_CENTER_WIDE_BASIC"]
    soft, hard = (draw_shape(shape, mesh, 256, 256, sigma=sigma, split=0).mask for sigma in (220, 20))
    assert (soft > 0).sum() > 1.5 * (hard > 0).sum() and soft.max() < hard.max()


def test_gloss_brightens_and_grains_stick_to_the_face(faces):
    photo, mesh = faces[0]
    for name in ("LIP_FULL_BASIC", "EYESHADOW_OVEREYE_FULL_BASIC"):
        matt, glossy = (render_makeup(photo, mesh, [{"shape": name, "color": "#501030", "gamma": gamma}]) for gamma in (0, 255))
        assert (glossy - matt).min() > -0.02 and (glossy - matt).max() > 0.2
    moved = torch.roll(photo, (3, 4), (1, 2))
    look = [{"shape": "EYESHADOW_OVEREYE_FULL_BASIC", "color": "#501030", "gamma": 255}]
    one, other = render_makeup(photo, mesh, look), render_makeup(moved, mesh + torch.tensor([4.0, 3.0]), look)
    torch.testing.assert_close(torch.roll(one, (3, 4), (1, 2))[:, 8:-8, 8:-8], other[:, 8:-8, 8:-8], atol=0.02, rtol=0)


def test_faces_beyond_the_picture_and_tiny_ones(faces):
    photo, mesh = faces[0]
    look = [{"shape": name, "color": "#B03050"} for name in SHAPES]
    assert torch.equal(render_makeup(photo, mesh + 1000, look), photo)
    half = render_makeup(photo[:, :170, :128].contiguous(), mesh, look)
    whole = render_makeup(photo, mesh, look)
    assert (half != photo[:, :170, :128]).any() and half.shape == (3, 170, 128) and whole.isfinite().all()
    small = torch.nn.functional.interpolate(photo[None], (24, 24), mode="area")[0]
    assert render_makeup(small, mesh * 24 / 256, look).isfinite().all()
    black = torch.zeros_like(photo)
    assert render_makeup(black, mesh, look).isfinite().all()


def test_three_coordinates_are_as_good_as_two(faces):
    photo, mesh = faces[0]
    look = [{"shape": FULL[0], "color": "#B03050"}]
    deep = torch.cat([mesh, torch.ones(468, 1)], 1)
    assert torch.equal(render_makeup(photo, deep, look), render_makeup(photo, mesh, look))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"shape": "LIP_FUL_BASIC", "color": "#B03050"}, ["LIP_FUL_BASIC", "did you mean 'LIP_FULL_BASIC'"]),
        ({"color": "#B03050"}, ["None"]),
        ({"shape": FULL[0], "color": "red"}, ["'red'", "#RRGGBB"]),
        ({"shape": FULL[0]}, ["None", "#RRGGBB"]),
        ({"shape": FULL[0], "color": "#B03050", "alpha": 256}, ["alpha 256", "0 to 255"]),
        ({"shape": FULL[0], "color": "#B03050", "sigma": 0.5}, ["sigma 0.5"]),
        ({"shape": ["LIP_FULL_BASIC"], "color": "#B03050"}, ["shape", "no such shape"]),
    ],
)
def test_mistakes_are_named(faces, item, words):
    with pytest.raises(DataError) as caught:
        render_makeup(*faces[0], [{"shape": FULL[1], "color": "#000000"}, item])
    assert all(word in str(caught.value) for word in words)


def test_outlines_are_smooth_in_large_pictures_and_pass_through_the_mesh(faces):
    _, mesh = faces[0]
    corners = mesh[list(LIPS_OUTER)]
    assert torch.equal(smooth_outline(corners, 40.0), corners)
    fine = smooth_outline(corners, 240.0)
    assert len(fine) == 4 * len(corners)
    torch.testing.assert_close(fine[::4], corners)


def test_the_unit_survives_a_turned_head(faces):
    _, mesh = faces[0]
    middle = mesh.mean(0)
    turned = (mesh - middle) * torch.tensor([0.6, 1.0]) + middle
    assert face_scale(turned) > 0.9 * face_scale(mesh)


def test_the_prompt_names_every_shape_of_the_renderer():
    """A model is paid for the right name: it must have read it."""
    assert tuple(SHAPES) == makeup_prompts.SHAPES
    assert all(name in makeup_prompts.MAKEUP for name in SHAPES)
