"""`python -m tools.bench.retouch_controls PHOTOS`: what each control of `retouch-portrait` does to photos with nothing painted on.

A folder as `align-retoucher --photos` takes it. The retoucher runs once a photo; every row of the table is another setting of the
controls. Means over people with 95 % intervals, and the largest of all photos where a bound is meant.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from policies.retoucher.backbones.tiny import PROMPT, load_tiny
from policies.retoucher.model.adapter import attach_adapter
from policies.retoucher.photos import read_photos
from policies.retoucher.retouch.controls import combine, open_skin
from policies.retoucher.retouch.faces import FacePlan, Faces, apply_controls, take_apart
from policies.retoucher.retouch.options import ALIGNED, EMBEDDED_STEPS, Controls
from portraitkit.faces.identity import identity_embedding
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, luminance, read_image, srgb_to_lab
from portraitkit.stats import mean_by, person_interval
from reward_models.filters import blur, mean_over

NOTHING = {"blemishes": 0.0, "tone": 0.0, "texture": 0.0}
SETTINGS = {
    "defaults": Controls(),
    "--blemishes 1": Controls(**NOTHING | {"blemishes": 1.0}),
    "--blemishes 1 --moles remove": Controls(**NOTHING | {"blemishes": 1.0}, moles="remove"),
    **{f"--tone {share:g}": Controls(**NOTHING | {"tone": share}) for share in (0.4, 1.0)},
    **{f"--texture {share:g}": Controls(**NOTHING | {"texture": share}) for share in (0.3, 1.0)},
    "all of everything": Controls(tone=1.0, texture=1.0, moles="remove"),
}
LARGEST = ("outside the oval, levels",)
"""Measures of which the largest of all photos is shown alone; of the others it stands behind the interval."""


def against_neck(pixels: Tensor, mesh: Tensor, oval: Tensor) -> Tensor:
    """CIELAB of the chin and the lower cheeks less that of the neck under the chin, as far as the photo shows it."""
    eyes, (x, y) = float((mesh[33, :2] - mesh[263, :2]).norm()), mesh[152, :2].tolist()
    rows, columns = torch.arange(pixels.shape[1])[:, None] - y, (torch.arange(pixels.shape[2]) - x).abs()[None]
    neck = (rows > 0.1 * eyes) & (rows < 0.35 * eyes) & (columns < 0.25 * eyes)
    chin = (rows < -0.1 * eyes) & (rows > -0.5 * eyes) & (columns < 0.8 * eyes) & (oval > 0.99)
    lab = srgb_to_lab(pixels)
    return lab[:, chin].mean(1) - lab[:, neck].mean(1)


@torch.no_grad()
def figures(photo: Tensor, plan: FacePlan, oval: Tensor, controls: Controls) -> dict[str, float]:
    """What a setting does to one photo."""
    before, parts = plan.aligned.pixels, plan.parts
    unit, mesh = before.shape[-1] / 128, plan.aligned.to_crop(plan.mesh)
    after, lab = combine(parts, controls, {}), srgb_to_lab(before)
    skin = open_skin(lab, mesh)[None]
    spots = (parts.owner >= 0).to(skin)[None, None]
    away = skin * (blur(spots, unit) < 0.02)
    moved = ciede2000(lab, srgb_to_lab(after))[None]

    def pores(picture: Tensor) -> Tensor:
        fine = luminance(picture[None])
        return mean_over((fine - blur(fine, 0.5 * unit)).square(), away)

    def unevenness(picture: Tensor) -> Tensor:
        light = luminance(picture[None])
        return mean_over((blur(light, 0.5 * unit) - blur(light, 3 * unit)).square(), away)

    whole = apply_controls(photo, [plan], controls).pixels
    one, other = identity_embedding(torch.stack([before, after]), mesh[None])
    shift = (against_neck(whole, plan.mesh, oval).norm() - against_neck(photo, plan.mesh, oval).norm()).abs()
    return {
        "dE00 on spots": float(mean_over(moved, skin * spots)),  # 0 where none was found
        "dE00 on all skin": float(mean_over(moved, skin)),
        "unevenness left": float(unevenness(after) / unevenness(before)),
        "pores left": float(pores(after) / pores(before)),
        "face against neck, dE76": float(shift),
        "identity distance": float((one - other).norm()),
        "outside the oval, levels": float(255 * (whole - photo)[:, oval < 0.5].abs().max()),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.retouch_controls")
    parser.add_argument("photos", type=Path, help="a folder of portraits")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "held_out"))
    parser.add_argument("--limit", type=int, default=None, help="photos")
    asked = parser.parse_args()
    folder = read_photos(str(asked.photos), None, Console(stderr=True))
    assert folder is not None
    rows = [row for row in folder.rows if row.split == asked.split][: asked.limit]
    backbone = load_tiny(None, None, "cpu")
    attach_adapter(backbone, ALIGNED)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    seconds, counts = [], []
    for row in rows:
        assert row.file is not None and row.face is not None
        photo, start = read_image(row.file).pixels, time.process_time()
        (plan,) = take_apart(photo, Faces([row.face.mesh], ()), backbone, prompt=PROMPT, num_steps=EMBEDDED_STEPS, seed=0)
        seconds.append(time.process_time() - start)
        counts.append([sum(spot.kind == kind for spot in plan.parts.spots) for kind in ("blemish", "mole")])
        oval = region_masks(plan.mesh, *photo.shape[1:], only=("face_oval",))["face_oval"][0]
        for name, controls in SETTINGS.items():
            measured[name].append(figures(photo, plan, oval, controls))
    people = [row.identity for row in rows]
    spots = torch.tensor(counts).double().mean(0).tolist()
    title = f"{len(rows)} photos of {len(set(people))} people; {spots[0]:.1f} blemishes and {spots[1]:.1f} moles a photo; "
    table = Table(title=f"{title}{sum(seconds) / len(seconds):.2f} s a face for the pass", title_justify="left")
    table.add_column("mean over people [95 %] largest")
    for measure in measured["defaults"][0]:
        table.add_column(measure, justify="right")
    for name, found in measured.items():
        cells = []
        for measure in found[0]:
            values = torch.tensor([one[measure] for one in found])
            low, high = person_interval(values, people)
            mean = float(mean_by(values, people).nanmean())
            cells.append(
                f"{float(values.max()):.3f}" if measure in LARGEST else f"{mean:.3f} [{low:.3f}, {high:.3f}] {float(values.max()):.3f}"
            )
        table.add_row(name, *cells)
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
