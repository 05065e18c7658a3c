"""The encoder of a run, scored on labelled shards."""

import shutil
import tarfile
from pathlib import Path

import pytest

from shards.errors import BudgetExceeded, ConfigError, ManifestError, UserError
from streamssl.evaluation.knn import KnnConfig
from streamssl.evaluation.score_run import find_checkpoint, knn_of_run
from tests.tinyrun import make_shards

FIVE = KnnConfig(ks=(1, 5))


@pytest.fixture(scope="module")
def test_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images that the run was not trained on."""
    return make_shards(tmp_path_factory.mktemp("test") / "shards", num=50, seed=7)


def test_a_run_is_scored_beside_its_baselines(
    finished_run: Path, shards_folder: Path, test_shards: Path
) -> None:
    """Without raw pixels and the untrained encoder a number says nothing."""
    encoders = ("raw pixels", "untrained", "trained")
    scores = knn_of_run(finished_run, str(shards_folder), str(test_shards), encoders, FIVE)
    assert (scores.num_train, scores.num_test, scores.step) == (160, 50, 6)
    assert list(scores.accuracy) == list(encoders)
    for accuracy in scores.accuracy.values():
        assert list(accuracy) == [1, 5] and all(0 <= value <= 100 for value in accuracy.values())
    # Ten classes drawn in two ways each: even pixels know more than chance does.
    assert scores.accuracy["raw pixels"][1] > 10


def test_scores_can_be_repeated(finished_run: Path, shards_folder: Path, test_shards: Path) -> None:
    """The same checkpoint gives the same number, however many threads read."""
    one, other = (
        knn_of_run(finished_run, str(shards_folder), str(test_shards), config=FIVE)
        for _ in range(2)
    )
    assert one == other


def test_each_image_is_its_own_nearest_neighbour(finished_run: Path, shards_folder: Path) -> None:
    """Labels and features must belong to the same image, in the same order."""
    data = str(shards_folder)
    scores = knn_of_run(finished_run, data, data, ("raw pixels", "trained"), KnnConfig(ks=(1,)))
    assert scores.accuracy == {"raw pixels": {1: 100.0}, "trained": {1: 100.0}}


def test_a_checkpoint_can_be_named(
    finished_run: Path, shards_folder: Path, test_shards: Path
) -> None:
    """An older one than the newest, to see how a run went."""
    older = finished_run / "checkpoints" / "step-00000002"
    assert find_checkpoint(older) == (finished_run, older)
    assert find_checkpoint(finished_run)[1].name == "step-00000006"
    scores = knn_of_run(older, str(shards_folder), str(test_shards), config=FIVE, size=16)
    assert scores.step == 2


def test_the_untrained_encoder_is_the_one_the_run_began_with(
    finished_run: Path, shards_folder: Path, test_shards: Path
) -> None:
    """Another seed's weights would be another baseline."""
    both = [
        knn_of_run(finished_run, str(shards_folder), str(test_shards), ("untrained",), FIVE)
        for _ in range(2)
    ]
    assert both[0].accuracy == both[1].accuracy


def test_what_cannot_be_scored_is_a_sentence(
    finished_run: Path, shards_folder: Path, test_shards: Path, tmp_path: Path
) -> None:
    """Found, allowed, remedy."""
    train, test = str(shards_folder), str(test_shards)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"empty holds no checkpoint; give the folder of a run"):
        knn_of_run(empty, train, test)
    with pytest.raises(ManifestError, match="no such"):
        knn_of_run(finished_run, train, str(tmp_path / "no such"))
    with pytest.raises(ConfigError, match=r"k=200 on 160 training images; .*choose a smaller"):
        knn_of_run(finished_run, train, test, config=KnnConfig(ks=(20, 200)))
    lonely = tmp_path / "copy" / "checkpoints" / "step-00000006"
    shutil.copytree(finished_run / "checkpoints" / "step-00000006", lonely)
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        knn_of_run(lonely, train, test)


def test_an_image_without_a_label_is_named(
    finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """With the members that it has, and how labels are written."""
    source = sorted(shards_folder.glob("*.tar"))[0]
    with tarfile.open(source) as old, tarfile.open(tmp_path / "bare.tar", "w") as new:
        for member in old:
            if not member.name.endswith(".cls"):
                new.addfile(member, old.extractfile(member))
    with pytest.raises(UserError, match=r"bare\.tar has no label \(members: jpg\); every sample"):
        knn_of_run(finished_run, str(tmp_path / "bare.tar"), str(shards_folder), config=FIVE)


def test_shards_without_one_good_image_are_a_sentence(
    finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """Not a stack of NumPy about nothing to concatenate."""
    data = make_shards(tmp_path / "data", num=10)
    for path in data.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0"))
    for encoder in ("raw pixels", "trained"):
        with pytest.raises(BudgetExceeded, match=r"not_an_image +10"):
            knn_of_run(finished_run, str(shards_folder), str(data), (encoder,), FIVE)
