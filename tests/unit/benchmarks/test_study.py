"""The design stays balanced over photos, pairs, cells and sides, whoever leaves early."""

import random
from collections import Counter

import pytest

from benchmarks.blind_test.study import CHECK, draw_session


def crowd(raters: int, photos: int, pairs: int, length: int, stay: float = 1.0):
    generator, shown, sessions = random.Random(0), [], []
    for _ in range(raters):
        session = draw_session(shown, photos=photos, pairs=pairs, length=length, checks=2, generator=generator)
        sessions.append(session)
        pairs_only = [cell for cell in session if cell.pair != CHECK]
        shown += pairs_only[: None if generator.random() < stay else generator.randint(0, length)]
    return shown, sessions


def spread(counts: Counter, size: int) -> int:
    values = [*counts.values(), *[0] * (size - len(counts))]
    return max(values) - min(values)


@pytest.mark.parametrize(("photos", "pairs", "length"), [(24, 3, 20), (40, 1, 20), (7, 6, 20), (100, 10, 12)])
def test_photos_pairs_cells_and_sides_are_balanced(photos, pairs, length):
    shown, sessions = crowd(60, photos, pairs, length)
    assert all(len(session) == length + 2 for session in sessions)
    assert spread(Counter(cell.photo for cell in shown), photos) <= 1
    assert spread(Counter(cell.pair for cell in shown), pairs) <= 1
    assert spread(Counter((cell.photo, cell.pair) for cell in shown), photos * pairs) <= 3
    for pair in range(pairs):
        sides = Counter(cell.swapped for cell in shown if cell.pair == pair)
        assert abs(sides[True] - sides[False]) <= 4
    in_cell = Counter()
    for cell in shown:
        in_cell[cell.photo, cell.pair] += -1 if cell.swapped else 1
    assert max(map(abs, in_cell.values())) <= 2


def test_a_rater_sees_a_photo_again_only_when_all_were_seen():
    _, sessions = crowd(50, 24, 3, 20)
    assert all(max(Counter(cell.photo for cell in session if cell.pair != CHECK).values()) == 1 for session in sessions)


def test_checks_are_never_first_and_come_on_both_sides():
    _, sessions = crowd(50, 24, 3, 20)
    assert all(session[0].pair != CHECK for session in sessions)
    assert all({cell.swapped for cell in session if cell.pair == CHECK} == {True, False} for session in sessions)


def test_balance_comes_back_after_raters_who_left():
    shown, _ = crowd(150, 24, 3, 20, stay=0.5)
    assert spread(Counter(cell.photo for cell in shown), 24) <= 8
    assert spread(Counter(cell.pair for cell in shown), 3) <= 8
