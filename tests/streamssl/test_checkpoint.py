"""A checkpoint is whole or absent, and a restored state equals the saved one, bit by bit."""

import json
import math
import os
import re
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import AccessDenied, ConfigError, UserError
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.errors import TrainingDiverged
from streamssl.optim.optim_config import OptimConfig
from streamssl.training.train_state import build_state
from tests.tinyrun import (
    CPU,
    assert_same,
    other_user,
    reachable_folder,
    tiny_moco,
    tiny_swav,
    train_on_noise,
)

OPTIMIZERS = {
    "sgd": OptimConfig(name="sgd", base_lr=0.05),
    "sgd without momentum": OptimConfig(name="sgd", base_lr=0.05, momentum=0.0),
    "adamw": OptimConfig(name="adamw", base_lr=1e-3),
    "larc": OptimConfig(name="larc", base_lr=0.1),
    "lars": OptimConfig(name="lars", base_lr=0.1),
}


def trained(config: RunConfig, num_steps: int) -> TrainState:
    state = build_state(config, CPU)
    train_on_noise(config, state, num_steps)
    return state


def save(
    out: Path, state: TrainState, *, step: int = 0, keep: int = 3, method: str = "swav"
) -> Path:
    state.step = step or state.step
    return checkpoint.save(out, checkpoint.take(state), method, keep)


def scrambled(config: RunConfig) -> TrainState:
    """Build a state in which no tensor is right by chance."""
    state = build_state(config, CPU)
    for value in state.method.state_dict().values():
        value.add_(1)
    return state


@pytest.fixture(scope="module")
def state() -> TrainState:
    """Two steps of SwAV; tests set its step, and nothing else."""
    return trained(tiny_swav(), 2)


