"""`blind-test export`: every vote with the methods' names, for those who compute on their own."""

import csv
import io
import json

from benchmarks.blind_test.analysis import failed_checks, outcome
from benchmarks.blind_test.options import ExportConfig
from benchmarks.blind_test.study import CHECK, VOTES, read_study
from benchmarks.blind_test.vote_store import read_votes
from portraitkit.errors import RunFolderError
from portraitkit.report.page import safe_cell

COLUMNS = ("rater", "position", "kind", "photo", "left", "right", "choice", "preferred", "seconds", "failed_checks_of_rater")


def export_votes(config: ExportConfig) -> int:
    """Write one row a vote, in one piece.

    Returns:
        0.

    Raises:
        RunFolderError: no study, no votes, the file is there already, or it cannot be written.
    """
    if config.output.exists() and not config.overwrite:
        raise RunFolderError(f"--output {config.output}: is there already; use --overwrite or another name")
    study = read_study(config.folder)
    votes = read_votes(config.folder / VOTES)
    failures = failed_checks(votes)
    rows = []
    for vote in votes:
        shown = ("original", "spoiled") if vote.cell.pair == CHECK else study.pairs[vote.cell.pair]
        left, right = shown[::-1] if vote.cell.swapped else shown
        kind = "check" if vote.cell.pair == CHECK else "pair"
        preferred = (shown[0], "tie", shown[1])[outcome(vote)]
        photo = study.photos[vote.cell.photo].name
        values = (
            vote.rater,
            vote.position,
            kind,
            photo,
            left,
            right,
            vote.choice,
            preferred,
            None if vote.seconds is None else round(vote.seconds, 3),
            failures[vote.rater],
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    text = io.StringIO(newline="")
    if config.output.suffix.lower() == ".csv":
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({column: safe_cell(value) for column, value in row.items()} for row in rows)
    else:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    unfinished = config.output.with_name(f".{config.output.name}.part")
    try:
        unfinished.write_text(text.getvalue(), encoding="utf-8", newline="")
        unfinished.replace(config.output)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunFolderError(f"{config.output}: could not be written ({error.strerror}); choose another --output") from error
    print(f"{config.output}: {len(rows)} votes")
    return 0
