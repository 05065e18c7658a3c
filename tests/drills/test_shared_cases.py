"""Cases of users' data: the command that meets each, its exit status and what it says.

The cases are made by `make_cases.py` in the folder `shared/cases` beside the repository.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamssl.cli import main
from tests.tinyrun import tiny_swav, train_here

CASES = Path(__file__).parents[3] / "shared" / "cases"
VERIFY, STATS, PACK = "shards verify {case}", "shards stats {case}", "shards pack {case} {out}"
SUPCON = "pretrain supcon-small --data {case} --out {out} --num-steps 1 --stream.batch-size 16"
SCORE = "evaluate knn --run {run} --train {cases}/c00 --test {case} --ks 1"
SCORE_ALONE = "evaluate knn --run {run} --train {case} --test {case} --ks 1"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason="no folder shared/cases beside the repository"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Return the folder of the made cases."""
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, CASES / "make_cases.py", out], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def run(cases, tmp_path_factory):
    """Return the folder of a run of one step on the healthy shard."""
    out = tmp_path_factory.mktemp("run") / "run"
    train_here(tiny_swav(num_steps=1), cases / "c00", out)
    return out


@pytest.mark.parametrize(
    ("case", "command", "status", "lines"),
    [
        ("c00", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c01", VERIFY, 1, ["64 samples", "layout: file names have dots", "not good"]),
        ("c01b", VERIFY, 1, ["64 samples", "layout: file names have dots", "not good"]),
        ("c01", PACK, 0, ["other dots become underscores", "64 samples in 1 shards"]),
        ("c01", SUPCON, 0, ["data: file names have dots, such as cam0/"]),
        ("c02", VERIFY, 0, ["64 samples .*, 0 rejected", "layout: 128 hidden files"]),
        ("c02b", VERIFY, 0, ["64 samples .*, 0 rejected", "layout: 64 hidden files"]),
        ("c02c", VERIFY, 0, ["64 samples .*, 0 rejected", "layout: 64 hidden files"]),
        ("c03", VERIFY, 1, ["no_image +64", "members of one sample lie apart.*shards pack"]),
        ("c03", SUPCON, 2, ["label='cls', but none .* lie apart.*shards pack"]),
        ("c03", SCORE, 2, ["test set: 64 of 128 .* lie apart.*shards pack"]),
        ("c03", PACK, 0, ["64 samples joined from 128 groups"]),
        ("c03c", PACK, 0, ["64 samples joined from 192 groups"]),
        ("c03d", PACK, 0, ["600 samples joined from 1,200 groups"]),
        ("c03e", PACK, 0, ["400 samples joined from 800 groups"]),
        ("c03e-source", PACK, 0, ["8 class numbers of .cls files", "400 samples in 1 shards"]),
        ("c03e-source", VERIFY, 2, ["holds images, no shards; .*streamssl shards pack"]),
        ("c04", VERIFY, 0, [r"several images \(mask.png, image.png\).*--image-member image.png"]),
        ("c04", SCORE, 0, ["test set: 64 of 64 samples have several images"]),
        ("c04", f"{SCORE_ALONE} --image-member image", 0, ["64 training and 64 test images"]),
        ("c05", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c05", PACK, 0, ["64 samples in 1 shards"]),
        ("c06", VERIFY, 1, ["no_image +3 .*svg is an SVG drawing: draw", "an HTML page: an error"]),
        ("c07", STATS, 0, ["bits in use .*12 ", "use only 12 bits.*--admission.sixteen-bit str"]),
        ("c07b", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c08", VERIFY, 0, ["6 of 8 images have 2, 4, 6, 13 bands"]),
        ("c09", VERIFY, 1, ["no end: .*00001.tar", "no end: .*00003.tar", "no _stats.json beside"]),
        ("c10", VERIFY, 2, ["holds Parquet, no shards; .*streamssl shards pack"]),
        ("c10/binary.parquet", PACK, 0, ["images from column jpg, labels from column cls", "32 s"]),
        ("c10/train-00000-of-00001.parquet", PACK, 0, ["images from column image", "32 samples"]),
        ("c12", VERIFY, 1, ["64 samples", "layout: .*b.tar holds 0 bytes"]),
        ("c12b", VERIFY, 1, ["64 samples", "without samples: .*b.tar"]),
        ("c12b", STATS, 0, ["without samples: .*b.tar"]),
        ("c13", VERIFY, 0, ["16 of 32 samples have a key that was seen before"]),
        ("c13b", VERIFY, 0, ["32 of 64 samples have the key of the sample before"]),
        ("c15", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c16/data [v2]", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c16/what?", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c16/star*", VERIFY, 0, ["64 samples in 1 shards, 0 rejected"]),
        ("c20-negative", STATS, 0, ["32 of 64 images have no label"]),
        ("c20-negative", SUPCON, 0, ["data: 32 of 64 images have no label 'cls'"]),
        ("c20-rare", SUPCON, 0, ["data: no two of 64 images have the same label 'cls'"]),
        ("c20-huge-json", SUPCON, 2, ["none of the first .* could be labels are label: name one"]),
        ("c20-huge-json", SCORE, 0, ["64 training and 16 test images"]),
        ("c33-bom", SCORE, 0, ["64 training and 64 test images"]),
        ("c33-mixed", SCORE, 0, ["64 training and 64 test images"]),
        ("c33-field", SUPCON, 2, ["labels are category_id: name one with --label"]),
        ("c33-field", f"{SCORE_ALONE} --label category_id", 0, ["64 training and 64 test images"]),
        ("c33-nested", SUPCON, 2, ["labels are meta.label: name one with --label"]),
        ("c33-nested", f"{SCORE_ALONE} --label meta.label", 0, ["64 training and 64 test images"]),
        ("c33-gaps", SCORE, 0, ["6 of 64 test samples were left out: no label 6"]),
        ("c33-null", SCORE, 0, ["7 of 64 test samples were left out: no label 7"]),
        ("c33-words", SCORE_ALONE, 0, ["64 training and 64 test images"]),
        ("c33-words", SCORE, 2, ["the test classes class-0, .* have no training image"]),
        ("c34-half-unreadable", SCORE, 2, ["32 of 64 test samples were left out: truncated 32"]),
        ("c36", PACK, 2, ["holds the splits test, train; .*OUT-test.*OUT-train"]),
        ("c36/train", PACK, 0, ["4 classes: class0, class1, class2, class3 "]),
        ("c37/train", PACK, 0, ["32 images have a row in metadata.jsonl", "8 class numbers"]),
    ],
)  # fmt: skip
def test_a_case_is_told_as_it_should_be(
    cases, run, tmp_path, capsys, monkeypatch, case, command, status, lines
):
    """Ordinary things that people do ended in data that was lost, or scored wrong, silently."""
    monkeypatch.setenv("COLUMNS", "200")
    names = {"case": cases / case, "cases": cases, "run": run, "out": tmp_path / "out"}
    assert main([word.format(**names) for word in command.split()]) == status
    told = capsys.readouterr()
    for line in lines:
        assert re.search(line, told.out + told.err), told.out + told.err


def test_classes_of_packs_made_apart_are_matched_by_name(cases, run, tmp_path, capsys):
    """k-NN was 0.0 % where 100 % is right: the classes of the test set were numbered anew."""
    for which in ("train", "test"):
        assert main(["shards", "pack", str(cases / "c35" / which), str(tmp_path / which)]) == 0
    sets = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    assert main(["evaluate", "knn", "--run", str(run), *sets, "--ks", "1", "--baselines"]) == 0
    assert re.search(r"raw pixels .* 100\.0", capsys.readouterr().out)


def test_a_joined_pack_is_as_good_as_the_healthy_shard(cases, tmp_path, capsys):
    """The remedy that was printed made the damage final, and `verify` then said good."""
    for case in ("c01", "c03", "c03c", "c03d", "c03e"):
        assert main(["shards", "pack", str(cases / case), str(tmp_path / case)]) == 0
        assert main(["shards", "verify", str(tmp_path / case)]) == 0, capsys.readouterr().out
        shutil.rmtree(tmp_path / case)
