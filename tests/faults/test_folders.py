"""Folders of photos: every type of picture that can be read is taken, what is not taken is named, names match in any Unicode form."""

import os
from unicodedata import normalize

import pytest
import torch
from PIL import Image, features

from benchmarks.blind_test.make import _by_stem, _check_skipped
from benchmarks.blind_test.options import MakeConfig
from benchmarks.inputs import match, read_folder
from policies.retoucher.retouch.command import plan_jobs
from portraitkit.errors import ConfigError, DataError
from portraitkit.pictures import OTHERS, READABLE, list_images
from portraitkit.pictures.images import read_image, write_image
from preference_data.generators.folder import match_retouches
from preference_data.pair_set import list_photos

CAFE = "café"


def picture(path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (200, 120, 90)).save(path, kind)


@pytest.fixture
def mixed(tmp_path):
    """One picture of each type that can be read, one that cannot, a link to nothing, a subfolder."""
    for suffix in (".jpg", ".JPG", ".jpe", ".jfif", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".tga"):
        picture(tmp_path / "in" / f"a{suffix.strip('.')}{suffix}", "JPEG" if suffix in (".jpe", ".jfif") else None)
    for suffix, kind in ((".avif", "avif"), (".jp2", "jpg_2000")):
        if features.check(kind):
            picture(tmp_path / "in" / f"a{suffix.strip('.')}{suffix}")
    for suffix in (".HEIC", ".dng"):
        (tmp_path / "in" / f"e{suffix}").write_bytes(b"\0" * 64)
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "in/.hidden.png").write_text("")
    picture(tmp_path / "in/more/b.png")
    return tmp_path / "in"


def taken_by(name, folder):
    if name == "retouch-portrait":
        return {source for source, _ in plan_jobs(folder, folder.parent / "out")}
    if name == "benchmark-portraits":
        return set(read_folder(folder, folder.parent / "unpacked").pictures.values()) - {folder / "more/b.png"}
    if name == "blind-test":
        return set(_by_stem(folder).values())
    if name == "build":
        return {folder / row["file_name"] for row in list_photos(folder).rows}
    return {file for files in match_retouches(folder, [path.name for path in list_images(folder)]).values() for file in files}


@pytest.mark.parametrize("command", ["retouch-portrait", "benchmark-portraits", "blind-test", "build", "generators folder"])
def test_what_can_be_read_is_taken_everywhere_and_the_rest_is_named(mixed, capsys, command):
    taken = taken_by(command, mixed)
    assert taken == {path for path in mixed.iterdir() if path.name.startswith("a")}
    for path in taken:
        assert read_image(path).pixels.shape == (3, 24, 32)
    said = capsys.readouterr().err
    for word in ("e.HEIC", "e.dng", "gone.jpg is a link to nothing", "pipe.png is a pipe"):
        assert word in said
    if command in ("retouch-portrait", "blind-test", "build"):
        assert "subfolders are not looked into, and more holds pictures" in said


