"""The suite: once decoded, kept, resumed, and what happens to pictures that cannot be read."""

import json
import shutil
import weakref
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import batches
from benchmarks.batches import plan_batches
from benchmarks.inputs import Folder, Inputs, match, read_folder
from benchmarks.metric import Metric, Range, WeightFile
from benchmarks.metrics import load_metrics
from benchmarks.store import Store
from benchmarks.suite import Results, Suite
from benchmarks.weight_files import Digests, MetricWeights, find_weights, read_state, search_folders
from portraitkit.errors import ConfigError, DataError, WeightsError
from portraitkit.pictures.images import read_image, write_image

NAMES = ("brisque", "piqe", "psnr", "ssim")


@pytest.fixture
def inputs(folders) -> Inputs:
    parts = {name: read_folder(path, path) for name, path in folders.items()}
    return match({name: parts[name] for name in ("photos", "soft", "sharp")}, parts["photos"], parts["photos"])


def suite(store: Store, names: tuple[str, ...] = NAMES, **options) -> Suite:
    digest = Digests()
    return Suite([(metric, find_weights(metric, [Path("/nowhere")], digest)) for metric in load_metrics(names)], store, digest, **options)


def equal(a: Results, b: Results) -> bool:
    return all(torch.equal(a.values[name].nan_to_num(-1e9), b.values[name].nan_to_num(-1e9)) for name in a.values)


def test_every_picture_is_decoded_once_for_all_metrics(inputs, monkeypatch):
    reads: Counter[Path] = Counter()

    def counted(path, **options):
        reads[path] += 1
        return read_image(path, **options)

    monkeypatch.setattr(batches, "read_image", counted)
    with Store(None) as store:
        results = suite(store).run(inputs)
    assert set(results.values) == set(NAMES) and not results.skipped and not results.failed
    assert set(reads.values()) == {1} and len(reads) == 9
    assert results.computed == 9 * 4


def test_known_values_are_not_computed_again(inputs, tmp_path, monkeypatch):
    with Store(tmp_path / "cache") as store:
        first = suite(store).run(inputs)
    monkeypatch.setattr(batches, "read_image", None)
    with Store(tmp_path / "cache") as store:
        again = suite(store).run(inputs)
        assert again.computed == 0 and equal(first, again)
        (brisque, found), *_ = suite(store, ("brisque",)).metrics
        newer = replace(brisque, version=brisque.version + 1)
        assert set(store.values([" ".join(["x", newer.name])])) == set()
    monkeypatch.undo()
    with Store(tmp_path / "cache") as store:
        raised = Suite([(newer, found)], store, Digests()).run(inputs)
        assert raised.computed == 9


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, portrait):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        side = (40, 48, 56)[number % 3]
        write_image(folder / f"{number:03d}.png", portrait[0, :, number : number + side, 100 : 100 + side])
    inputs = match({"x": read_folder(folder, folder)}, None, None)
    with Store(None) as store:
        whole = suite(store, ("brisque", "piqe")).run(inputs)
    asked = iter([False, False, True])
    with Store(tmp_path / "cache") as store:
        part = suite(store, ("brisque", "piqe"), stop=lambda: next(asked)).run(inputs)
    assert part.stopped and 0 < part.computed < whole.computed
    with Store(tmp_path / "cache") as store:
        rest = suite(store, ("brisque", "piqe")).run(inputs)
    assert rest.computed == whole.computed - part.computed and equal(whole, rest)


def test_memory_does_not_grow_with_the_pictures(tmp_path, portrait, monkeypatch):
    """However many pictures there are, few batches are alive at once: one computed, one in hand, two ahead, one being read."""
    for number in range(300):
        write_image(tmp_path / f"{number:03d}.png", portrait[0, :, number : number + 32, 200:232])
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0
    read = batches._read_batch

    def watched(batch, wanted):
        nonlocal most
        out = read(batch, wanted)
        alive.add(out[0])
        most = max(most, len(alive))
        return out

    monkeypatch.setattr(batches, "_read_batch", watched)
    monkeypatch.setattr(batches, "PICTURES", 4)
    with Store(None) as store:
        results = suite(store, ("piqe",)).run(match({"x": read_folder(tmp_path, tmp_path)}, None, None))
    assert results.computed == 300 and most <= 5


