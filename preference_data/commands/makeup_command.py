"""The command `make-preferences makeup FACES`. What needs torch is imported once the arguments are known to be good."""

import sys


def makeup_main(argv: list[str]) -> int:
    """Parse the arguments and build the set.

    Args:
        argv: what follows the subcommand's name.

    Returns:
        The exit code: 0, or 130 / 143 when interrupted and saved.

    Raises:
        UserError: see `portraitkit.errors`.
    """
    from portraitkit.config import load_config
    from preference_data.commands.makeup_config import MakeupConfig

    config = load_config(MakeupConfig, argv, prog="make-preferences makeup")
    from preference_data.commands.makeup_pairs import build_pairs

    return build_pairs(config, [sys.argv[0], "makeup", *argv])
