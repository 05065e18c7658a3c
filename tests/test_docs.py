"""What documents show is run: all Python of docs/, and the marked blocks of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tinyrun import make_shards, tiny_swav, train_here

ROOT = Path(__file__).parents[1]
RUNNABLE = "<!-- run by tests/test_docs.py -->\n"
# torchdata sets a mark of torch that this torch has given up.
TORCHDATA = "ignore:'set_vital' is deprecated:UserWarning"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document):
    """The Python of a document, in order; of the README only what is marked."""
    text = document.read_text()
    if document.parent == ROOT:
        text = "".join(part[: part.index("\n```\n") + 5] for part in text.split(RUNNABLE)[1:])
    return [match[1] for match in BLOCK.finditer(text)]


def run(script, folder):
    """A document is one program: later blocks use what earlier ones made."""
    (folder / "document.py").write_text(script)
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCHDATA, "document.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


def test_every_fault_of_others_has_its_test():
    """The table of docs/methods.md promises one for each line, in a file that is there."""
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ((?:`test_\w+\.py` ?)+) \|$", text, re.MULTILINE)
    table = text[text.index("| fault | here | test |") :].partition("\n\n")[0]
    assert len(rows) == len(table.splitlines()) - 2 > 30
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name for row in rows for name in re.findall(r"test_\w+\.py", row[2])} <= there


SHOWING = [path for path in sorted((ROOT / "docs").glob("*.md")) if blocks(path)]


@pytest.mark.parametrize("document", SHOWING, ids=lambda path: path.name)
def test_every_block_of_a_document_runs(document, tmp_path):
    """Code that is shown and does not work costs a reader an evening."""
    make_shards(tmp_path / "shards", num=96, per_shard=32)
    done = run("\n".join(blocks(document)), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_marked_blocks_of_the_readme_run(tmp_path):
    """The first code that anybody copies."""
    shards = make_shards(tmp_path / "shards", num=96, per_shard=32)
    train_here(tiny_swav(num_steps=2), shards, tmp_path / "runs" / "a")
    found = blocks(ROOT / "README.md")
    assert len(found) == 1
    done = run("\n".join(found), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_links_between_documents_lead_somewhere():
    """A page that is gone is found by the reader otherwise."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]
    dead = [
        f"{document.relative_to(ROOT)}: {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / link).exists()
    ]
    assert dead == []
