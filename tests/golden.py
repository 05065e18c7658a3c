"""Compare the product with vectors of the official implementations: python -m tests.golden DIR.

Every known *.npz of DIR goes through the product's own functions. Files recorded on several ranks
run on that many gloo processes, and some once more in one process with the global batch. Prints the
largest absolute error of each file; exits with 1 if a comparison fails.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.distributed import ProcessGroup

from tests.golden_checks import (
    byol,
    deepcluster,
    mochi,
    moco,
    moco_v3,
    optimizers,
    patchmix,
    schedules,
    sela,
    simclr,
    sinkhorn,
    spcl,
    supcon,
    swav,
)
from tests.golden_checks.ranks import run_ranks
from tests.golden_checks.vectors import Report, Vectors

Check = Callable[[Vectors, Report], None]
RankCheck = Callable[[Vectors, Report, ProcessGroup], None]

CHECKS: Mapping[str, Check] = {
    "byol": byol.check_byol,
    "byol_schedules": schedules.check_byol_schedules,
    "byol_update": byol.check_byol_update,
    "deepcluster_v2": deepcluster.check_deepcluster,
    "deepcluster_v2_ws2": deepcluster.check_deepcluster_joined,
    "larc": optimizers.check_larc,
    "lars_byol": optimizers.check_lars_byol,
    "lars_mocov3": optimizers.check_lars_mocov3,
    "lars_simclr": optimizers.check_lars_simclr,
    "mochi": mochi.check_mochi,
    "moco": moco.check_moco,
    "moco_ws2": moco.check_moco_joined,
    "mocov3": moco_v3.check_moco_v3,
    "mocov3_ws2": moco_v3.check_moco_v3_joined,
    "patchmix_loss": patchmix.check_loss,
    "patchmix_mix": patchmix.check_mix,
    "patchmix_ws2": patchmix.check_loss_joined,
    "schedules": schedules.check_schedules,
    "simclr_ntxent": simclr.check_ntxent,
    "simclr_ntxent_ws2": simclr.check_ntxent_joined,
    "simclr_schedules": schedules.check_simclr_schedules,
    "simclr_v2_distill": simclr.check_distillation,
    "simclr_v2_sk": simclr.check_selective_kernels,
    "supcon": supcon.check_supcon,
    "sela": sela.check_sela,
    "spcl_memory": spcl.check_memory,
    "spcl_selfpaced": spcl.check_self_paced,
    "swav_loss": swav.check_swav,
    "swav_loss_ws2": swav.check_swav_joined,
    "swav_sinkhorn": sinkhorn.check_sinkhorn,
    "swav_sinkhorn_ws2": sinkhorn.check_sinkhorn_joined,
}
RANK_CHECKS: Mapping[str, RankCheck] = {
    "deepcluster_v2_ws2": deepcluster.check_deepcluster_rank,
    "moco_ws2": moco.check_moco_rank,
    "mocov3_ws2": moco_v3.check_moco_v3_rank,
    "patchmix_ws2": patchmix.check_loss_rank,
    "simclr_ntxent_ws2": simclr.check_ntxent_rank,
    "swav_loss_ws2": swav.check_swav_rank,
    "swav_sinkhorn_ws2": sinkhorn.check_sinkhorn_rank,
}


def check_folder(folder: Path) -> tuple[dict[str, Report], list[str]]:
    """Return a report for every known file, and the names of the unknown ones."""
    reports: dict[str, Report] = {}
    unknown: list[str] = []
    by_world: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in CHECKS:
            unknown.append(path.stem)
            continue
        vectors = Vectors.load(path)
        reports[path.stem] = Report()
        try:
            CHECKS[path.stem](vectors, reports[path.stem])
        except KeyError as error:
            reports[path.stem].failures.append(f"there is no array {error}")
            continue
        if path.stem in RANK_CHECKS:
            by_world[len(vectors.match(r"(?:.*/)?(rank\d+)/"))].append(path)
    for num_ranks, paths in by_world.items():
        for found in run_ranks(check_on_rank, num_ranks, [str(path) for path in paths]):
            for stem, (largest, num_compared, failures) in found.items():
                reports[stem].add(Report(largest, num_compared, failures))
    return reports, unknown


def check_on_rank(group: ProcessGroup, paths: list[str]) -> dict[str, tuple[float, int, list[str]]]:
    """Return the results of one rank for the files of its world size."""
    found = {}
    for path in map(Path, paths):
        report = Report()
        RANK_CHECKS[path.stem](Vectors.load(path), report, group)
        found[path.stem] = (report.largest, report.num_compared, report.failures)
    return found


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of *.npz files")
    reports, unknown = check_folder(parser.parse_args(arguments).folder)
    for stem, report in reports.items():
        verdict = "pass" if not report.failures and report.num_compared else "FAIL"
        print(f"{verdict}  {stem:<20} {report.largest:10.3g}  {report.num_compared:4} compared")
        for failure in report.failures:
            print(f"      {failure}")
    for stem in unknown:
        print(f"----  {stem:<20} not known yet")
    if not reports:
        print("no known *.npz file was found")
    passed = all(report.num_compared and not report.failures for report in reports.values())
    return 0 if reports and passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
