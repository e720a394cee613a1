"""Generators: by name or by file, one interface."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from portraitkit.errors import ConfigError, DataError, WeightsError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from preference_data.commands.build import known_truth, pair_candidates
from preference_data.generators import (
    CLEAN,
    Candidate,
    GeneratorOptions,
    open_generators,
    open_subject,
    with_nothing_to_do,
    without_paint,
)
from preference_data.generators.folder import match_retouches
from preference_data.generators.pipeline import Pipeline
from preference_data.people.degradations import GROSS, RETOUCHED
from preference_data.people.photos import PhotoRow
from preference_data.schema import DIMENSIONS, Origin, Pair, contradictions

OPTIONS = GeneratorOptions("retouch", 2, "cpu")


def photo_options(photo):
    return replace(OPTIONS, photos=photo.parent, names=(photo.name,))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_image(folder / "collins.png", bundled_portraits()["astronaut"])
    return folder / "collins.png"


@pytest.fixture(scope="module")
def subject(photo):
    return open_subject(PhotoRow("collins", "train", "c", {}, photo, None, 3), 128)[0]


def test_a_photo_without_a_label_gets_painted_blemishes_for_degradations_only(subject):
    assert subject.synthetic and subject.case.opacity.any() and subject.label is None
    plain = without_paint(subject)
    assert not plain.synthetic and torch.equal(plain.case.source, subject.case.clean)


def test_a_photo_with_a_label_is_left_as_it_is(photo, tmp_path):
    pixels = bundled_portraits()["astronaut"].clone()
    pixels[:, 150:156, 215:221] *= 0.5
    write_image(tmp_path / "spotted.png", pixels)
    labelled, _ = open_subject(PhotoRow("collins", "train", "c", {}, tmp_path / "spotted.png", photo, 3), 128)
    assert not labelled.synthetic and without_paint(labelled) is labelled
    assert torch.equal(labelled.label, labelled.case.clean)


def test_degradations_come_in_couples_with_truth(subject):
    (generator,) = open_generators(("degradations",), OPTIONS)
    one, two, three, four = generator.candidates(subject, 3, 11)
    assert one.group == two.group != three.group == four.group
    assert set(one.scores) == set(DIMENSIONS) and one.origin.generator == "degradations" and one.origin.seed == 11
    again = generator.candidates(subject, 3, 11)
    assert torch.equal(again[3].pixels, four.pixels) and again[3].origin == four.origin


def test_degradations_are_those_that_retouchers_make_unless_gross_ones_are_asked_for(subject):
    for name, kinds, other in (("degradations", RETOUCHED, GROSS), ("degradations:gross", GROSS, RETOUCHED)):
        (generator,) = open_generators((name,), OPTIONS)
        made = {fault.kind for one in generator.candidates(subject, 40, 5) for fault in one.origin.faults}
        allowed, others = ({kind for some in all_kinds.values() for kind in some} for all_kinds in (kinds, other))
        assert made <= allowed and made - others


def test_a_face_with_nothing_to_retouch_is_best_left_alone(subject):
    (generator,) = open_generators((CLEAN,), OPTIONS)
    own = with_nothing_to_do(subject)
    assert torch.equal(own.case.source, subject.case.clean) and own.case.opacity.max() == 0
    made = generator.candidates(own, 40, 5)
    untouched = [one for one in made if one.origin.is_label]
    assert len(untouched) >= 13 and all(set(one.scores.values()) == {5} and not one.origin.faults for one in untouched)
    assert all(torch.equal(one.pixels, (own.case.source * 255).round() / 255) for one in untouched)
    touched = [one for one in made if one.origin.faults]
    assert {len(one.origin.faults) for one in touched} == {1, 2}
    assert not any(fault.kind == "left_blemishes" for one in touched for fault in one.origin.faults)
    assert all(one.scores["blemish_removal"] == 5 and not torch.equal(one.pixels, untouched[0].pixels) for one in touched)


def test_rollouts_come_in_groups_of_one_policy_with_what_is_verifiable(subject):
    (generator,) = open_generators(("rollout:4",), OPTIONS)
    *group, untouched = generator.candidates(subject, 4, 7)
    assert torch.equal(untouched.pixels, (subject.case.source * 255).round() / 255) and untouched.group == group[0].group
    assert untouched.truth["blemish_removal"] < 0.05 and untouched.truth["texture"] > 0.99 and untouched.truth["identity"] > 0.9
    assert len(group) == 4 and len({one.group for one in group}) == 1 and group[0].origin.model.startswith("embedded, ")
    assert all(set(one.truth) == {"overall", *DIMENSIONS} and all(0 <= value <= 1 for value in one.truth.values()) for one in group)
    changes = [(one.pixels - subject.case.source).abs().mean() for one in group]
    apart = [(one.pixels - group[0].pixels).abs().mean() for one in group[1:]]
    assert min(apart) > 0 and max(apart) < 0.05 and min(changes) > 0.001
    more = generator.candidates(subject, 8, 7)
    assert (
        torch.equal(more[3].pixels, group[3].pixels) and more[5].group != group[0].group and more[5].origin.model != group[0].origin.model
    )
    with pytest.raises(ConfigError, match="works at 128 px; add --resolution 128"):
        generator.candidates(open_subject(PhotoRow("x", "train", "", {}, None, None, 3), 64)[0], 2, 0)
    with pytest.raises(ConfigError, match="rollout:1: the group's size"):
        open_generators(("rollout:1",), OPTIONS)


@pytest.mark.parametrize(
    ("changes", "overall"),
    [({"clarity": 0.015, "overall": 0.015}, "tie"), ({"clarity": -0.03, "overall": 0.4}, "tie"), ({"clarity": 0.03, "overall": 0.03}, "a")],
)
def test_near_ties_of_what_is_verifiable_are_ties(changes, overall):
    truth = dict.fromkeys(("overall", *DIMENSIONS), 0.5)
    a, b = (
        Candidate(torch.zeros(3, 8, 8), Origin("rollout"), truth=one)
        for one in ({k: v + changes.get(k, 0) for k, v in truth.items()}, truth)
    )
    verdicts, found, scores = known_truth(a, b)
    assert found == overall and verdicts["identity"] == "tie" and scores["identity"] == (3.0, 3.0)
    assert verdicts["clarity"] == ("tie" if abs(changes["clarity"]) < 0.02 else "a" if changes["clarity"] > 0 else "b")
    assert not contradictions(Pair("p", "i", "a", "b", verdicts, found, scores))


def test_a_truth_that_is_not_a_number_is_no_verdict():
    truth = dict.fromkeys((*DIMENSIONS, "overall"), 0.5)
    a, b = (Candidate(torch.zeros(3, 8, 8), Origin("rollout"), truth=one) for one in (truth | {"clarity": float("nan")}, truth))
    assert known_truth(a, b) == known_truth(b, a) == (None, None, None)


def test_finished_retouches_are_cut_as_their_photo(photo, subject, tmp_path):
    portrait = bundled_portraits()["astronaut"]
    write_image(tmp_path / "collins.png", portrait)
    write_image(tmp_path / "collins.2.png", torch.nn.functional.avg_pool2d(portrait, 2))
    write_image(tmp_path / "other.png", portrait)
    (generator,) = open_generators((f"folder:{tmp_path}",), photo_options(photo))
    whole, half = generator.candidates(without_paint(subject), 5, 0)
    assert [whole.origin.model, half.origin.model] == ["collins.png", "collins.2.png"] and whole.origin.generator == tmp_path.name
    for made in (whole, half):
        assert (made.pixels - subject.case.clean).abs().mean() < 0.02
    assert len(generator.candidates(subject, 1, 0)) == 1


def square_hopper():
    return bundled_portraits()["grace_hopper"][:, :512]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: bundled_portraits()["grace_hopper"], "aspect ratio"),
        (square_hopper, "another person than its photo"),
        (lambda: torch.full((3, 512, 512), 0.5), "must show the photo's face"),
        (lambda: bundled_portraits()["astronaut"].roll(12, 2), "align it to its photo"),
    ],
)
def test_what_is_no_retouch_of_the_photo_is_refused(photo, subject, tmp_path, made, words):
    write_image(tmp_path / "collins.png", made())
    (generator,) = open_generators((f"folder:{tmp_path}",), photo_options(photo))
    with pytest.raises(DataError, match=words) as error:
        generator.candidates(subject, 1, 0)
    assert "collins.png" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match=words):  # and no anchor
        open_subject(PhotoRow("collins", "train", "c", {}, photo, tmp_path / "collins.png", 3), 128)


def laid_out(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, torch.zeros(3, 4, 4))
    return folder


def matched(folder, *photos):
    return {name: [file.relative_to(folder).as_posix() for file in files] for name, files in match_retouches(folder, photos).items()}


def test_retouches_belong_to_the_photo_at_their_own_path(tmp_path):
    folder = laid_out(tmp_path, "anna/front.1.png", "grace/front.jpg", "front.png", "anna/side.png", ".old/side.png")
    photos = ("anna/front.png", "./grace//front.png", "front.png", "top.png")
    assert matched(folder, *photos) == {
        "anna/front.png": ["anna/front.1.png"],
        "grace/front.png": ["grace/front.jpg"],
        "front.png": ["front.png"],
    }


def test_a_flat_folder_will_do_where_a_name_is_of_one_photo(tmp_path):
    folder = laid_out(tmp_path, "front.2.png", "front.10.png", "front.png", "other.png")
    assert matched(folder, "anna/front.jpg") == {"anna/front.jpg": ["front.png", "front.2.png", "front.10.png"]}


@pytest.mark.parametrize(
    ("retouch", "photos", "cure"),
    [
        ("front.1.png", ("anna/front.png", "grace/front.png"), "as in anna/front.1.png"),
        ("x.1.png", ("x.png", "x.1.png"), "rename it, or a photo"),
        ("x.png", ("x.png", "x.jpg"), "rename it, or a photo"),
    ],
)
def test_a_retouch_of_either_of_two_photos_is_refused(tmp_path, retouch, photos, cure):
    folder = laid_out(tmp_path / "rt", retouch)
    with pytest.raises(ConfigError, match="may be a retouch of") as error:
        open_generators((f"folder:{folder}",), GeneratorOptions("", 1, "cpu", tmp_path, photos))
    assert cure in str(error.value) and all(photo in str(error.value) for photo in photos)
    assert matched(laid_out(tmp_path / "more", "x.1.1.png"), "x.png", "x.1.png") == {"x.1.png": ["x.1.1.png"]}


class FakeEditor:
    """Brightens by its seed; takes the arguments of Kontext's pipeline that matter."""

    def __call__(self, image, prompt, num_inference_steps, generator, height, _auto_resize=True):
        assert prompt == "retouch" and num_inference_steps == 2 and height == image.height and not _auto_resize
        shift = torch.randint(1, 100, (1,), generator=generator).item()
        return SimpleNamespace(images=[image.point(lambda value: min(255, value + shift))])


