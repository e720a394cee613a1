import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from portraitkit import config as config_module
from portraitkit.config import (
    MAY_CHANGE,
    Options,
    Positional,
    Range,
    Repeatable,
    Share,
    config_to_dict,
    load_config,
    may_change,
    recipe_names,
)
from portraitkit.errors import ConfigError


@dataclass(frozen=True)
class Settings(Options):
    """Settings of a command that exists for these tests."""

    num_steps: int = 8
    """Sampling steps."""
    eta: float = 0.7
    """Noise level."""
    sampler: Literal["flow_sde", "cps"] = "flow_sde"
    """Stochastic step."""
    dpg: bool = True
    """Guidance."""
    output_dir: Path = Path("runs/x")
    """Run folder."""
    prompt: str = "beautify"
    """Instruction."""
    resolution: int | None = None
    """Side in pixels."""
    rewards: tuple[str, ...] = ("identity", "texture")
    """Rewards in use."""
    reward_weights: tuple[float, ...] = ()
    """One weight a reward."""
    segments: int = 3
    """Drawn steps."""

    def check(self) -> None:
        if self.segments > self.num_steps:
            raise ConfigError(f"--segments {self.segments}: at most --num-steps ({self.num_steps})")


@dataclass(frozen=True)
class Files(Options):
    """Two paths."""

    source: Annotated[Path, Positional()]
    """Photo to read."""
    count: int
    """How many."""


@dataclass(frozen=True)
class Methods(Options):
    """A list that may be given in several pieces."""

    method: Annotated[tuple[str, ...], Repeatable()] = ("z",)
    """Names."""
    folder: Path = Path("x")
    """Where."""


def load(*argv: str) -> Settings:
    return load_config(Settings, list(argv), prog="test-command")


def refusal(*argv: str) -> str:
    """The message of the error that the arguments raise; always one line."""
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "demo.toml").write_text('num_steps = 4\nrewards = ["identity"]\ndpg = false\n')
    (folder / "other_command.toml").write_text("vocabulary = 7\n")
    monkeypatch.setattr(config_module, "RECIPES", folder)
    return folder


def test_defaults_without_arguments():
    assert load() == Settings()


@pytest.mark.parametrize(
    "argv", [["--method", "a", "b"], ["--method", "a", "--method", "b"], ["--method=a", "--folder", "y", "--method=b"]]
)
def test_a_repeatable_list_takes_its_values_after_one_flag_or_several(argv):
    assert load_config(Methods, argv, prog="test-command").method == ("a", "b")


def test_every_field_type_from_the_command_line():
    given = load(
        *[
            "--num-steps",
            "12",
            "--eta=0.5",
            "--sampler",
            "cps",
            "--no-dpg",
            "--output-dir",
            "a b",
            "--prompt",
            "two words",
        ],
        *["--resolution", "128", "--rewards", "clarity", "identity", "--reward-weights", "1", "2.5"],
    )
    assert given == Settings(12, 0.5, "cps", False, Path("a b"), "two words", 128, ("clarity", "identity"), reward_weights=(1.0, 2.5))


@pytest.mark.parametrize("argv", [["--num-steps", "5"], ["--num_steps", "5"], ["--num_steps=5"]])
def test_dashes_and_underscores_are_the_same(argv: list[str]):
    assert load(*argv).num_steps == 5


def test_none_and_negative_numbers_and_empty_lists():
    given = load("--resolution", "None", "--eta", "-1.5", "--rewards")
    assert (given.resolution, given.eta, given.rewards) == (None, -1.5, ())


def test_recipe_then_overrides(recipes: Path):
    assert load("--config", "demo") == Settings(num_steps=4, rewards=("identity",), dpg=False)
    assert load("--num-steps", "6", "--config=demo", "--dpg") == Settings(num_steps=6, rewards=("identity",), dpg=True)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_of_a_list_is_finite_too(value: str):
    assert refusal("--reward-weights", "1", value) == f"--reward-weights {value}: must be a finite number"


@pytest.mark.parametrize("line", ['output_dir = "a\\u0000b"', 'prompt = "\\u0000"', 'rewards = ["a\\u0000"]'])
def test_a_zero_byte_in_a_recipe_is_refused(tmp_path: Path, line: str):
    path = tmp_path / "mine.toml"
    path.write_text(line)
    assert str(path) in refusal("--config", str(path))


