"""task=clusters: a page to browse the clusters of a run, assignments.csv, and folders of links on request."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from odc_lightning.callbacks.clusters import readable, write_assignments
from odc_lightning.console import quiet, say, size
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.sources import ImageSource
from odc_lightning.evaluation.features import eval_loader, extract, step_bar
from odc_lightning.methods.base import Method
from odc_lightning.report.cluster_figures import Clustering, Shown
from odc_lightning.report.clusters_page import num_chunks, write_page
from odc_lightning.report.curves import ASSIGNMENTS
from odc_lightning.report.history import HISTORY, History
from odc_lightning.tasks.evaluation_folder import log_into
from odc_lightning.tasks.subject import Subject

_BLOCK = 1024  # rows of similarities at a time: half a gigabyte for 120,000 shown images


class Clusters(NamedTuple):
    """Of a checkpoint: cluster and distance of each image, (N,), and its feature, (N, D), where one is kept."""

    labels_N: Tensor
    distances_N: Tensor
    rows_ND: Tensor | None


def clusters(cfg: DictConfig) -> Path:
    """Write ``clusters/index.html`` and ``clusters/assignments.csv`` of a run, also of one that goes on.

    Raises:
        ValueError: for settings that cannot work, or a run without clusters, before anything is written.
    """
    quiet()
    require_numbers(cfg.clusters)
    subject = Subject.of(cfg.init.path)
    if subject.saved is None or subject.run is None or subject.checkpoint is None:
        raise ValueError(f"task=clusters needs a run: init.path=runs/<name>. Received: {cfg.init.path}")
    log_into(subject.run)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    data: DataModule = instantiate(subject.settings(config, HydraConfig.get().overrides.task)["data"])
    source = data.train_source
    state = torch.load(subject.checkpoint, map_location="cpu", weights_only=True, mmap=True)
    found = clusters_of(state, subject.checkpoint, source)
    paths = [source.path(index) for index in range(len(source))]
    if cfg.clusters.links:
        require_files(paths)
    data_shown = clustering(subject.run, source, paths, found)
    nearest_Mk = None
    if cfg.clusters.neighbours:  # before the bar of the thumbnails begins: features may have one of their own
        images_CS = Shown.of(data_shown, cfg.clusters.images_per_cluster).images_CS
        device = torch.device("cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu")
        rows = features(found, images_CS[images_CS >= 0], subject, state, data, device)
        nearest_Mk = nearest_rows(rows, cfg.clusters.neighbours).numpy()
    write_assignments(subject.run / ASSIGNMENTS, source, found.labels_N, found.distances_N)
    count = len(found.labels_N.unique())
    with step_bar("thumbnails", num_chunks(count)) as done:
        page = write_page(
            subject.run / "clusters",
            data_shown,
            lambda index: readable(source, index),
            images_per_cluster=cfg.clusters.images_per_cluster,
            thumbnail=cfg.clusters.thumbnail,
            nearest_Mk=nearest_Mk,
            done=done,
        )
    if cfg.clusters.links:
        write_links(page.parent / "links", paths, found)
    weight = size(sum(file.stat().st_size for file in [page, *(page.parent / "page").iterdir()]))
    say(f"{page}: {count:,} clusters of {len(paths):,} images, {weight}")
    return page


def require_numbers(options: DictConfig) -> None:
    """Raise ValueError for sizes that cannot work."""
    for key, least in (("images_per_cluster", 1), ("thumbnail", 1), ("neighbours", 0)):
        value = options[key]
        if type(value) is not int or value < least:
            raise ValueError(f"clusters.{key} must be a whole number from {least}. Received: {value!r}")


def clusters_of(state: dict[str, Any], checkpoint: Path, source: ImageSource) -> Clusters:
    """The clusters that a checkpoint holds.

    Raises:
        ValueError: it holds none, or they are of other images.
    """
    kept = state.get("method", {})
    if (samples := kept.get("data", {}).get("samples", len(source))) != len(source):
        raise ValueError(f"the run was trained on {samples} images, {source.name} has {len(source)}")
    if (memory := kept.get("memory")) is not None:
        labels, rows = memory["labels"], memory["rows"]
        return Clusters(labels, distances(rows, labels, memory["centroids"]), rows)
    labels = kept.get("labels")
    if labels is None or kept.get("clustered_at", 0) < 0:
        raise ValueError(f"task=clusters needs a run with clusters, such as method=odc. Received: {checkpoint}")
    if "distances" in kept:
        return Clusters(labels, kept["distances"], None)
    labels, rows = labels[-1], kept["bank"]["rows"]  # local aggregation: the last of its clusterings
    return Clusters(labels, distances(rows, labels, means(rows, labels)), rows)


def distances(rows_ND: Tensor, labels_N: Tensor, centroids_CD: Tensor, block: int = 65536) -> Tensor:
    """Euclidean distance of each row to its centroid, (N,) float32."""
    parts = zip(rows_ND.split(block), labels_N.long().split(block), strict=True)
    return torch.cat([(rows.float() - centroids_CD[labels]).norm(dim=1) for rows, labels in parts])


def means(rows_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Mean row of each label, (C, D) float32."""
    sizes_C = torch.bincount(labels_N)
    sums_CD = torch.zeros(len(sizes_C), rows_ND.shape[1]).index_add_(0, labels_N.long(), rows_ND.float())
    return sums_CD / sizes_C.clamp(min=1)[:, None]


