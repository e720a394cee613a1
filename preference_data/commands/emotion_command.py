"""The command `make-preferences emotion DATASET FOLDER`. What needs torch is imported once the arguments are known to be good."""

import sys


def emotion_main(argv: list[str]) -> int:
    """Parse the arguments and build the set.

    Args:
        argv: what follows the subcommand's name.

    Returns:
        The exit code: 0, or 130 / 143 when interrupted and saved.

    Raises:
        UserError: see `portraitkit.errors`.
    """
    from portraitkit.config import load_config
    from preference_data.commands.emotion_config import EmotionConfig
    from preference_data.sources import load_adapter

    config = load_config(EmotionConfig, argv, prog="make-preferences emotion")
    adapter = load_adapter(config.dataset)
    from preference_data.commands.emotion_build import build_emotion_rows

    return build_emotion_rows(config, adapter, [sys.argv[0], "emotion", *argv])
