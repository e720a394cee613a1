"""The table of `python -m tools.bench.gpu.main`: on the screen, in Markdown, and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.table import Table

from portraitkit.memory.plan import GIB
from tools.bench.gpu.case import Row

COLUMNS = ("method", "seconds", "evaluations", "a second", "MFU", "peak GiB", "planned GiB", "peak / planned")
NOTE = (
    "Seconds and evaluations of one group, or of one update of the vision-language model: evaluations of the network on a picture or a "
    "token, a backward counted as two. MFU: model FLOPs (none that are computed again) over the device's dense bfloat16 peak. Peak: most "
    "bytes of tensors at once; planned: the same by `--dry-run`. Weights and rewards are random."
)


def cells(row: Row, peak_flops: float | None) -> tuple[str, ...]:
    """A row's cells, in the order of `COLUMNS`; only the method of one that was not measured."""
    if row.problem:
        return (row.method, *["-"] * (len(COLUMNS) - 1))
    used, rate, ratio = row.utilisation(peak_flops), row.rate, row.ratio
    return (
        row.method,
        f"{row.seconds:.2f}",
        f"{row.evaluations:,.0f} {row.unit}",
        f"{rate:,.1f}" if rate is not None else "",
        f"{used:.1%}" if used is not None else "unknown",
        _gib(row.peak),
        _gib(row.planned),
        f"{ratio:.2f}" if ratio is not None else "",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.3f}"


def screen_tables(rows: Sequence[Row], peak_flops: float | None) -> Iterator[Table]:
    """For the console, one for each model and size."""
    for (model, setting), some in groupby(rows, key=lambda row: (row.model, row.setting)):
        table = Table(title=f"{model}: {setting}", title_justify="left")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
        for row in some:
            table.add_row(*cells(row, peak_flops))
        yield table


def comparisons(rows: Sequence[Row]) -> list[str]:
    """One line for each size at which both methods of the retoucher were measured, and one for each row that was not."""
    lines = [f"{row.model}, {row.setting}: {row.method}: {row.problem}" for row in rows if row.problem]
    for first, second in zip(rows, rows[1:], strict=False):
        if (first.model, first.setting) == (second.model, second.setting) and not first.problem and not second.problem:
            fewer, less = second.evaluations / first.evaluations, second.seconds / first.seconds
            lines.append(f"{first.model}, {first.setting}: {first.method} takes {fewer:.1f}x fewer evaluations and {less:.1f}x less time")
    return lines


def markdown(title: str, command: str, rows: Sequence[Row], peak_flops: float | None) -> str:
    """Ready to be pasted into docs/measurements/speed.md."""
    head = ("model and size", *COLUMNS)
    body = [(f"{row.model}: {row.setting}", *cells(row, peak_flops)) for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]
    compared = [f"- {line}" for line in comparisons(rows)]
    parts = [f"### {title}", f"`{command}`", "\n".join(lines), *(["\n".join(compared)] if compared else []), NOTE]
    return "\n\n".join(parts) + "\n"


def as_json(rows: Sequence[Row], device: Mapping[str, Any], peak_flops: float | None) -> dict[str, Any]:
    """Everything, in bytes, seconds and FLOPs."""
    each = [
        {**asdict(row), "evaluations_per_second": row.rate, "utilisation": row.utilisation(peak_flops), "peak_over_planned": row.ratio}
        for row in rows
    ]
    return {"device": {**device, "peak_flops": peak_flops}, "rows": each}
