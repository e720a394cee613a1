"""Every recipe file belongs to a command whose tests parse and dry-run it; none is left out by a key that no command has."""

from policies.retoucher.config import RetoucherConfig
from policies.vlm.align.align_config import AlignVlmConfig
from portraitkit.config import RECIPES, recipe_names
from reward_models.training.config import RewardModelConfig


def test_every_recipe_file_belongs_to_a_command():
    known = {name for kind in (RetoucherConfig, AlignVlmConfig, RewardModelConfig) for name in recipe_names(kind)}
    assert known == {path.stem for path in RECIPES.glob("*.toml")}
