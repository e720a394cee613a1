"""`python -m tools.bench.retouch_table PHOTOS`: `retouch-portrait` beside what people do without it, on held-out people.

A folder with `metadata.jsonl` (`file_name`, `identity`, `split`). Blemishes are painted onto held-out photos (`--painted`), others stay as
they are (`--plain`, files whose name holds `--plain-in`); both at 128 px a face, the policy's size, and at 512, about that of a 1000 px
portrait. All methods change open skin alone, by the same mask, and the settings of the classical ones are chosen on validation people by
the mean product of the verifiable rewards. Means over people with 95 % intervals.
"""

import argparse
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import convolve1d
from skimage.filters import gaussian
from torch import Tensor

from policies.retoucher.backbones.tiny import PROMPT, load_tiny
from policies.retoucher.model.adapter import attach_adapter
from policies.retoucher.retouch.controls import open_skin
from policies.retoucher.retouch.faces import Faces, apply_controls, take_apart
from policies.retoucher.retouch.options import ALIGNED, EMBEDDED_STEPS, Controls
from portraitkit.errors import FaceError
from portraitkit.faces.align import align_face
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, read_image, srgb_to_lab
from portraitkit.stats import mean_by, person_interval
from preference_data.pair_set import list_photos
from preference_data.people.photos import find_face
from preference_data.people.synthetic import paint_blemishes
from reward_models.filters import blur, fine_energy, mean_over
from reward_models.photos import Photos
from reward_models.reward_set import build_rewards
from reward_models.verifiable import blemish_residual, identity_change

SIZES = (128, 512)
SPLINE = np.array([1, 4, 6, 4, 1]) / 16
DIMENSIONS = ("blemish_removal", "texture", "skin_tone", "identity", "clarity", "own_color")
Method = Callable[[Tensor, Tensor], Tensor]


