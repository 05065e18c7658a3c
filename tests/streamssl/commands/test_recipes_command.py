"""`streamssl recipes`: the list, and one recipe in full."""

import tomllib

import pytest

from streamssl.cli import main
from streamssl.config.run_config import from_fields
from streamssl.recipes import RECIPES, kind_of


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_has_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A line must show name, kind, method and purpose."""
    lines = shown(capsys).splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    for line, (name, build) in zip(lines, RECIPES.items(), strict=True):
        assert line.split()[1:3] == [kind_of(name), build().method_name]
        assert line.endswith((build.__doc__ or "").partition("\n")[0])


@pytest.mark.parametrize("name", ["swav", "moco-v2-stream", "patchmix-small"])
def test_a_recipe_is_shown_as_its_note_and_settings(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The settings must give the same run when they are saved as config.toml."""
    text = shown(capsys, name)
    note, settings = text.split("\n\nnum_steps = ")
    assert note.startswith(f"{name} ({kind_of(name)}, method {RECIPES[name]().method_name})")
    assert "Paper: arXiv:" in note
    assert from_fields(tomllib.loads(f"num_steps = {settings}")) == RECIPES[name]()


def test_help_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """The usage must not have to be read from the source."""
    assert shown(capsys, "--help") == "usage: streamssl recipes [NAME]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swab"], "unknown recipe 'swab'; did you mean 'swav'?"),
        (["swav", "byol"], "2 names of recipes; `streamssl recipes` takes at most one"),
    ],
)
def test_a_wrong_name_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """The message must hold the finding, the allowed values and a remedy."""
    assert main(["recipes", *arguments]) == 2
    assert words in capsys.readouterr().err
