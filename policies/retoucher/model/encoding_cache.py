"""Encodings of photos, anchors and prompts kept in files, so that a run encodes each once and the next run none.

One safetensors file an encoding, named by a hash of what it depends on: the encoders' weights and settings, the picture, the prompt.
Text that all photos share is a file of its own. Files are written whole or not at all; several processes may share a folder.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.backbone import Backbone, Condition, Images, Latents
from portraitkit.errors import RunFolderError
from portraitkit.files.atomic import replacing

TEXT = ("prompt", "pooled", "negative")
Entry = dict[str, Tensor]


class CachedBackbone:
    """A backbone that looks into a folder before it encodes; all else goes to the backbone it wraps.

    Until `keep_in` names the folder, encodings are held in memory: what is encoded before a run folder may be written is not lost.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.folder: Path | None = None
        self.waiting: dict[str, Entry] = {}
        self.name, self.resolution, self.transformer = backbone.name, backbone.resolution, backbone.transformer
        self.lora_targets, self.base_model, self.licence = backbone.lora_targets, backbone.base_model, backbone.licence
        self.forwards = backbone.forwards
        self.encoding_key, self.sigmas, self.noise = backbone.encoding_key, backbone.sigmas, backbone.noise
        self.velocity, self.decode = backbone.velocity, backbone.decode
        self._key = backbone.encoding_key()

    def keep_in(self, folder: Path) -> None:
        """Keep encodings in this folder from now on, and write those that waited for it."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot hold encodings ({error.strerror}); give another --cache-dir") from error
        while self.waiting:
            self._write(*self.waiting.popitem())

    def encode(self, images: Images) -> Latents:
        keys = [self._name("latents", image) for image in images]
        entries = {key: self._read(key) for key in keys}
        missing = _first_of_each(keys, entries)
        if missing:
            for index, latents in zip(missing, self.backbone.encode(images[missing]), strict=True):
                entries[keys[index]] = self._keep(keys[index], {"latents": latents})
        return torch.stack([_entry(entries[key])["latents"] for key in keys]).to(self._device())

    def condition(self, images: Images, prompt: str) -> Condition:
        keys = [self._name("condition", image, prompt) for image in images]
        text_key = self._name("text", None, prompt)
        entries: dict[str, Entry | None] = {key: self._read(key) for key in keys}
        text = self._read(text_key)
        each_own_text = any(entry is not None and "prompt" in entry for entry in entries.values())
        missing = _first_of_each(keys, entries) if each_own_text or text is not None else _first_of_each(keys, {})
        if missing:
            made = self.backbone.condition(images[missing], prompt)
            for row, index in enumerate(missing):  # a residual of zeros is left out, text that is not the photo's own, too
                entry = {"reference": made.reference[row]} | ({"residual": made.residual[row]} if made.residual[row].any() else {})
                own = _text(made, slice(row, row + 1)) if made.own_text else {}
                entries[keys[index]] = self._keep(keys[index], entry | own)
            if not made.own_text:
                text = self._keep(text_key, _text(made, slice(None)))
        rows = [_entry(entries[key]) for key in keys]
        own_text = "prompt" in rows[0]
        texts = {name: torch.cat([row[name] for row in rows]) for name in TEXT if name in rows[0]} if own_text else _entry(text)
        residual = torch.stack([row["residual"] if "residual" in row else torch.zeros(images.shape[1:]) for row in rows])
        device = self._device()
        reference = torch.stack([row["reference"] for row in rows])
        return Condition(reference, residual, own_text=own_text, **texts).each(lambda part: part.to(device))

    def _device(self) -> torch.device:
        """Where encodings are wanted; in memory and in files they wait on the CPU."""
        return next((parameter.device for parameter in self.transformer.parameters()), torch.device("cpu"))

    # ---- files

    def _name(self, what: str, image: Float[Tensor, "3 h w"] | None, prompt: str = "") -> str:
        digest = hashlib.sha256(f"{what}\0{self._key}\0{self.base_model}\0{self.resolution}\0{prompt}\0".encode())
        if image is not None:
            digest.update(image.detach().cpu().contiguous().numpy().tobytes())  # to be hashed
        return digest.hexdigest()

    def _read(self, key: str) -> Entry | None:
        if key in self.waiting:
            return self.waiting[key]
        if self.folder is None or not (path := self.folder / f"{key}.safetensors").is_file():
            return None
        try:
            return load_file(path)
        except SafetensorError as error:
            raise RunFolderError(f"{path}: a damaged encoding ({error}); delete it, it is made again") from error

    def _keep(self, key: str, entry: Entry) -> Entry:
        entry = {name: value.detach().cpu().contiguous().clone() for name, value in entry.items()}  # to wait in memory or a file
        if self.folder is None:
            self.waiting[key] = entry
        else:
            self._write(key, entry)
        return entry

    def _write(self, key: str, entry: Entry) -> None:
        assert self.folder is not None
        path = self.folder / f"{key}.safetensors"
        try:
            with replacing(path) as temporary:
                save_file(entry, temporary)
        except (OSError, SafetensorError) as error:
            size = sum(value.numel() * value.element_size() for value in entry.values())
            raise RunFolderError(f"{path}: {size} bytes could not be written ({error}); make room, or give another --cache-dir") from error


def with_cache(backbone: Backbone, config: RetoucherConfig) -> Backbone:
    """The backbone with a cache, where a configuration wants one; see `--cache-dir`."""
    endless = config.photos == "embedded" or config.anchors == "painted"  # hardly a photo is seen twice
    wanted = config.cache_dir != "none" if config.cache_dir is not None else not endless
    return CachedBackbone(backbone) if wanted else backbone


def open_cache(backbone: Backbone, config: RetoucherConfig) -> None:
    """Name the folder of a backbone's cache, if it has one; once the run folder may be written."""
    if isinstance(backbone, CachedBackbone):
        backbone.keep_in(Path(config.cache_dir) if config.cache_dir is not None else Path(config.output_dir) / "cache")


def _first_of_each(keys: list[str], entries: dict[str, Any]) -> list[int]:
    """Indices of the pictures to encode: those not found, equal ones once."""
    return [index for index, key in enumerate(keys) if entries.get(key) is None and keys.index(key) == index]


def _entry(entry: Entry | None) -> Entry:
    assert entry is not None
    return entry


def _text(made: Condition, rows: slice) -> Entry:
    texts = {name: getattr(made, name) for name in TEXT}
    return {name: value[rows] for name, value in texts.items() if value is not None}
