"""Scores of the encoder of a run on labelled shards."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shards.errors import BudgetExceeded, ConfigError, ManifestError, UserError
from shards.pack.pack import pack
from shards.pack.sources.folder_entries import entries_from_folder
from streamssl.cli import main
from streamssl.config.run_config import read_toml, write_toml
from streamssl.evaluation.knn import KnnConfig
from streamssl.evaluation.score_run import KnnResult, find_checkpoint, knn_of_run
from streamssl.evaluation.set_options import SetOptions, describe_numbers
from streamssl.modules.backbones import build_backbone
from tests.loopback import LoopbackServer, QuietHandler, serving
from tests.noise import noise
from tests.tars import make_tar
from tests.tinyrun import make_shards, tiny_swav, train_here

FIVE = KnnConfig(ks=(1, 5))
SMALL = SetOptions(size=16)


@pytest.fixture(scope="module")
def test_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Labelled images that the run was not trained on."""
    return str(make_shards(tmp_path_factory.mktemp("test") / "shards", num=50, seed=7))


@pytest.fixture(scope="module")
def scores(finished_run: Path, shards_folder: Path, test_shards: str) -> KnnResult:
    """Scores of the run with its baselines."""
    encoders = ("raw pixels", "untrained", "trained")
    return knn_of_run(finished_run, str(shards_folder), test_shards, encoders, FIVE)


def test_a_run_is_scored_with_its_baselines(scores: KnnResult) -> None:
    """Without raw pixels and the untrained encoder a score means nothing."""
    assert (scores.train.num_images, scores.test.num_images, scores.step) == (160, 50, 6)
    assert list(scores.accuracy) == ["raw pixels", "untrained", "trained"]
    for accuracy in scores.accuracy.values():
        assert list(accuracy) == [1, 5] and all(0 <= value <= 100 for value in accuracy.values())
    # Ten classes drawn in two ways each: raw pixels must beat chance.
    assert scores.accuracy["raw pixels"][1] > 10


def test_scores_are_repeatable(
    scores: KnnResult, finished_run: Path, shards_folder: Path, test_shards: str
) -> None:
    """Reader threads or another seed of the untrained encoder must not change a score."""
    again = knn_of_run(
        finished_run, str(shards_folder), test_shards, ("untrained", "trained"), FIVE
    )
    assert again.accuracy.items() <= scores.accuracy.items()


def test_each_image_is_its_own_nearest_neighbour(finished_run: Path, shards_folder: Path) -> None:
    """Labels and features must belong to the same image."""
    data = str(shards_folder)
    found = knn_of_run(finished_run, data, data, ("raw pixels", "trained"), KnnConfig(ks=(1,)))
    assert found.accuracy == {"raw pixels": {1: 100.0}, "trained": {1: 100.0}}


def test_an_older_checkpoint_can_be_scored(
    finished_run: Path, shards_folder: Path, test_shards: str
) -> None:
    """The path of a checkpoint must select it, not the newest one."""
    older = finished_run / "checkpoints" / "step-00000002"
    assert find_checkpoint(older) == (finished_run, older)
    assert find_checkpoint(finished_run)[1].name == "step-00000006"
    assert knn_of_run(older, str(shards_folder), test_shards, config=FIVE, options=SMALL).step == 2


def test_a_checkpoint_that_left_its_run_is_scored(
    finished_run: Path, shards_folder: Path, test_shards: str, tmp_path: Path
) -> None:
    """A colleague gets a checkpoint, not a run; its score must not go into a foreign folder."""
    newest = finished_run / "checkpoints" / "step-00000006"
    alone = shutil.copytree(newest, tmp_path / "mine" / "best")
    assert find_checkpoint(alone) == (None, alone)
    data = str(shards_folder)
    found = [knn_of_run(run, data, test_shards, config=FIVE) for run in (alone, newest)]
    assert found[0].accuracy == found[1].accuracy
    command = ["evaluate", "knn", "--run", str(alone), "--train", data, "--test", test_shards]
    assert main([*command, "--ks", "5"]) == 0
    assert list((tmp_path / "mine").iterdir()) == [alone]


