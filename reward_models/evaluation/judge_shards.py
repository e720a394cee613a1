"""A judge asked by several processes, as torchrun or accelerate launch starts them: each asks about its share of the batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portraitkit.files.jsonl import write_lines
from portraitkit.runs.progress import progress_bar
from portraitkit.runs.shard_files import ShardFile
from reward_models.evaluation.checks import Asking
from reward_models.judge.ask import Judged, judge_pairs
from reward_models.judge.pairs import JudgedPair


@dataclass(frozen=True)
class SharedAsking(Asking):
    """Asks about this process's share, in the batches that one process would make: an answer may depend on what lies beside it in a batch.

    Attributes:
        own: where the answers are kept, batch by batch; what is there is not asked again.
    """

    own: ShardFile = field(kw_only=True)

    def judge(self, model: Any, pairs: Sequence[JudgedPair], what: str, keep: Path | None = None) -> list[Judged]:
        """Ask about the share of the pairs in both orders, and keep the answers under the name of `keep`; returns nothing."""
        assert keep is not None
        name, batch = f"{keep.parent.name}/{keep.name}", self.config.generation_batch
        step = batch // 2 if batch % 2 == 0 else batch  # a pair is two rows
        known = {row["start"] for row in self.own.rows if row["file"] == name}
        starts = self.own.shard.share(range(0, max(len(pairs), 1), step))  # a split without pairs has a file without answers
        with progress_bar(self.console, elapsed=True) as progress:
            bar = progress.add_task(what, total=2 * sum(len(pairs[start : start + step]) for start in starts if start not in known))

            def advance(count: int) -> None:
                progress.advance(bar, count)
                self.stop()

            for start in starts:
                if start in known:
                    continue
                judged = judge_pairs(
                    model,
                    self.processor,
                    self.view,
                    pairs[start : start + step],
                    max_tokens=self.config.max_tokens,
                    batch_size=batch,
                    advance=advance,
                )
                self.own.append({"file": name, "start": start, "answers": [one.to_row() for one in judged]})
        return []


def write_answers(folder: Path, shards: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Write the answers of all shards to the files that one process writes, in its order."""
    rows = sorted((row for shard in shards for row in shard), key=lambda row: (row["file"], row["start"]))
    for name in dict.fromkeys(row["file"] for row in rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, (answer for row in rows if row["file"] == name for answer in row["answers"]))