def clustering(run: Path, source: ImageSource, paths: list[str], found: Clusters) -> Clustering:
    """All that the page is made of."""
    history = History(run) if (run / HISTORY).exists() else None
    labels_N, distances_N = found.labels_N.numpy(), found.distances_N.numpy()
    return Clustering(run.name, paths, labels_N, distances_N, source.targets, source.classes, history)


def features(
    found: Clusters,
    images_M: NDArray[np.int64],
    subject: Subject,
    state: dict[str, Any],
    data: DataModule,
    device: torch.device,
) -> Tensor:
    """Unit features of some images, (M, D): the memory's own, else the network's on the device."""
    if found.rows_ND is not None:
        rows = found.rows_ND[torch.from_numpy(images_M)].float().to(device)
    else:
        assert subject.saved is not None
        method: Method = instantiate(subject.saved["method"])
        method.load_state_dict(state["state_dict"])
        method.see(data)
        loader = eval_loader(data, data.train_source, data.eval_transform, images_M.tolist())
        rows = extract(method.represent, method.to(device), loader, "features of the shown images")
    return torch.nn.functional.normalize(rows, dim=1)


@torch.no_grad()
def nearest_rows(rows_MD: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` most similar other rows of each unit row, most similar first, (M, count) int64."""
    count, parts = min(count, len(rows_MD) - 1), []
    for start in range(0, len(rows_MD), _BLOCK):
        similarity = rows_MD[start : start + _BLOCK] @ rows_MD.T
        own = torch.arange(len(similarity), device=rows_MD.device)
        similarity[own, own + start] = -torch.inf
        parts.append(similarity.topk(count, dim=1).indices.cpu())
    return torch.cat(parts)


def require_files(paths: list[str]) -> None:
    """Raise ValueError unless the images are files."""
    if missing := next((path for path in paths if not os.path.isabs(path)), None):
        raise ValueError(f"clusters.links=true needs images that are files. These have names only, such as {missing}")


def write_links(folder: Path, paths: list[str], found: Clusters) -> None:
    """``links/<cluster>/<rank>_<file>``: a symbolic link to each image, the nearest to the centroid first."""
    shutil.rmtree(folder, ignore_errors=True)
    labels_N = found.labels_N.numpy()
    order_N = np.lexsort((found.distances_N.numpy(), labels_N))
    sizes = np.bincount(labels_N)
    rank_N = np.arange(len(order_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    for cluster in np.flatnonzero(sizes):
        (folder / f"{cluster:05d}").mkdir(parents=True)
    for index, rank in zip(order_N.tolist(), rank_N.tolist(), strict=True):
        os.symlink(paths[index], folder / f"{labels_N[index]:05d}" / f"{rank:05d}_{Path(paths[index]).name}")
