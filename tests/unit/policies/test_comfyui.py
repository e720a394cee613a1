"""The ComfyUI nodes, loaded and called as ComfyUI does: its validator's and its executor's rules, batches, inference mode."""

import inspect
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from policies.retoucher.retouch import command
from policies.retoucher.retouch.options import RetouchConfig
from portraitkit.errors import FaceError, ImageError, WeightsError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import read_image, resize, write_image

FOLDER = Path(__file__).parents[3] / "integrations/comfyui"
TYPES = {"IMAGE", "STRING", "FLOAT", "BOOLEAN"}


@pytest.fixture(scope="module")
def pack():
    """As `nodes.load_custom_node` of ComfyUI imports a folder of `custom_nodes`."""
    spec = spec_from_file_location("custom_nodes_portraitkit", FOLDER / "__init__.py")
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photo():
    return bundled_portraits()["astronaut"][:, 20:276, 100:356]


def execute(node, **inputs):
    """As ComfyUI's executor: defaults for what is left out, in inference mode; ours wants no such tensors to leave."""
    known = {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}
    with torch.inference_mode():
        return getattr(node, node.FUNCTION)(**{name: spec[1]["default"] for name, spec in known.items() if len(spec) > 1} | inputs)


def image(*pixels):
    return torch.stack(pixels).movedim(1, -1)


def test_the_contract(pack):
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    for node in pack.NODE_CLASS_MAPPINGS.values():
        groups = node.INPUT_TYPES()
        assert set(groups) <= {"required", "optional"} and node.CATEGORY == "portraitkit"
        takes = inspect.signature(getattr(node, node.FUNCTION)).parameters
        for name, (kind, *options) in ((name, spec) for group in groups.values() for name, spec in group.items()):
            assert name in takes or any(one.kind is one.VAR_KEYWORD for one in takes.values()), name
            assert isinstance(kind, list) or kind in TYPES
            assert kind == "IMAGE" or (options[0]["default"] in kind if isinstance(kind, list) else options[0]["tooltip"])
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and set(node.RETURN_TYPES) <= TYPES


def test_faces_come_out_as_the_commands_do(pack, photo, tmp_path, monkeypatch):
    """A batch of RGBA, of which one picture shows nobody; a second look asks the retoucher no more."""
    analyse = command.analyser(RetouchConfig.of(serve=True))
    monkeypatch.setattr(command, "analyser", lambda _: analyse)  # its weights are loaded once
    write_image(tmp_path / "a.png", photo)
    assert command.retouch_main([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    expected = read_image(tmp_path / "b.png").pixels
    node, batch = pack.RetouchFaces(), image(photo, torch.full_like(photo, 0.5))
    batch = torch.cat([batch, torch.rand(2, 256, 256, 1)], -1)
    out, left = execute(node, image=batch)
    assert out.shape == batch.shape and not out.is_inference() and torch.equal(out[..., 3], batch[..., 3])
    assert (out[0, ..., :3].movedim(-1, 0) - expected).abs().max() <= 0.51 / 255 and torch.equal(out[1], batch[1])
    assert left.startswith("picture 2: no face found")
    seen = node.seen[2]
    assert torch.equal(execute(node, image=batch, strength=0.0)[0], batch) and node.seen[2] is seen
    with pytest.raises(WeightsError, match="no LoRA there"):
        execute(node, image=batch, adapter="nowhere")


def test_an_edit_at_half_the_size_leaves_the_pores(pack, photo):
    """What is pasted back is the editor's warmer face; its loss of detail is no change of its, and its new background stays out."""
    edited = resize(photo, (128, 128)) + torch.tensor([0.06, 0.0, -0.04]).view(3, 1, 1)
    edited[:, :10] = 0
    out, left = execute(pack.PasteFacesBack(), photo=image(photo), edited=image(edited.clamp(0, 1)))
    report, texture, identity, change = execute(pack.FaceGauge(), before=image(photo), after=out)
    assert left == "" and torch.equal(out[0, :10], image(photo)[0, :10])
    assert 0.97 < texture < 1.03 and identity < 0.2 and 2 < change < 8
    assert report == f"face 1: texture ratio {texture:.3f}, identity distance {identity:.3f}, mean change {change:.2f} dE00"
    blurred = image(resize(resize(photo, (64, 64)), (256, 256)))
    assert execute(pack.FaceGauge(), before=image(photo), after=blurred)[1] < 0.3


def test_what_does_not_belong_together(pack, photo):
    one = image(photo)
    with pytest.raises(ImageError, match="256x256 and 128x128 px: before and after must be of one size"):
        execute(pack.FaceGauge(), before=one, after=image(resize(photo, (128, 128))))
    with pytest.raises(ImageError, match="both must show the same frame"):
        execute(pack.PasteFacesBack(), photo=one, edited=one[:, :, :200])
    with pytest.raises(ImageError, match="1 and 2 pictures"):
        execute(pack.FaceGauge(), before=one, after=torch.cat([one, one]))
    with pytest.raises(FaceError, match="nothing to measure on: picture 1: no face found"):
        execute(pack.FaceGauge(), before=one[:, :64, :64] * 0, after=one[:, :64, :64])