def test_a_pipeline_makes_one_candidate_a_seed(subject):
    generator = Pipeline(FakeEditor(), "editor", "owner/editor", OPTIONS)
    one, two = generator.candidates(subject, 2, 7)
    assert [one.origin.seed, two.origin.seed] == [7, 8] and one.origin.model == "owner/editor" and one.scores is None
    assert not torch.equal(one.pixels, two.pixels) and one.pixels.shape == subject.case.source.shape
    assert torch.equal(generator.candidates(subject, 1, 8)[0].pixels, two.pixels)


@pytest.mark.slow
def test_the_embedded_retoucher_by_its_folder(subject):
    from policies.retoucher.backbones.tiny import EMBEDDED

    (generator,) = open_generators((f"pipeline:{EMBEDDED}",), OPTIONS)
    one, two = generator.candidates(subject, 2, 0)
    assert one.pixels.shape == (3, 128, 128) and not torch.equal(one.pixels, two.pixels)


def test_a_users_own(tmp_path, subject):
    (tmp_path / "mine.py").write_text(
        inspect.cleandoc("""
        from preference_data.generators import Candidate
        from preference_data.schema import Origin

        class Same:
            name = "same"
            def candidates(self, subject, count, seed):
                return [Candidate(subject.case.source, Origin("same"))] * count

        GENERATOR = lambda argument, options: Same()
        """)
    )
    (generator,) = open_generators((f"{tmp_path}/mine.py:GENERATOR",), OPTIONS)
    assert len(generator.candidates(subject, 3, 0)) == 3


