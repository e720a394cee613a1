"""pyiqa's architectures without pyiqa's downloads: built empty, then filled from files that lie here.

pyiqa is the extra `iqa` (non-commercial licence) and is imported when a metric with weights is opened. Its constructors fetch weights of
backbones even where none are asked for; while one runs, those roads lead to random weights instead, which the file read afterwards
replaces completely: every parameter must come from it.
"""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Metric, Pictures, Range, Score, WeightFile
from benchmarks.weight_files import read_state
from portraitkit.errors import DataError, WeightsError, reason_of

IQA_WEIGHTS = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"  # Where pyiqa's weights are published
LICENCE = "pyiqa: PolyForm Noncommercial and NTU S-Lab"
REVISION = "IQA-PyTorch-Weights, main (not pinned)"
AT_ONCE = {"cpu": 2**18, "cuda": 2**22}  # Pixels in one call of a net: as many as stay in a processor's cache, or keep a GPU busy
NO_PYIQA = "needs pyiqa: pip install 'portraitkit[iqa]' (its licence is non-commercial)"


def iqa_file(name: str, mib: float) -> WeightFile:
    """A file of `IQA_WEIGHTS`, whose name may end in the first digits of its sha256."""
    digits = re.search(r"-([0-9a-f]{8})\.\w+$", name)
    return WeightFile(name, f"{IQA_WEIGHTS}/{name}", digits[1] if digits else "", mib, from_name=digits is not None)


def pyiqa_metric(
    name: str, title: str, values: Range, *weights: WeightFile, faster: Callable[[Any], Any] = lambda net: net, **fields: Any
) -> Metric:
    """A metric without a reference that is one of pyiqa's nets, filled from one file; higher is better. `faster` makes of pyiqa's net one
    with the same values in less time; `fields` are further ones of `Metric`, or those that are otherwise than this says.
    """

    def open_net(files: Mapping[str, Path], dtype: str | None = None) -> Score:
        net = empty_net(name)
        fill(net, files[weights[0].name])
        return column(faster(net), dtype=dtype)

    common: dict[str, Any] = {"direction": "higher", "reference": "none", "licence": LICENCE, "revision": REVISION, "smallest": 32}
    common["open"] = open_net
    return Metric(name=name, title=title, range=values, weights=weights, **(common | fields))


def empty_net(name: str, **options: Any) -> torch.nn.Module:
    """The architecture of a metric by pyiqa's name, as pyiqa configures it but for the options given, with random weights.
    WeightsError: pyiqa is not installed."""
    try:
        with quiet():
            import pyiqa  # noqa: F401
            from pyiqa.archs import build_network
            from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError as error:
        raise WeightsError(f"{NO_PYIQA}: {error}") from error
    defaults: dict[str, Any] = dict(DEFAULT_CONFIGS)[name]["metric_opts"]  # pyright: ignore[reportAssignmentType]
    settings = defaults | ({} if "pretrained_model_path" in options else {"pretrained": False}) | options
    if defaults["type"] == "MUSIQ" and defaults.get("pretrained") == "ava":
        settings["num_class"] = 10
    with quiet(), no_downloads(), torch.random.fork_rng(devices=[]):
        return build_network(settings).eval().requires_grad_(False)


def fill(net: torch.nn.Module, path: Path, *, missing: tuple[str, ...] = ()) -> None:
    """Load a file into a net; every parameter and buffer must come from it, but for those whose names begin as in `missing`, and nothing
    may be left over. WeightsError: the file is damaged or of another net; the first name that does not fit is given."""
    try:
        result = net.load_state_dict(read_state(path), strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path}: is of another net ({str(error).splitlines()[-1].strip()}); download the file named") from error
    lacking = [name for name in result.missing_keys if not name.startswith(missing or ("\0",))]
    if lacking or result.unexpected_keys:
        what = f"lacks {lacking[0]}" if lacking else f"has {result.unexpected_keys[0]} too many"
        raise WeightsError(f"{path}: is of another net ({what}); download the file named")


def fill_backbone(net: torch.nn.Module, path: Path) -> None:
    """Load torchvision's AlexNet or VGG-16 into the slices of LPIPS or the stages of DISTS, which keep torchvision's layer numbers.
    WeightsError: the file is damaged or of another net."""
    state = read_state(path)
    for name, parameter in net.named_parameters():
        place = re.fullmatch(r"(?:net\.slice|stage)\d+\.(\d+)\.(weight|bias)", name)
        if place is None:
            continue
        value = state.get(f"features.{place[1]}.{place[2]}")
        if value is None or value.shape != parameter.shape:
            raise WeightsError(f"{path}: is of another net (layer {place[1]}); download the file named")
        parameter.copy_(value)


def inception_net(path: Path) -> torch.nn.Module:
    """The Inception net of FID, filled from a file; WeightsError: pyiqa is not installed, or the file is damaged or of another net."""
    try:
        with quiet():
            from pyiqa.archs import inception
    except ImportError as error:
        raise WeightsError(f"{NO_PYIQA}: {error}") from error
    state = read_state(path)
    try:
        with (
            quiet(),
            patch.object(inception, "load_pretrained_network", lambda net, _: net.load_state_dict(state)),
            torch.random.fork_rng(devices=[]),
        ):
            return inception.InceptionV3().eval().requires_grad_(False)
    except RuntimeError as error:
        raise WeightsError(f"{path}: is of another net ({str(error).splitlines()[-1].strip()}); download the file named") from error


def column(net: torch.nn.Module, *, reference: bool = False, dtype: str | None = None) -> Score:
    """Score a batch by a net that takes pictures, with `reference` beside them their references, and gives one value each; with dtype
    bfloat16 under autocast."""
    net = net.to(memory_format=torch.channels_last)

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        assert pictures.reference is not None or not reference
        beside = [pictures.reference] if reference and pictures.reference is not None else []
        with torch.autocast(pictures.pixels.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            values = _in_parts(net, pictures.pixels, *beside)
        return values.float() if dtype == "bfloat16" else values

    return score


def _in_parts(net: torch.nn.Module, *pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Values of a batch, where its pictures are, `AT_ONCE` at a time; channels last, which convolutions like best.

    pyiqa's nets refuse pictures by assertions and by what torch raises. DataError: the net cannot measure these pictures.
    """
    count, height, width = len(pixels[0]), *pixels[0].shape[-2:]
    device = pixels[0].device
    net, at_once = net.to(device), max(1, AT_ONCE[device.type] // (height * width))
    out = []
    for start in range(0, count, at_once):
        part = [whole[start : start + at_once].contiguous(memory_format=torch.channels_last) for whole in pixels]
        try:
            out.append(net(*part).reshape(len(part[0])))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise DataError(f"pyiqa's net cannot measure it ({reason_of(error)})") from error
    return torch.cat(out)


@contextmanager
def quiet() -> Iterator[None]:
    """pyiqa and its dependencies print and warn about each other."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Not for several threads: functions are replaced for the whole process while a net is being built."""
    import timm
    import torchvision

    def without_weights(build: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            for key in {"pretrained", "weights"} & options.keys():
                options[key] = False if key == "pretrained" else None
            return build(*args, **options)

        return call

    with ExitStack() as stack:
        stack.enter_context(patch.object(timm, "create_model", without_weights(timm.create_model)))
        for name in ("alexnet", "vgg16"):
            stack.enter_context(patch.object(torchvision.models, name, without_weights(getattr(torchvision.models, name))))
        yield
