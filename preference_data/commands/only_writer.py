"""One process at a time for work that has no shards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from portraitkit.errors import RunFolderError
from portraitkit.runs.shard_files import OPTIONS, SHARDS, ShardFile
from portraitkit.runs.shards import Shard

WRITING = ".writing"
ALL = Shard(0, 1)


@contextmanager
def only_writer(folder: Path, work: str = WRITING) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the lock is gone afterwards, and so is a folder in which nothing was made.

    It is the lock that shards have, here for a work with a single share: it names process and machine and gives signs of life, and one
    that a killed process left is taken over (see `portraitkit.runs.shard_files.ShardFile`).

    Args:
        folder: to be written; made where it is missing.
        work: hidden name of what is done in it, where several works may be done at once.

    Raises:
        RunFolderError: another process is at it, or the folder cannot be written.
    """
    place, new = folder / work, not folder.exists()
    with ExitStack() as stack:
        try:
            stack.enter_context(ShardFile(place, ALL, {}))
        except RunFolderError as error:
            if (place / SHARDS / f"{ALL.name}.lock").is_file():
                raise RunFolderError(f"{folder}: another process is writing it ({error})") from error
            raise
        try:
            yield
        finally:
            stack.close()
            with suppress(OSError):  # not empty: the next process has come
                (place / SHARDS / OPTIONS).unlink(missing_ok=True)
                for path in (place / SHARDS, place, *([folder] if new else [])):
                    path.rmdir()
