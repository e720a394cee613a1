import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode

from portraitkit.faces.detect import detect_faces
from portraitkit.faces.identity import (
    CHIP,
    PADDING,
    TEMPLATE,
    IdentityNet,
    identity_chips,
    identity_cosine,
    identity_distance,
    identity_embedding,
)
from portraitkit.faces.mesh import face_mesh
from portraitkit.faces.warp import sample, similarity

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())["dlib"]
CHANGES = {
    "mirrored": lambda p: p.flip(2),
    "brighter": lambda p: (p * 1.3).clamp(0, 1),
    "darker": lambda p: p * 0.6,
    "blurred": lambda p: TF.gaussian_blur(p, [7, 7], [1.0, 1.0]),
    "halved": lambda p: F.interpolate(p[None], scale_factor=0.5, mode="bilinear", antialias=True)[0],
    "turned": lambda p: TF.rotate(p, 12, interpolation=InterpolationMode.BILINEAR),
    "noisy": lambda p: (p + 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
}


def _embed(pixels):
    mesh = face_mesh(pixels, detect_faces(pixels)[0])
    return identity_embedding(pixels[None], mesh[None])


@pytest.fixture(scope="module")
def embeddings(portraits):
    return {name: _embed(pixels) for name, pixels in portraits.items()}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_net_gives_dlibs_own_descriptor(portraits, name):
    """The weights are quantised to 8 bits: dlib's descriptors are met to .05, a twelfth of the decision threshold."""
    landmarks = torch.tensor(REFERENCE[name]["points"], dtype=torch.float32)[None] + 0.5
    target = (torch.tensor(list(TEMPLATE.values())) + PADDING) / (1 + 2 * PADDING) * CHIP
    chip = sample(portraits[name][None], similarity(landmarks, target[None]), CHIP, outside="zeros")
    expected = torch.tensor([REFERENCE[name]["descriptor"]])
    assert identity_distance(IdentityNet().eval()(chip), expected).item() < 0.05


@pytest.mark.parametrize("name", REFERENCE)
def test_alignment_by_the_mesh_is_close_to_dlibs(embeddings, name):
    assert identity_distance(embeddings[name], torch.tensor([REFERENCE[name]["descriptor"]])).item() < 0.2


def test_two_people_are_told_apart(embeddings):
    distance = identity_distance(embeddings["astronaut"], embeddings["grace_hopper"]).item()
    assert 0.6 < distance < 0.9
    cosine = identity_cosine(embeddings["astronaut"], embeddings["grace_hopper"]).item()
    assert 0.8 < cosine < 0.93


@pytest.mark.parametrize("change", CHANGES)
def test_one_person_stays_one(portraits, embeddings, change):
    for name, pixels in portraits.items():
        embedding = _embed(CHANGES[change](pixels))
        assert identity_distance(embedding, embeddings[name]).item() < 0.45, name
        assert identity_cosine(embedding, embeddings[name]).item() > 0.95, name


def test_a_batch_equals_its_parts(portraits, meshes, embeddings):
    images = torch.stack([portraits["astronaut"], portraits["grace_hopper"][:, :512]])
    together = identity_embedding(images, torch.stack(list(meshes.values())))
    assert together.shape == (2, 128)
    assert (identity_distance(together, torch.cat(list(embeddings.values()))) < 1e-4).all()


def test_chips_show_the_face_upright(portraits, meshes):
    chips = identity_chips(portraits["astronaut"][None], meshes["astronaut"][None])
    assert chips.shape == (1, 3, 150, 150)
    # Eyes are darker than the bridge of the nose between them.
    row = chips[0].mean(0)[68:74].mean(0)
    assert row[40:60].min() < row[72:78].mean() and row[90:110].min() < row[72:78].mean()


def test_gradient_reaches_the_picture(portraits, meshes, embeddings):
    pixels = portraits["astronaut"][None].clone().requires_grad_()
    embedding = identity_embedding(pixels, meshes["astronaut"][None])
    identity_distance(embedding, embeddings["grace_hopper"]).sum().backward()
    step = pixels.detach() - 0.5 * pixels.grad / pixels.grad.norm()
    closer = identity_embedding(step, meshes["astronaut"][None])
    before = identity_distance(embedding, embeddings["grace_hopper"])
    assert identity_distance(closer, embeddings["grace_hopper"]) < before


def test_loading_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    net = IdentityNet()
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_nan_in_nan_out(portraits, meshes):
    """A collapsed picture is unscorable, not a crash."""
    images = torch.stack([portraits["astronaut"], torch.full_like(portraits["astronaut"], torch.nan)])
    batch = torch.stack([meshes["astronaut"], torch.full_like(meshes["astronaut"], torch.nan)])
    embedding = identity_embedding(images, batch)
    assert embedding[0].isfinite().all() and embedding[1].isnan().all()
