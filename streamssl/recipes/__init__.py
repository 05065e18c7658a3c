"""Recipes: settings of runs as functions. Docstrings give paper, differences and results.

To see the settings of a run, read its function; to change them, write another function, or override
them on the command line (`--optim.base-lr 0.3`). `RECIPES` are the names on the command line: a
name without an ending is the authors' run, `-stream` has no end and no epochs, `-small` fits a CPU.
"""

from collections.abc import Callable
from typing import Literal

from streamssl.config.run_config import RunConfig
from streamssl.recipes import byol_recipes as byol
from streamssl.recipes import clustering_recipes as labels
from streamssl.recipes import moco_recipes as moco
from streamssl.recipes import patchmix_recipes as patchmix
from streamssl.recipes import simclr_recipes as simclr
from streamssl.recipes import swav_recipes as swav

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "swav": swav.swav,
    "swav-large-batch": swav.swav_large_batch,
    "swav-stream": swav.swav_stream,
    "swav-small": swav.swav_small,
    "moco-v1": moco.moco_v1,
    "moco-v1-stream": moco.moco_v1_stream,
    "moco-v2": moco.moco_v2,
    "moco-v2-stream": moco.moco_v2_stream,
    "moco-v2-small": moco.moco_v2_small,
    "moco-v3": moco.moco_v3,
    "moco-v3-vit": moco.moco_v3_vit,
    "moco-v3-stream": moco.moco_v3_stream,
    "moco-v3-small": moco.moco_v3_small,
    "mochi": moco.mochi,
    "mochi-stream": moco.mochi_stream,
    "mochi-small": moco.mochi_small,
    "byol": byol.byol,
    "byol-stream": byol.byol_stream,
    "byol-small": byol.byol_small,
    "simclr": simclr.simclr,
    "simclr-v2": simclr.simclr_v2,
    "simclr-v2-fine-tune": simclr.simclr_v2_fine_tune,
    "simclr-v2-distill": simclr.simclr_v2_distill,
    "simclr-multi-crop": simclr.simclr_multi_crop,
    "simclr-stream": simclr.simclr_stream,
    "simclr-v2-stream": simclr.simclr_v2_stream,
    "simclr-small": simclr.simclr_small,
    "supcon": simclr.supcon,
    "supcon-stream": simclr.supcon_stream,
    "supcon-small": simclr.supcon_small,
    "deepcluster-v2": labels.deepcluster_v2,
    "deepcluster-v2-stream": labels.deepcluster_v2_stream,
    "deepcluster-v2-small": labels.deepcluster_v2_small,
    "sela-v2": labels.sela_v2,
    "sela-v2-stream": labels.sela_v2_stream,
    "sela-v2-small": labels.sela_v2_small,
    "spcl": labels.spcl,
    "spcl-domains": labels.spcl_domains,
    "spcl-stream": labels.spcl_stream,
    "spcl-small": labels.spcl_small,
    "spcl-reid-small": labels.spcl_reid_small,
    "patchmix": patchmix.patchmix,
    "patchmix-cifar": patchmix.patchmix_cifar,
    "patchmix-stream": patchmix.patchmix_stream,
    "patchmix-small": patchmix.patchmix_small,
}


def kind_of(name: str) -> Literal["official", "stream", "small"]:
    """Return the kind of a recipe: as its authors ran it, without an end, or for a CPU."""
    if name.endswith("-stream"):
        return "stream"
    return "small" if name.endswith("-small") else "official"
