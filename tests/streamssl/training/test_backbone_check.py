"""Options of a backbone that cannot work end a run before its data is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import ConfigError
from streamssl.cli import main
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import write_toml
from streamssl.training.backbone_check import check_backbone
from tests.tinyrun import tiny_swav

RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
VIT = {"depth": 1, "embed_dim": 24, "num_heads": 2}
SWIN = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"chanels": 3}, "unexpected keyword argument 'chanels'.*near it are channels"),
        ("resnet18", {"num_classes": 10}, "num_classes=10 .*no classifier; remove it"),
        ("resnet18", {"features_only": True}, "maps of several layers"),
        ("resnet18", {"out_indices": (1,)}, "maps of layers"),
        (
            "resnet18",
            {"global_pool": ""},
            r"output for 2 crops is \(2, 8, \d, \d\).*one vector of 8",
        ),
        ("resnet18", {"global_pool": "most"}, "Invalid pool type: most"),
        ("resnet18", {"layers": (1, 1)}, "no attribute 'layer3'"),
        ("resnet18", {"layers": "deep"}, "unsupported operand"),
        ("resnet18", {"layers": (0, 0, 0, 0)}, r"is \(2, 64\); it must be one vector of 8"),
        ("resnet18", {"act_layer": "reluu"}, "KeyError: 'reluu'"),
        ("resnet18", {"drop_path_rate": 1.5}, "from 0 to below 1"),
        ("resnet18", {"drop_rate": "half"}, "from 0 to below 1"),
        ("resnet18", {"device": "cuda"}, "each trainer places"),
        ("vit_tiny_patch16_224", {"drop_path_rate": [0.1, -1]}, "from 0 to below 1"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "divisible by num_heads"),
        ("vit_tiny_patch16_224", {"patch_size": 0}, "by zero"),
        ("vit_tiny_patch16_224", {"patch_size": 64}, "with crops of 32 pixels"),
        (
            "vit_tiny_patch16_224",
            {"img_size": 16, "dynamic_img_size": False},
            r"crops of 32 pixels: Input height \(32\) doesn't match model \(16\)",
        ),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 5, "dynamic_img_pad": False},
            "should be divisible by patch size",
        ),
        ("vit_tiny_patch16_224", {"class_token": False}, "Token pooling needs the class token"),
        ("vit_tiny_patch16_224", {"global_pool": ""}, "one vector of 24"),
        ("vit_tiny_patch16_224", {"pretrained_cfg": "none"}, "Invalid pretrained tag"),
        (
            "vit_tiny_patch16_224",
            {"pretrained_cfg_overlay": {"file": "a.pth"}},
            "its file is only loaded with pretrained = true",
        ),
        ("swin_tiny_patch4_window7_224", SWIN | {"img_size": 32}, "crops of 16 pixels: Input heig"),
    ],
)
def test_an_option_that_cannot_work_is_one_sentence(
    name: str, options: dict[str, Any], said: str
) -> None:
    """Each of these was a traceback, some of them after the shards had been packed."""
    base = RESNET if name == "resnet18" else VIT if name.startswith("vit") else {}
    config = tiny_swav(backbone=BackboneConfig(name=name, options={**base, **options}))
    with pytest.raises(ConfigError, match=said) as refused:
        check_backbone(config, fresh=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {**RESNET, "drop_path_rate": 0.3, "global_pool": "catavgmax"}),
        ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "init_values": 0.1}),
        ("mobilenetv3_small_050", {"drop_path_rate": 0.1}),
    ],
)
def test_options_that_work_pass_and_draw_no_random_number(
    name: str, options: dict[str, Any]
) -> None:
    """A check that moved the generator would change the weights of every run."""
    before = torch.random.get_rng_state()
    check_backbone(tiny_swav(backbone=BackboneConfig(name=name, options=options)), fresh=True)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("cluster", ["none", "local"])
def test_a_run_is_refused_before_its_data_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cluster: str
) -> None:
    """Packing takes hours, and a cluster minutes to start; the folder must stay free, too."""
    config = tiny_swav(backbone=BackboneConfig(name="resnet18", options={"depth": 3}))
    write_toml(config, tmp_path / "run.toml")
    where = ["--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    assert main(["pretrain", str(tmp_path / "run.toml"), *where, "--cluster", cluster]) == 2
    said = capsys.readouterr().err
    assert "unexpected keyword argument 'depth'" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
