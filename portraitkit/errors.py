"""The error tree. Every error a user can cause is a `UserError`: one clear line (value, rule, fix), exit code 2.

    Exception
    └── UserError                 the command ends with one line on stderr and exit code 2
        ├── ConfigError           unknown option, impossible value, unreadable recipe
        ├── ImageError            unreadable, truncated, oversized or unsupported picture
        ├── FaceError             no face, a face too small, landmarks that cannot be trusted
        ├── WeightsError          weights missing, of another model, or with another sha256
        ├── DataError             a row or a data set that breaks its schema
        ├── RunFolderError        output folder taken, locked, or holding another run
        ├── CheckpointError       checkpoint missing, incomplete, damaged, or of another run
        ├── OutOfMemory           a device has no room for the smallest part of the work
        ├── HubError              the hub cannot be reached or refuses; nothing local is lost
        └── TrainingStopped       too many unscorable samples or non-finite steps in a row
            └── WorkersLost       no reward worker scores any more; what was trained is saved

Anything else is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend. The message gives the value, the rule and the fix, on one line."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown option, an impossible value, or a recipe that cannot be read."""


class ImageError(UserError):
    """A picture that cannot be read safely: unreadable, truncated, oversized or unsupported."""


class FaceError(UserError):
    """No face, a face too small, or landmarks that cannot be trusted."""


class WeightsError(UserError):
    """Weights that are missing, belong to another model, or have another sha256 than recorded."""


class DataError(UserError):
    """A row or a data set that breaks its schema."""


class RunFolderError(UserError):
    """The output folder is taken, locked, or holds another run."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, damaged, or belongs to another run."""


class OutOfMemory(UserError):
    """A device has no room for the smallest part of the work.

    Attributes:
        alone: whether the other processes of the run wait inside of the work, where they cannot be told.
    """

    def __init__(self, message: str, *, alone: bool = False) -> None:
        super().__init__(message)
        self.alone = alone


class HubError(UserError):
    """The hub cannot be reached or refuses; the message says what is kept and how to push it later."""


class TrainingStopped(UserError):
    """Training cannot go on: too many unscorable samples, or too many non-finite steps in a row."""


class WorkersLost(TrainingStopped):
    """No reward worker scores any more: none answers in time, or each refuses for good."""


def reason_of(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing.

    >>> reason_of(ValueError("no number\\nat line 3")), reason_of(EOFError())
    ('no number', 'EOFError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or nothing where no known name is near.

    >>> nearest("flow_sd", ["flow_sde", "cps"])
    "; did you mean 'flow_sde'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
