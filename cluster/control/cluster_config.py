"""Every patience of the control plane in one value; the defaults are for real clusters."""

from dataclasses import dataclass, field

from cluster.actors.autoscaler import ScalingConfig
from cluster.actors.restart_policy import SupervisorConfig
from cluster.leases.lease_deadlines import LeaseConfig
from cluster.membership.failure_detector import MembershipConfig
from cluster.readers.reader_actor import ReaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The parts stand beside the code that reads them; the bounds of `scaling` are the run's own.

    `tick_seconds`: how often Control looks after those that say nothing; `scale_seconds`: how often
    it asks itself how many readers there should be.
    """

    leases: LeaseConfig = field(default_factory=LeaseConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    readers: ReaderConfig = field(default_factory=ReaderConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    scaling: ScalingConfig = field(default_factory=lambda: ScalingConfig(least=1, most=1))
    tick_seconds: float = 0.25
    scale_seconds: float = 3.0
