"""SimCLR v2's stages, one after the other: pretrained, fine-tuned, taught to another net."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from shards.errors import ConfigError
from shards.samples.labels import FIRST_HASH
from shards.samples.synthetic_images import encode_jpeg, make_image
from streamssl.checkpoint import list_checkpoints, load_tensors, restore
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.methods.fine_tuning_config import FineTuneConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.run_config import RunConfig, read_toml, write_toml
from streamssl.methods.base import SampleInfo
from streamssl.methods.fine_tuning import ClassLayer, classification_loss
from streamssl.recipes import crop_recipes as views
from streamssl.training.train_state import build_state
from tests.tars import make_tar
from tests.tinyrun import BACKBONE, CPU, read_log, tiny_swav, train_here

PLAIN = views.plain(size=32)


def tuned_from(run: Path, **changes: object) -> RunConfig:
    method = FineTuneConfig(start=str(run), num_classes=10)
    return tiny_swav(method=method, crops=PLAIN, label="cls", num_steps=2, save_every=2, **changes)


def taught_by(run: Path, **changes: object) -> RunConfig:
    method = DistillationConfig(teacher=str(run))
    return tiny_swav(method=method, crops=PLAIN, num_steps=2, save_every=2, **changes)


@pytest.fixture(scope="module")
def stages(shards_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a run of each stage. Not to be written to."""
    out = tmp_path_factory.mktemp("stages")
    pretrained = tiny_swav(
        method=SimCLRConfig(dim=8, num_layers=3),
        crops=views.simclr(size=32),
        num_steps=2,
        save_every=2,
    )
    smaller = replace(BACKBONE, options={**BACKBONE.options, "channels": (4, 4, 4, 4)})
    configs = {
        "pretrained": pretrained,
        "tuned": tuned_from(out / "pretrained"),
        "taught": taught_by(out / "tuned"),
        "smaller": taught_by(out / "tuned", backbone=smaller),
    }
    for name, config in configs.items():
        train_here(config, shards_folder, out / name)
    return {name: out / name for name in configs}


def test_each_stage_starts_from_the_one_before(stages: dict[str, Path]) -> None:
    """From shards to a student, of equal and of smaller size."""
    assert [set(read_log(stages[name])[-1]["readings"]) for name in ("tuned", "taught")] == [
        {"accuracy", "labelled", "gradient_norm"},
        {"agreement", "gradient_norm"},
    ]
    student = load_tensors(list_checkpoints(stages["smaller"])[-1])
    assert student["method.classes.weight"].shape == (10, 4)
    assert student["method.teacher.classes.weight"].shape == (10, 8)


def test_fine_tuning_keeps_the_first_layer_of_the_head(stages: dict[str, Path]) -> None:
    """Classes must come after the first of three layers."""
    before = load_tensors(list_checkpoints(stages["pretrained"])[-1])
    method = build_state(tuned_from(stages["pretrained"]), CPU).method
    for name, value in method.state_dict().items():
        if not name.startswith("classes"):
            assert torch.equal(value, before[f"method.{name}"]), name
    assert [type(layer).__name__ for layer in method.head] == ["Linear", "BatchNorm1d", "ReLU"]


def test_the_teacher_never_changes(stages: dict[str, Path]) -> None:
    """Neither its weights nor its batch norm, in any mode of the student."""
    tuned = load_tensors(list_checkpoints(stages["tuned"])[-1])
    taught = load_tensors(list_checkpoints(stages["taught"])[-1])
    for name, value in tuned.items():
        if name.startswith("method."):
            assert torch.equal(value, taught[name.replace("method.", "method.teacher.")]), name
    method = build_state(taught_by(stages["tuned"]), CPU).method.train()
    assert method.backbone.training
    assert not any(module.training for module in method.teacher.modules())
    trained = {id(parameter) for parameter in method.parameters_to_optimise()}
    assert not trained & {id(parameter) for parameter in method.teacher.parameters()}


