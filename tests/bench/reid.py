"""Vehicle re-identification by SpCL: `python -m tests.bench.reid vehicle-reid-train.tar`.

The tar has images NAME_cam1.jpg and NAME_cam2.jpg. Every fifth name is held out: images of camera 1
are queries, images of camera 2 the gallery. The recipe `spcl-reid-small` trains on the others,
without labels. Mean average precision and ranks are printed, in percent.
"""

import re
import tarfile
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console

from shards.pack.image_entries import entries_from_list
from shards.pack.pack import pack
from streamssl.evaluation.score_run import retrieval_of_run
from streamssl.pretrain.run import pretrain
from streamssl.recipes.clustering_recipes import spcl_reid_small
from streamssl.runs.placement import Placement

_HELD_OUT = 5
_IMAGE = re.compile(r"(\w+)_cam([12])\.jpg")


@dataclass(frozen=True, kw_only=True)
class Options:
    """`tar` holds the images; `steps` None takes the number of the recipe."""

    tar: tyro.conf.Positional[Path]
    steps: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1


def make_shards(tar: Path, out: Path) -> dict[str, Path]:
    """Pack shards train, query and gallery; the number of a vehicle is its label."""
    vehicles: dict[str, dict[str, str]] = defaultdict(dict)
    with tarfile.open(tar) as archive:
        for member in archive:
            found = _IMAGE.fullmatch(Path(member.name).name)
            if found is not None and member.isfile():
                name, camera = found.groups()
                archive.extract(member, out, filter="data")
                vehicles[name][camera] = member.name
    lines: dict[str, list[str]] = {"train": [], "query": [], "gallery": []}
    for number, name in enumerate(sorted(vehicles)):
        for camera, path in sorted(vehicles[name].items()):
            part = "train" if number % _HELD_OUT else {"1": "query", "2": "gallery"}[camera]
            lines[part].append(f"{path} {number}\n")
    for part, found_lines in lines.items():
        (out / f"{part}.txt").write_text("".join(found_lines))
        pack(entries_from_list(out / f"{part}.txt"), out / part)
    return {part: out / part for part in lines}


def main(options: Options) -> None:
    """Pack, train, score."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shards = make_shards(options.tar, out)
        recipe = replace(spcl_reid_small(), precision=options.precision)
        config = replace(recipe, num_steps=options.steps or recipe.num_steps)
        began = time.monotonic()
        placement = Placement(readers=1)
        pretrain(config, str(shards["train"]), out / "run", placement, Console(stderr=True))
        seconds = time.monotonic() - began
        scores = retrieval_of_run(
            out / "run",
            str(shards["query"]),
            str(shards["gallery"]),
            ("raw pixels", "untrained", "trained"),
        )
    print(f"{config.num_steps} steps in {seconds:.0f} s; mAP and rank-1, -5, -10:")
    for encoder, found in scores.by_encoder.items():
        numbers = (found.mean_average_precision, *found.rank.values())
        print(f"| {encoder} | {' | '.join(f'{number:.1f}' for number in numbers)} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
