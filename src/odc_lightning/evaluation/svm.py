"""Linear support vector machines of many classes, folds and costs over the same rows, solved together.

Each problem is scikit-learn's `LinearSVC` (squared hinge, L2 penalty, regularised intercept):

    f(w) = |w|^2 / 2 + C sum_i c_i max(0, 1 - y_i w.x_i)^2        x_i ends in a 1, y_i is +1 or -1

All problems share X, so that their products with it are one matrix product. Preconditioned nonlinear conjugate
gradients (Hager and Zhang 2006, Sec. 2 and 7) with an exact line search need one product with X and one with X' a
step. A Newton method with inner conjugate gradients needs twice as many: it goes on solving for sets of active rows
that the next step changes.

Shapes: N rows · F features, E of them after the rotation · P problems · K costs · L problems under way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odc_lightning.clustering.nearest import full_float32

logger = logging.getLogger(__name__)

_TOGETHER = 256  # problems solved at once: bounds the (L, N) work arrays
_SMALLEST = 1e-11  # directions with less of the largest eigenvalue are dropped; they are below rounding
_LINE_STEPS = 8
_LINE_PRECISION = 0.01


@dataclass(frozen=True)
class SVMSolutions:
    """Solutions of P problems at K costs.

    Attributes:
        weights: float32 (K, P, F).
        intercepts: float32 (K, P).
        iterations: int64 (K, P), steps that each took.
    """

    weights: Tensor
    intercepts: Tensor
    iterations: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Decision values w.x + b of features (M, F): float32 (K, P, M)."""
        with full_float32(self.weights.device):
            rows_FM = features.to(self.weights.device, torch.float32).T
            return (self.weights.flatten(0, 1) @ rows_FM).unflatten(0, self.intercepts.shape) + self.intercepts[
                ..., None
            ]


@torch.no_grad()
def solve_svms(
    features: Tensor,
    signs: Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float = 2.0,
    negative_weight: float = 1.0,
    tolerance: float = 1e-10,
    max_iterations: int = 5000,
    dtype: torch.dtype = torch.float32,
) -> SVMSolutions:
    """Solve P two-class problems at K costs, on the device of the features.

    Args:
        features: (N, F), any floating type; rows of norm 1 in the protocols.
        signs: (N, P): +1, -1, or 0 for a row that the problem leaves out.
        costs: C of each solution, in any order; each is started from the solution at the next lower cost.
        positive_weight: c_i of rows with +1.
        negative_weight: c_i of rows with -1.
        tolerance: a problem is solved when half of g' M^-1 g is below this part of its objective; g is the
            gradient, M the preconditioner. This estimates what a Newton step would still gain.
        max_iterations: steps for each cost; a problem that needs more is warned of and left there.
        dtype: of the work; float64 halves the speed.

    Raises:
        ValueError: for features that do not match the signs or are not finite, signs other than +1, -1 and 0, no
            cost, or a cost, weight or tolerance that is not above 0.
    """
    _check(features, signs, costs, positive_weight, negative_weight, tolerance)
    order = sorted(range(len(costs)), key=lambda place: costs[place])
    ordered = torch.tensor([costs[place] for place in order], dtype=dtype, device=features.device)
    rotation = _rotate(features, dtype)
    loss = _Loss(signs, positive_weight, negative_weight, dtype, features.device)
    with full_float32(features.device):
        paths = [_Path(rotation, part, ordered, tolerance, max_iterations) for part in loss.split(_TOGETHER)]
        for path in paths:
            path.run()
        weights_KPE = torch.cat([path.solutions for path in paths], dim=1)
        weights = (weights_KPE.flatten(0, 1) @ rotation.basis_AE.T).unflatten(0, weights_KPE.shape[:2]).float()
    iterations = torch.cat([path.iterations for path in paths], dim=1)
    back = torch.tensor(order, device=features.device).argsort()
    return SVMSolutions(weights[back, :, :-1].contiguous(), weights[back, :, -1].contiguous(), iterations[back])
