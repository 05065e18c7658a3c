"""Data of an earlier run, as its folder describes it."""

from pathlib import Path

from shards.samples.subset_file import load_subset
from shards.stream.manifest_file import read_manifest
from streamssl.runs.file_names import MANIFEST
from streamssl.runs.run_data import OpenedData, read_data


def open_saved_data(run: Path) -> OpenedData:
    """Return the data of the run in this folder. Raises ConfigError, ManifestError."""
    saved = read_data(run / "data.toml")
    manifest = read_manifest(run / MANIFEST)
    return OpenedData(saved, manifest, load_subset(saved.subset) if saved.subset else None, ())
