"""Who is who, and splits that no person crosses: whole clusters of identity embeddings are assigned, never rows."""

import hashlib
from collections import Counter

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from portraitkit.errors import ConfigError
from preference_data.schema import SPLITS

SHARES = (0.8, 0.1, 0.1)  # Of train, validation and held_out
LINKED = 0.45
"""Faces nearer than this are linked. At dlib's own .6 for one person, chains of look-alikes join people: of 584 people in 640 portraits
174 groups were left (one of 406 photos); at .45 all 584, and both photos of a person together."""


def cluster_identities(embeddings: Float[Tensor, "n dim"], *, same_person: float = LINKED) -> list[int]:
    """Cluster numbers from 0, by single linkage: two faces nearer than `same_person` are never in two clusters.

    A chain of look-alikes may join two people. That costs variety within a split and never lets a person into two of them.
    """
    if len(embeddings) < 2:
        return [0] * len(embeddings)
    joined = linkage(embeddings.detach().double().cpu().numpy(), method="single", metric="euclidean")
    labels = fcluster(joined, t=np.nextafter(same_person, 0), criterion="distance")
    order = {label: index for index, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [order[label] for label in labels.tolist()]


def identity_name(embeddings: Float[Tensor, "n dim"]) -> str:
    """A name for a cluster, from its mean embedding rounded: it tells nothing about the person."""
    return f"person-{hashlib.sha256(embeddings.mean(0).mul(1e3).round().to(torch.int32).cpu().numpy().tobytes()).hexdigest()[:12]}"


def join_names(names: list[str], clusters: list[int]) -> dict[str, str]:
    """Who may be one person under several names, one a row: those that share a cluster, directly or by way of further names.

    Returns:
        Name -> the first of the names that go together with it.
    """
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    edges = [places[name] for name in names], [len(places) + cluster for cluster in clusters]
    nodes = len(places) + max(clusters, default=0) + 1
    parts = connected_components(coo_array((np.ones(len(names)), edges), shape=(nodes, nodes)), directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(parts[place]), name) for name, place in places.items()}


def split_identities(identities: list[str], *, shares: tuple[float, ...] = SHARES, seed: int = 0) -> dict[str, str]:
    """Assign identities to the splits, largest first, each to the split that is furthest below its share of rows.

    Args:
        identities: one a row, repeated as often as the person occurs.
        shares: of train, validation and held_out; must sum to 1.
        seed: breaks ties between identities of one size.

    Returns:
        Identity -> split. Where there are at least as many identities as splits with a share, each of these gets one.

    Raises:
        ConfigError: shares that are no shares.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares {shares}: must be three numbers of at least 0 that sum to 1, for {', '.join(SPLITS)}")
    sizes = Counter(identities)
    key = {name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in sizes}
    total, held, dealt = len(identities), dict.fromkeys(SPLITS, 0), {}
    open_splits = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    for name in sorted(sizes, key=lambda name: (-sizes[name], key[name])):
        missing = {
            split: share * total - held[split] + (total if len(sizes) >= len(open_splits) and not held[split] and dealt else 0)
            for split, share in zip(SPLITS, shares, strict=True)
            if share > 0
        }
        split = max(missing, key=lambda split: missing[split])
        dealt[name] = split
        held[split] += sizes[name]
    return dealt