def test_loss_is_the_mean_over_labelled_samples() -> None:
    """It is 0 without any label."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, 1])
    expected = F.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    torch.testing.assert_close(classification_loss(logits, labels, None), expected)
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, labels, None), logits)
    assert classification_loss(logits, labels.fill_(-1), None).item() == 0


def test_a_start_that_cannot_work_is_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    """No start, another network, no teacher, two views."""
    for config, words in (
        (tuned_from(tmp_path), r"method\.start='.*' holds no checkpoint.*--method\.start runs/a"),
        (
            tuned_from(stages["pretrained"], backbone=replace(BACKBONE, stem="small", options={})),
            "does not fit this model",
        ),
        (taught_by(stages["pretrained"]), "is of method 'simclr'; only a run of fine-tune"),
        (replace(taught_by(stages["tuned"]), crops=views.simclr(size=32)), "takes one view"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_state(config, CPU)
    with pytest.raises(ConfigError, match="learns from labels; give --label cls"):
        tiny_swav(method=FineTuneConfig())


def test_a_label_that_is_no_class_is_refused(stages: dict[str, Path]) -> None:
    """The message has the label and the number of classes."""
    method = build_state(tuned_from(stages["pretrained"]), CPU).method
    ids = torch.zeros(2, 2, dtype=torch.int64)
    samples = SampleInfo(ids, ids[:, 0], torch.tensor([0, 10]))
    with pytest.raises(ConfigError, match="a label of 10 with num_classes=10"):
        method.loss([torch.zeros(2, 3, 32, 32)], step=0, samples=samples)


WORDS = [FIRST_HASH + n for n in (7, 3, 9)]


@pytest.mark.parametrize(
    ("batches", "classes"),
    [
        ([[2, -1, 0, 2]], [[2, -1, 0, 2]]),
        ([[WORDS[0], WORDS[1], -1], [WORDS[1], WORDS[2]]], [[0, 1, -1], [1, 2]]),
        ([[WORDS[0], 0], [1, WORDS[1]]], [[1, 0], [2, 3]]),  # numbers and words in one set
    ],
)
def test_labels_become_classes(batches: list[list[int]], classes: list[list[int]]) -> None:
    """Two words, or a word and a number, would be one class."""
    layer = ClassLayer(2, 4)
    for labels, expected in zip(batches, classes, strict=True):
        assert layer.number(torch.tensor(labels), None).tolist() == expected
    again = ClassLayer(2, 4)
    again.load_state_dict(layer.state_dict())  # as in a resumed run
    assert again.number(torch.tensor(batches[0]), None).tolist() == classes[0]


def test_more_words_than_classes_are_refused() -> None:
    """The message must name the setting that works."""
    layer = ClassLayer(2, 2)
    with pytest.raises(ConfigError, match=r"have 3 values or more, .* raise --method\.num-classes"):
        layer.number(torch.tensor(WORDS), None)


@pytest.mark.parametrize(
    "member", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("cls", "txt")), "json"]
)
def test_classes_may_be_words(stages: dict[str, Path], tmp_path: Path, member: str) -> None:
    """Most sets have names of classes, and fine-tuning refused them as numbers of nine digits."""
    members = []
    for number in range(64):
        image = encode_jpeg(make_image(0, number, number % 3, 32))
        word = f"zebra {number % 3}\n".encode()
        field = json.dumps({"meta": {"kind": word.decode()}}).encode()
        beside = (f"{number}.{member}", field if member == "json" else word)
        members += [(f"{number}.jpg", image), beside]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    label = "meta.kind" if member == "json" else member
    config = replace(tuned_from(stages["pretrained"]), label=label)
    train_here(config, tmp_path / "0.tar", tmp_path / "run")
    saved = load_tensors(list_checkpoints(tmp_path / "run")[-1])["method.classes.label_of_class"]
    assert sorted(saved.tolist()) == [*[-1] * 7, *sorted({*saved.tolist()} - {-1})]
    assert read_log(tmp_path / "run")[-1]["readings"]["labelled"] == 1
    assert train_here(replace(config, num_steps=4), tmp_path / "0.tar", tmp_path / "run").step == 4
    after = load_tensors(list_checkpoints(tmp_path / "run")[-1])["method.classes.label_of_class"]
    assert torch.equal(saved, after)


def test_a_checkpoint_without_labels_of_classes_is_read(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """Runs of version 0.2 could not be resumed, nor teach."""
    place = shutil.copytree(list_checkpoints(stages["tuned"])[-1], tmp_path / "old")
    tensors = load_file(place / "state.safetensors")
    del tensors["method.classes.label_of_class"]
    save_file(tensors, place / "state.safetensors")
    state = build_state(tuned_from(stages["pretrained"]), CPU, fresh=False)
    restore(place, state, "fine-tune")
    assert build_state(taught_by(place), CPU).step == 0


def test_a_start_and_a_teacher_may_be_copies_and_a_resume_needs_no_start(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """A start of months ago may be gone, and a colleague has a checkpoint instead of a run."""
    copies = {
        name: shutil.copytree(list_checkpoints(stages[name])[-1], tmp_path / name)
        for name in ("pretrained", "tuned")
    }
    assert build_state(tuned_from(copies["pretrained"]), CPU).step == 0
    assert build_state(taught_by(copies["tuned"]), CPU).step == 0
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        build_state(tuned_from(tmp_path / "gone"), CPU)
    state = build_state(tuned_from(tmp_path / "gone"), CPU, fresh=False)
    restore(list_checkpoints(stages["tuned"])[-1], state, "fine-tune")
    assert state.step > 0


@pytest.mark.parametrize("version", ["now", pytest.param("before", marks=pytest.mark.slow)])
def test_a_student_goes_on_without_its_teacher(
    stages: dict[str, Path], shards_folder: Path, tmp_path: Path, version: str
) -> None:
    """The teacher's folder may be gone when the run is resumed, and its weights are in the run."""
    teacher, out = tmp_path / "teacher", tmp_path / "taught"
    shutil.copytree(stages["tuned"], teacher)
    train_here(taught_by(teacher), shards_folder, out)
    settings = (teacher / "config.toml").read_text()
    shutil.rmtree(teacher)
    resumed = replace(taught_by(teacher), num_steps=4)
    if version == "before":  # runs of version 0.2 have no network in their settings
        own = read_toml(out / "config.toml")
        write_toml(replace(own, method=replace(own.method, network=None)), out / "config.toml")
        with pytest.raises(ConfigError, match=rf"is gone; .* back as {teacher}/config\.toml, or"):
            train_here(resumed, shards_folder, out)
        teacher.mkdir()
        (teacher / "config.toml").write_text(settings)
    assert train_here(resumed, shards_folder, out).step == 4
    first, last = (load_tensors(path) for path in list_checkpoints(out))
    assert torch.equal(
        first["method.teacher.classes.weight"], last["method.teacher.classes.weight"]
    )
    assert not torch.equal(first["method.classes.weight"], last["method.classes.weight"])
    with pytest.raises(
        ConfigError, match=r"holds no checkpoint; .*: give --method\.teacher runs/a"
    ):
        train_here(resumed, shards_folder, tmp_path / "new")
