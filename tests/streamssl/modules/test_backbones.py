"""Backbones: any timm network, the right stem, words that help."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.modules.backbones import build_backbone

TINY_RESNET = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}


def tiny(name: str) -> dict[str, object]:
    if name.startswith("vit"):
        return {"embed_dim": 24, "depth": 1, "num_heads": 2}
    return TINY_RESNET if name.startswith("resnet") else {}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", (32, 24)),
        ("resnet18", (96, 64)),
        ("vit_tiny_patch16_224", (32, 20)),
        ("vit_tiny_patch16_224", (96, 48)),
        ("mobilenetv3_small_050", (32, 24)),
        ("convnext_atto", (64, 32)),
    ],
)
def test_crops_of_several_sizes_give_features_of_the_stated_width(
    name: str, sizes: tuple[int, int]
) -> None:
    """Multi-crop sends two sizes through one network."""
    backbone = build_backbone(BackboneConfig(name=name, options=tiny(name)), max(sizes)).eval()
    for size in sizes:
        features = backbone(torch.zeros(2, 3, size, size))
        assert features.shape == (2, backbone.num_features)


def test_a_resnet_for_small_crops_looks_at_every_pixel() -> None:
    """3x3, stride 1, no pooling up to 64 pixels; above, the stem of ImageNet."""
    config = BackboneConfig(name="resnet18", options=TINY_RESNET)
    small, large = build_backbone(config, 64), build_backbone(config, 65)
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(small.maxpool, nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    forced = BackboneConfig(name="resnet18", options=TINY_RESNET, stem="imagenet")
    assert build_backbone(forced, 32).conv1.stride == (2, 2)


def test_a_deep_stem_keeps_its_convolutions() -> None:
    """A ResNet-D loses stride and pooling, not its layers."""
    config = BackboneConfig(name="resnet26d", options=TINY_RESNET)
    backbone = build_backbone(config, 32)
    assert [layer.stride for layer in backbone.conv1 if isinstance(layer, nn.Conv2d)] == [
        (1, 1)
    ] * 3
    assert isinstance(backbone.maxpool, nn.Identity)


def test_a_transformer_for_small_crops_has_small_patches_unless_told() -> None:
    """The option wins over the default of the small stem."""
    options = tiny("vit")
    backbone = build_backbone(BackboneConfig(name="vit_tiny_patch16_224", options=options), 32)
    assert backbone.patch_embed.patch_size == (4, 4)
    told = BackboneConfig(name="vit_tiny_patch16_224", options={**options, "patch_size": 2})
    assert build_backbone(told, 32).patch_embed.patch_size == (2, 2)


def test_a_wrong_name_is_answered_with_near_ones() -> None:
    """Found, allowed, remedy."""
    with pytest.raises(ConfigError, match=r"'resnet_18'.*near it are resnet18"):
        build_backbone(BackboneConfig(name="resnet_18"), 32)


def test_a_wrong_option_or_stem_is_refused() -> None:
    """timm's own complaint is kept in the sentence."""
    with pytest.raises(
        ConfigError, match=r"'depht': 3.*unexpected keyword.*arguments of the model"
    ):
        build_backbone(BackboneConfig(name="resnet18", options={"depht": 3}), 32)
    with pytest.raises(ConfigError, match="auto, imagenet, small and half"):
        BackboneConfig(stem="tiny")  # type: ignore[arg-type]


def test_a_small_stem_that_cannot_be_made_is_refused_only_when_asked_for() -> None:
    """Swin's windows are tied to its patches."""
    options = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56}
    config = BackboneConfig(name="swin_tiny_patch4_window7_224", options=options, stem="small")
    with pytest.raises(ConfigError, match=r"whose stem is not known.*use stem='auto'"):
        build_backbone(config, 56)


def test_a_half_stem_sees_every_other_pixel_and_only_resnets_have_it() -> None:
    """3x3, stride 2, no pooling: a quarter of the work of the small stem."""
    model = build_backbone(BackboneConfig(name="resnet18", options=TINY_RESNET, stem="half"), 32)
    assert model.conv1.kernel_size == (3, 3)
    assert model.conv1.stride == (2, 2)
    assert isinstance(model.maxpool, nn.Identity)
    with pytest.raises(ConfigError, match=r"only ResNets.*use stem='small' or 'auto'"):
        build_backbone(BackboneConfig(name="vgg11", stem="half"), 32)


