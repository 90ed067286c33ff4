"""task=embed: feature, cluster and distance of every image of a folder, by a trained run's network and centroids."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from odc_lightning.checks import check_choice
from odc_lightning.clustering.nearest import nearest_centroid
from odc_lightning.console import quiet, say, size
from odc_lightning.data.datamodule import DataModule
from odc_lightning.data.folder import ImageFolder
from odc_lightning.data.sources import ImageSource
from odc_lightning.evaluation.features import eval_loader, eval_mode, progress
from odc_lightning.memory.samples import l2_normalize
from odc_lightning.methods.odc import ODC
from odc_lightning.tasks.evaluation_folder import log_into
from odc_lightning.tasks.subject import Subject
from odc_lightning.whole_file import whole_file

FORMATS, FEATURES = ("npz", "parquet"), ("backbone", "head")
Table = dict[str, Any]  # path (N,) text, feature (N, D) float32, cluster (N,) int64, distance (N,) float32


def embed(cfg: DictConfig) -> Path:
    """Write path, feature, cluster and distance of every image that can be read; returns the file.

    Raises:
        ValueError: for settings that cannot work, before any work starts.
    """
    quiet()
    check_choice("embed.format", cfg.embed.format, FORMATS)
    check_choice("embed.feature", cfg.embed.feature, FEATURES)
    if cfg.embed.format == "parquet":
        require_parquet()
    if cfg.embed.images is not None and not Path(cfg.embed.images).expanduser().is_dir():
        raise ValueError(f"embed.images must be an existing folder. Received: {cfg.embed.images}")
    subject = Subject.of(cfg.init.path)
    if subject.saved is None or subject.run is None or subject.checkpoint is None:
        raise ValueError(f"task=embed needs a run: init.path=runs/<name>. Received: {cfg.init.path}")
    log_into(subject.run)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    settings = subject.settings(config, HydraConfig.get().overrides.task)
    data: DataModule = instantiate({**settings["data"], "num_workers": cfg.embed.num_workers})
    source = data.train_source if cfg.embed.images is None else ImageFolder(cfg.embed.images, split=None)
    method, centroids_CD = load_run(subject.saved, subject.checkpoint, data)
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu")
    table = embedded(method.to(device), centroids_CD.to(device), data, source, cfg.embed.feature)
    file = Path(cfg.embed.file or subject.run / f"embeddings.{cfg.embed.format}").expanduser()
    write_table(table, file, cfg.embed.format)
    rows, width = table["feature"].shape
    say(f"{file}: {rows:,} images, features of {width} numbers, {size(file.stat().st_size)}")
    return file


def load_run(config: dict[str, Any], checkpoint: Path, data: DataModule) -> tuple[ODC, Tensor]:
    """The trained network with its head, and the centroids (C, D).

    Raises:
        ValueError: the run has no centroids.
    """
    method = instantiate(config["method"])
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    memory = state.get("method", {}).get("memory")
    if not isinstance(method, ODC) or memory is None:
        raise ValueError(f"task=embed needs a run with centroids, such as method=odc. Received: {checkpoint}")
    method.load_state_dict(state["state_dict"])
    method.see(data)
    return method, memory["centroids"].clone()


@torch.no_grad()
def embedded(method: ODC, centroids_CD: Tensor, data: DataModule, source: ImageSource, feature: str) -> Table:
    """Features and nearest centroids of the images that can be read, in their order.

    The distance is Euclidean, from the head's feature on the unit sphere to the centroid, as in a run's
    ``clusters/assignments.csv``; the cluster is chosen by the run's own rule (Eq. 3, or the release's inner product).

    Args:
        feature: which one is kept: ``backbone``, or ``head`` for the unit vectors that are clustered.
    """
    paths, parts = [], []
    loader = eval_loader(data, source, data.eval_transform, range(len(source)))
    with eval_mode(method):
        for batch in progress(loader, "features"):
            pooled = method.represent(batch.image[batch.ok].to(method.device))
            head = l2_normalize(method.neck(pooled)).float()
            cluster_B = nearest_centroid(head, centroids_CD, metric=method.memory_rules["metric"])
            distance_B = (head - centroids_CD[cluster_B]).norm(dim=1)
            kept = pooled.float() if feature == "backbone" else head
            parts.append([part.cpu().numpy() for part in (kept, cluster_B, distance_B)])
            paths += [source.path(int(index)) for index in batch.index[batch.ok]]
    features, clusters, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(paths) < len(source):
        say(f"{len(source) - len(paths)} images could not be read and are left out")
    return {"path": np.array(paths), "feature": features, "cluster": clusters, "distance": distances}


def write_table(table: Table, file: Path, kind: str) -> None:
    """Write npz (arrays by name) or parquet (a row an image, ``feature`` a list), completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as writing:
        if kind == "npz":
            with writing.open("wb") as out:
                np.savez(out, **table)
        else:
            import pandas

            pandas.DataFrame({**table, "feature": list(table["feature"])}).to_parquet(writing, index=False)


def require_parquet() -> None:
    """Raise ValueError unless pandas and pyarrow are installed."""
    missing = [name for name in ("pandas", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"embed.format=parquet needs {' and '.join(missing)}, not installed here: pip install "
            f"'odc-lightning[parquet]', or embed.format=npz"
        )
