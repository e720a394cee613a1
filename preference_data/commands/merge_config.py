"""Every option of `make-preferences merge` and `make-preferences export`. The docstring under a field is its help text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class MergeConfig:
    """Write what annotators agree on into the pairs: a senior's word, else the majority. Prints how far they agree."""

    data: Positional[Annotated[Path, arg(metavar="DATA")]]
    """Folder of a pair set."""
    files: tuple[Path, ...] = ()
    """Judgements of annotators who worked on a copy of the set; they are taken into its annotations/."""
    relabel: bool = False
    """Replace verdicts that are there already, known truth included; where the annotators are in conflict, the pair is open again."""
    dry_run: bool = False
    """Print only; write nothing."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a pair set as parquet with its pictures inside, for datasets.load_dataset and the hub; or such a data set as a folder again."""

    source: Positional[Annotated[str, arg(metavar="DATA")]]
    """Folder of a pair set; with --to-folder the folder or hub id of a parquet data set."""
    output_dir: Path = Path("pairs-parquet")
    """A folder that does not exist yet or is empty."""
    to_folder: bool = False
    """The other way: from parquet to a folder with metadata.jsonl and pictures."""
