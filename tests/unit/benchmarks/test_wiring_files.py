"""ArcFace, NRQM, LAION aesthetics and the net of FID and KID: files of random weights, and what insightface and pyiqa make of the same."""

import warnings
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import scipy.io
import torch
from pyiqa_weights import save, vit_clip, write_forests, write_inception
from torch import Tensor

from benchmarks.metric import Pictures
from benchmarks.metrics import distribution, identity, laion_aes, quality_nets
from benchmarks.nets.pyiqa_nets import quiet
from portraitkit.errors import WeightsError
from portraitkit.faces.arcface import CHIP, arcface_chips, open_arcface
from portraitkit.faces.mesh import require_mesh
from portraitkit.pictures.images import write_image


@pytest.fixture
def batch(portrait) -> Tensor:
    return torch.cat([portrait[..., 20:276, 100:356], portrait[..., 100:356, 200:456].flip(-1)]).contiguous()


# ---- ArcFace


@pytest.fixture
def recognition_net(tmp_path):
    """An ONNX file with ArcFace's inputs and outputs: three convolutions with PReLU, a linear layer to 512, normalisation inside."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, make = onnx.helper, onnx.numpy_helper.from_array
    generator = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "input.1", 3
    for number, width in enumerate((8, 16, 32)):
        kernel = generator.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        weights += [make(kernel.astype(np.float32), f"k{number}"), make(np.full((width, 1, 1), 0.25, np.float32), f"a{number}")]
        nodes.append(helper.make_node("Conv", [name, f"k{number}"], [f"c{number}"], pads=[1, 1, 1, 1], strides=[2, 2]))
        nodes.append(helper.make_node("PRelu", [f"c{number}", f"a{number}"], [f"p{number}"]))
        name, channels = f"p{number}", width
    weights.append(make(generator.standard_normal((32 * 14 * 14, 512)).astype(np.float32) / 80, "w"))
    nodes += [helper.make_node("Flatten", [name], ["flat"], axis=1), helper.make_node("MatMul", ["flat", "w"], ["683"])]
    tensors = [helper.make_tensor_value_info(*entry) for entry in (("input.1", 1, [None, 3, CHIP, CHIP]), ("683", 1, [None, 512]))]
    graph = helper.make_graph(nodes, "net", tensors[:1], tensors[1:], weights)
    path = tmp_path / identity.NET
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def insightface(recognition_net):
    """insightface's own class on the same file."""
    with quiet():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("insightface.model_zoo.arcface_onnx", exc_type=ImportError)
        net = module.ArcFaceONNX(str(recognition_net))
    net.prepare(-1)
    return net


def bgr(chip: Tensor) -> np.ndarray:
    return (chip * 255).round().byte().permute(1, 2, 0).flip(-1).contiguous().numpy()


def test_arcface_embeds_a_chip_as_insightface_does(recognition_net, insightface, portrait):
    _, mesh = require_mesh(portrait[0])
    chip = (arcface_chips(portrait, mesh[None]) * 255).round() / 255
    with patch("portraitkit.faces.arcface.arcface_chips", return_value=chip):
        ours = open_arcface(recognition_net).embedding(portrait, mesh[None])[0]
    theirs = torch.from_numpy(insightface.get_feat(bgr(chip[0]))[0])
    torch.testing.assert_close(ours, theirs / theirs.norm(), atol=1e-5, rtol=0)


def test_arcface_cuts_the_chip_that_insightface_cuts(insightface, portrait):
    from insightface.utils.face_align import norm_crop

    from portraitkit.faces.arcface import MOUTH_LEFT, MOUTH_RIGHT, NOSE_TIP
    from portraitkit.faces.regions import LEFT_EYE, RIGHT_EYE

    _, mesh = require_mesh(portrait[0])
    points = torch.stack([*(mesh[list(eye), :2].mean(0) for eye in (RIGHT_EYE, LEFT_EYE)), *mesh[[NOSE_TIP, MOUTH_RIGHT, MOUTH_LEFT], :2]])
    with quiet():  # its points are pixel centres at whole numbers, ours at halves
        theirs = norm_crop(bgr(portrait[0]), points.numpy() - 0.5, CHIP).astype(np.float32)
    assert np.abs(theirs - bgr(arcface_chips(portrait, mesh[None])[0])).mean() < 1


