"""Published tables, with their source; never compared number by number with ours."""

from dataclasses import dataclass

NOTE = (
    "Published values are copied, not measured here. Their scales are not those of pyiqa's defaults (MUSIQ looks like the AVA variant) "
    "and their pictures are other ones: compare the order within a table, never numbers across tables."
)


@dataclass(frozen=True)
class Published:
    """A table as published: rows of values, None where the source has none."""

    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]


BEAUTYGRPO = Published(
    title="FFHQR test, 1000 photos",
    source="BeautyGRPO, arXiv 2603.01163",
    columns=("NIQE ↓", "NIMA ↑", "MUSIQ ↑", "MANIQA ↑", "TOPIQ ↑", "ArcFace ↑"),
    rows=(
        ("BeautyGRPO", (10.831, 5.123, 4.906, 1.079, 0.676, 0.952)),
        ("Flow-GRPO", (15.024, 4.573, 4.271, 0.935, 0.571, 0.882)),
        ("Kontext + LoRA", (12.913, 4.694, 4.459, 1.035, 0.601, 0.973)),
        ("RetouchFormer", (11.153, 4.723, 4.465, 1.036, 0.605, 0.986)),
        ("NanoBanana", (11.301, 4.919, 4.681, 1.009, 0.621, 0.889)),
    ),
)
