"""A run as TOML: it is read back equal, and a wrong field is named."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from shards.errors import ConfigError
from shards.stream.stream_config import StreamConfig
from streamssl.config.run_config import check_same, from_fields, read_toml, to_fields, write_toml
from streamssl.optim.optim_config import OptimConfig
from streamssl.recipes import RECIPES
from streamssl.recipes.swav_recipes import swav_demo
from tests.tinyrun import tiny_moco, tiny_swav

Tables = dict[str, Any]
EVERY_RUN = {**RECIPES, "demo": swav_demo, "tiny-swav": tiny_swav, "tiny-moco": tiny_moco}


@pytest.mark.parametrize("name", EVERY_RUN)
def test_a_run_read_from_its_toml_is_equal(name: str, tmp_path: Path) -> None:
    """The file must not lose a field or change its type."""
    config = EVERY_RUN[name]()
    write_toml(config, tmp_path / "config.toml")
    assert read_toml(tmp_path / "config.toml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_omitted_fields_have_their_defaults() -> None:
    """A short file is valid."""
    tables = to_fields(tiny_swav())
    for name in ("admission", "num_steps", "seed"):
        del tables[name]
    config = from_fields(tables)
    assert (config.num_steps, config.seed) == (100_000, 0)


WRONG: dict[str, tuple[Callable[[Tables], Any], str]] = {
    "unknown method": (
        lambda t: t["method"].update(name="dino"),
        r"method\.name='dino'; it must be one of swav, moco",
    ),
    "no method": (lambda t: t.pop("method"), r"method\.name=None; it must be one of swav, moco"),
    "method is no table": (lambda t: t.update(method=3), r"method=3; it must be a table"),
    "options are no table": (lambda t: t["backbone"].update(options=3), "options=3; it must be a"),
    "other channels": (
        lambda t: t["backbone"].update(options={"in_chans": 4}),
        r"in_chans=4; images have 3 channels here: red, green and blue; leave in_chans out",
    ),
    "word for a number": (lambda t: t.update(num_steps="many"), r"^num_steps='many': .*integer"),
    "half a step": (lambda t: t.update(num_steps=2.5), r"^num_steps=2\.5: .*integer"),
    "number in a part": (lambda t: t["optim"].update(base_lr="x"), r"^optim\.base_lr='x': "),
    "unknown optimizer": (lambda t: t["optim"].update(name="adam"), r"^optim\.name='adam': .*sgd"),
    "half an interval": (
        lambda t: t["crops"]["groups"][1].update(scale=[0.1]),
        r"^crops\.groups\.1\.scale\.1 is missing",
    ),
    "a part is missing": (lambda t: t.pop("stream"), "^stream is missing; correct it"),
    "zero steps": (lambda t: t.update(num_steps=0), "num_steps=0; it must be at least 1"),
    "seed": (lambda t: t.update(seed=-1), "seed=-1; it must be from 0"),
    "queue below a batch": (
        lambda t: t["stream"].update(batch_size=64),
        r"capacity=32 with batch_size=64; it must be at least .*--method\.queue\.capacity 64",
    ),
    "micro-batches": (
        lambda t: t.update(micro_batches=5),
        "micro_batches=5 with batch_size=16; .*: give --micro-batches 4, or another --stream",
    ),
    "micro-batches of one image": (
        lambda t: t.update(micro_batches=16),
        "at least 2 images: give --micro-batches 8",
    ),
    "compiled and recomputed": (
        lambda t: t.update(compile=True, recompute=True),
        "compile=True with recompute=True; .* give --no-compile or --no-recompute",
    ),
    "nothing is left of a gradient": (
        lambda t: t["optim"].update(clip_norm=0.0),
        r"clip_norm=0\.0; it must be above 0 and finite.*leave --optim\.clip-norm out",
    ),
    "unknown field": (lambda t: t.update(num_stepz=3), r"^num_stepz is no field .*num_steps, "),
    "unknown in a part": (
        lambda t: t["method"].update(prototypes=3),
        r"^method\.prototypes is no field .*method\.num_prototypes",
    ),
    "unknown in a list": (
        lambda t: t["crops"]["groups"][0].update(blur=1.0),
        r"^crops\.groups\.0\.blur is no field .*blur_probability",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(name: str) -> None:
    """A misspelt field, or one of the wrong type, must not fall back to a default."""
    spoil, expected = WRONG[name]
    tables = tomllib.loads(tomli_w.dumps(to_fields(tiny_swav())))
    spoil(tables)
    with pytest.raises(ConfigError, match=expected):
        from_fields(tables)


@pytest.mark.parametrize("data", [b"a = = 1", b"\xff\xfe", None])
def test_an_unreadable_file_is_refused(data: bytes | None, tmp_path: Path) -> None:
    """The message must be a sentence, not a traceback."""
    path = tmp_path / "config.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"cannot be read as a configuration .*config\.toml of a"):
        read_toml(path)


def test_resume_with_other_settings_is_refused() -> None:
    """The message names the field and both values."""
    config = tiny_swav()
    check_same(config, config)
    for changed, expected in (
        (replace(config, seed=1), "seed=0, now it is 1"),
        (replace(config, precision="bf16"), "precision=fp32, now it is bf16"),
        (replace(config, micro_batches=2), "micro_batches=1, now it is 2"),
        (replace(config, compile=True), "compile=False, now it is True"),
        (replace(config, optim=OptimConfig(base_lr=9.0)), r"optim\.base_lr=0.1, now it is 9.0"),
        (replace(config, method=replace(config.method, queue=None)), r"method\.queue\.capacity=32"),
        (replace(config, crops=tiny_moco().crops), r"crops\.groups\."),
    ):
        with pytest.raises(ConfigError, match=f"started with {expected}.*or give a new --out"):
            check_same(config, changed)


def test_resume_from_a_named_checkpoint_may_change_how_the_encoder_runs() -> None:
    """A run that needs less memory, or a clipped gradient, must not start anew."""
    optim = replace(tiny_swav().optim, clip_norm=1.0)
    new = tiny_swav(micro_batches=2, compile=True, optim=optim)
    check_same(tiny_swav(), new, "step-00000002", named=True)


def test_a_run_of_other_crops_names_what_its_user_can_undo_first() -> None:
    """ "Undo the change" helps nobody whose change is the version of the program."""
    old = tiny_swav(crop_definition=1)
    with pytest.raises(ConfigError, match="started with micro_batches=1, now it is 2"):
        check_same(old, tiny_swav(micro_batches=2), "step-00000002")
    with pytest.raises(ConfigError, match=r"definition 1.*; add --from step-00000002 to go on"):
        check_same(old, tiny_swav(), "step-00000002")


def test_resume_may_change_length_checkpoints_and_memory() -> None:
    """More steps, other checkpoints, more memory."""
    stream = replace(tiny_swav().stream, max_bytes=1 << 20, num_lookahead_blocks=5)
    assert isinstance(stream, StreamConfig)
    check_same(
        tiny_swav(), tiny_swav(stream=stream, num_steps=9, save_every=4, keep=1, recompute=True)
    )