def test_the_metric_is_the_cosine_of_the_embeddings(recognition_net, portrait):
    noisy = (portrait + 0.1 * torch.randn(portrait.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    score = identity.ARCFACE.open({identity.NET: recognition_net})
    values = score(Pictures(torch.cat([portrait, noisy]), source=torch.cat([portrait, portrait]), sources=("a", "a")))
    assert values[0].item() == pytest.approx(1, abs=1e-5) and -1 < values[1].item() < 0.999


# ---- NRQM


def test_nrqm_is_pyiqas(tmp_path, batch):
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
        from pyiqa.archs.nrqm_arch import NRQM

    batch = batch[..., 80:176, 80:176].contiguous()
    path = tmp_path / quality_nets.NRQM_FILE
    write_forests(path)
    with quiet():
        net = NRQM(pretrained_model_path=str(path))
        expected = torch.stack([net(batch[row : row + 1]) for row in range(len(batch))])
        values = quality_nets.NRQM.open({quality_nets.NRQM_FILE: path})(Pictures(batch))
    assert expected[0] != expected[1]
    torch.testing.assert_close(values.double(), expected.double(), atol=1e-5, rtol=0)


def test_a_damaged_nrqm_is_refused_in_one_line(tmp_path):
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
    path = tmp_path / quality_nets.NRQM_FILE
    write_forests(path)
    whole = path.read_bytes()
    scipy.io.savemat(path, {"other": np.ones(3)})
    other = path.read_bytes()
    scipy.io.savemat(path, {"model": np.ones(100)}, do_compression=True)
    packed = bytearray(path.read_bytes())
    packed[160:170] = b"0123456789"
    generator = np.random.default_rng(0)
    noise, cut = [generator.bytes(300), generator.bytes(5000)], [whole[:100], whole[:200], whole[:3000]]
    for content in (b"", b"garbage", *noise, *cut, other, bytes(packed)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is not NRQM's model .*; download it again") as refused:
            quality_nets.NRQM.open({quality_nets.NRQM_FILE: path})
        assert "\n" not in str(refused.value)


# ---- LAION aesthetics


@pytest.mark.parametrize(("height", "width"), [(224, 224), (301, 418), (417, 260)])
def test_laion_aes_is_pyiqas(tmp_path, portrait, height, width):
    """CLIP's classes with fewer and thinner layers. The picture keeps away from black and white: pyiqa does not clip what bicubic
    interpolation throws beyond them, as CLIP's own preprocessing does."""
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
        pytest.importorskip("clip.model", exc_type=ImportError)
        from pyiqa.archs import laion_aes_arch

    clip = vit_clip()
    with patch.object(laion_aes_arch.clip, "load", lambda name: (clip, None)):
        net = laion_aes_arch.LAIONAes(pretrained=False).eval()
    for name, value in net.mlp.named_parameters():
        if name.endswith("weight"):
            value.data *= 2  # or all pictures would score alike
    files = {name: save(tmp_path / name, part.state_dict()) for name, part in ((laion_aes.CLIP, clip), (laion_aes.HEAD, net.mlp))}
    pixels = 0.3 + 0.4 * portrait[..., 20 : 20 + height, 60 : 60 + width]
    with torch.inference_mode():
        expected = net(pixels).flatten()
        value = laion_aes.METRIC.open(files)(Pictures(pixels))
        other = net(pixels.flip(-2)).flatten()
    assert abs(expected - other) > 1e-4
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


# ---- FID and KID


def test_features_and_distances_are_pyiqas(tmp_path, portrait):
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
        from pyiqa.archs import fid_arch

    theirs = write_inception(tmp_path / "net.pth")
    folders, pictures = [], []
    for number in range(2):
        folder = tmp_path / f"set{number}"
        folder.mkdir()
        crops = [portrait[..., 20 + 9 * k : 320 + 9 * k, 60 + 40 * number : 341 + 40 * number] for k in range(3)]
        for k, crop in enumerate(crops):
            write_image(folder / f"{k}.png", crop[0])
        folders.append(folder)
        pictures.append(Pictures(torch.cat(crops)))
    with quiet():
        expected = [
            fid_arch.get_folder_features(str(folder), theirs, num_workers=0, device=torch.device("cpu"), verbose=False)
            for folder in folders
        ]
    score = distribution.FID.open({distribution.FILE: tmp_path / "net.pth"})
    with torch.inference_mode():
        ours = [score(part) for part in pictures]
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, torch.from_numpy(other), atol=1e-5, rtol=1e-5)
    kid = fid_arch.mmd_polynomial_kernel(*expected, num_subsets=1)
    assert distribution.kernel_distance(*ours) == pytest.approx(kid, rel=1e-4, abs=1e-6)
    # on features of which there are more than dimensions, as scipy's matrix root needs
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((40, 6)), generator.standard_normal((30, 6)) * 1.5 + 0.3
    moments = SimpleNamespace(a=(a.mean(0), np.cov(a.T)), b=(b.mean(0), np.cov(b.T)))
    with quiet():
        fid = fid_arch.frechet_distance(*moments.a, *moments.b)
    assert distribution.frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(fid, abs=1e-5)
