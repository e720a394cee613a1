"""`python -m tools.bench.retouch_large PHOTOS`: `retouch-portrait` on groups of people, 1024 to 4096 pixels a side.

Large portraits that nobody retouched are rare, so groups are laid from portraits of about 1024 px, side by side, not enlarged: the people
of one split whose photos are of the sets named by `--sets`, and as many second photos as the largest group has places left. They lie in a
temporary folder. `--across 0` takes every photo by itself, at its own size. Memory is the peak of the command in a process of its own, for
the first photo; seconds are of the processor.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate, pad

from policies.retoucher.retouch.command import analyser
from policies.retoucher.retouch.controls import open_skin
from policies.retoucher.retouch.faces import FacePlan, Faces, apply_controls, find_faces
from policies.retoucher.retouch.options import RetouchConfig
from portraitkit.config import load_config
from portraitkit.faces.align import align_face
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import ciede2000, read_image, srgb_to_lab, unit, write_image
from portraitkit.stats import mean_by, person_interval
from reward_models.filters import blur, fine_energy, mean_over
from tools.bench.retouch_controls import against_neck

TILE = 1024


def tile(pixels: Tensor) -> Tensor:
    """A portrait on a square of `TILE`: cut about its middle where it is larger, its edge repeated where it is smaller."""
    top, left = (max(length - TILE, 0) // 2 for length in pixels.shape[1:])
    pixels = pixels[:, top : top + TILE, left : left + TILE]
    down, across = (TILE - length for length in pixels.shape[1:])
    return pad(pixels[None], (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")[0]


def group(files: list[Path], across: int) -> Tensor:
    """A photo of `across` x `across` people."""
    tiles = [tile(read_image(file).pixels) for file in files[: across**2]]
    return torch.cat([torch.cat(tiles[row : row + across], 2) for row in range(0, len(tiles), across)], 1)


COMMAND = """
import atexit, sys
from policies.retoucher.main import retouch_portrait
atexit.register(lambda: print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]))
retouch_portrait()
"""


def peak(source: Path, target: Path) -> float:
    """Gigabytes that the command holds at its peak; what `wait4` says would have this process's in it."""
    done = subprocess.run([sys.executable, "-c", COMMAND, str(source), str(target)], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-2]) * 1024 / 1e9


@torch.no_grad()
def figures(before: Tensor, after: Tensor, plan: FacePlan) -> dict[str, float]:
    """What was done to one face, in pixels as the photo has them."""
    side = round(plan.aligned.pixels.shape[-1] / float(plan.aligned.matrix[:, 0].norm()))
    was, now = (align_face(pixels, plan.mesh, side) for pixels in (before, after))
    lab = srgb_to_lab(was.pixels)
    skin = open_skin(lab, was.to_crop(plan.mesh))[None]
    spots = interpolate((plan.parts.owner >= 0).float()[None, None], size=(side, side))
    away = skin * (blur(spots, side / 128) < 0.02)

    def left(sigma: float) -> float:
        one, other = (fine_energy(crop.pixels[None], away, sigma) for crop in (was, now))
        return float(other / one)

    low, high = plan.mesh[:, :2].amin(0).floor().long() - side // 4, plan.mesh[:, :2].amax(0).ceil().long() + side // 2
    (x0, y0), (x1, y1) = low.clamp_min(0).tolist(), high.tolist()
    mesh = plan.mesh - plan.mesh.new_tensor([x0, y0, 0])
    cuts = [unit(pixels[:, y0:y1, x0:x1]) for pixels in (before, after)]
    oval = region_masks(mesh, *cuts[0].shape[1:], only=("face_oval",))["face_oval"][0]
    edges = [against_neck(cut, mesh, oval).norm() for cut in cuts]
    return {
        "face, px": side * 0.7,  # the oval's height; the rest of the crop is its margin
        "pores left": left(side / 256),
        "finest left": left(1.0),
        "dE00 on skin": float(mean_over(ciede2000(lab, srgb_to_lab(now.pixels))[None], skin)),
        "chin and neck, dE76": float((edges[1] - edges[0]).abs()),
    }


