"""Weights in and out: any public checkpoint into a backbone, a backbone into files of other libraries."""

from odc_lightning.weights.load import LoadReport, init_backbone, load_backbone_weights
from odc_lightning.weights.read import find_checkpoint, read_checkpoint, sha256

__all__ = [
    "LoadReport",
    "find_checkpoint",
    "init_backbone",
    "load_backbone_weights",
    "read_checkpoint",
    "sha256",
]