def test_unreadable_pictures_are_named_and_the_others_measured(inputs, folders):
    broken = folders["soft"] / "p1.png"
    broken.write_bytes(broken.read_bytes()[:400])
    (folders["sharp"] / "p2.png").write_bytes(b"not a picture")
    with Store(None) as store:
        results = suite(store, ("brisque", "psnr"), max_failed=0.3).run(inputs)
        assert {Path(file).parent.name for file, _, _ in results.failed} == {"soft", "sharp"}
        assert int(results.values["brisque"].isfinite().sum()) == 7
        with pytest.raises(DataError, match="2 of 9 pictures cannot be read"):
            suite(store, ("piqe",), max_failed=0.1).run(inputs)


def test_a_metric_may_refuse_a_picture(inputs):
    def score(pictures):
        if float(pictures.pixels.mean()) > 0 and len(pictures) > 1:
            raise DataError("one at a time")
        if "p1" in pictures.sources[0]:
            raise DataError("not this one")
        return pictures.pixels.mean((1, 2, 3))

    metric = Metric("brightness", "mean", "higher", Range(0, 1), "none", "own", lambda files: score)
    with Store(None) as store:
        results = Suite([(metric, MetricWeights({}, {}, ()))], store, Digests()).run(inputs)
    assert int(results.values["brightness"].isfinite().sum()) == 6
    assert len(results.failed) == 3 and all(entry[1:] == ("brightness", "not this one") for entry in results.failed)


def test_metrics_say_why_they_have_nothing(folders):
    inputs = match({"x": read_folder(folders["soft"], folders["soft"])}, None, None)
    with Store(None) as store:
        results = suite(store, ("niqe", "psnr", "identity_cosine", "piqe")).run(inputs)
    assert set(results.values) == {"piqe"}
    assert "below 192 px (the largest has 96)" in results.skipped["niqe"]
    assert "--reference" in results.skipped["psnr"] and "--source" in results.skipped["identity_cosine"]


def test_pictures_of_another_shape_than_their_photo_are_named(folders, portrait):
    for number in range(3):
        write_image(folders["soft"] / f"p{number}.png", portrait[0, :, :100, :128])
    parts = {name: read_folder(path, path) for name, path in folders.items()}
    inputs = match({"x": parts["soft"]}, parts["photos"], parts["photos"])
    with Store(None) as store:
        skipped = suite(store, ("psnr", "identity_cosine", "piqe")).run(inputs).skipped
    assert "another shape than its reference: p0 of x is 128 x 100 px, its reference 96 x 96" in skipped["psnr"]
    assert "another shape than its photo" in skipped["identity_cosine"] and "--" not in "".join(skipped.values())


def test_a_users_file_is_part_of_what_a_value_is_kept_under(tmp_path, folders):
    """Two files whose metrics have one name, and a file whose formula changed."""
    text = (
        "from benchmarks.metric import Metric, Range\n"
        'METRIC = Metric("mine", "t", "higher", Range(0, 9), "none", "own", lambda files: lambda p: {} * p.pixels.mean((1, 2, 3)))\n'
    )
    inputs = match({"x": read_folder(folders["soft"], folders["soft"])}, None, None)
    found = []
    for name, factor in (("a.py", 1), ("b.py", 2), ("a.py", 3), ("a.py", 1)):
        (tmp_path / name).write_text(text.format(factor))
        with Store(tmp_path / "cache") as store:
            results = suite(store, (f"{tmp_path / name}:METRIC",)).run(inputs)
        assert results.computed == (3 if len(found) < 3 else 0)
        assert set(results.weights["mine"].sha256) == {name}
        found.append(results.values["mine"])
    assert torch.allclose(found[1], 2 * found[0]) and torch.allclose(found[2], 3 * found[0]) and torch.equal(found[3], found[0])


