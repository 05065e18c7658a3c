"""Documents: their Python runs, their links lead somewhere, their tables name real tests."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamssl.cli import main
from tests.own_data import make_own_data
from tests.tinyrun import make_shards, tiny_swav, train_here

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
RUNNABLE = "<!-- run by tests/test_docs.py -->\n"
# torchdata calls a function that this torch deprecates.
TORCHDATA = "ignore:'set_vital' is deprecated:UserWarning"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN_DATA = ROOT / "docs" / "bring-your-own-data.md"
COMMANDS = re.compile(
    rf"^{re.escape(RUNNABLE)}```bash\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
# Each script runs in its own folder, as a program; one process imports torch once for all.
RUN_ALL = """
import os, sys
for path in sys.argv[1:]:
    os.chdir(os.path.dirname(path))
    with open(path) as script:
        code = compile(script.read(), path, "exec")
    exec(code, {"__name__": "__main__"})
"""


def script_of(document):
    """Return the Python of a document as one program; of the README only the marked blocks."""
    text = document.read_text()
    if document.parent == ROOT:
        text = "".join(part[: part.index("\n```\n") + 5] for part in text.split(RUNNABLE)[1:])
    return "\n".join(match[1] for match in BLOCK.finditer(text))


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_python_of_all_documents_runs(tmp_path):
    """A reader copies the code of a document; it must work as it stands."""
    shards = make_shards(tmp_path / "made", num=96, per_shard=32)
    scripts = []
    for document in (ROOT / "README.md", *DOCS):
        if script := script_of(document):
            folder = tmp_path / document.stem
            shutil.copytree(shards, folder / "shards")
            scripts.append(folder / "document.py")
            scripts[-1].write_text(script)
    assert scripts[0].parent.name == "README" and len(scripts) > 3
    train_here(tiny_swav(num_steps=2), shards, tmp_path / "README" / "runs" / "a")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCHDATA, "-c", RUN_ALL, *map(str, scripts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def as_shown(line):
    """Return a pattern for a shown line, in which '…' stands for anything."""
    return ".*".join(map(re.escape, line.split("…")))


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_commands_for_own_data_do_what_the_page_shows(tmp_path, monkeypatch, capsys):
    """A new user types them in this order, and compares the output with the page."""
    monkeypatch.chdir(tmp_path)
    make_own_data(tmp_path)
    torch.set_num_threads(1)
    blocks = COMMANDS.findall(OWN_DATA.read_text())
    assert len(blocks) == OWN_DATA.read_text().count("```bash") > 6
    for commands, shown in blocks:
        printed = ""
        for command in commands.splitlines():
            program, *arguments = shlex.split(command, comments=True)
            wanted = re.search(r"# exit status (\d)$", command)
            assert program == "streamssl"
            status = main(arguments)
            streams = capsys.readouterr()
            printed += streams.out + streams.err
            assert status == int(wanted[1] if wanted else 0), (command, printed)
        pattern = "^" + r"$(?s:.*)^".join(map(as_shown, shown.splitlines())) + "$"
        assert re.search(pattern, printed, re.MULTILINE), (commands, printed)


def texts_of(tree):
    """Yield the strings of a module; in f-strings '\\0' stands for each value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = (getattr(part, "value", "") for part in node.values)
            yield "".join(value if isinstance(value, str) else "\0" for value in values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_of_the_table_are_those_of_the_code():
    """A user searches the page for a message; a changed one would not be found."""
    paths = [path for plane in ("shards", "streamssl") for path in (ROOT / plane).rglob("*.py")]
    code = "\n".join(text for path in paths for text in texts_of(ast.parse(path.read_text())))
    table = OWN_DATA.read_text().partition("| message | meaning | do |\n|---|---|---|\n")[2]
    rows = [line.split(" | ")[0] for line in table.partition("\n\n")[0].splitlines()]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) >= len(rows) > 30
    # '…' stands for a value, and so do names that are inserted.
    inserted = re.compile(r"…|classes\\\.txt|test(?= classes)|training(?= image)")
    patterns = {
        text: inserted.sub("[^\\\\n]*", re.escape(text).replace("\\ ", " ")) for text in messages
    }
    assert [text for text, pattern in patterns.items() if not re.search(pattern, code)] == []


def test_each_fault_of_others_has_its_test():
    """The table of docs/methods.md promises a test for each line."""
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ((?:`test_\w+\.py` ?)+) \|$", text, re.MULTILINE)
    table = text[text.index("| fault | here | test |") :].partition("\n\n")[0]
    assert len(rows) == len(table.splitlines()) - 2 > 30
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name for row in rows for name in re.findall(r"test_\w+\.py", row[2])} <= tests


def test_links_between_documents_lead_somewhere():
    """A page may be renamed without its links."""
    dead = [
        f"{document.relative_to(ROOT)}: {link}"
        for document in [*ROOT.glob("*.md"), *DOCS, *ROOT.glob("*/README.md")]
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
        if not (document.parent / link).exists()
    ]
    assert dead == []
