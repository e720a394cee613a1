"""Entry points of `align-retoucher` and `retouch-portrait`. Imports nothing heavy: `--help` must answer at once."""

import sys

from portraitkit.cli import command


@command
def align_retoucher(argv: list[str]) -> int:
    """Align a diffusion portrait retoucher by online reinforcement learning."""
    from policies.retoucher.backbones import check_backbone
    from policies.retoucher.config import RetoucherConfig
    from policies.retoucher.model.adapter import check_start
    from portraitkit.config import load_config
    from portraitkit.parallel import launched_processes

    config = load_config(RetoucherConfig, argv, prog="align-retoucher", example="--config demo")
    if config.dry_run:
        from policies.retoucher.dry_run import dry_run

        return dry_run(config)
    if launched_processes() == 1:  # several processes check together, and one of them says what is wrong
        from policies.retoucher.photos import check_photos

        check_photos(config)
        check_backbone(config.backbone, config.model)
        if config.init_adapter is not None:
            check_start(config.init_adapter, config.rank, config.lora_alpha)
    if config.ablate:
        from policies.retoucher.ablate import run_ablation

        return run_ablation(config, [sys.argv[0], *argv])
    from policies.retoucher.run import run_alignment

    return run_alignment(config, [sys.argv[0], *argv])


@command
def retouch_portrait(argv: list[str]) -> int:
    """Retouch every face of a photo or of a folder of photos."""
    from policies.retoucher.retouch.command import retouch_main

    return retouch_main(argv)


if __name__ == "__main__":
    align_retoucher()