def saved(path: Path, prefix: str = "", without: str = "-") -> Path:
    """Save the weights of a tiny ResNet with its classifier."""
    tensors = timm.create_model("resnet18", **TINY_RESNET).state_dict()
    kept = {f"{prefix}{k}": v for k, v in tensors.items() if not k.startswith(without)}
    torch.save({"state_dict": kept}, path)
    return path


def begun(options: dict[str, object], **changes: object) -> nn.Module:
    settings = {"name": "resnet18", "stem": "imagenet", "options": {**TINY_RESNET, **options}}
    return build_backbone(BackboneConfig(**{**settings, **changes}), 32)  # type: ignore[arg-type]


def test_weights_of_a_file_are_loaded_without_their_classifier(tmp_path: Path) -> None:
    """timm's checkpoint_path refused every file with a classifier."""
    file = saved(tmp_path / "a.pth")
    wanted = torch.load(file)["state_dict"]["layer4.0.conv2.weight"]
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    for options in ({"checkpoint_path": str(file)}, overlay):
        assert torch.equal(begun(options).layer4[0].conv2.weight, wanted)
    other = BackboneConfig(options=overlay).without_weights()
    assert (other.weights, BackboneConfig(options=overlay).weights) == ("", str(file))


@pytest.mark.parametrize(
    ("prefix", "without", "changes", "said"),
    [
        (
            "encoder.",
            "-",
            {},
            r"lacks 65 of the 65 tensors.*conv1\.weight, which would stay random",
        ),
        ("", "layer3", {}, r"lacks 15 of the 65 tensors .*such as layer3\.0\.conv1\.weight"),
        (
            "",
            "-",
            {"stem": "auto"},
            r"stem='auto'.* random ones \(1, such as conv1\.weight\); give",
        ),
        ("", "-", {"options": {"channels": (8, 8, 16, 32)}}, "size mismatch for layer4"),
    ],
)
def test_weights_that_would_stay_random_are_refused(
    tmp_path: Path, prefix: str, without: str, changes: dict[str, object], said: str
) -> None:
    """timm logs a line about unexpected keys, and the run begins from noise."""
    file = saved(tmp_path / "a.pth", prefix, without)
    options = {"checkpoint_path": str(file)}
    options |= changes.pop("options", {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        begun(options, **changes)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A folder, a missing file and other bytes each raise another error in timm."""
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    for name in ("junk.pth", "gone.pth", ""):
        with pytest.raises(ConfigError, match=r"cannot be loaded into.*name weights of this"):
            begun({"checkpoint_path": str(tmp_path / name)})


@pytest.mark.parametrize("table", ["pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize("source", ["url", "hf_hub_id", "file"])
def test_a_network_without_weights_has_no_source_of_weights(table: str, source: str) -> None:
    """A config.toml of somebody else would have any address fetched, or any file read."""
    options = {**TINY_RESNET, "pretrained": True, table: {source: "http://x/y.pth", "tag": "a"}}
    config = BackboneConfig(name="resnet18", options=options)
    assert config.fetched == ("" if source == "file" else "http://x/y.pth")
    plain = config.without_weights()
    assert (plain.weights, plain.fetched) == ("", "")
    assert plain.options[table] == {"tag": "a"} and "channels" in plain.options


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"layers": (1_000_000, 1, 1, 1)}, r"layers=\(1000000, .* at most 65,536"),
        ("resnet18", {"layers": (60_000, 1, 1, 1)}, r"at most 1,024 layers are possible; give few"),
        ("resnet18", {"layers": (1,) * 5000}, r"at most 1,024 numbers are possible; shorten it"),
        ("vit_tiny_patch16_224", {"depth": 4096}, r"at most 1,024 layers"),
        ("vit_tiny_patch16_224", {"embed_dim": 10**12}, r"at most 65,536 is possible"),
        ("vit_tiny_patch16_224", {"embed_dim": 65_280}, r"[\d,]+ parameters; at most 10,000,000"),
        ("resnet18", {"channels": (float("inf"), 8, 8, 8)}, r"at most 65,536 is possible"),
        ("resnet18", {"block_args": {"reduce_first": 10**9}}, r"at most 65,536 is possible"),
    ],
)
def test_a_network_that_no_machine_holds_is_refused_before_it_is_built(
    name: str, options: dict[str, object], said: str
) -> None:
    """A config.toml of somebody else would keep a machine busy for minutes, or fill its memory."""
    with pytest.raises(ConfigError, match=said):
        build_backbone(BackboneConfig(name=name, options=options), 32)
