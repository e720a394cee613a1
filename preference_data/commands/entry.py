"""The subcommands of `make-preferences`: arguments first, heavy imports only once these are known to be good."""


def build(argv: list[str]) -> int:
    """`make-preferences build PHOTOS|embedded`; see `BuildConfig`."""
    from portraitkit.config import load_config
    from preference_data.commands.build_config import BuildConfig

    config = load_config(BuildConfig, argv, prog="make-preferences build")
    from preference_data.commands.build import build_pairs

    return build_pairs(config)


def lint(argv: list[str]) -> int:
    """`make-preferences lint DATA`; see `LintConfig`."""
    from portraitkit.config import load_config
    from preference_data.commands.lint_config import LintConfig

    config = load_config(LintConfig, argv, prog="make-preferences lint")
    from preference_data.commands.lint import lint_data

    return lint_data(config)


def annotate(argv: list[str]) -> int:
    """`make-preferences annotate DATA --web | --endpoint URL --model NAME`; see `AnnotateConfig`."""
    from portraitkit.config import load_config
    from preference_data.commands.annotate_config import AnnotateConfig

    config = load_config(AnnotateConfig, argv, prog="make-preferences annotate")
    from preference_data.commands.annotate import annotate as run

    return run(config)


def merge(argv: list[str]) -> int:
    """`make-preferences merge DATA`; see `MergeConfig`."""
    from portraitkit.config import load_config
    from preference_data.commands.merge_config import MergeConfig

    config = load_config(MergeConfig, argv, prog="make-preferences merge")
    from preference_data.commands.merge import merge as run

    return run(config)


def export(argv: list[str]) -> int:
    """`make-preferences export DATA`; see `ExportConfig`."""
    from pathlib import Path

    from portraitkit.config import load_config
    from preference_data.commands.merge_config import ExportConfig

    config = load_config(ExportConfig, argv, prog="make-preferences export")
    from preference_data import hub

    if config.to_folder:
        print(f"{config.output_dir}: {len(hub.load_parquet(config.source, config.output_dir))} pairs")
    else:
        data = hub.save_parquet(Path(config.source), config.output_dir)
        print(f"{config.output_dir}: {sum(len(data[split]) for split in data)} pairs as parquet; datasets.load_dataset reads the folder")
    return 0
