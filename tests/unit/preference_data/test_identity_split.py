"""Splits by person: nobody who looks alike is in two of them."""

import pytest
import torch

from portraitkit.errors import ConfigError
from preference_data.people.photos import cluster_identities, identity_name, split_identities


def test_clusters_are_people_whatever_the_order():
    generator = torch.Generator().manual_seed(0)
    people = torch.nn.functional.normalize(torch.randn(12, 128, generator=generator), dim=1)
    owner = torch.randint(12, (80,), generator=generator)
    vectors = people[owner] + 0.02 * torch.randn(80, 128, generator=generator)
    labels = cluster_identities(vectors)
    assert len({(label, int(own)) for label, own in zip(labels, owner, strict=True)}) == len(set(labels)) == len(owner.unique())


def test_no_two_clusters_come_nearer_than_the_threshold():
    vectors = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) * 3
    labels = torch.tensor(cluster_identities(vectors, same_person=0.6))
    apart = labels[:, None] != labels[None]
    assert apart.any() and torch.cdist(vectors, vectors)[apart].min() >= 0.6


def test_few_faces():
    assert cluster_identities(torch.zeros(0, 128)) == [] and cluster_identities(torch.zeros(1, 128)) == [0]
    assert identity_name(torch.ones(2, 128)) == identity_name(torch.ones(1, 128)) != identity_name(torch.zeros(1, 128))


@pytest.mark.parametrize("seed", range(5))
def test_every_person_is_in_one_split_and_shares_come_close(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [f"p{int(n)}" for n in torch.randint(60, (400,), generator=generator)]
    dealt = split_identities(rows, shares=(0.7, 0.1, 0.2), seed=seed)
    assert dealt.keys() == set(rows)
    for split, share in zip(("train", "validation", "held_out"), (0.7, 0.1, 0.2), strict=True):
        assert sum(dealt[name] == split for name in rows) / 400 == pytest.approx(share, abs=0.02)
    assert dealt == split_identities(rows[::-1], shares=(0.7, 0.1, 0.2), seed=seed)


def test_three_people_fill_three_splits():
    assert set(split_identities(["a"] * 50 + ["b", "c"]).values()) == {"train", "validation", "held_out"}
    assert set(split_identities(["a", "b"], shares=(1.0, 0.0, 0.0)).values()) == {"train"}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.1, 0.1)])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ConfigError, match="sum to 1"):
        split_identities(["a"], shares=shares)
