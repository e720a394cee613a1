"""A name mistyped gets the one meant, and only that one."""

import pytest

from portraitkit.errors import nearest

KNOWN = ("learning_rate", "lam_max", "max_train_steps", "seed")


@pytest.mark.parametrize(
    ("typed", "meant"), [("learning_rat", "learning_rate"), ("lamda_max", "lam_max"), ("max_training_steps", "max_train_steps")]
)
def test_the_nearest_name_is_offered(typed, meant):
    assert nearest(typed, KNOWN) == f"; did you mean {meant!r}?"
    assert nearest(typed, (name for name in KNOWN)) == f"; did you mean {meant!r}?"


def test_the_best_of_several_near_names_is_offered():
    assert nearest("flow_sd", ["flow_s", "flow_sde", "flow_cps"]) == nearest("flow_sd", ["flow_cps", "flow_sde", "flow_s"])
    assert nearest("photo", ["photos_per_step", "photos"]) == "; did you mean 'photos'?"


@pytest.mark.parametrize("known", [KNOWN, ()])
def test_nothing_is_offered_where_nothing_is_near(known):
    assert nearest("zzz", known) == ""
