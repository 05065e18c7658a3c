"""Options of the backbone on the command line: any option of timm by its name."""

from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError
from streamssl.cli import main
from streamssl.commands.pretrain import parse_pretrain
from streamssl.config.run_config import read_toml, write_toml

OWN = {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "zero_init_last": False}


def options_of(*words: str, recipe: str = "simclr-small") -> dict[str, Any]:
    given = [recipe, "--data", "d", "--out", "o", *words, "--num-steps", "7"]
    parsed = parse_pretrain(given)
    assert parsed.run.num_steps == 7
    return dict(parsed.run.backbone.options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["drop-path-rate", "0.1"], {"drop_path_rate": 0.1}),
        (["drop_path_rate=.1"], {"drop_path_rate": 0.1}),
        (["img_size", "64", "96"], {"img_size": (64, 96)}),
        (["pretrained", "True"], {"pretrained": True}),
        (["checkpoint_path", "runs/a b/x.pt"], {"checkpoint_path": "runs/a b/x.pt"}),
        (["act_layer", "gelu"], {"act_layer": "gelu"}),
        (["pretrained_cfg_overlay.file", "x.pt"], {"pretrained_cfg_overlay": {"file": "x.pt"}}),
        (["block_args", "{attn_layer = 'se'}"], {"block_args": {"attn_layer": "se"}}),
        (["layers", "1", "1", "2", "1"], {"layers": (1, 1, 2, 1)}),
        (["no-zero-init-last"], {}),
    ],
)
def test_any_option_of_the_network_can_be_given(
    words: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """A user had to write a config.toml for one option, and no message said so."""
    found = options_of(f"--backbone.options.{words[0]}", *words[1:])
    assert found == OWN | expected
    path = tmp_path / "config.toml"
    parsed = parse_pretrain(
        ["simclr", "--data", "d", "--out", "o", f"--backbone.options.{words[0]}", *words[1:]]
        if words[0] != "no-zero-init-last"
        else ["simclr", "--data", "d", "--out", "o"]
    )
    write_toml(parsed.run, path)
    assert read_toml(path) == parsed.run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone.options"], "--backbone.options names no option; .*options.drop_path_rate 0"),
        (["--backbone.options", "drop_path_rate=0.1"], "each option .* is given by its own name"),
        (["--backbone.options={a=1}"], "such as --backbone.options.drop_path_rate 0.1$"),
        (["--backbone.options.wrong"], "--backbone.options.wrong needs a name and a value, such"),
        (["--backbone.options.a/b", "3"], "needs a name and a value"),
        (["--backbone.options.a", "3", "--backbone.options.a.b", "3"], "a value and as a table"),
        (["--backbone.option", "3"], "unknown option --backbone.option; did you mean --backbone.o"),
    ],
)
def test_a_mistake_is_one_sentence_with_a_remedy_that_works(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message was "unknown option --backbone.options; did you mean --backbone.options?"."""
    with pytest.raises(ConfigError, match=message):
        options_of(*words)
    assert main(["pretrain", "swav", "--data", "d", "--out", "o", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
