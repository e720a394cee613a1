"""`python -m tools.bench.real_skin PHOTOS`: what the embedded retoucher does to photos with nothing painted on.

Nobody retouched these photos, so there is no truth but the photo: spots are those that a detector finds (it takes wrinkles for spots, too),
and all else should stay as it is. A folder as `align-retoucher --photos` takes it; where a person has two photos, the distance between
them should not change either. Means over people, with the untouched photo and the base beside.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from policies.retoucher.backbones.tiny import PROMPT, load_tiny
from policies.retoucher.model.adapter import attach_adapter
from policies.retoucher.model.backbone import sample_ode
from policies.retoucher.photos import TrainingPhotos, open_photos, read_photos
from policies.retoucher.retouch.options import ALIGNED, EMBEDDED_STEPS
from portraitkit.faces.identity import identity_distance, identity_embedding
from portraitkit.pictures.images import ciede2000, luminance, srgb_to_lab
from portraitkit.stats import mean_by, person_interval
from reward_models.filters import blur, mean_over
from reward_models.photos import Photos, detect_blemishes
from reward_models.verifiable import identity_change, lip_change, redness_change

CLEAN = 0.02
"""Opacity below which no spot was found."""


@torch.no_grad()
def figures(pictures: Tensor, photos: Photos) -> dict[str, Tensor]:
    """What became of each photo, one value a photo."""
    untouched = photos.skin * (photos.opacity < CLEAN)
    change = ciede2000(srgb_to_lab(pictures), srgb_to_lab(photos.source))

    def detail(image: Tensor) -> Tensor:
        fine = luminance(image) - blur(luminance(image), 2.0 * image.shape[-1] / 128)
        return mean_over(fine.square(), untouched).sqrt()

    return {
        "spots, % of the skin": 100 * mean_over(detect_blemishes(pictures, photos.skin), photos.skin),
        "dE00 on spots": mean_over(change, photos.skin * photos.opacity),
        "dE00 on other skin": mean_over(change, untouched),
        "fine detail left": detail(pictures) / detail(photos.source),
        "dE00 of lips": lip_change(pictures, photos),
        "dE00 of own redness": redness_change(pictures, photos),
        "identity distance": identity_change(pictures, photos),
    }


def between(pictures: Tensor, photos: Photos, people: list[str]) -> Tensor:
    """Identity distance between the two pictures of each person who has two."""
    found = identity_embedding(pictures, photos.meshes)
    pairs = [[row for row, name in enumerate(people) if name == person] for person in sorted(set(people))]
    return torch.stack([identity_distance(found[pair[0]], found[pair[1]]) for pair in pairs if len(pair) == 2])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.real_skin")
    parser.add_argument("photos", type=Path, help="a folder of portraits")
    parser.add_argument("--split", default="held_out", choices=("train", "validation", "held_out"))
    parser.add_argument("--only", default="", help="photos whose name begins so")
    parser.add_argument("--adapter", default=str(ALIGNED))
    parser.add_argument("--num-steps", type=int, default=EMBEDDED_STEPS)
    asked = parser.parse_args()
    console = Console()
    folder = read_photos(str(asked.photos), None, Console(stderr=True))
    assert folder is not None
    rows = [row for row in folder.rows if row.split == asked.split and Path(folder.name(row)).name.startswith(tuple(asked.only.split(",")))]
    source = open_photos(type(folder)(folder.path, rows, []), 128)
    batch: TrainingPhotos = source.load(asked.split, list(range(len(rows))))
    photos, people = batch.photos, batch.people
    pictures = {"untouched": photos.source}
    for name in ("base", "aligned"):
        backbone = load_tiny(None, None, "cpu")
        if name == "aligned":
            attach_adapter(backbone, asked.adapter)
        noise = backbone.noise(1, torch.Generator().manual_seed(0)).repeat(len(photos), 1, 1)
        pictures[name] = sample_ode(backbone, backbone.condition(photos.source, PROMPT), noise, asked.num_steps, 32).clamp(0, 1)
    table = Table(
        title=f"{len(photos)} photos of {len(set(people))} people, nothing painted on, {asked.num_steps} steps", title_justify="left"
    )
    for column in ("mean over people [95 %]", *pictures):
        table.add_column(column, justify="left" if column not in pictures else "right")
    measured = {name: figures(shown, photos) for name, shown in pictures.items()}
    for measure in measured["untouched"]:
        cells = []
        for values in measured.values():
            by_person = mean_by(values[measure], people)
            low, high = person_interval(values[measure], people)
            cells.append(f"{float(by_person.nanmean()):.3f} [{low:.3f}, {high:.3f}]")
        table.add_row(measure, *cells)
    own = {name: between(shown, photos, people) for name, shown in pictures.items()}
    if len(own["untouched"]):
        cells = [f"{float(values.mean()):.3f}" for values in own.values()]
        table.add_row(f"identity distance between a person's two photos (n = {len(own['untouched'])})", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
