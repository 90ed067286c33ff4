"""What a dashboard shows, in which order: one list for the page of a run and for the workspace on W&B."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """Curves that are read together.

    Attributes:
        title: of the plot, with the unit.
        metrics: logged names, see the columns of metrics.csv.
        log: logarithmic axis.
        limits: of the axis; None: those of the values.
        level: names of these that are a level to compare with, measured once.
    """

    title: str
    metrics: tuple[str, ...]
    log: bool = False
    limits: tuple[float, float] | None = None
    level: tuple[str, ...] = ()


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("Loss", ("train/loss",)),
        Panel("Label-switch ratio", ("train/label_switch_ratio",), limits=(0, 1)),
        Panel(
            "kNN top-1, %",
            ("knn/top1", "knn/top1_untrained", "knn/top1_pixels"),
            level=("knn/top1_untrained", "knn/top1_pixels"),
        ),
        Panel("Accuracy of the task", ("train/accuracy",), limits=(0, 1)),
    ),
    "Clusters": (
        Panel(
            "Cluster size, images",
            ("memory/cluster_size_min", "memory/cluster_size_median", "memory/cluster_size_max"),
            log=True,
        ),
        Panel("Entropy of the sizes, 1: all equal", ("memory/size_entropy",), limits=(0, 1)),
        Panel("Small clusters and splits", ("memory/small_clusters", "memory/splits")),
    ),
    "Agreement": (
        Panel("With the true labels", ("agreement/nmi", "agreement/ari", "agreement/purity"), limits=(0, 1)),
        Panel("NMI with the epoch before", ("agreement/nmi_previous",), limits=(0, 1)),
    ),
    "Speed": (
        Panel("Images a second", ("time/images_per_second",)),
        Panel("Seconds of an iteration", ("time/step", "time/data", "time/memory")),
        Panel("Learning rate", ("optim/lr",)),
    ),
}
# Read from clusters/history.npz, which W&B does not have.
CAUSES = Panel(
    "Why labels changed, changes per image and epoch",
    ("switches/features", "switches/centroids", "switches/small_clusters"),
)
HISTOGRAM, GALLERY, PICTURE = "memory/cluster_sizes", "clusters/gallery", "run"  # on W&B, beside the scalars