def test_a_network_from_a_file_is_resumed_and_scored_without_the_file(
    shards_folder: Path, test_shards: str, tmp_path: Path
) -> None:
    """The file may be gone after months; the checkpoint holds all weights."""
    plain = replace(tiny_swav().backbone, stem="imagenet")
    file = tmp_path / "start.safetensors"
    tensors = build_backbone(plain, 32).state_dict()
    save_file({**tensors, "fc.weight": torch.zeros(10, 8)}, file)
    begun = replace(plain, options={**plain.options, "checkpoint_path": str(file)})
    config = tiny_swav(backbone=begun, num_steps=2)
    train_here(config, shards_folder, tmp_path / "run")
    file.rename(tmp_path / "moved")
    train_here(replace(config, num_steps=4), shards_folder, tmp_path / "run")
    data = str(shards_folder)
    assert knn_of_run(tmp_path / "run", data, test_shards, config=FIVE).step == 4
    with pytest.raises(ConfigError, match=r"start\.safetensors, which cannot be .*leave --basel"):
        knn_of_run(tmp_path / "run", data, test_shards, ("trained", "untrained"), FIVE)
    with pytest.raises(ConfigError, match=r"No such file.*name weights of this network"):
        train_here(config, shards_folder, tmp_path / "new")


def test_an_evaluation_fetches_nothing_for_a_foreign_run(
    finished_run: Path, shards_folder: Path, test_shards: str, tmp_path: Path
) -> None:
    """Whoever gives a run away would have its config.toml fetch any address from here."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    requests: list[str] = []

    class Trap(QuietHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with serving(LoopbackServer(("127.0.0.1", 0), Trap)) as server:
        source = {"url": f"{server.address}/weights.pth", "hf_hub_id": ""}
        for path in (run / "config.toml", *run.glob("checkpoints/*/config.toml")):
            config = read_toml(path)
            options = {**config.backbone.options, "pretrained": True, "pretrained_cfg": source}
            write_toml(replace(config, backbone=replace(config.backbone, options=options)), path)
        data = str(shards_folder)
        assert knn_of_run(run, data, test_shards, config=FIVE).accuracy["trained"]
        with pytest.raises(
            ConfigError, match=r"would be fetched from http.*weights\.pth.* leave --"
        ):
            knn_of_run(run, data, test_shards, ("trained", "untrained"), FIVE)
    assert requests == []


def test_unusable_runs_and_shards_are_refused(
    finished_run: Path, shards_folder: Path, test_shards: str, tmp_path: Path
) -> None:
    """A user needs a sentence, not a stack of NumPy or torch."""
    train = str(shards_folder)
    with pytest.raises(ConfigError, match=r"holds no checkpoint; give the folder of a run"):
        knn_of_run(tmp_path, train, test_shards)
    with pytest.raises(ManifestError, match="no such"):
        knn_of_run(finished_run, train, str(tmp_path / "no such"))
    with pytest.raises(ConfigError, match=r"k=200 on 160 training images; .*such as --ks 20"):
        knn_of_run(finished_run, train, test_shards, config=KnnConfig(ks=(20, 200)))
    moved = tmp_path / "copy" / "checkpoints" / "step-00000006"
    shutil.copytree(finished_run / "checkpoints" / "step-00000006", moved)
    (moved / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        knn_of_run(moved, train, test_shards)
    shutil.copy(finished_run / "config.toml", tmp_path / "copy")
    (moved / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"holds no readable state\.json"):
        knn_of_run(moved, train, test_shards)


def test_unusable_images_are_refused(
    finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """A set without labels must name its fields; rejects alone must give their reasons."""
    source = sorted(shards_folder.glob("*.tar"))[0]
    with tarfile.open(source) as old, tarfile.open(tmp_path / "bare.tar", "w") as new:
        for member in old:
            if not member.name.endswith(".cls"):
                new.addfile(member, old.extractfile(member))
    with pytest.raises(UserError, match=r"none of 60 samples of .*bare\.tar has a label"):
        knn_of_run(finished_run, str(tmp_path / "bare.tar"), str(shards_folder), config=FIVE)
    data = make_shards(tmp_path / "data", num=10)
    for path in data.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    with pytest.raises(BudgetExceeded, match=r"not_an_image +10"):
        knn_of_run(finished_run, str(shards_folder), str(data), config=FIVE)


def class_folders(root: Path, classes: range) -> Path:
    """Shards of a folder of classes; all images of a class are equal."""
    for number in classes:
        folder = root / f"class{number}"
        folder.mkdir(parents=True)
        for index in range(3):
            (folder / f"{index}.png").write_bytes(noise(16, 16, seed=number))
    out = root.with_name(f"{root.name}-shards")
    pack(entries_from_folder(root), out)
    return out


def test_classes_of_two_packs_are_matched_by_name(finished_run: Path, tmp_path: Path) -> None:
    """A test set without the first class would have every number moved by one, and score 0."""
    train = class_folders(tmp_path / "train", range(5))
    test = class_folders(tmp_path / "test", range(1, 5))
    one = KnnConfig(ks=(1,))
    found = knn_of_run(finished_run, str(train), str(test), ("raw pixels",), one)
    assert found.accuracy == {"raw pixels": {1: 100.0}}
    message = r"test classes class0 have no training image, whose classes are class1, class2.*other"
    with pytest.raises(UserError, match=message):
        knn_of_run(finished_run, str(test), str(train), ("raw pixels",), one)


@pytest.mark.parametrize(
    ("label", "told"), [(b"class%d", ""), (b"%d", "the training shards have ")]
)
def test_names_of_one_set_meet_words_or_numbers_of_the_other(
    finished_run: Path, tmp_path: Path, label: bytes, told: str
) -> None:
    """Words would be refused although the classes are the same; numbers would score 0 silently."""
    test = class_folders(tmp_path / "test", range(3))
    members = [m for i in range(3) for m in
               ((f"{i}.png", noise(16, 16, seed=i)), (f"{i}.cls", label % i))]  # fmt: skip
    (tmp_path / "train.tar").write_bytes(make_tar(members))
    sets = str(tmp_path / "train.tar"), str(test)
    found = knn_of_run(finished_run, *sets, ("raw pixels",), KnnConfig(ks=(1,)))
    assert found.accuracy == {"raw pixels": {1: 100.0}}
    assert describe_numbers({"training": found.train, "test": found.test})[:25] == told


def test_what_is_unusual_in_a_set_is_told_before_its_score(
    finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Black masks were scored in place of the photographs, without a word."""
    members = [
        (f"{number}.{end}", b"1" if end == "cls" else noise(16, 16, seed=number % 3))
        for number in range(6)
        for end in ("mask.png", "image.png", "cls")
    ]
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    told: list[str] = []
    one = KnnConfig(ks=(1,))
    for chosen in (None, "image"):
        options = SetOptions(image_member=chosen)
        data = str(tmp_path / "0.tar")
        knn_of_run(finished_run, data, data, ("raw pixels",), one, options, told.append)
    assert [line[:49] for line in told] == [
        "training set: 6 of 6 samples have several images ",
        "test set: 6 of 6 samples have several images (mas",
    ]


def test_unreadable_samples_are_counted_and_refused_above_a_share(
    finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Half of a test set would be scored as if it were all of it."""
    data = make_shards(tmp_path / "data", num=40)
    (path,) = data.glob("*.tar")
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0", 10))
    message = (
        r"10 of 40 test samples were left out: not_an_image 10; more than 10% .*--max-left-out"
    )
    with pytest.raises(UserError, match=message):
        knn_of_run(finished_run, str(shards_folder), str(data), ("raw pixels",), FIVE)
    allowed = SetOptions(max_left_out=0.25)
    found = knn_of_run(
        finished_run, str(shards_folder), str(data), ("raw pixels", "trained"), FIVE, allowed
    )
    assert found.test.describe("test") == "10 of 40 test samples were left out: not_an_image 10"
    assert (found.score().num_test, found.score().num_left_out) == (30, 10)
