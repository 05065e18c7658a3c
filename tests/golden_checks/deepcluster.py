"""DeepCluster-v2: clusters of the memory, labels of the data, loss, and the memory afterwards."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import all_gather_rows, rank
from streamssl.methods.deepcluster import gather_assigned_crops, label_loss
from streamssl.modules.kmeans import nearest_centroids, spherical_kmeans
from streamssl.modules.losses import at_least_float32
from streamssl.modules.sample_memory import LabelTable, SampleMemory
from tests.golden_checks.vectors import Report, Vectors


def check_deepcluster(vectors: Vectors, report: Report) -> None:
    _replay(vectors, vectors, report, None)


def check_deepcluster_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    _replay(vectors.under(f"rank{rank(group)}"), vectors.under("rank0"), report, group)


def check_deepcluster_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the memory of all ranks: the same clusters and labels."""
    ranks = [vectors.under(name) for name in vectors.match(r"(rank\d+)/")]
    rows = torch.cat([each.tensor("memory_embeddings") for each in ranks], dim=1)
    keys = torch.cat([each.tensor("memory_index") for each in ranks])
    _check_clusters(ranks[0], ranks[0], rows, keys, report, None)


def _replay(here: Vectors, first: Vectors, report: Report, group: ProcessGroup | None) -> None:
    rows, keys = here.tensor("memory_embeddings"), here.tensor("memory_index")
    table = _check_clusters(here, first, rows, keys, report, group)
    memory = SampleMemory(len(keys), rows.shape[2], len(rows))
    memory.push(keys, rows)
    for _, step in here.steps():
        labels = table.look_up(step.tensor("idx"))
        num_crops = len(step.array("feats")) // labels.shape[1]
        scores = [step.tensor(f"scores{head}").requires_grad_() for head in range(len(labels))]
        targets = [labels_B.repeat(num_crops) for labels_B in labels]
        # The authors' code averages over the labelled crops of each rank.
        loss = label_loss(scores, targets, here.number("temperature"))
        loss.backward()
        report.compare(step.prefix + "loss", loss, step.array("loss"))
        for head, scores_NK in enumerate(scores):
            name = f"grad_scores{head}"
            report.compare_gradient(step.prefix + name, scores_NK.grad, step.array(name))
        z = torch.nn.functional.normalize(at_least_float32(step.tensor("feats")), dim=1)
        memory.push(
            step.tensor("idx"), gather_assigned_crops(z, range(len(rows)), labels.shape[1], None)
        )
    report.compare(here.prefix + "index_after", memory.keys, here.array("memory_index_after"))
    after = here.array("memory_embeddings_after")
    report.compare(here.prefix + "embeddings_after", memory.rows, after)


def _check_clusters(
    here: Vectors,
    first: Vectors,
    rows: Tensor,
    keys: Tensor,
    report: Report,
    group: ProcessGroup | None,
) -> LabelTable:
    """Compare the centroids of every head and the labels of all samples; return their table."""
    labels = []
    banks = first.tensor("memory_embeddings")
    for head in range(len(here.array("n_prototypes"))):
        under = first.under(f"head{head}")
        bank = head % len(rows)
        centroids = spherical_kmeans(
            rows[bank], banks[bank][under.tensor("init_rows")], here.count("kmeans_iters"), group
        )
        report.compare(under.prefix + "centroids", centroids, under.array("centroids"))
        labels.append(all_gather_rows(nearest_centroids(rows[bank], centroids), group))
    all_keys = all_gather_rows(keys, group)
    table = LabelTable(len(all_keys), len(labels))
    table.replace(all_keys, torch.stack(labels))
    everybody = torch.arange(here.count("dataset_size"))
    report.compare(here.prefix + "assignments", table.look_up(everybody), here.array("assignments"))
    return table