def test_hidden_folders_are_not_looked_into(tmp_path, capsys):
    for name in (".thumbnails/a.png", "notes/.cache/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_image(tmp_path / name, torch.rand(3, 8, 8))
    assert list_images(tmp_path, flat=True) == [] and capsys.readouterr().err == ""


def test_what_cannot_be_written_becomes_a_png(mixed):
    targets = {source.suffix: target.suffix for source, target in plan_jobs(mixed, mixed.parent / "out")}
    assert targets[".jfif"] == targets[".gif"] == targets[".tga"] == ".png" and targets[".webp"] == ".webp"
    assert not set(OTHERS) & set(READABLE)


# ---- names that macOS and Linux write differently


def folders(tmp_path, one="NFC", other="NFD"):
    for folder, form in (("photos", one), ("ours", other)):
        picture(tmp_path / folder / f"{normalize(form, CAFE)}.png")
    return tmp_path / "photos", tmp_path / "ours"


def test_names_match_in_any_unicode_form(tmp_path):
    photos, ours = folders(tmp_path)
    assert os.listdir(photos) != os.listdir(ours)
    inputs = match({"ours": read_folder(ours, tmp_path)}, read_folder(photos, tmp_path), None)
    assert len(inputs.items) == 1 and not inputs.notes
    assert _by_stem(photos).keys() == _by_stem(ours).keys()
    (photo,) = os.listdir(photos)
    assert list(match_retouches(ours, [photo])) == [photo]


def test_a_row_names_a_file_in_another_form(tmp_path):
    photos, _ = folders(tmp_path, one="NFD")
    (photos / "metadata.jsonl").write_text(f'{{"file_name": "{normalize("NFC", CAFE)}.png"}}\n', encoding="utf-8")
    (row,) = list_photos(photos).rows
    assert (photos / row["file_name"]).is_file()
    (path,) = read_folder(photos, tmp_path).pictures.values()
    assert path.is_file()


def test_two_names_that_become_one_are_refused(tmp_path):
    photos, ours = folders(tmp_path)
    picture(photos / f"{normalize('NFD', CAFE)}.png")
    with pytest.raises(DataError, match="another Unicode form"):
        read_folder(photos, tmp_path)
    with pytest.raises(DataError, match="have one name"):
        _by_stem(photos)
    with pytest.raises(ConfigError, match="may be a retouch of"):
        match_retouches(ours, os.listdir(photos))


def test_every_photo_that_is_skipped_is_named(tmp_path):
    photos, ours = folders(tmp_path)
    config = MakeConfig.of(method=(f"photos={photos}", f"ours={ours}"), max_unusable=0.1)
    skipped = [{"photo": f"p{number}", "reason": "missing in ours"} for number in range(3)]
    with pytest.raises(DataError, match="p0: missing in ours; p1: missing in ours; p2: missing in ours"):
        _check_skipped(skipped, 1, config)


def test_a_photo_by_another_path_is_named_by_an_earlier_row(tmp_path):
    """It could stand in two splits."""
    picture(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    names = ("a.png", "./a.png", "link.png")
    (tmp_path / "metadata.jsonl").write_text("".join(f'{{"file_name": "{name}"}}\n' for name in names))
    found = list_photos(tmp_path)
    assert [row["file_name"] for row in found.rows] == ["a.png"]
    assert [row.reason for row in found.rejected] == [f"file_name '{name}': named by an earlier row" for name in names[1:]]


def test_an_anchor_that_is_no_name_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "anchor_file_name": 3}\n')
    with pytest.raises(DataError, match="line 1: file_name '3': no such file"):
        read_folder(tmp_path, tmp_path)


# ---- colours that a picture names without a profile


def chunk(kind, data):
    from struct import pack
    from zlib import crc32

    return pack(">I", len(data)) + kind + data + pack(">I", crc32(kind + data))


@pytest.mark.parametrize(
    ("kind", "data", "word"),
    [
        (b"cICP", bytes([12, 16, 0, 1]), "cICP (12, 16, 0, 1"),
        (b"cICP", bytes([1, 13, 0, 1]), None),
        (b"gAMA", (100000).to_bytes(4, "big"), "gamma 1 "),
        (b"gAMA", (45455).to_bytes(4, "big"), None),
        (b"cHRM", b"".join(n.to_bytes(4, "big") for n in (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)), "primaries (cHRM)"),
        (b"cHRM", b"".join(n.to_bytes(4, "big") for n in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)), None),
    ],
)
def test_a_png_that_is_not_srgb_has_a_note(tmp_path, kind, data, word):
    picture(tmp_path / "p.png")
    file = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(file[:33] + chunk(kind, data) + file[33:])
    notes = read_image(tmp_path / "p.png").warnings
    assert (len(notes) == 0) if word is None else (len(notes) == 1 and word in notes[0] and "sRGB" in notes[0])


def test_a_jpeg_in_adobe_rgb_without_its_profile_has_a_note(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 2
    Image.new("RGB", (8, 8)).save(tmp_path / "p.jpg", exif=exif)
    (note,) = read_image(tmp_path / "p.jpg").warnings
    assert "Adobe RGB" in note
    write_image(tmp_path / "q.png", torch.zeros(3, 8, 8))
    assert read_image(tmp_path / "q.png").warnings == ()


def test_exif_with_an_interoperability_block_is_kept_as_it_was(tmp_path):
    """Most cameras write one; Pillow writes it a second time once it has been looked at."""
    from struct import pack

    def directory(*entries):
        return pack("<H", len(entries)) + b"".join(pack("<HHI4s", *entry) for entry in entries) + bytes(4)

    first = directory((0x010F, 2, 4, b"cam\0"), (0x8769, 4, 1, pack("<I", 38)))
    second = directory((0xA001, 3, 1, b"\1\0\0\0"), (0xA005, 4, 1, pack("<I", 68)))
    exif = b"Exif\0\0II*\0" + pack("<I", 8) + first + second + directory((1, 2, 4, b"R98\0"))
    Image.new("RGB", (8, 8)).save(tmp_path / "p.jpg", exif=exif)
    kept = Image.Exif()
    kept.load(read_image(tmp_path / "p.jpg").exif)
    assert set(kept) == {0x010F, 0x8769} and kept.get_ifd(0x8769)[0xA001] == 1 and kept.get_ifd(0xA005)[1] == "R98"
