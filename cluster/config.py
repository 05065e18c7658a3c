"""Every patience of the control plane in one value; the defaults are for real clusters."""

from dataclasses import dataclass, field

from cluster.pace import LeaseConfig
from cluster.patience import MembershipConfig
from cluster.readers import ReaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The parts stand beside the code that reads them.

    `tick_seconds`: how often Control looks after those that say nothing.
    """

    leases: LeaseConfig = field(default_factory=LeaseConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    readers: ReaderConfig = field(default_factory=ReaderConfig)
    tick_seconds: float = 0.25