def smoothed(pixels: Tensor, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels of a crop of 128."""
    return gaussian(pixels.permute(1, 2, 0).numpy(), sigma * pixels.shape[-1] / 128, channel_axis=-1)


def bilateral(pixels: Tensor, sigma: float, colour: float) -> np.ndarray:
    """Tomasi and Manduchi's filter; the first sigma in pixels of a crop of 128, the second in [0, 1]."""
    picture = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return cv2.bilateralFilter(picture, -1, colour, sigma * pixels.shape[-1] / 128, borderType=cv2.BORDER_REFLECT)


def frequency_separation(pixels: Tensor, first: int, last: int, kept: float) -> np.ndarray:
    """Wavelet decompose (a trous, B3 spline), the scales from 2^first to 2^last pixels of a crop of 128 reduced to the share `kept`."""
    rest, out = pixels.permute(1, 2, 0).numpy(), 0.0
    shift = round(np.log2(pixels.shape[-1] / 128))
    for scale in range(last + shift + 1):
        kernel = np.zeros(4 * 2**scale + 1)
        kernel[:: 2**scale] = SPLINE
        broader = convolve1d(convolve1d(rest, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
        out = out + (rest - broader) * (kept if scale >= first + shift else 1.0)
        rest = broader
    return out + rest


CLASSICAL: dict[str, dict[str, Callable[[Tensor], np.ndarray]]] = {
    "Gaussian": {f"sigma {s:g}": lambda pixels, s=s: smoothed(pixels, s) for s in (0.5, 1, 2, 3)},
    "bilateral": {
        f"sigma {s:g}, {c:g}": lambda pixels, s=s, c=c: bilateral(pixels, s, c) for s in (2, 4, 6) for c in (0.05, 0.1, 0.2, 0.4)
    },
    "frequency separation": {
        f"scales {a} to {b} at {k:g}": lambda pixels, a=a, b=b, k=k: frequency_separation(pixels, a, b, k)
        for a, b in ((0, 2), (1, 2), (1, 3))
        for k in (0.0, 0.5)
    },
}


def on_skin(change: Callable[[Tensor], np.ndarray]) -> Method:
    """A filter by the same mask as ours has."""

    def run(pixels: Tensor, mesh: Tensor) -> Tensor:
        changed = torch.from_numpy(np.asarray(change(pixels), np.float32)).permute(2, 0, 1)
        return (pixels + open_skin(srgb_to_lab(pixels), mesh) * (changed - pixels)).clamp(0, 1)

    return run


def ours(adapter: Path | None, controls: Controls) -> Method:
    """`retouch-portrait`."""
    backbone = load_tiny(None, None, "cpu")
    if adapter is not None:
        attach_adapter(backbone, adapter)

    def run(pixels: Tensor, mesh: Tensor) -> Tensor:
        plans = take_apart(pixels, Faces([mesh], ()), backbone, prompt=PROMPT, num_steps=EMBEDDED_STEPS, seed=0)
        return apply_controls(pixels, plans, controls).pixels

    return run


def photo_of(pixels: Tensor, mesh: Tensor, name: str, *, painted: bool) -> tuple[Photos, Tensor]:
    """A face crop as rewards take it, with or without blemishes painted on, and its mesh in pixels of the crop."""
    size, clean, opacity = pixels.shape[-1], None, torch.zeros_like(pixels[:1])
    if painted:
        skin = region_masks(mesh, size, size, only=("skin",))["skin"]
        clean = pixels
        pixels, opacity = paint_blemishes(clean, skin, torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return Photos.build(pixels[None], mesh[None], opacity=opacity[None], clean=None if clean is None else clean[None]), mesh


def figures(photos: Photos, mesh: Tensor, after: Tensor) -> dict[str, float]:
    """What a method did to a photo."""
    source, unit = photos.source[0], after.shape[-1] / 128
    before, now = srgb_to_lab(photos.source), srgb_to_lab(after[None])
    skin = open_skin(before[0], mesh)[None]
    away = skin * (blur((photos.opacity > 0.05).to(skin), 1.5 * unit) < 0.02)
    moved = ciede2000(before, now)
    return {
        "blemish error left": float(blemish_residual(after[None], photos)),  # NaN where none was painted
        "fine texture left": float(fine_energy(after[None], away, unit) / fine_energy(source[None], away, unit)),
        "identity distance": float(identity_change(after[None], photos)),
        "dE00 on skin": float(mean_over(moved, away)),
        "dE00 elsewhere": float(mean_over(moved, 1 - skin)),
    }


def choose(cases: list[tuple[Photos, Tensor]]) -> dict[str, tuple[str, Method]]:
    """The setting of each classical method with the largest mean reward."""
    rewards, chosen = build_rewards(DIMENSIONS, (), "product"), {}
    for name, settings in CLASSICAL.items():
        scores = {}
        for setting, change in settings.items():
            run = on_skin(change)
            scores[setting] = np.mean(
                [float(rewards.combined(rewards.parts(run(photos.source[0], mesh)[None], photos))) for photos, mesh in cases]
            )
        best = max(scores, key=lambda setting: scores[setting])
        print(name, {key: round(float(value), 3) for key, value in scores.items()})
        chosen[name] = best, on_skin(settings[best])
    return chosen


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.retouch_table")
    parser.add_argument("photos", type=Path, help="a folder of portraits with metadata.jsonl")
    parser.add_argument("--painted", type=int, default=40, help="held-out people with painted blemishes")
    parser.add_argument("--plain", type=int, default=30, help="held-out people without")
    parser.add_argument("--plain-in", default="london", help="part of the names of the files without paint")
    parser.add_argument("--validation", type=int, default=12, help="validation people that settings are chosen on")
    parser.add_argument("--minutes", type=float, default=60, help="no new photo is begun after these")
    asked = parser.parse_args()
    end = time.monotonic() + 60 * asked.minutes
    rows = [row for row in list_photos(asked.photos).rows if "smiling" not in row["file_name"]]
    rows.sort(key=lambda row: zlib.crc32(row["file_name"].encode()))

    def people(split: str, count: int, part: str = "") -> list[str]:
        first = {row["identity"]: row["file_name"] for row in reversed(rows) if row["split"] == split and part in row["file_name"]}
        return [row["file_name"] for row in rows if first.get(row["identity"]) == row["file_name"]][:count]

    @torch.no_grad()
    def cases(name: str, *, painted: bool) -> list[tuple[Photos, Tensor]]:
        pixels = read_image(asked.photos / name).pixels
        mesh = find_face(pixels, Path(name)).mesh
        crops = [align_face(pixels, mesh, size) for size in SIZES]
        return [photo_of(crop.pixels, crop.to_crop(mesh), name, painted=painted) for crop in crops]

    with torch.no_grad():
        known = [cases(name, painted=True)[0] for name in people("validation", asked.validation)]
        methods: dict[str, Method] = {"untouched": lambda pixels, mesh: pixels}
        methods |= {f"{name}, {setting}": run for name, (setting, run) in choose(known).items()}
        methods |= {"retouch-portrait, base": ours(None, Controls()), "retouch-portrait, aligned": ours(ALIGNED, Controls())}
        methods["retouch-portrait, aligned, --moles remove"] = ours(ALIGNED, Controls(moles="remove"))
        found: dict[tuple[bool, int, str], list[dict[str, float]]] = defaultdict(list)
        painted = [(name, True) for name in people("held_out", asked.painted)]
        plain = [(name, False) for name in people("held_out", asked.plain, asked.plain_in)]
        for both in zip(painted + [None] * (len(plain) - len(painted)), plain + [None] * (len(painted) - len(plain)), strict=True):
            for name, paint in filter(None, both):
                if time.monotonic() > end:
                    continue
                try:
                    made = cases(name, painted=paint)
                except FaceError as error:
                    print(error)
                    continue
                for size, (photos, mesh) in zip(SIZES, made, strict=True):
                    for method, run in methods.items():
                        start = time.process_time()
                        after = run(photos.source[0], mesh)
                        seconds = time.process_time() - start
                        found[paint, size, method].append(figures(photos, mesh, after) | {"seconds": seconds})
    for paint in (True, False):
        for size in SIZES:
            count = len(found[paint, size, "untouched"])
            table = Table(title=f"{count} held-out people, {'painted blemishes' if paint else 'nothing painted'}, {size} px a face")
            table.add_column("mean [95 %]")
            for method in methods:
                measured = found[paint, size, method]
                cells = []
                for measure in measured[0] if measured else ():
                    values = torch.tensor([one[measure] for one in measured])
                    low, high = person_interval(values, range(count))
                    cells.append(f"{float(mean_by(values, range(count)).nanmean()):.3f} [{low:.3f}, {high:.3f}]")
                    if method == "untouched":
                        table.add_column(measure, justify="right")
                table.add_row(method, *cells)
            Console(width=220).print(table)


if __name__ == "__main__":
    main()