@pytest.mark.parametrize(
    ("names", "error", "word"),
    [
        (("degradation",), ConfigError, "did you mean 'degradations'"),
        (("folder",), ConfigError, "folder:PATH"),
        (("folder:/none/here",), ConfigError, "no such folder"),
        (("folder:.",), ConfigError, "embedded people have no finished retouches"),
        (("pipeline",), ConfigError, "pipeline:PATH_OR_HUB_ID"),
        (("pipeline:/none/here",), WeightsError, "model_index.json"),
        (("degradations:3",), ConfigError, "degradations:gross for caricatures"),
        (("degradations", "degradations"), ConfigError, "by the name"),
        (("preference_data.schema:DIMENSIONS",), TypeError, "not callable"),
    ],
)
def test_what_cannot_work_is_refused(names, error, word):
    with pytest.raises(error, match=word):
        open_generators(names, OPTIONS)


def test_who_meets_whom():
    def candidate(name, group=None):
        return Candidate(torch.zeros(3, 2, 2), Origin(name), group=group)

    label = candidate("label")
    made = pair_candidates(
        [candidate("x", "g"), candidate("y", "g"), candidate("p"), candidate("q"), candidate("r")],
        label,
        pairs=4,
        generator=torch.Generator().manual_seed(0),
    )
    names = [frozenset((a.origin.generator, b.origin.generator)) for a, b in made]
    assert names[0] == {"x", "y"} and len(names) == 5 and len(set(names)) == 5
    assert sum("label" in couple for couple in names) == 2 and all("x" not in couple for couple in names[1:])
    large = [candidate(str(index), "g") for index in range(64)]
    few = pair_candidates(large, None, pairs=4, generator=torch.Generator().manual_seed(0))
    assert len({frozenset((a.origin.generator, b.origin.generator)) for a, b in few}) == len(few) == 64
    sides = [
        pair_candidates([candidate("p"), candidate("q")], None, pairs=1, generator=torch.Generator().manual_seed(seed))[0][
            0
        ].origin.generator
        for seed in range(60)
    ]
    assert 15 < sides.count("p") < 45
