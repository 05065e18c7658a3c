"""Algorithm of each method, by the class of its settings."""

from collections.abc import Callable
from typing import Any

from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.methods.fine_tuning_config import FineTuneConfig
from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.simclr_config import SimCLRConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.supcon_config import SupConConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.method_config import MethodConfig
from streamssl.methods.base import BuildContext, Method
from streamssl.methods.byol import BYOL
from streamssl.methods.deepcluster import DeepCluster
from streamssl.methods.distillation import Distillation
from streamssl.methods.fine_tuning import FineTune
from streamssl.methods.mochi import MoCHi
from streamssl.methods.moco import MoCo
from streamssl.methods.moco_v3 import MoCoV3
from streamssl.methods.patchmix import PatchMix
from streamssl.methods.sela import SeLa
from streamssl.methods.simclr import SimCLR
from streamssl.methods.spcl import SpCL
from streamssl.methods.supcon import SupCon
from streamssl.methods.swav import SwAV

# Each class is called with its settings and a BuildContext.
ALGORITHMS: dict[type[MethodConfig], Callable[[Any, BuildContext], Method]] = {
    SwAVConfig: SwAV,
    MoCoConfig: MoCo,
    MoCHiConfig: MoCHi,
    MoCoV3Config: MoCoV3,
    BYOLConfig: BYOL,
    SimCLRConfig: SimCLR,
    SupConConfig: SupCon,
    FineTuneConfig: FineTune,
    DistillationConfig: Distillation,
    DeepClusterConfig: DeepCluster,
    SeLaConfig: SeLa,
    SpCLConfig: SpCL,
    PatchMixConfig: PatchMix,
}


def build_method(config: MethodConfig, context: BuildContext) -> Method:
    """Build the method of these settings, with fresh weights. Raises ConfigError."""
    return ALGORITHMS[type(config)](config, context)