@pytest.fixture
def place(state: TrainState, tmp_path: Path) -> Path:
    """A checkpoint of step 2."""
    return save(tmp_path, state, step=2)


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `num_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "moco"])
def test_restored_run_continues_like_an_unbroken_one(name: str, tmp_path: Path) -> None:
    """A lost momentum, a wrong stride or a step counted twice would show in the next loss."""
    config = tiny_moco() if name == "moco" else tiny_swav(optim=OPTIMIZERS[name])
    unbroken, restored = trained(config, 3), scrambled(config)
    place = save(tmp_path, unbroken, method=config.method_name)
    checkpoint.restore(place, restored, config.method_name)
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, each, 2) for each in (unbroken, restored))
    assert [report.loss for report in ours] == [report.loss for report in theirs]
    assert_same(unbroken, restored)


def test_checkpoint_of_version_0_1_is_read(place: Path) -> None:
    """A buffer was renamed since; runs of months must not end with an update."""
    path = place / "state.safetensors"
    tensors = load_file(path)
    new = [name for name in tensors if name.endswith("probe.images")]
    assert new
    for name in new:
        tensors[name.replace("images", "pictures")] = tensors.pop(name)
    save_file(tensors, path)
    checkpoint.restore(place, build_state(tiny_swav(), CPU), "swav")


def test_no_pickle_is_written_or_read(place: Path) -> None:
    """A checkpoint from a stranger must not be able to run code."""
    assert {path.name for path in place.iterdir()} == {"state.json", "state.safetensors"}
    sources = Path(checkpoint.__file__).parent.rglob("*.py")
    banned = re.compile(r"torch\.(load|save)\b|import pickle|from pickle")
    assert not [path.name for path in sources if banned.search(path.read_text())]


def test_draft_of_a_killed_process_is_no_checkpoint(state: TrainState, tmp_path: Path) -> None:
    """Killed between write and rename, the older checkpoint stands and the draft is removed."""
    whole = save(tmp_path, state, step=1)
    draft = tmp_path / "checkpoints" / ".draft-4711"
    shutil.copytree(whole, draft)
    assert checkpoint.list_checkpoints(tmp_path) == [whole]
    newer = save(tmp_path, state, step=2)
    assert checkpoint.list_checkpoints(tmp_path) == [whole, newer]
    assert not draft.exists()


def test_full_disk_costs_only_the_newest_checkpoint(state: TrainState, tmp_path: Path) -> None:
    """The one before it must stay readable, and the message must say what to do."""
    whole = save(tmp_path, state, step=1)
    large = replace(state.cursor, reject_reasons={"x" * 200_000: 1})
    taken = replace(checkpoint.take(state), step=2, cursor=large)
    for num_bytes in (10_000, 150_000):  # in the middle of the tensors; after them
        with full_disk(num_bytes), pytest.raises(UserError, match="step 2 cannot be written"):
            checkpoint.save(tmp_path, taken, "swav", keep=1)
    assert checkpoint.list_checkpoints(tmp_path) == [whole]
    checkpoint.restore(whole, build_state(tiny_swav(), CPU), "swav")


def test_last_checkpoints_are_kept(state: TrainState, tmp_path: Path) -> None:
    """A long run must not fill the disk, nor delete the checkpoint to resume from."""
    for step in (1, 20, 3, 100):
        save(tmp_path, state, step=step, keep=2)
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["step-00000020", "step-00000100"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_same_step_replaces_the_older_checkpoint(state: TrainState, tmp_path: Path) -> None:
    """A resume from an older checkpoint passes the same steps again."""
    save(tmp_path, build_with_cursor(state), step=5)
    place = save(tmp_path, state, step=5)
    restored = scrambled(tiny_swav())
    checkpoint.restore(place, restored, "swav")
    assert_same(state, restored)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def build_with_cursor(state: TrainState) -> TrainState:
    fresh = build_state(tiny_swav(), CPU)
    fresh.cursor = state.cursor
    return fresh


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (tiny_moco(), r"method 'swav', this run trains 'moco'.*--out"),
        (
            tiny_swav(method=replace(tiny_swav().method, num_prototypes=20)),
            r"prototypes\.\S+ is \(12, ?8?\)?.*\(20, ?8?\)? here",
        ),
        # Orders its parameters anew: momentum of one must not reach another.
        (tiny_swav(optim=OPTIMIZERS["lars"]), "does not fit this optimizer"),
    ],
    ids=["method", "shapes", "optimizer"],
)
def test_other_settings_are_refused_by_name(place: Path, changed: RunConfig, message: str) -> None:
    """The message names both values, and no stack of torch is shown."""
    with pytest.raises(ConfigError, match=message):
        checkpoint.restore(place, build_state(changed, CPU), changed.method_name)


def test_damaged_state_json_has_a_message(place: Path) -> None:
    """Found, allowed, remedy; never a KeyError."""
    whole = json.loads((place / "state.json").read_text())
    wrong = (
        *({"step": None}, {"step": "7"}, {"step": -1}, {"step": True}, {"method": 3}),
        *({"numbers": None}, {"numbers": {"0.step": "x"}}, {"cursor": 3}, {"format": "1"}),
        *({"numbers": {"skipped_steps": found}} for found in (None, -1, 1.5, math.inf)),
    )
    types = [json.dumps({**whole, **fields}) for fields in wrong]
    for text in (
        "",
        "{",
        "[]",
        "3",
        "{}",
        "[" * 100_000,
        '{"format": 1, "step": 2}',
        "\xff",
        *types,
    ):
        (place / "state.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"no readable state\.json .*remove the damaged one"):
            checkpoint.read_fields(place)


def test_format_of_the_future_has_a_message(place: Path) -> None:
    """An unknown format must not be guessed at."""
    fields = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps(fields | {"format": 2}))
    with pytest.raises(ConfigError, match="has format 2; this version reads 1"):
        checkpoint.read_fields(place)


def test_damaged_tensor_file_has_a_message(place: Path) -> None:
    """A file that was cut short, or is gone, names the remedy."""
    path = place / "state.safetensors"
    data = path.read_bytes()
    for length in (None, 0, 7, 100, len(data) - 1):
        path.unlink() if length is None else path.write_bytes(data[:length])
        with pytest.raises(ConfigError, match=r"cannot be read .*remove this checkpoint"):
            checkpoint.load_tensors(place)


def test_encoder_can_be_loaded_alone(place: Path, state: TrainState) -> None:
    """Evaluation needs the backbone, not the optimizer."""
    other = build_state(tiny_swav(seed=9), CPU).method.backbone
    checkpoint.load_backbone(place, other)
    weights = state.method.backbone.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, weights[name])


def test_step_and_cursor_are_plain_json(place: Path) -> None:
    """They can be read without this library, and stay small."""
    fields = json.loads((place / "state.json").read_text())
    assert (fields["step"], fields["method"], fields["cursor"]["slot"]) == (2, "swav", 32)
    assert len(json.dumps(fields["cursor"])) < 2000


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_a_checkpoint_has_the_rights_that_the_umask_gives(
    state: TrainState, tmp_path: Path, umask: int, mode: int
) -> None:
    """Safetensors makes files of 0600: a colleague could read all of a run but its weights."""
    state.step = 2
    before = os.umask(umask)
    try:
        place = checkpoint.save(tmp_path, checkpoint.take(state), "swav", 3, "seed = 0")
    finally:
        os.umask(before)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    assert files == dict.fromkeys(("config.toml", "state.json", "state.safetensors"), mode)
    assert stat.S_IMODE(place.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "checkpoints"])
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    state: TrainState, name: str
) -> None:
    """The old remedy was to remove it: a colleague would have deleted weeks of training."""
    with reachable_folder() as out:
        place = save(out, state, step=2)
        (place.parent if name == "checkpoints" else place / name).chmod(0)
        with other_user(), pytest.raises(AccessDenied, match="permission denied") as denied:
            for found in checkpoint.list_checkpoints(out):
                checkpoint.read(found)
        assert "remove" not in str(denied.value)
        with other_user(), pytest.raises(AccessDenied, match=r"cannot be (written|reached)"):
            save(out, state, step=3)
        place.parent.chmod(0o755)


def test_a_checkpoint_holds_plain_json(state: TrainState, tmp_path: Path) -> None:
    """Other readers of JSON refuse NaN, and an optimizer must get its own number back."""
    taken = replace(checkpoint.take(state), fields={"0.ratio": float("nan")})
    place = checkpoint.save(tmp_path, taken, "swav", 3)
    assert json.loads((place / "state.json").read_text())["numbers"] == {"0.ratio": None}
    assert math.isnan(checkpoint.read(place).fields["0.ratio"])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["method.backbone", "method.probe", "optimizer.0"])
def test_a_state_that_is_not_finite_is_not_saved(
    state: TrainState, tmp_path: Path, name: str, number: float
) -> None:
    """`keep` would delete the last good checkpoint in favour of one that nothing can use."""
    good = save(tmp_path, state, step=1)
    taken = checkpoint.take(state)
    spoilt = next(key for key, x in taken.tensors.items() if key.startswith(name) and x.dim())
    taken.tensors[spoilt].view(-1)[-1] = number
    with pytest.raises(TrainingDiverged, match=rf"{re.escape(spoilt)} .* after step 2, which is"):
        checkpoint.save(tmp_path, replace(taken, step=2), "swav", keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == [good]
