"""Folder of Control: it is shared with the driver."""

from pathlib import Path

import pytest

from cluster.control.control_spec import check_folder, mark_folder
from shards.errors import ConfigError


def test_a_folder_that_the_head_cannot_see_is_refused(tmp_path: Path) -> None:
    """The journals of Control would lie on a disk that is lost with its node."""
    seen, elsewhere = tmp_path / "run" / ".control", tmp_path / "head" / "run" / ".control"
    seen.parent.mkdir()
    nonce = mark_folder(seen)
    check_folder(seen, nonce)
    with pytest.raises(ConfigError, match=r"cannot see .*run, .* a folder that both see: start"):
        check_folder(elsewhere, nonce)
    elsewhere.parent.mkdir(parents=True)
    mark_folder(elsewhere)  # a folder of the same name, of another run
    with pytest.raises(ConfigError, match="cannot see"):
        check_folder(elsewhere, nonce)
