"""The loss of Eq. 1, and the weights of section 3.2 that keep large clusters from swallowing the rest.

Shapes: B batch · C clusters.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_IGNORED = -100


def loss_weights(sizes_C: Tensor, power: float = 0.5) -> Tensor:
    """Return the weight of each cluster, w_c ∝ 1/√N_c (section 3.2), scaled to 1 for a cluster of mean size.

    The loss divides by the sum of the weights it used, so the scale is free; with this one, clusters of equal size
    weigh exactly 1 and the loss is exactly the unweighted one. Computed in float64 on the device of `sizes_C`,
    without a host synchronisation.

    Args:
        sizes_C: members of each cluster. An empty cluster counts as one member: no sample reads its weight.
        power: 0.5 in the paper; 0 switches the weights off.

    Returns: float32 (C,).
    Raises: ValueError when power is negative.
    """
    if power < 0:
        raise ValueError(f"power must be at least 0. Received: {power}")
    mean_size = sizes_C.sum().double() / sizes_C.numel()
    return (mean_size / sizes_C.clamp(min=1).double()).pow(power).float()


def weighted_cross_entropy(
    logits_BC: Tensor,
    labels_B: Tensor,
    weights_C: Tensor | None = None,
    mask_B: Tensor | None = None,
) -> Tensor:
    """Return Eq. 1 with class weights: Σ w_y·(−log softmax(logits)_y) / Σ w_y over the local batch.

    Always in float32, whatever autocast says. Between processes it is the mean of the local losses, as in the
    release, when DistributedDataParallel averages the gradients.

    Args:
        logits_BC: scores of any floating type.
        labels_B: cluster of each sample, integers in [0, C).
        weights_C: from `loss_weights`; None weighs all alike.
        mask_B: bool, False drops a sample as if it were not in the batch, whatever its logits and label are. When
            all are dropped the loss and its gradients are 0.

    Returns: scalar float32.
    """
    with torch.autocast(logits_BC.device.type, enabled=False):
        logits_BC, labels_B = logits_BC.float(), labels_B.long()
        if mask_B is None:
            return F.cross_entropy(logits_BC, labels_B, weights_C)
        # Logits too: a NaN in a dropped row would pass through the softmax's gradient.
        logits_BC = logits_BC.masked_fill(~mask_B.unsqueeze(1), 0)
        labels_B = labels_B.masked_fill(~mask_B, _IGNORED)
        loss = F.cross_entropy(logits_BC, labels_B, weights_C, ignore_index=_IGNORED)
        return torch.where(mask_B.any(), loss, torch.zeros_like(loss))
