"""Parts of the judge's training: what is kept, what is coherent, what GRPO pays, what is still wrong, who is in which split."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from portraitkit.errors import CheckpointError, ConfigError, DataError, WeightsError
from portraitkit.vlm.generate import Completion
from portraitkit.vlm.rows import first_row
from portraitkit.vlm.trainers import part_names, reward_functions
from preference_data.contract import Answer, read_answer, write_answer, write_brief
from preference_data.people.synthetic import draw_morph
from preference_data.schema import DIMENSIONS, Pair
from preference_data.verdict import turned, winner
from reward_models.evaluation.hacks import DISTURBANCES, HACKS, disturbed, hack_figures, hack_pairs, stability
from reward_models.judge.coherence import NliCoherence, deterministic, load_coherence, reason, words_agree
from reward_models.judge.pairs import (
    View,
    check_disjoint,
    check_several_people,
    drawn_scores,
    exchanged,
    identity_hash,
    judged_of,
    open_pairs,
    synthetic_pair,
)
from reward_models.judge.preference_task import Preference, answer_of
from reward_models.judge.settings import EMBEDDED_FOLDER, JudgeSettings, read_settings, view_of, write_settings
from reward_models.training.config import RewardModelConfig
from reward_models.training.stages import Asked, judge_task, keep, still_wrong, verdict_on
from reward_models.training.train import calibrate_last, check_stages
from tools.embedded.vlm import ROWS

BRIEF, FULL = View("beside-difference", "brief"), View("as-taken", "full")
TRUTH = Preference("first", dict.fromkeys(DIMENSIONS, "first") | {"identity": "tie"})


def brief(better="first", **scores):
    """An answer, right about TRUTH unless told otherwise."""
    found = {name: (5, 3) for name in DIMENSIONS} | {"identity": (4, 4)} | scores
    return write_brief(Answer(found, better, ""))


@pytest.fixture(scope="module")
def pairs():
    return open_pairs("embedded", {"train": 3, "validation": 2, "held_out": 3}, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (brief(), "kept"),
        (brief(identity=(4, 3)), "kept"),  # one of five wrong, a tie called a win
        (brief(identity=(4, 3), texture=(4, 4)), "too few dimensions"),
        (brief(texture=(3, 4)), "a dimension reversed"),
        (brief(better="second"), "overall wrong"),
        ("no idea", "unreadable"),
        (write_answer(answer_of(TRUTH, "words")), "unreadable"),  # the other form
    ],
)
def test_the_rule_of_rejection(text, why):
    assert verdict_on(text, TRUTH, BRIEF, deterministic, 0.8)[0] == why


def test_incoherent_reasoning_is_rejected_though_the_answer_is_right():
    good = write_answer(answer_of(TRUTH, reason(answer_of(TRUTH))))
    assert verdict_on(good, TRUTH, FULL, deterministic, 0.8) == ("kept", 1.0)
    lying = write_answer(answer_of(TRUTH, "Clarity: Image2 is better."))
    assert verdict_on(lying, TRUTH, FULL, deterministic, 0.8)[0] == "incoherent"


def test_equal_trajectories_are_kept_once_and_the_best_first(pairs):
    row = replace(BRIEF.rows(pairs["train"][0])[0], truth=TRUTH)
    texts = [brief(identity=(4, 3)), brief(), brief(), "no idea", brief(better="second")]
    kept, note = keep([row], [[Completion(text, 9, False) for text in texts]], BRIEF, deterministic, least=0.8, most=2)
    assert [one.target for one in kept] == [brief(), brief(identity=(4, 3))]
    assert note["keep_rate"] == pytest.approx(3 / 5) and note["rows_with_one"] == 1
    one, _ = keep([row], [[Completion(text, 9, False) for text in texts]], BRIEF, deterministic, least=0.8, most=1)
    assert [row.target for row in one] == [brief()]


def test_reasons_in_words_agree_with_their_scores_and_turn_with_the_order():
    answer = answer_of(TRUTH)
    words = reason(answer)
    assert words_agree(replace(answer, reasoning=words)) and words.count("\n") == 5
    other = answer_of(TRUTH.exchanged())
    assert words_agree(replace(other, reasoning=turned(words))) and not words_agree(replace(other, reasoning=words))
    assert words_agree(replace(answer, reasoning="Nothing is claimed here."))
    assert not words_agree(replace(answer, reasoning="Overall, Image2 is better."))


@pytest.mark.parametrize(
    ("words", "agrees"),
    [
        ("Clarity: Image2 is much better.", False),
        ("Clarity: Image 2 is slightly better.", False),
        ("Clarity: image1 looks worse.", False),
        ("Clarity: both are alike.", False),
        ("Clarity: they are not alike, Image1 wins.", True),
        ("Clarity: Image2 is not better.", True),
        ("Clarity: I prefer Image1.", True),
        ("Clarity: overall sharpness suffers, Image1 is better. Texture: Image1 is clearly superior.", True),
        ("Texture: Image1 is better. In the end Image2 is better.", False),
        ("Texture: Image1 is better.\nOverall, Image2 wins.", False),
        ("Image 2 is better.", False),
        ("Image2 wins.", False),
        ("Image1 and Image2 are not alike, Image1 wins.", True),
        ("Image1 wins over Image2.", True),
    ],
)
def test_claims_are_found_in_the_words_that_models_use(words, agrees):
    answer = answer_of(Preference("first", dict.fromkeys(DIMENSIONS, "first")))
    assert words_agree(replace(answer, reasoning=words)) == agrees


@pytest.mark.parametrize("view", [BRIEF, FULL], ids=["brief", "full"])
def test_a_row_of_either_order_asks_and_answers_in_its_form(pairs, view):
    for pair in pairs["train"]:
        first, second = view.rows(pair)
        assert [(row.columns["pair"], row.columns["order"]) for row in (first, second)] == [(pair.id, "ab"), (pair.id, "ba")]
        assert len(first.pictures) == (2 if view is BRIEF else 3)
        assert torch.equal(first.pictures[-1], second.pictures[-2]) and torch.equal(first.pictures[-2], second.pictures[-1])
        for row in (first, second):
            answer = view.read(row.target)
            assert isinstance(answer, Answer) and answer.scores == row.truth.scores and deterministic(answer) == 1
        assert first.truth.exchanged() == second.truth


def test_what_grpo_pays_for_the_right_answer_and_for_agreeing_with_itself():
    task = judge_task(BRIEF, consistency_weight=0.25)
    asked = Asked(TRUTH.overall, TRUTH.verdicts, None, "first")
    assert task.score(brief(), asked, "fixed").reward == pytest.approx(3.25) == pytest.approx(task.ranges["fixed"][1])
    assert task.score(brief(), replace(asked, other="second"), "fixed").parts["consistency"] == 0
    assert task.score(brief(), replace(asked, other=None), "fixed").parts["consistency"] is None
    most = [task.most(replace(asked, other=other), "fixed") for other in ("first", "second", None) if task.most is not None]
    assert most == [3.25, 3, 3]
    assert task.score("no idea", asked, "fixed").reward == 0
    assert task.score(write_answer(answer_of(TRUTH, "words")), asked, "fixed").reward == 0  # another form than was asked for
    assert "consistency" not in judge_task(BRIEF).score(brief(), TRUTH, "fixed").parts
    wrong = task.score(brief(better="second"), asked, "fixed")
    assert wrong.parts["overall"] == 0 and wrong.parts["coherence"] == 0 and wrong.parts["form"] == 0.5


def test_rewards_reach_trl_part_by_part(pairs):
    task = judge_task(BRIEF, consistency_weight=0.1)
    shown = BRIEF.rows(pairs["train"][0])
    rows = [replace(row, truth=Asked(row.truth.overall, row.truth.verdicts, row.truth.scores, None)) for row in shown]
    assert part_names(task, rows[0], "fixed") == ["form", "coherence", "overall", "dimensions", "consistency"]
    functions = {function.__name__: function for function in reward_functions(task, rows, "fixed")}
    completions = [[{"role": "assistant", "content": row.target}] for row in rows]
    assert functions["overall"](completions, index=[0, 1]) == [1.0, 1.0]
    assert functions["overall"](completions[::-1], index=[0, 1]) == [0.0, 0.0]
    assert functions["consistency"](completions, index=[0, 1]) == [None, None]


def test_what_is_still_wrong(pairs):
    pair = replace(pairs["train"][0], overall="a", verdicts=dict.fromkeys(DIMENSIONS, "a") | {"identity": "tie"}, scores=None)
    assert pair.shown("ab") == TRUTH
    right = judged_of(BRIEF, pair.id, (brief(), write_brief(answer_of(TRUTH.exchanged()))))
    flips = judged_of(BRIEF, pair.id, (brief(), brief()))
    sloppy = judged_of(BRIEF, pair.id, (brief(identity=(4, 3)), write_brief(answer_of(TRUTH.exchanged()))))
    silent = judged_of(BRIEF, pair.id, (brief(), ""))
    assert [still_wrong(pair, one, "overall") for one in (right, flips, sloppy, silent)] == [False, True, False, True]
    assert [still_wrong(pair, one, "dimensions") for one in (right, flips, sloppy, silent)] == [False, True, True, True]
    assert still_wrong(pair, right, "all")
    tied = replace(pair, overall="tie", verdicts={})
    assert not still_wrong(tied, flips, "overall")


def test_an_nli_model_judges_reasoning(tmp_path):
    """A tiny random DeBERTa-v2 with the labels of the published ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Image1", "Image2", "is", "better", ".", "overall"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special).save_pretrained(tmp_path)
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    config = DebertaV2Config(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32,
        id2label=labels, label2id={label: place for place, label in labels.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
    coherence = load_coherence(f"nli:{tmp_path}")
    assert isinstance(coherence, NliCoherence)
    answer = answer_of(TRUTH, "Image1 is better. " * 40)
    assert 0 < coherence(answer) < 1 and coherence(answer) == coherence(answer)
    assert coherence(replace(answer, better="second")) == 0 and coherence(replace(answer, reasoning=" ")) == 0
    part = judge_task(FULL, coherence).score(write_answer(answer), TRUTH, "fixed").parts["coherence"]
    assert part == pytest.approx(0.5 * coherence(answer), abs=1e-6)
    config.id2label = {0: "yes", 1: "no", 2: "maybe"}
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="yes, no, maybe"):
        load_coherence(f"nli:{tmp_path}")


def test_what_is_no_nli_model_is_named():
    with pytest.raises(ConfigError, match="nli:PATH"):
        load_coherence("nlp:x")
    with pytest.raises(WeightsError, match="/nowhere"):
        load_coherence("nli:/nowhere")


def test_splits_are_disjoint_by_identity_hash(pairs):
    hashes = check_disjoint(pairs)
    assert [len(hashes[split]) for split in ("train", "validation", "held_out")] == [3, 2, 3]
    assert not set(hashes["held_out"]) & (set(hashes["train"]) | set(hashes["validation"]))
    base = {identity_hash(synthetic_pair("train", seed).identity) for seed in range(2)}
    assert not base & {name for some in hashes.values() for name in some}  # the embedded base's own pairs are not trained on again
    doubled = {**pairs, "held_out": [replace(pairs["held_out"][0], identity=pairs["train"][0].identity)]}
    with pytest.raises(DataError, match="train and held_out"):
        check_disjoint(doubled)
    with pytest.raises(DataError, match="no identity"):
        check_disjoint({**pairs, "held_out": [replace(pairs["held_out"][0], identity="")]})


def test_no_person_of_the_held_out_pairs_is_near_one_that_the_base_was_taught_on():
    def morphs(split, seeds):
        return torch.tensor([draw_morph(split, torch.Generator().manual_seed(seed)) for seed in seeds])

    made = synthetic_pair("held_out", 7)
    assert f"{float(morphs('held_out', [7])):.6f}" in made.identity  # the same draw as in a whole pair
    held_out, taught = morphs("held_out", range(250)), morphs("train", range(ROWS["preference"]))
    fresh = morphs("train", range(first_row("train", 0), first_row("train", 0) + 500))
    for others in (taught, fresh, morphs("validation", range(400))):
        assert torch.cdist(held_out[:, None], others[:, None]).min() >= 0.03


def test_held_out_pairs_of_one_person_are_refused(pairs):
    one = [replace(pair, identity="anna") for pair in pairs["held_out"]]
    with pytest.raises(DataError, match="show one person"):
        check_several_people(one, "set")
    check_several_people(pairs["held_out"], "set")


def test_held_out_pairs_are_the_same_for_every_seed():
    zero, one = (open_pairs("embedded", {"train": 1, "validation": 0, "held_out": 1}, seed) for seed in (0, 1))
    assert zero["held_out"][0].id == one["held_out"][0].id and zero["train"][0].id != one["train"][0].id


def test_exchanged_pictures_are_another_persons(pairs):
    some = pairs["train"]
    for seed in range(3):
        for before, after in zip(some, exchanged(some, seed), strict=True):
            assert before.id == after.id and before.shown("ab") == after.shown("ab") and after.photo is not before.photo


def test_hacks_are_worse_than_the_honest_retouch_and_seen_in_the_views():
    hacks = hack_pairs(1)
    assert set(hacks) == set(HACKS)
    for name, (pair,) in hacks.items():
        photo, honest, hacked = pair.pixels()
        assert (hacked - honest).abs().max() > 0.03, name
        assert pair.overall == "a" and torch.equal(hacked, photo) == (name == "untouched")
    found = hack_figures({name: [judged_of(BRIEF, pair.id, (brief(), brief()))] for name, (pair,) in hacks.items()})
    assert all(row["honest_wins"] == 0.5 and row["n"] == 1 for row in found.values())
    assert found["sharpened"]["score_margin"] == pytest.approx(0)


def test_stability_counts_what_stays(pairs):
    some = pairs["held_out"][:2]
    for name in DISTURBANCES:
        changed = disturbed(some, name)
        difference = (changed[0].pixels()[1] - some[0].pixels()[1]).abs().mean()
        assert 0 < difference < 0.05
    before = [judged_of(BRIEF, pair.id, (brief(), brief("second"))) for pair in some]
    after = [judged_of(BRIEF, some[0].id, (brief(), brief("second"))), judged_of(BRIEF, some[1].id, (brief("second"), ""))]
    found = stability(before, after)
    assert found["unchanged"] == pytest.approx(2 / 3) and found["n"] == 3 and found["unreadable"] == 1


def test_a_judge_says_how_it_is_asked(tmp_path):
    assert view_of("Qwen/Qwen2.5-VL-7B-Instruct") == View("as-taken", "full")
    assert view_of("embedded") == View("spots-and-difference", "brief")
    write_settings(tmp_path, JudgeSettings(BRIEF.shown, BRIEF.form))
    assert view_of(str(tmp_path)) == BRIEF and view_of(str(tmp_path), "as-taken", "full") == View("as-taken", "full")
    (tmp_path / "judge.json").write_text('{"shown": "sideways", "form": "brief"}')
    with pytest.raises(WeightsError, match="sideways"):
        view_of(str(tmp_path))


def test_the_full_form_is_read_back(pairs):
    row = FULL.rows(pairs["train"][0])[0]
    answer = read_answer(row.target)
    assert isinstance(answer, Answer) and answer.reasoning.endswith("is better.")


def test_a_stored_set_needs_judged_pairs_in_every_split(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_pairs(str(tmp_path), {"train": 0, "validation": 0, "held_out": 0}, 0)
    assert not Path("nowhere").exists()


def test_the_last_judge_is_calibrated_on_the_validation_pairs(tmp_path):
    folder, said = tmp_path / "model", []
    shutil.copytree(EMBEDDED_FOLDER, folder)
    write_settings(folder, JudgeSettings("beside-difference", "brief"))
    pairs = [synthetic_pair("validation", seed) for seed in range(6)]
    calibrate_last(RewardModelConfig.of(), pairs, folder, said.append)
    settings = read_settings(folder)
    assert settings is not None and settings.temperature != 1 and (settings.shown, settings.form) == ("beside-difference", "brief")
    assert f"{settings.temperature:.2f}" in said[0]


def test_another_number_of_processes_is_refused_before_anything_is_loaded(tmp_path):
    """Whichever stage was stopped, and its blind copy, too."""
    place = tmp_path / "reject/checkpoint-5"
    place.mkdir(parents=True)
    for name in ("trainer_state.json", "model.safetensors", "rng_state_0.pth", "rng_state_1.pth"):
        (place / name).write_text("{}")
    again = RewardModelConfig.of(output_dir=str(tmp_path), resume_from_checkpoint="latest")
    assert check_stages(again, 2) == [] == check_stages(replace(again, resume_from_checkpoint=None), 1)
    with pytest.raises(CheckpointError, match="reject/checkpoint-5: was written by 2 processes, this run has 1"):
        check_stages(again, 1)
    (line,) = check_stages(replace(again, allow_changed=True), 1)
    assert "an update takes 1/2 of the rows" in line


def test_scores_between_whole_numbers_are_drawn():
    """Their mean over pairs is the score, both of a dimension keep their order, and the verdicts and the overall winner stand."""
    scores = dict.fromkeys(DIMENSIONS, (3.7, 3.7)) | {"texture": (3.25, 2.5), "clarity": (4.4, 4.5)}
    verdicts = dict.fromkeys(DIMENSIONS, "tie") | {"texture": "a", "clarity": "b"}
    drawn = [drawn_scores(Pair(f"p{n}", "i", "a", "b", verdicts, "a", scores)) for n in range(400)]
    assert drawn[0] == drawn_scores(Pair("p0", "i", "a", "b", verdicts, "a", scores))
    for name in DIMENSIONS:
        assert {winner(*one[name]) for one in drawn} == {verdicts[name]}
    assert sum(one["identity"][0] for one in drawn) / 400 == pytest.approx(3.7, abs=0.1)
    assert sum(one["texture"][0] for one in drawn) / 400 > 3 and {one["texture"][1] for one in drawn} == {2, 3}
    assert all(sum(both[0] for both in one.values()) >= sum(both[1] for both in one.values()) for one in drawn)
