"""Command that writes the Grafana dashboards: `python -m streamssl.monitoring.write_dashboards`."""

from cluster.monitoring.grafana.dashboards import write_dashboards
from streamssl.monitoring.learning_panels import BOARDS

if __name__ == "__main__":
    write_dashboards(BOARDS)
