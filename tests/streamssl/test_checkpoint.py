"""A checkpoint is everything or nothing, and what comes out is what went in, bit by bit."""

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shards.errors import ConfigError, UserError
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.training.train_state import build_state
from tests.tinyrun import CPU, assert_same, tiny_moco, tiny_swav, train_on_noise

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


def saved(config: RunConfig, out: Path, num_steps: int = 1) -> Path:
    state = trained(config, num_steps)
    return checkpoint.save(out, checkpoint.take(state), config.method_name, keep=3)


def save_at(out: Path, state: TrainState, step: int, keep: int = 3) -> Path:
    state.step = step
    return checkpoint.save(out, checkpoint.take(state), "swav", keep)


def scrambled(config: RunConfig) -> TrainState:
    """A fresh state in which no tensor fits by luck."""
    state = build_state(config, CPU)
    for value in state.method.state_dict().values():
        value.add_(1)
    return state


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond `num_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_run_cannot_be_told_from_one_that_never_stopped(
    name: str, tmp_path: Path
) -> None:
    """A lost momentum, a wrong stride or a step counted twice would show in the next loss."""
    config = tiny_swav(optim=OPTIMIZERS[name])
    unbroken = trained(config, 4)
    place = checkpoint.save(tmp_path, checkpoint.take(unbroken), "swav", keep=3)
    restored = scrambled(config)
    checkpoint.restore(place, restored, "swav")
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 2) for state in (unbroken, restored))
    assert [float(report.loss) for report in ours] == [float(report.loss) for report in theirs]
    assert_same(unbroken, restored)


def test_a_restored_moco_run_goes_on_alike(tmp_path: Path) -> None:
    """Momentum copy and queue are half of MoCo; neither may begin anew."""
    config = tiny_moco()
    unbroken, restored = trained(config, 3), scrambled(config)
    checkpoint.restore(
        checkpoint.save(tmp_path, checkpoint.take(unbroken), "moco", keep=3), restored, "moco"
    )
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 2) for state in (unbroken, restored))
    assert [float(report.loss) for report in ours] == [float(report.loss) for report in theirs]


def test_queue_prototypes_and_momentum_copy_are_inside(tmp_path: Path) -> None:
    """What lies beside a checkpoint gets lost; others keep their queue in a file of its own."""
    expected = {
        "swav": {
            "method.prototypes.weight",
            "method.queues.0.rows",
            "method.queues.1.steps",
            "method.backbone.bn1.running_mean",
            "optimizer.0.momentum_buffer",
        },
        "moco": {
            "method.queue.rows",
            "method.queue.position",
            "method.key_encoder.network.0.conv1.weight",
            "method.head.0.weight",
        },
    }
    for config in (tiny_swav(), tiny_moco()):
        place = saved(config, tmp_path / config.method_name)
        with safe_open(place / "state.safetensors", "pt") as file:
            assert expected[config.method_name] <= set(file.keys())


def test_no_pickle_is_written_and_none_is_ever_read(tmp_path: Path) -> None:
    """A checkpoint from a stranger must not be able to run code."""
    place = saved(tiny_swav(), tmp_path)
    assert {path.name for path in place.iterdir()} == {"state.json", "state.safetensors"}
    sources = Path(checkpoint.__file__).parent.rglob("*.py")
    banned = re.compile(r"torch\.(load|save)\b|import pickle|from pickle")
    assert not [path.name for path in sources if banned.search(path.read_text())]


def test_what_a_killed_process_left_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    """Killed between write and rename, the older checkpoint stands and the draft is nothing."""
    state = trained(tiny_swav(), 1)
    whole = save_at(tmp_path, state, 1)
    draft = tmp_path / "checkpoints" / ".draft-4711"
    shutil.copytree(whole, draft)
    assert checkpoint.list_checkpoints(tmp_path) == [whole]
    newer = save_at(tmp_path, state, 2)
    assert checkpoint.list_checkpoints(tmp_path) == [whole, newer]
    assert not draft.exists()


def test_a_full_disk_costs_nothing_but_the_newest_checkpoint(tmp_path: Path) -> None:
    """The one before it must stay readable, and the message must say what to do."""
    state = trained(tiny_swav(), 1)
    whole = save_at(tmp_path, state, 1)
    for num_bytes in (10_000, 150_000):  # in the middle of the tensors; after them
        with full_disk(num_bytes), pytest.raises(UserError, match="step 2 cannot be written"):
            state.step = 2
            state.cursor = replace(state.cursor, reject_reasons={"x" * 200_000: 1})
            checkpoint.save(tmp_path, checkpoint.take(state), "swav", keep=1)
    assert checkpoint.list_checkpoints(tmp_path) == [whole]
    checkpoint.restore(whole, build_state(tiny_swav(), CPU), "swav")


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    """A long run must not fill the disk, and must not delete what it would resume from."""
    state = trained(tiny_swav(), 1)
    for step in (1, 20, 3, 100):
        save_at(tmp_path, state, step, keep=2)
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["step-00000020", "step-00000100"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_the_same_step_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """A resume from an older checkpoint passes the same steps again."""
    config = tiny_swav()
    save_at(tmp_path, trained(config, 1), 5)
    newer = trained(config, 2)
    place = save_at(tmp_path, newer, 5)
    restored = scrambled(config)
    checkpoint.restore(place, restored, "swav")
    assert_same(newer, restored)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_another_method_is_refused(tmp_path: Path) -> None:
    """The sentence names both methods."""
    place = saved(tiny_swav(), tmp_path)
    with pytest.raises(ConfigError, match=r"method 'swav', this run trains 'moco'.*--out"):
        checkpoint.restore(place, build_state(tiny_moco(), CPU), "moco")


def test_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    """The sentence names a tensor with both shapes, not a stack of torch."""
    place = saved(tiny_swav(), tmp_path)
    config = tiny_swav(method=replace(tiny_swav().method, num_prototypes=20))
    with pytest.raises(ConfigError, match=r"prototypes\.\S+ is \(12, ?8?\)?.*\(20, ?8?\)? here"):
        checkpoint.restore(place, build_state(config, CPU), "swav")


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    """Momentum of one parameter must never land on another."""
    place = saved(tiny_swav(optim=OPTIMIZERS["larc"]), tmp_path)
    state = build_state(tiny_swav(optim=OPTIMIZERS["lars"]), CPU)  # orders its parameters anew
    with pytest.raises(ConfigError, match="does not fit this optimizer"):
        checkpoint.restore(place, state, "swav")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"format": 1}', '{"format": 1, "step": 2}', "\xff"]
)
def test_a_damaged_state_json_is_a_sentence(text: str, tmp_path: Path) -> None:
    """Found, allowed, remedy; never a KeyError."""
    place = saved(tiny_swav(), tmp_path)
    (place / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"no readable state\.json .*remove the damaged one"):
        checkpoint.restore(place, build_state(tiny_swav(), CPU), "swav")


def test_a_format_of_the_future_is_a_sentence(tmp_path: Path) -> None:
    """A file that means something else must not be guessed at."""
    place = saved(tiny_swav(), tmp_path)
    fields = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps(fields | {"format": 2}))
    with pytest.raises(ConfigError, match="has format 2; this version reads 1"):
        checkpoint.read_fields(place)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_tensor_file_is_a_sentence(keep: int, tmp_path: Path) -> None:
    """A file that was cut short, or is gone, names the remedy."""
    place = saved(tiny_swav(), tmp_path)
    path = place / "state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"cannot be read .*remove this checkpoint"):
        checkpoint.restore(place, build_state(tiny_swav(), CPU), "swav")
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot be read .*remove this checkpoint"):
        checkpoint.load_tensors(place)


def test_the_encoder_alone_can_be_loaded(tmp_path: Path) -> None:
    """Evaluation wants the backbone, not the optimizer."""
    state = trained(tiny_swav(), 2)
    place = checkpoint.save(tmp_path, checkpoint.take(state), "swav", keep=1)
    other = build_state(tiny_swav(seed=9), CPU).method.backbone
    checkpoint.load_backbone(place, other)
    weights = state.method.backbone.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, weights[name])


def test_step_and_cursor_lie_in_plain_json(tmp_path: Path) -> None:
    """They can be read without this library, and stay small."""
    place = saved(tiny_swav(), tmp_path, num_steps=2)
    fields = json.loads((place / "state.json").read_text())
    assert (fields["step"], fields["method"], fields["cursor"]["slot"]) == (2, "swav", 32)
    assert len(json.dumps(fields["cursor"])) < 2000