def outside(before: Tensor, after: Tensor, plans: list[FacePlan]) -> int:
    """The largest change, in levels of 255, off all faces' ovals."""
    change = (after.short() - before.short()).abs().amax(0)
    for plan in plans:
        (x0, y0), (x1, y1) = plan.mesh[:, :2].amin(0).floor().long().tolist(), plan.mesh[:, :2].amax(0).ceil().long().tolist()
        part = change[y0 : y1 + 1, x0 : x1 + 1]
        part[region_masks(plan.mesh - plan.mesh.new_tensor([x0, y0, 0]), *part.shape, only=("face_oval",))["face_oval"][0] >= 0.5] = 0
    return int(change.max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.retouch_large")
    parser.add_argument("photos", type=Path, help="a folder of portraits with metadata.jsonl, which names split and identity")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "held_out"))
    parser.add_argument("--sets", nargs="+", default=["london", "canada"], help="what the identities start with")
    parser.add_argument("--across", type=int, nargs="+", default=[1, 2, 4], help="people side by side; 0: one, as the photo is")
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the photos before and after, to look at")
    asked = parser.parse_args()
    photos: dict[str, list[Path]] = {}
    for row in map(json.loads, (asked.photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines()):
        if row["split"] == asked.split and row["identity"].split("-")[0] in asked.sets:
            photos.setdefault(row["identity"], []).append(asked.photos / row["file_name"])
    rounds = zip_longest(*photos.values())
    places = [(name, file) for turn in rounds for name, file in zip(photos, turn, strict=True) if file is not None]
    analyse = analyser(load_config(RetouchConfig, ["in.png", "out.png"], prog="retouch-portrait"))
    list(analyse(torch.zeros(3, 16, 16), Faces([], ())))  # loads the weights
    table = Table(title="mean over people [95 %], the worst face")
    with TemporaryDirectory() as folder:
        out = asked.keep or Path(folder)
        out.mkdir(exist_ok=True, parents=True)
        for across in asked.across:
            sources = [out / f"group-{across * TILE}.png"] if across else [file for _, file in places]
            if across:
                write_image(sources[0], group([file for _, file in places], across))
            rows, people, seconds, off, memory = [], [], [0.0, 0.0, 0.0], 0, None
            for source, (name, _) in zip(sources, places, strict=False):
                target = out / f"{source.stem}-retouched.png"
                target.unlink(missing_ok=True)
                memory = memory or peak(source, target)
                before = read_image(source, lean=True).pixels
                clock = time.process_time()
                faces = find_faces(before, max(32, max(before.shape[1:]) // 40))
                found = time.process_time()
                plans = list(analyse(before, faces))
                apart = time.process_time()
                strips = list(apply_controls(before, plans, RetouchConfig(source, target)).strips())
                seconds = [sum(both) for both in zip(seconds, (found - clock, apart - found, time.process_time() - apart), strict=True)]
                after = before.clone()
                for start, strip in strips:
                    after[:, start : start + strip.shape[1]] = (255 * strip).round().to(after)
                write_image(target, unit(after))
                centres = [(plan.mesh[:, :2].mean(0) / TILE).long().tolist() for plan in plans]
                people += [places[y * across + x][0] for x, y in centres] if across else [name] * len(plans)
                rows += [figures(before, after, plan) for plan in plans]
                off = max(off, outside(before, after, plans))
            cells = {}
            for name in rows[0]:
                values = torch.tensor([row[name] for row in rows])
                low, high = person_interval(values, people)
                worst = values.min() if "left" in name else values.max()
                cells[name] = f"{float(mean_by(values, people).nanmean()):.3f} [{low:.3f}, {high:.3f}] {float(worst):.3f}"
            cells["outside the ovals, levels"] = str(off)
            each = (seconds[0] / len(sources), seconds[1] / len(rows), seconds[2] / len(rows))
            cells["s: find a photo's; apart, together a face"] = "; ".join(f"{one:.2f}" for one in each)
            cells["peak, GB"] = f"{memory:.3f}"
            if not table.columns:
                table.add_column("photo, faces, people")
                for name in cells:
                    table.add_column(name, justify="right")
            title = f"{across * TILE}; {len(rows)} of {across**2}" if across else f"{len(sources)} photos; {len(rows)}"
            table.add_row(f"{title}; {len(set(people))}", *cells.values())
    Console(width=240, markup=False).print(table)  # an interval is no markup


if __name__ == "__main__":
    main()
