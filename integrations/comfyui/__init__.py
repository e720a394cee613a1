"""ComfyUI nodes: retouch faces, paste faces back, texture and identity gauge. README.md says how to install and to use them.

Thin over the functions that `retouch-portrait` itself calls, so that a photo comes out of both alike. ComfyUI's pictures (IMAGE) are float
tensors (batch, height, width, channels), RGB in [0, 1], or RGBA, of which alpha is kept; it calls nodes in inference mode. What needs torch
is imported when a node first runs, so that ComfyUI starts no slower.
"""

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

from policies.retoucher.retouch.options import Controls, RetouchConfig
from portraitkit.errors import FaceError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from policies.retoucher.retouch.faces import FacePlan

LOG = logging.getLogger("portraitkit")
SIDES = (64, 128, 256, 512, 1024)
"""Sides in pixels of the crops in which faces are pasted back or measured."""


def share(default: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input from 0 to 1, a slider."""
    return "FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.05, "display": "slider", "tooltip": tooltip}


def outside_inference(run: Callable[..., Any]) -> Callable[..., Any]:
    """Run a node without gradients, but not in ComfyUI's inference mode: weights and filters that it leaves behind would be of no use for
    anything else in the process."""

    @wraps(run)
    def plain(*given: Any, **more: Any) -> Any:
        import torch

        with torch.inference_mode(False), torch.no_grad():
            return run(*given, **more)

    return plain


def text(default: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input of words."""
    return "STRING", {"default": default, "tooltip": tooltip}


class RetouchFaces:
    """Every face of a picture as `retouch-portrait` retouches it, at the picture's own size, and nothing else in it."""

    CATEGORY = "portraitkit"
    FUNCTION = "retouch"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "left as it is")
    DESCRIPTION = "Retouches the skin of every face; all else in the picture stays as it is. Faces are looked at once, sliders cost little."

    def __init__(self) -> None:
        self.seen: tuple[Any, ...] = (None, None, [])  # a picture, what looked at it and what that saw: for the next move of a slider

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What goes in; the defaults are those of the command."""
        return {
            "required": {
                "image": ("IMAGE",),
                "blemishes": share(Controls.blemishes, "how much of spots is removed"),
                "tone": share(Controls.tone, "how far blotches and redness are evened; nothing is whitened"),
                "texture": share(Controls.texture, "how far unevenness between a spot and a pore is softened; pores stay"),
                "moles": (["keep", "remove"], {"default": Controls.moles, "tooltip": "moles and freckles"}),
                "strength": share(Controls.strength, "share of all three"),
                "children": ("BOOLEAN", {"default": False, "tooltip": "the faces are children's: blemishes at most"}),
            },
            "optional": {
                "adapter": text("", "folder of an align-retoucher run; empty: the embedded retoucher's own; none: its base"),
                "backbone": text("tiny", "as retouch-portrait's option: tiny, flux_kontext, flux2_klein, qwen_image_edit ..."),
                "model": text("", "hub id or folder of the backbone's weights; empty: the backbone's own"),
            },
        }

    @outside_inference
    def retouch(self, image: "Tensor", adapter: str = "", backbone: str = "tiny", model: str = "", **controls: Any) -> tuple["Tensor", str]:
        """The pictures retouched, and in words which faces were left as they are."""
        from policies.retoucher.retouch.faces import apply_controls

        settings, key = Controls(**controls), (adapter.strip(), backbone.strip(), model.strip())
        if self.seen[0] is not image or self.seen[1] != key:
            look_at = retoucher(*key)
            self.seen = image, key, [look_at(rgb(frame)) for frame in frames(image)]
        results = [
            apply_controls(rgb(frame), plans, settings, skipped=left) for frame, (plans, left) in zip(image, self.seen[2], strict=True)
        ]
        return pictures(image, [result.pixels for result in results]), told([result.skipped for result in results])


class PasteFacesBack:
    """What any editor changed in the faces of a photo, put into the photo at its own size; hair, clothes and background stay."""

    CATEGORY = "portraitkit"
    FUNCTION = "paste"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "left as it is")
    DESCRIPTION = "Adds an editor's change of the faces to the full-size photo: what the edited picture was too small to show stays."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What goes in: the edited picture shows the same frame, at any size."""
        return {"required": {"photo": ("IMAGE",), "edited": ("IMAGE",), "strength": share(1.0, "share of the change")}}

    @outside_inference
    def paste(self, photo: "Tensor", edited: "Tensor", strength: float) -> tuple["Tensor", str]:
        """The photos with the edited faces, and in words which faces were left as they are."""
        from portraitkit.faces.align import align_face, face_edit, paste_edits
        from portraitkit.pictures.images import resize

        check_pairs(photo, edited, same_size=False)
        done, left = [], []
        for frame, after in zip(frames(photo), edited, strict=True):
            before, edits = rgb(frame), []
            size = before.shape[1], before.shape[2]
            small = min(size[0], after.shape[0]), min(size[1], after.shape[1])  # what the editor was too small to see, it did not change
            pair = resize(resize(before, small), size), resize(rgb(after), size)
            meshes, words = faces_of(before)
            for mesh in meshes:
                was, now = (align_face(pixels, mesh, crop_side(mesh)) for pixels in pair)
                edits.append(face_edit(was, now.pixels, mesh, *size))
            done.append(paste_edits(before, edits, strength=strength))
            left.append(words)
        return pictures(photo, done), told(left)


