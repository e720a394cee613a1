"""The subcommands of `make-preferences`: arguments first, heavy imports only once these are known to be good."""


def build(argv: list[str]) -> int:
    """`make-preferences build PHOTOS|embedded`; see `BuildConfig`."""
    from portraitkit.config import load_config
    from preference_data.build_config import BuildConfig

    config = load_config(BuildConfig, argv, prog="make-preferences build")
    from preference_data.build import build_pairs

    return build_pairs(config)


def lint(argv: list[str]) -> int:
    """`make-preferences lint DATA`; see `LintConfig`."""
    from portraitkit.config import load_config
    from preference_data.lint_config import LintConfig

    config = load_config(LintConfig, argv, prog="make-preferences lint")
    from preference_data.lint import lint_data

    return lint_data(config)