def test_faces_are_measured_against_the_photo(folders, inputs):
    with Store(None) as store:
        results = suite(store, ("identity_cosine", "texture_error", "reward")).run(inputs)
    values = {name: value.view(3, 3) for name, value in results.values.items()}
    assert (values["texture_error"][:, 0] == 0).all() and (values["texture_error"][:, 1] > 0.2).all()
    assert values["identity_cosine"][:, 0].allclose(torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_batches_hold_one_size_and_few_pixels(tmp_path, portrait):
    for number in range(40):
        write_image(tmp_path / f"{number}.png", portrait[0, :, : 100 + number % 2, :100])
    batches = plan_batches(match({"x": read_folder(tmp_path, tmp_path)}, None, None)).batches
    assert sorted(len(batch.items) for batch in batches) == [20, 20]
    assert all(read_image(item.path).pixels.shape[1] == batch.height for batch in batches for item in batch.items)


def test_set_metrics_pool_features(folders, inputs):
    def features(pictures):
        return pictures.pixels.mean((2, 3))

    metric = Metric(
        "gap", "t", "lower", Range(0), "set", "own", lambda files: features, pool=lambda a, b: float((a.mean(0) - b.mean(0)).norm())
    )
    sets = tuple(sorted(folders["photos"].iterdir()))
    with Store(None) as store:
        results = Suite([(metric, MetricWeights({}, {}, ()))], store, Digests()).run(replace(inputs, sets=sets))
        assert results.pooled["gap"]["photos"] == 0 < results.pooled["gap"]["sharp"]
        assert Suite([(metric, MetricWeights({}, {}, ()))], store, Digests()).run(inputs).skipped["gap"].endswith("--set")


def test_archives_are_unpacked_and_slips_refused(folders, tmp_path):
    archive = tmp_path / "soft.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folders["soft"].iterdir():
            file.write(path, f"inner/{path.name}")
    assert set(read_folder(archive, tmp_path / "out").pictures) == {"p0", "p1", "p2"}
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../slip.png", b"")
    with pytest.raises(DataError, match="leaves the archive"):
        read_folder(archive, tmp_path / "out")
    assert not (tmp_path / "slip.png").exists()


def test_an_archive_with_a_broken_stream_is_refused(tmp_path, folders):
    archive = tmp_path / "soft.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folders["soft"] / "p0.png", "p0.png")
    content = bytearray(archive.read_bytes())
    start = 30 + len("p0.png")
    content[start : start + 40] = b"\xff" * 40
    archive.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked .*; make the archive again"):
        read_folder(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b.png", "x" * 5000, "x/" * 3000 + "y.png"])
@pytest.mark.parametrize("key", ["file_name", "anchor_file_name"])
def test_impossible_file_names_are_refused_with_their_line(folders, name, key):
    row = {"file_name": "p0.png"} | {key: name}
    (folders["photos"] / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="metadata.jsonl line 1: ") as refused:
        read_folder(folders["photos"], folders["photos"])
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_groups_of_a_methods_data_set_count_where_the_photos_have_none(folders):
    rows = [{"file_name": f"p{number}.png", "gender": "f", "age_band": "20-30"} for number in range(3)]
    (folders["soft"] / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folders["photos"] / "metadata.jsonl").write_text("".join(json.dumps(row | {"gender": "m"}) + "\n" for row in rows[:2]))
    soft, photos = (read_folder(folders[name], folders[name]) for name in ("soft", "photos"))
    assert match({"x": soft}, None, None).groups["p2"] == {"gender": "f", "age_band": "20-30"}
    groups = match({"x": soft}, photos, None).groups
    assert groups["p0"] == {"gender": "m", "age_band": "20-30"} and set(groups) == {"p0", "p1"}


def test_names_must_match(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folders["soft"] / "p0.png", other / "q0.png")
    with pytest.raises(DataError, match="matches a photo by name"):
        match({"x": read_folder(other, other)}, read_folder(folders["photos"], other), None)
    shutil.copy(folders["soft"] / "p0.png", other / "p0.webp")
    found = match({"x": read_folder(other, other)}, read_folder(folders["photos"], other), None)
    assert [item.name for item in found.items] == ["p0"] and "q0" in found.notes[0]


def test_a_data_set_gives_references_and_groups(folders):
    photos = folders["photos"]
    shutil.copy(folders["soft"] / "p0.png", photos / "anchor.png")
    (photos / "metadata.jsonl").write_text('{"file_name": "p0.png", "anchor_file_name": "anchor.png", "age_band": "20-30", "gender": ""}\n')
    source = read_folder(photos, photos)
    found = match({"x": Folder(source.pictures)}, source, None)
    assert found.items[0].reference == photos / "anchor.png" and found.groups == {"p0": {"age_band": "20-30"}}
    (photos / "metadata.jsonl").write_text('{"file_name": "../soft/p0.png"}\n')
    with pytest.raises(DataError, match="leaves the data folder"):
        read_folder(photos, photos)


def test_weights_are_checked(tmp_path):
    wanted = WeightFile("net-12345678.pth", "https://example.org/net", "12345678", 5)
    metric = Metric("m", "t", "higher", Range(0, 1), "none", "MIT", lambda files: None, (wanted,))
    with pytest.raises(WeightsError, match=r"needs net-12345678.pth \(5 MiB; MIT\): download https://example.org/net and put it into"):
        find_weights(metric, [tmp_path], Digests())
    torch.save({"w": torch.zeros(1)}, tmp_path / wanted.name)
    with pytest.raises(WeightsError, match="published is 12345678"):
        find_weights(metric, [tmp_path], Digests())
    by_name = replace(metric, weights=(replace(wanted, from_name=True),))
    assert "digits in its name" in find_weights(by_name, [tmp_path], Digests()).notes[0]
    (tmp_path / "net-12345678.safetensors").write_bytes(b"")
    assert "a conversion" in find_weights(metric, [tmp_path], Digests()).notes[0]
    torch.save({"w": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="could run code"):
        read_state(tmp_path / "evil.pth")
    assert search_folders(tmp_path)[0] == tmp_path


def test_damaged_weights_are_not_taken_for_code(tmp_path):
    torch.save({"w": torch.zeros(300)}, tmp_path / "new.pth")
    torch.save({"w": torch.zeros(300)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    new, old = ((tmp_path / name).read_bytes() for name in ("new.pth", "old.pth"))
    assert set(read_state(tmp_path / "old.pth")) == {"w"}
    for content in (b"garbage" * 100, b"<html>not found</html>", b"\x80\x02garbage", b"", new[:200], old[:40], old[: len(old) // 8]):
        (tmp_path / "net.pth").write_bytes(content)
        with pytest.raises(WeightsError, match="download it again") as refused:
            read_state(tmp_path / "net.pth")
        assert "safetensors" not in str(refused.value), content[:20]
    for old_format in (False, True):
        torch.save({"w": Path("x")}, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old_format)
        with pytest.raises(WeightsError, match="could run code"):
            read_state(tmp_path / "evil.pth")


def test_a_metric_of_nonsense_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        Metric("m", "t", "higher", Range(1, 1), "none", "MIT", lambda files: None)
    with pytest.raises(ConfigError, match="did you mean 'brisque'"):
        load_metrics(("brisk",))


def test_a_cache_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with Store(tmp_path / "file") as store:
        assert "not kept" in store.note
    assert "note:" in capsys.readouterr().err
