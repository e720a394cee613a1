"""Candidate generators: one file each, each exporting `GENERATOR`; `open_generators` finds them by name or by file."""

from preference_data.generators.base import Candidate, Generator, GeneratorOptions
from preference_data.people.subjects import Subject

BUILT_IN = ("degradations", "folder", "pipeline")
USAGE = "degradations, folder:PATH, pipeline:PATH_OR_HUB_ID or my_file.py:GENERATOR"


def open_generators(names: tuple[str, ...], options: GeneratorOptions) -> list[Generator]:
    """Open generators by name: a built-in's name, where it takes one with its argument after a colon, or `my_file.py:GENERATOR`.

    Raises:
        ConfigError: unknown, without the argument it needs, or two that would go by one name.
        WeightsError: a pipeline's weights are not there.
    """
    from portraitkit.discover import load_object
    from portraitkit.errors import ConfigError
    from portraitkit.suggest import nearest

    opened: list[Generator] = []
    for name in names:
        head, _, argument = name.partition(":")
        if head in BUILT_IN:
            made = load_object(f"preference_data.generators.{head}:GENERATOR")(argument or None, options)
        elif ":" in name:
            made = load_object(name)(None, options)
        else:
            raise ConfigError(f"--generators {name}: unknown{nearest(name, BUILT_IN)}; use {USAGE}")
        if not isinstance(made, Generator):
            raise ConfigError(f"--generators {name}: gives a {type(made).__name__}, not a preference_data.generators.Generator")
        if any(made.name == other.name for other in opened):
            raise ConfigError(f"--generators {name}: another one goes by the name {made.name!r} too; rename a folder")
        opened.append(made)
    return opened


__all__ = ["Candidate", "Generator", "GeneratorOptions", "Subject", "open_generators"]
