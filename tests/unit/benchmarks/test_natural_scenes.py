"""NIQE, BRISQUE, PIQE, PSNR and SSIM against pyiqa's implementations, with the same parameters."""

import math

import pytest
import scipy.io
import torch

from benchmarks.metric import Pictures
from benchmarks.metrics import brisque, fidelity, niqe, piqe
from benchmarks.nets.natural_scenes import luma
from benchmarks.nets.pyiqa_nets import quiet
from portraitkit.errors import WeightsError

NAMES = ("clean", "noisy", "blurred", "odd")


@pytest.fixture(scope="module")
def archs():
    with quiet():
        pytest.importorskip("pyiqa", exc_type=ImportError)
        import pyiqa.archs

    return pyiqa.archs


@pytest.mark.parametrize("name", NAMES)
def test_niqe_is_pyiqas(archs, pictures, name, tmp_path):
    from pyiqa.archs.niqe_arch import NIQE

    mean, covariance = niqe.read_parameters()
    path = tmp_path / "niqe_modelparameters.mat"
    scipy.io.savemat(path, {"mu_prisparam": mean[None].numpy(), "cov_prisparam": covariance.numpy()})
    theirs = NIQE(pretrained_model_path=str(path))(pictures[name])
    assert niqe.open_niqe({})(Pictures(pictures[name])) == pytest.approx(theirs.item(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_brisque_is_pyiqas_on_the_same_luminance(archs, pictures, name, monkeypatch):
    """In float64: a few pixels' luminance rounds otherwise in float32, and the machine makes hundredths of the score of that."""
    from pyiqa.archs import brisque_arch

    machine = brisque.read_machine(brisque.BUNDLED, brisque.RANGES)
    batch = Pictures(pictures[name])
    monkeypatch.setattr(brisque_arch, "to_y_channel", lambda *_: luma(batch).double()[:, None])
    theirs = brisque_arch.brisque(
        pictures[name].double(), sv_coef=machine.coefficients, sv=machine.vectors, gamma=machine.gamma, rho=machine.rho
    )
    assert brisque.METRIC.open({})(batch).item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.fixture(scope="module")
def machine_file(tmp_path_factory):
    """The bundled machine in the layout of pyiqa's file."""
    machine = brisque.read_machine(brisque.BUNDLED, brisque.RANGES)
    path = tmp_path_factory.mktemp("weights") / brisque.OFFICIAL
    torch.save((machine.coefficients.float()[:, None], machine.vectors.float()), path)
    return path


def test_with_pyiqas_weights_brisque_is_pyiqas(archs, pictures, machine_file, one_thread):
    """pyiqa as it is called, picture by picture on one core; other pictures in the batch change nothing."""
    from pyiqa.archs.brisque_arch import BRISQUE

    theirs = BRISQUE(pretrained_model_path=str(machine_file))
    ours = brisque.METRIC.open({brisque.OFFICIAL: machine_file})
    for name in NAMES:
        assert ours(Pictures(pictures[name])).item() == pytest.approx(theirs(pictures[name]).item(), abs=1e-4)
    batch = torch.cat([pictures["noisy"], torch.full_like(pictures["noisy"], 0.5), pictures["clean"]])
    values = ours(Pictures(batch)).tolist()
    assert values[::2] == pytest.approx([theirs(pictures[name]).item() for name in ("noisy", "clean")], abs=1e-4)
    assert math.isnan(values[1]), "a flat picture has no value, and leaves the others theirs"


def test_what_is_not_the_machine_is_refused(tmp_path, archs):
    path = tmp_path / brisque.OFFICIAL
    for write in (lambda: path.write_bytes(b"garbage"), lambda: torch.save({"a": torch.ones(2)}, path), lambda: torch.save([1, 2], path)):
        write()
        with pytest.raises(WeightsError, match="is not BRISQUE's machine"):
            brisque.METRIC.open({brisque.OFFICIAL: path})


@pytest.mark.parametrize("name", NAMES)
def test_piqe_is_pyiqas(archs, pictures, name):
    from pyiqa.archs.piqe_arch import PIQE

    assert piqe.METRIC.open({})(Pictures(pictures[name])).item() == pytest.approx(PIQE()(pictures[name]).item(), abs=1e-4)


@pytest.mark.parametrize("name", ["noisy", "blurred"])
def test_psnr_and_ssim_are_pyiqas(archs, pictures, name):
    from pyiqa.archs.psnr_arch import PSNR
    from pyiqa.archs.ssim_arch import SSIM

    batch = Pictures(pictures[name], reference=pictures["clean"])
    assert fidelity.psnr(batch).item() == pytest.approx(PSNR()(pictures[name], pictures["clean"]).item(), abs=1e-4)
    assert fidelity.ssim(batch).item() == pytest.approx(SSIM(test_y_channel=True)(pictures[name], pictures["clean"]).item(), abs=1e-4)


@pytest.mark.parametrize(("name", "value"), [("clean", 2.869), ("noisy", 50.225), ("blurred", 50.482), ("odd", -3.341)])
def test_brisque_is_that_of_the_authors_machine(pictures, name, value):
    """Figures of pyiqa 0.1.16 with the same machine, in its float32: hundredths off."""
    assert brisque.METRIC.open({})(Pictures(pictures[name])).item() == pytest.approx(value, abs=0.02)


@pytest.mark.parametrize("metric", [niqe.METRIC, brisque.METRIC, piqe.METRIC], ids=lambda metric: metric.name)
def test_a_batch_scores_like_its_pictures(metric, pictures):
    batch = torch.cat([pictures["clean"], pictures["noisy"]])
    score = metric.open({})
    single = torch.cat([score(Pictures(picture[None])) for picture in batch])
    torch.testing.assert_close(score(Pictures(batch)), single, atol=1e-6, rtol=0)


def test_flat_pictures_have_no_value():
    flat = Pictures(torch.full((1, 3, 192, 192), 0.5))
    assert luma(flat).unique().numel() == 1
    assert niqe.open_niqe({})(flat).isnan().all()
    for level in (0.0, 0.25, 0.5, 1.0):
        assert brisque.METRIC.open({})(Pictures(torch.full((1, 3, 64, 64), level))).isnan().all(), level


def test_niqe_orders_what_eyes_order(pictures):
    score = niqe.open_niqe({})
    clean, noisy, blurred = (score(Pictures(pictures[name])).item() for name in ("clean", "noisy", "blurred"))
    assert clean < 5 < min(noisy, blurred)
