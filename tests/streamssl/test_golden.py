"""The golden vectors, if they are present, and the checker itself."""

from pathlib import Path

import numpy as np
import pytest

from tests import golden
from tests.golden_checks.vectors import Report, Vectors

FOLDER = Path(__file__).parents[3] / "shared" / "golden"


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden vectors are not beside the checkout")
def test_the_product_reproduces_the_golden_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    """Every known file must pass; others are listed."""
    code = golden.main([str(FOLDER)])
    assert code == 0, capsys.readouterr().out


def test_a_wrong_number_fails_its_file_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checker that cannot fail proves nothing."""
    codes = np.full((2, 2), 0.5, dtype=np.float32)
    scores = np.zeros((2, 2), dtype=np.float32)
    name = "case/codes_eps0.05_it3"
    np.savez(tmp_path / "swav_sinkhorn.npz", **{"case/scores": scores, name: codes})
    np.savez(tmp_path / "unheard_of.npz", x=codes)
    assert golden.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "pass  swav_sinkhorn" in out and "unheard_of           not known yet" in out
    np.savez(tmp_path / "swav_sinkhorn.npz", **{"case/scores": scores, name: codes + 1e-3})
    assert golden.main([str(tmp_path)]) == 1
    assert "FAIL  swav_sinkhorn" in capsys.readouterr().out


def test_a_missing_array_fails_and_an_empty_folder_too(tmp_path: Path) -> None:
    """Nothing compared is not a pass."""
    assert golden.main([str(tmp_path)]) == 1
    np.savez(tmp_path / "larc.npz", **{"case/lr": np.ones(2), "case/w/init": np.ones((2, 2))})
    assert golden.main([str(tmp_path)]) == 1


def test_comparison_knows_shapes_integers_and_nan() -> None:
    """The three ways in which a loose comparison deceives."""
    for found, expected in (([1.0], [1.0, 1.0]), ([2], [1]), ([float("nan")], [1.0])):
        report = Report()
        report.compare("x", np.array(found), np.array(expected))
        assert report.failures
    report = Report()
    report.compare("x", np.array([1.0 + 5e-6]), np.array([1.0]))
    assert not report.failures and report.largest == pytest.approx(5e-6)


def test_names_are_found_under_their_prefix() -> None:
    """Settings are read from the file, never assumed."""
    vectors = Vectors({"a/step0/x": np.ones(1), "a/step10/x": np.ones(1), "b": np.array(3)})
    assert [step for step, _ in vectors.under("a").steps()] == [0, 10]
    assert vectors.count("b") == 3 and vectors.count("c", 4) == 4
