"""What stands on the backbone: the paper's neck, the classifier over clusters, the layer below a unit sphere."""

from torch import Tensor, nn

from odc_lightning.nn.init import init_linear_normal


class NonLinearNeck(nn.Module):
    """{fc-bn-relu-dropout-fc-relu} (paper, section 4): its output goes to the memory and to the classifier.

    The last operation is a ReLU, so the feature is never negative. Linear layers start at Kaiming normal with bias 0.
    `fc0`, `bn0` and `fc1` are the names in the authors' files.

    Args:
        in_dim: width of the backbone's feature.
        hidden_dim: width between the two layers.
        feature_dim: D, width of the feature.
        dropout: probability in [0, 1).
        bn_momentum: of the running statistics. The release takes 0.001, so that evaluation sees slow averages.
        bn_affine: learn a scale and shift. The release does not.
        bn_sync: share the statistics between processes (GPUs only). The release does not, in the neck.

    Raises ValueError for a width below 1 or a probability outside its range.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 512,
        feature_dim: int = 256,
        dropout: float = 0.5,
        bn_momentum: float = 0.1,
        bn_affine: bool = True,
        bn_sync: bool = False,
    ) -> None:
        super().__init__()
        for key, width in (("in_dim", in_dim), ("hidden_dim", hidden_dim), ("feature_dim", feature_dim)):
            if width < 1:
                raise ValueError(f"{key} must be at least 1. Received: {width}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1). Received: {dropout}")
        if not 0 < bn_momentum <= 1:
            raise ValueError(f"bn_momentum must be in (0, 1]. Received: {bn_momentum}")
        norm = nn.SyncBatchNorm if bn_sync else nn.BatchNorm1d
        self.feature_dim = feature_dim
        self.fc0 = nn.Linear(in_dim, hidden_dim)
        self.bn0 = norm(hidden_dim, momentum=bn_momentum, affine=bn_affine)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.fc1 = nn.Linear(hidden_dim, feature_dim)
        for linear in (self.fc0, self.fc1):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features (B, in_dim) to features (B, feature_dim), all at least 0."""
        hidden = self.drop(self.relu(self.bn0(self.fc0(pooled))))
        return self.relu(self.fc1(hidden))


def linear_classifier(dim: int, num_clusters: int) -> nn.Linear:
    """Return Linear(dim, num_clusters) with weights N(0, 0.01) and bias 0, as the release initialises its head."""
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1. Received: {num_clusters}")
    linear = nn.Linear(dim, num_clusters)
    init_linear_normal(linear)
    return linear


def linear_projection(in_dim: int, out_dim: int) -> nn.Linear:
    """Return Linear(in_dim, out_dim) with Kaiming normal weights and bias 0, as the release's instance discrimination.

    Raises ValueError for a width below 1.
    """
    if out_dim < 1:
        raise ValueError(f"feature_dim must be at least 1. Received: {out_dim}")
    linear = nn.Linear(in_dim, out_dim)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return linear
