"""Settings of methods: impossible values are refused before any work, without torch."""

from dataclasses import replace
from typing import Any

import pytest

from shards.errors import ConfigError
from streamssl.config.methods.byol_config import BYOLConfig
from streamssl.config.methods.deepcluster_config import DeepClusterConfig
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
from streamssl.config.parts.queue_config import QueueConfig
from tests.tinyrun import tiny_moco, tiny_swav

IMPOSSIBLE: list[tuple[type, dict[str, Any], str]] = [
    (SwAVConfig, {"num_prototypes": 0}, "num_prototypes=0; it must be at least 1; raise it"),
    (SwAVConfig, {"epsilon": 0.0}, "epsilon=0.0; it must be above 0; the paper has"),
    (SwAVConfig, {"crops_for_assign": (0, 0)}, r"crops_for_assign=\(0, 0\)"),
    (SwAVConfig, {"crops_for_assign": ()}, "at least one crop"),
    (MoCoConfig, {"temperature": 0.0}, "temperature=0.0"),
    (MoCoConfig, {"momentum": 1.5}, r"momentum=1.5; it must lie in \[0, 1\]; the papers"),
    (MoCoConfig, {"dim": 0}, "dim=0"),
    (MoCoConfig, {"queue": QueueConfig(capacity=8, start_step=4)}, "no loss without its queue"),
    (MoCHiConfig, {"num_hardest": 70_000}, "num_hardest=70000; .* from 1 to the queue's 65536"),
    (MoCHiConfig, {"num_mixed": -1}, "num_mixed=-1"),
    (MoCHiConfig, {"temperature": 0.0}, "temperature=0.0"),
    (MoCoV3Config, {"temperature": 0.0}, "temperature=0.0"),
    (MoCoV3Config, {"momentum": -0.1}, "momentum=-0.1"),
    (BYOLConfig, {"momentum": 1.5}, "momentum=1.5"),
    (BYOLConfig, {"hidden_dim": 0}, "hidden_dim=0"),
    (SimCLRConfig, {"num_layers": 0}, "num_layers=0"),
    (SupConConfig, {"base_temperature": 0.0}, "base_temperature=0.0"),
    (FineTuneConfig, {"num_classes": 1}, "num_classes=1; it must be at least 2"),
    (DeepClusterConfig, {"memory": 10}, r"memory=10 with num_prototypes=\(3000"),
    (DeepClusterConfig, {"num_prototypes": ()}, "at least one head"),
    (DeepClusterConfig, {"crops_for_assign": (1, 1)}, r"crops_for_assign=\(1, 1\)"),
    (DeepClusterConfig, {"cluster_steps": 0}, "cluster_steps=0"),
    (SeLaConfig, {"memory": 10}, r"memory=10 with num_prototypes=\(3000"),
    (SeLaConfig, {"exponent": 0.0}, "exponent=0.0"),
    (SpCLConfig, {"momentum": 1.0}, "momentum=1.0"),
    (SpCLConfig, {"epsilon": 0.99}, "epsilon=0.99 with epsilon_gap=0.02"),
    (SpCLConfig, {"k1": 3}, "k1=3 with k2=6"),
    (SpCLConfig, {"source_classes": -1}, "source_classes=-1"),
    (PatchMixConfig, {"num_mixed": 0}, "num_mixed=0"),
    (PatchMixConfig, {"smoothing": 1.0}, "smoothing=1.0"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), IMPOSSIBLE)
def test_impossible_settings_are_refused(kind: type, settings: dict[str, Any], words: str) -> None:
    """A run would fail after hours, or learn nothing."""
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


def test_a_label_is_refused_by_methods_that_ignore_it_and_required_by_others() -> None:
    """A label that changes nothing, or a missing one, must not go unnoticed."""
    with pytest.raises(ConfigError, match="label='cls' with method swav; only supcon, fine-tune"):
        tiny_swav(label="cls")
    with pytest.raises(ConfigError, match="learns from labels; give --label cls"):
        tiny_swav(method=FineTuneConfig())
    with pytest.raises(ConfigError, match="source_classes=3 and no label"):
        tiny_swav(method=SpCLConfig(source_classes=3))
    assert tiny_swav(method=SpCLConfig(source_classes=3), label="cls").label == "cls"


def test_a_queue_of_moco_holds_whole_batches() -> None:
    """A batch that replaces parts of two batches would mix ages; the message has a capacity."""
    stream = replace(tiny_moco().stream, batch_size=24)
    with pytest.raises(ConfigError, match=r"must be a multiple of .*--method\.queue\.capacity 72"):
        tiny_moco(stream=stream)
