"""Online Deep Clustering (Zhan et al., CVPR 2020) on PyTorch Lightning and Hydra."""

__version__ = "0.1.0"