class FaceGauge:
    """What a retouch did to the faces: pores left, identity distance and mean change of colour."""

    CATEGORY = "portraitkit"
    FUNCTION = "measure"
    RETURN_TYPES = ("STRING", "FLOAT", "FLOAT", "FLOAT")
    RETURN_NAMES = ("report", "texture ratio", "identity distance", "mean change")
    DESCRIPTION = (
        "texture ratio: energy of the skin's fine detail, after over before; below 1 it was smoothed, above sharpened. "
        "identity distance: 0 is the same picture, from .6 on another person. mean change: CIEDE2000 on the skin; 1 is just visible."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What goes in."""
        return {"required": {"before": ("IMAGE",), "after": ("IMAGE",)}}

    @outside_inference
    def measure(self, before: "Tensor", after: "Tensor") -> tuple[str, float, float, float]:
        """A line for each face; the means of texture ratio and change over all faces, and the largest identity distance.

        Raises:
            FaceError: there is no face to measure on.
        """
        check_pairs(before, after, same_size=True)
        rows, lines = [], []
        for number, (one, other) in enumerate(zip(frames(before), after, strict=True), 1):
            meshes, left = faces_of(rgb(one))
            rows += [face_figures(rgb(one), rgb(other), mesh) for mesh in meshes]
            lines += [f"picture {number}: {words}" for words in left]
        if not rows:
            raise FaceError(f"nothing to measure on: {told([lines])}")
        lines += [
            f"face {n}: texture ratio {t:.3f}, identity distance {i:.3f}, mean change {c:.2f} dE00" for n, (t, i, c) in enumerate(rows, 1)
        ]
        texture, identity, change = zip(*rows, strict=True)
        return "\n".join(lines), sum(texture) / len(rows), max(identity), sum(change) / len(rows)


@lru_cache(1)
def retoucher(adapter: str, backbone: str, model: str) -> "Callable[[Tensor], tuple[list[FacePlan], tuple[str, ...]]]":
    """A function that looks at a picture once; its weights are loaded at the first face and kept until others are asked for."""
    from policies.retoucher.backbones import check_backbone
    from policies.retoucher.model.adapter import read_adapter
    from policies.retoucher.retouch.command import analyser
    from policies.retoucher.retouch.faces import find_faces

    config = RetouchConfig.of(serve=True, adapter=adapter or None, backbone=backbone, model=model or None)
    check_backbone(config.backbone, config.model)
    if config.lora is not None:
        read_adapter(config.lora)
    analyse = analyser(config)

    def look_at(pixels: "Tensor") -> "tuple[list[FacePlan], tuple[str, ...]]":
        try:
            faces = find_faces(pixels, config.smallest_face(*pixels.shape[1:]))
        except FaceError as error:  # of a batch the other pictures go on; the line is in the output and in ComfyUI's log
            return [], (str(error),)
        return list(analyse(pixels, faces)), faces.skipped

    return look_at


def faces_of(pixels: "Tensor") -> "tuple[list[Tensor], tuple[str, ...]]":
    """The meshes of a picture's faces, and which faces were left out, in words."""
    from policies.retoucher.retouch.faces import find_faces

    try:
        faces = find_faces(pixels, RetouchConfig(serve=True).smallest_face(*pixels.shape[1:]))
    except FaceError as error:
        return [], (str(error),)
    return faces.meshes, faces.skipped


def crop_side(mesh: "Tensor") -> int:
    """Side in pixels of the crop that shows a face about as large as it is."""
    from portraitkit.faces.align import alignment_matrix

    native = SIDES[-1] / float(alignment_matrix(mesh, SIDES[-1])[:, 0].norm())
    return next((side for side in SIDES if side >= 0.75 * native), SIDES[-1])


def face_figures(before: "Tensor", after: "Tensor", mesh: "Tensor") -> tuple[float, float, float]:
    """Of one face: energy of the skin's fine detail, after over before; identity distance; mean CIEDE2000 on the skin."""
    import torch

    from policies.retoucher.retouch.controls import open_skin
    from portraitkit.faces.align import align_face
    from portraitkit.faces.identity import identity_distance, identity_embedding
    from portraitkit.pictures.images import ciede2000, srgb_to_lab
    from reward_models.filters import fine_energy, mean_over

    crops = [align_face(pixels, mesh, crop_side(mesh)) for pixels in (before, after)]
    both, points = torch.stack([crop.pixels for crop in crops]), crops[0].to_crop(mesh)
    lab = srgb_to_lab(both)
    skin = open_skin(lab[0], points)[None]
    was, now = fine_energy(both, skin, both.shape[-1] / 256).tolist()
    one, other = identity_embedding(both, points[None])
    change = mean_over(ciede2000(lab[:1], lab[1:]), skin)
    return now / max(was, 1e-9), float(identity_distance(one[None], other[None])), float(change)


def frames(image: "Tensor") -> "Iterator[Tensor]":
    """The pictures of a batch, with ComfyUI's progress bar, at which its Cancel is looked for, too."""
    try:
        from comfy.utils import ProgressBar  # type: ignore[import-not-found]  # only inside ComfyUI
    except ImportError:
        yield from image
        return
    bar = ProgressBar(len(image))
    for frame in image:
        yield frame
        bar.update(1)


def check_pairs(one: "Tensor", other: "Tensor", *, same_size: bool) -> None:
    """Raise ImageError unless two batches belong together: as many pictures, of one size, or at least of one shape."""
    (n, h, w), (m, height, width) = one.shape[:3], other.shape[:3]
    if n != m:
        raise ImageError(f"{n} and {m} pictures: there must be as many before as after; give batches of one length")
    if same_size and (h, w) != (height, width):
        raise ImageError(f"{w}x{h} and {width}x{height} px: before and after must be of one size; scale one of them")
    if abs(w * height / (h * width) - 1) > 0.03:
        raise ImageError(f"{w}x{h} and {width}x{height} px: both must show the same frame; do not crop the edited picture")


def rgb(frame: "Tensor") -> "Tensor":
    """A picture (height, width, channels) of ComfyUI's as ours are, (3, height, width)."""
    return frame[..., :3].movedim(-1, 0).contiguous()


def pictures(like: "Tensor", pixels: "list[Tensor]") -> "Tensor":
    """Pictures of ours as a batch of ComfyUI's, with the alpha of `like` where it has one."""
    import torch

    return torch.cat([torch.stack(pixels).movedim(1, -1).to(like), like[..., 3:]], -1)


def told(left: "list[Any]") -> str:
    """What was left as it is, a line each, in ComfyUI's log, too."""
    lines = [f"picture {number}: {words}" if len(left) > 1 else words for number, several in enumerate(left, 1) for words in several]
    for line in lines:
        LOG.warning("left as it is: %s", line)
    return "\n".join(lines)


NODE_CLASS_MAPPINGS = {
    "PortraitkitRetouchFaces": RetouchFaces,
    "PortraitkitPasteFacesBack": PasteFacesBack,
    "PortraitkitFaceGauge": FaceGauge,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PortraitkitRetouchFaces": "Retouch faces",
    "PortraitkitPasteFacesBack": "Paste faces back",
    "PortraitkitFaceGauge": "Texture and identity gauge",
}