def test_recipe_file_with_every_type(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'num_steps = 4\neta = 1\nsampler = "cps"\ndpg = false\noutput_dir = "out"\nprompt = "p"\nresolution = 64\n'
        'rewards = ["identity"]\nreward_weights = [1, 0.5]\n'
    )
    given = load("--config", str(path))
    assert given == Settings(4, 1.0, "cps", False, Path("out"), "p", 64, ("identity",), (1.0, 0.5))
    assert isinstance(given.eta, float) and isinstance(given.reward_weights[0], float)


def test_rules_between_fields_see_recipe_and_command_line_together(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("segments = 10\n")
    assert load("--config", str(path), "--num-steps", "12").segments == 10
    assert refusal("--config", str(path)) == "--segments 10: at most --num-steps (8)"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-steps", "abc"], "--num-steps abc: must be a whole number"),
        (["--num-steps", "1.5"], "--num-steps 1.5: must be a whole number"),
        (["--num_steps=abc"], "--num-steps abc: must be a whole number"),
        (["--eta", "much"], "--eta much: must be a number"),
        (["--num-steps"], "--num-steps needs a value: a whole number"),
        (["--num-steps", "--eta", "1"], "--num-steps needs a value: a whole number"),
        (["--num-steps", ""], "--num-steps '': must be a whole number"),
        (["--resolution", "big"], "--resolution big: must be a whole number or None"),
        (["--reward-weights", "1", "x"], "--reward-weights 1 x: must be a list, each item a number"),
        (["--sampler", "flow_sd"], "--sampler flow_sd: must be one of flow_sde, cps; did you mean 'flow_sde'?"),
        (["--eta", "nan"], "--eta nan: must be a finite number"),
        (["--eta", "inf"], "--eta inf: must be a finite number"),
        (["--eta", "1e300"], "--eta 1e+300: must be a finite number below 1e+16 in size"),
        (["--eta", "-1e16"], "--eta -1e+16: must be a finite number below 1e+16 in size"),
        (["--num-steps", "9" * 30], f"--num-steps {'9' * 30}: must be a finite number below 9.22337e+18 in size"),
        (["--num-steps", "9" * 400], f"--num-steps {'9' * 400}: must be a finite number below 9.22337e+18 in size"),
        (["--num-steps", "9" * 5000], "--num-steps 999"),
        (["--num-stepz", "3"], "unknown option --num-stepz; did you mean '--num-steps'?; see test-command --help"),
        (["--no-sampler"], "unknown option --no-sampler; did you mean '--sampler'?; see test-command --help"),
        (["--config"], "--config needs a value: the name of a recipe or a .toml file"),
        (["--config", "--eta", "1"], "--config needs a value: the name of a recipe or a .toml file"),
        (["--config", "a.toml", "--config", "b.toml"], "--config was given twice"),
        (["--rewards", "identity", "--rewards", "texture"], "--rewards is given twice: give all its values after one --rewards"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(argv: list[str], message: str):
    assert refusal(*argv).startswith(message)


@pytest.mark.parametrize("argv", [["stray"], ["--dpg", "True"], ["--dpg=true"], ["--prompt", "two", "words"], ["-x"]])
def test_stray_arguments_are_named(argv: list[str]):
    assert refusal(*argv).startswith(f"unexpected argument {argv[-1].removeprefix('--dpg=')!r}")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("num_stepz = 4", "unknown option 'num_stepz'; did you mean 'num_steps'?"),
        ('num_steps = "4"', "num_steps = '4': must be a whole number"),
        ("num_steps = 4.0", "num_steps = 4.0: must be a whole number"),
        ("num_steps = true", "num_steps = true: must be a whole number"),
        ("dpg = 1", "dpg = 1: must be true or false"),
        ("eta = true", "eta = true: must be a number"),
        ('sampler = "dance"', "sampler = 'dance': must be one of flow_sde, cps"),
        ('rewards = "identity"', "rewards = 'identity': must be a list, each item text"),
        ("rewards = [1]", "rewards = [1]: must be a list, each item text"),
        ("[sampler]\nname = 1", "sampler = {'name': 1}: must be one of flow_sde, cps"),
        ("resolution = 1.5", "resolution = 1.5: must be a whole number or None"),
        ("num_steps =", "not valid TOML: Invalid value"),
        ("num_steps = 4\nnum_steps = 5", "not valid TOML: Cannot overwrite a value"),
        ("eta = nan", "--eta nan: must be a finite number"),
        ("eta = 1" + "0" * 400, ": must be a number"),
        ("num_steps = 1" + "0" * 400, "must be a finite number below 9.22337e+18"),
        ("num_steps = 1" + "0" * 5000, "not valid TOML: Exceeds the limit"),
        ("rewards = " + "[" * 5000, "not valid TOML: maximum recursion depth"),
    ],
)
def test_wrong_recipes_are_refused_in_one_line(tmp_path: Path, toml: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    assert message in refusal("--config", str(path))


def test_unreadable_recipes_are_named(tmp_path: Path):
    assert refusal("--config", str(tmp_path / "gone.toml")).endswith("gone.toml: cannot be read: No such file or directory")
    (tmp_path / "latin.toml").write_bytes(b'prompt = "\xe9"')
    assert "latin.toml: not valid TOML: 'utf-8' codec" in refusal("--config", str(tmp_path / "latin.toml"))


def test_unknown_recipe_names_those_that_fit(recipes: Path):
    assert recipe_names(Settings) == ["demo"]
    assert refusal("--config", "dmo").startswith("--config dmo: no such recipe; did you mean 'demo'?; known: demo, or")
    assert "unknown option 'vocabulary'" in refusal("--config", "other_command")


def test_help_shows_the_docstrings_and_the_recipe(recipes: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        load("--config", "demo", "--help")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert not stop.value.code
    assert "usage: test-command" in text and "Settings of a command that exists for these tests." in text
    assert "Recipes: demo." in text
    assert "--num-steps INT Sampling steps. (default: 4)" in text


def test_what_looks_like_an_option_is_no_positional_field():
    with pytest.raises(ConfigError, match="unexpected argument '-x'"):
        load_config(Files, ["-x", "--count", "2"], prog="files")


def test_required_fields_are_named():
    assert load_config(Files, ["in.png", "--count", "2"], prog="files") == Files(Path("in.png"), 2)
    for argv, words in [(["in.png"], ["--count INT", "How many"]), (["--count", "2"], ["PATH", "Photo to read"])]:
        with pytest.raises(ConfigError) as caught:
            load_config(Files, argv, prog="files")
        message = str(caught.value)
        assert all(word in message for word in ["Missing from files:", "see files --help", *words])
        assert not re.search(r"[\n│─]", message)


def test_config_to_dict_is_json():
    plain = config_to_dict(Settings(output_dir=Path("runs/y"), reward_weights=(1.0,)))
    assert plain["output_dir"] == "runs/y" and plain["rewards"] == ["identity", "texture"] and plain["resolution"] is None
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@dataclass(frozen=True)
class Bounded(Options):
    """Options with bounds in their types."""

    steps: Annotated[int, Range(ge=1)] = 1
    """Steps."""
    rate: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """Rate."""
    limit: Annotated[int | None, Range(ge=2, rule="at least 2, or there is no interval")] = None
    """Rows."""
    share: Annotated[Share, MAY_CHANGE] = 0.1
    """Of the rows."""


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--steps 0", "must be at least 1"),
        *((f"--rate {value}", "must be above 0 and below 1") for value in ("0", "1", "nan")),
        ("--limit 1", "at least 2, or there is no interval"),
        ("--share 1.5", "must be a share from 0 to 1"),
    ],
)
def test_bounds_stand_in_the_type(option: str, rule: str):
    assert load_config(Bounded, [], prog="bounded") == Bounded(1, 0.5, None, 0.1)
    with pytest.raises(ConfigError) as caught:
        load_config(Bounded, option.split(), prog="bounded")
    assert str(caught.value) == f"{option}: {rule}"


def test_the_bounds_cannot_be_skipped():
    with pytest.raises(TypeError, match="name it check"):
        type("Skipping", (Options,), {"__post_init__": lambda self: None})


@dataclass(frozen=True)
class Ruled(Bounded):
    """A base's rules hold in a subclass with rules of its own."""

    def check(self) -> None:
        if self.steps == 13:
            raise ConfigError("--steps 13: brings bad luck")


@dataclass(frozen=True)
class RuledAgain(Ruled):
    """As above."""

    def check(self) -> None:
        if self.rate == 0.13:
            raise ConfigError("--rate 0.13: brings bad luck")


@pytest.mark.parametrize("values", [{"steps": 0}, {"steps": 13}, {"rate": 0.13}])
def test_every_class_of_options_checks_its_own_rules(values):
    with pytest.raises(ConfigError):
        RuledAgain(**values)


def test_a_resumed_run_may_change_what_is_marked():
    assert may_change(Bounded) == {"share"}
