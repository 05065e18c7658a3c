"""Grafana panels about learning, and the list of all dashboards."""

from typing import Final

from cluster.monitoring.grafana.panels import (
    ACTORS_PANEL,
    CLUSTER_BOARD,
    INPUT_BOARD,
    Board,
    R,
    lines_panel,
    number_panel,
    overview_board,
    parts_panel,
)

_LOSS = lines_panel("Loss", "none", "Is it learning?", (f"streamssl_loss{R}", "{{run}}"))
_COLLAPSE = number_panel(
    "Readings of collapse", "none", "Is it still learning? 0 is good.",
    f"sum by (run) (streamssl_collapsing{R}) or 0 * max by (run) (streamssl_train_step{R})",
)  # fmt: skip

_TRAINING_BOARD: Final = Board("streamssl-training", "streamssl training health", (
    ("Where does the time go?", (
        parts_panel("Time by phase", "percentunit", "Which phase takes the time of a step?",
            (f"streamssl:step_phase:ratio1m{R}", "{{run}} {{phase}}")),
        lines_panel("Step", "s", "How long is a step, and the slowest 5 percent?",
            (f"streamssl:step_seconds:mean1m{R}", "{{run}} mean"),
            (f"histogram_quantile(0.95, sum by (run, le) (rate(streamssl_step_seconds_bucket{R}"
             "[5m])))", "{{run}} 95th percentile")),
        lines_panel("Utilisation", "percentunit", "Are devices and trainers busy?",
            (f"max by (run) (streamssl_model_flops_utilization_ratio{R})", "{{run}} FLOPs"),
            (f"1 - streamssl:data_wait:ratio1m{R}", "{{run}} not waiting")),
        lines_panel("Memory", "bytes", "Which process grows?",
            (f"max by (run, role) (streamssl_memory_bytes{R})", "{{run}} {{role}}"),
            (f"max by (run, what) (streamssl_device_memory_bytes{R})", "{{run}} GPU {{what}}")),
    )),
    ("Is it learning?", (
        _LOSS,
        lines_panel("Loss over its plateau, and certainty", "none",
            "Is it better than no information? Loss far below 1; certainty far from 0.",
            (f"streamssl_loss_over_plateau_ratio{R}", "{{run}} loss over plateau"),
            (f"streamssl_assignment_certainty_ratio{R}", "{{run}} certainty"),
            (f"streamssl_prototypes_dead_ratio{R}", "{{run}} dead prototypes"),
            (f"streamssl_contrast_accuracy_ratio{R}", "{{run}} contrast accuracy"),
            (f"streamssl_label_accuracy_ratio{R}", "{{run}} label accuracy"),
            (f"streamssl_knn_accuracy_ratio{R}", "{{run}} k-NN accuracy")),
        lines_panel("Gradient norm", "none", "Does it explode or vanish? Were steps left out?",
            (f"streamssl_gradient_norm{R}", "{{run}}"),
            (f"streamssl_skipped_steps{R}", "{{run}} steps left out")),
        lines_panel("Learning rate", "none", "At which point of the schedule is it?",
            (f"streamssl_learning_rate{R}", "{{run}}"),
            (f"1 - streamssl_momentum{R}", "{{run}} 1 - momentum")),
    )),
    ("Does it collapse?", (
        lines_panel("Used dimensions and clusters", "short",
            "How many directions, prototypes and clusters are used?",
            (f"streamssl_effective_rank{R}", "{{run}} directions of features"),
            (f"exp(streamssl_assignment_entropy_nats{R})", "{{run}} prototypes of a sample"),
            (f"streamssl_assignments_used{R}", "{{run}} clusters")),
        lines_panel("Spread", "none", "Are features and prototypes used evenly? 1 is even.",
            (f"streamssl_feature_std{R}", "{{run}} features"),
            (f"streamssl_prototype_usage_ratio{R}", "{{run}} prototypes"),
            (f"streamssl_cosine{R}", "{{run}} cosine {{kind}}")),
        lines_panel("Queue", "percentunit", "Is the queue full, and close to current features?",
            (f"streamssl_queue_fill_ratio{R}", "{{run}} filled"),
            (f"streamssl_memory_fill_ratio{R}", "{{run}} memory filled"),
            (f"streamssl_queue_drift{R}", "{{run}} drift")),
        lines_panel("Queue age", "short", "How many steps old are its features?",
            (f"streamssl_queue_age_steps{R}", "{{run}} {{what}}")),
    )),
))  # fmt: skip

_ROW = ("Is it learning, and are all actors running?", (_LOSS, ACTORS_PANEL))
BOARDS: Final = (overview_board(_COLLAPSE, _ROW), INPUT_BOARD, _TRAINING_BOARD, CLUSTER_BOARD)
