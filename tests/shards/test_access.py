"""A file that may not be read is whole: its owner must act, and nobody must remove it."""

from pathlib import Path

import pytest

from shards.access import raise_denied
from shards.errors import AccessDenied
from shards.stream.journal import Journal
from shards.stream.manifest_file import read_manifest
from tests.tinyrun import other_user, reachable_folder


def test_each_refusal_names_what_its_owner_can_type() -> None:
    """`chmod` of a closed parent does not help a file, and the reverse."""
    with reachable_folder() as place:
        (place / "closed").mkdir(mode=0o700)
        inside, secret = place / "closed" / "a.json", place / "b.json"
        for path in (inside, secret):
            path.touch(mode=0o600)
        said = []
        with other_user():
            # Without root the owner itself loses the rights.
            for path in (inside, secret, place / ".new.json.draft"):
                error = PermissionError(13, "Permission denied", str(path))
                with pytest.raises(AccessDenied) as denied:
                    raise_denied(error)
                said.append(str(denied.value))
        assert f"for the folder {place}/closed; ask its owner for `chmod a+x" in said[0]
        assert "b.json cannot be read: permission denied; ask its owner for `chmod -R" in said[1]
        assert "/new.json cannot be written: permission denied; ask the owner of" in said[2]
    raise_denied(FileNotFoundError(2, "gone", "x"))
    with pytest.raises(AccessDenied, match="file system is read-only"):
        raise_denied(OSError(30, "Read-only file system", "/x"))


@pytest.mark.parametrize("name", ["journal.jsonl", "manifest.parquet"])
def test_an_unreadable_journal_or_manifest_is_not_called_damaged(name: str) -> None:
    """Such a journal would otherwise be a traceback, such a manifest one of another version."""
    with reachable_folder() as place:
        path: Path = place / name
        path.touch(mode=0)
        with other_user(), pytest.raises(AccessDenied, match=r"chmod -R a\+rX"):
            if name == "journal.jsonl":
                Journal.read(path, "m", "o", replace_other=True)
            else:
                read_manifest(path)
