"""Linear support vector machines of many classes, folds and costs over the same rows, solved together.

Each problem is scikit-learn's `LinearSVC` (squared hinge, L2 penalty, regularised intercept):

    f(w) = |w|^2 / 2 + C sum_i c_i max(0, 1 - y_i w.x_i)^2        x_i ends in a 1, y_i is +1 or -1

The problems share X, so that their products with it are one matrix product. Preconditioned nonlinear conjugate
gradients with an exact line search need one product with X and one with X' a step. A Newton method with inner conjugate
gradients needs twice as many: it goes on solving for a set of active rows that its own next step changes.

Shapes: N rows · F features, E of them after the rotation · P problems · K costs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from odc_lightning.clustering.nearest import full_float32
from odc_lightning.evaluation.svm_path import Path, rotate

logger = logging.getLogger(__name__)

_TOGETHER = 256  # problems solved at once: bounds the (problems, N) work arrays
_FLOAT32_STEPS = 1000  # the paper's costs need up to 500; what needs more has met float32's rounding


@dataclass(frozen=True)
class SVMSolutions:
    """Solutions of P problems at K costs each.

    Attributes:
        weights: (K, P, F).
        intercepts: (K, P).
        steps: int64 (K, P), the steps that each took.
    """

    weights: Tensor
    intercepts: Tensor
    steps: Tensor

    def select(self, problem: int) -> SVMSolutions:
        """The solutions of one problem: P = 1."""
        chosen = slice(problem, problem + 1)
        return SVMSolutions(self.weights[:, chosen], self.intercepts[:, chosen], self.steps[:, chosen])

    def scores(self, features: Tensor) -> Tensor:
        """Decision values w.x + b of features (M, F): (K, P, M), on the device and in the type of the weights."""
        rows_FM = features.to(self.weights).T
        with full_float32(rows_FM.device):
            scores = self.weights.flatten(0, 1) @ rows_FM
        return scores.unflatten(0, self.intercepts.shape) + self.intercepts[..., None]


def solve_svms(
    features: Tensor,
    signs: Tensor,
    costs: Sequence[float] | Tensor,
    *,
    positive_weight: float = 2.0,
    negative_weight: float = 1.0,
    tolerance: float = 1e-11,
) -> SVMSolutions:
    """Solve P two-class problems at K costs; see `SVMSolver`, which solves more problems over the same rows."""
    solver = SVMSolver(features, positive_weight=positive_weight, negative_weight=negative_weight, tolerance=tolerance)
    return solver.solve(signs, costs)


class SVMSolver:
    """Solver for any number of two-class problems over the same rows, on the device of the features.

    All are solved in float32. Solutions that need it, at costs above any of the paper's, are refined in float64.

    Args:
        features: (N, F), any floating type.
        positive_weight: c_i of rows with +1.
        negative_weight: c_i of rows with -1.
        tolerance: a problem is solved when g' M^-1 g / 2, with the gradient g and the preconditioner M, is below this
            part of its objective. It estimates what a Newton step would still gain; the gradient alone says nothing,
            since its parts are on scales that differ by the eigenvalues of X'X.
        refine_above: solutions with C mean(|x|^2) above this are refined, |x| counting the appended 1; 0 refines all.
        max_steps: for each solution; one that needs more is left there with a warning.

    Raises:
        ValueError: for features that are not finite, or a weight, tolerance or number of steps that is not above 0.
    """

    @torch.no_grad()
    def __init__(
        self,
        features: Tensor,
        *,
        positive_weight: float = 2.0,
        negative_weight: float = 1.0,
        tolerance: float = 1e-11,
        refine_above: float = 1e3,
        max_steps: int = 10_000,
    ) -> None:
        check_features("features", features)
        self.class_weights = (
            check_above_zero("positive_weight", positive_weight),
            check_above_zero("negative_weight", negative_weight),
        )
        self.tolerance = check_above_zero("tolerance", tolerance)
        self.max_steps = int(check_above_zero("max_steps", max_steps))
        self.refine_above = refine_above
        self.rotation = rotate(features)

    @torch.no_grad()
    def solve(self, signs: Tensor, costs: Sequence[float] | Tensor) -> SVMSolutions:
        """Solve P problems at K costs.

        Args:
            signs: (N, P): +1, -1, or 0 for a row that the problem leaves out.
            costs: K costs, or (K, P), in any order; each starts from the solution at the next lower cost.

        Returns:
            float32 solutions, in the order of the costs.

        Raises:
            ValueError: for signs other than +1, -1 and 0 or of another number of rows, no cost or one not above 0.
        """
        device = self.rotation.rows_NE.device
        _check_signs(signs, len(self.rotation.rows_NE))
        costs_KP, order_KP = check_costs(costs, signs.shape[1]).to(device).sort(dim=0, stable=True)
        with full_float32(device):
            weights_KPF, steps_KP = self._in_stages(_row_scales(signs.to(device), *self.class_weights), costs_KP)
        back_KP = order_KP.argsort(dim=0)
        weights_KPF = weights_KPF.gather(0, back_KP[..., None].expand_as(weights_KPF))
        return SVMSolutions(
            weights_KPF[..., :-1].contiguous(), weights_KPF[..., -1].contiguous(), steps_KP.gather(0, back_KP)
        )

    def _in_stages(self, scale_PN: Tensor, costs_KP: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (K, P, F + 1) and steps (K, P) for rising costs: all in float32, then some in float64."""
        weights, steps, solved = self._run(torch.float32, scale_PN, costs_KP, _FLOAT32_STEPS)
        mean_square = self.rotation.eigenvalues_E.sum() / scale_PN.shape[1]
        cost, problem = (~solved | (costs_KP * mean_square > self.refine_above)).nonzero(as_tuple=True)
        if len(cost):
            costs_1R, start = costs_KP[cost, problem][None], weights[cost, problem]
            refined, more, solved = self._run(torch.float64, scale_PN[problem], costs_1R, self.max_steps, start)
            weights[cost, problem], steps[cost, problem] = refined[0], steps[cost, problem] + more[0]
            self._warn(costs_1R[~solved])
        return (weights @ self.rotation.basis_FE.T).float(), steps

    def _run(
        self, dtype: torch.dtype, scale_PN: Tensor, costs_KP: Tensor, max_steps: int, start_PE: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (K, P, E) in float64, steps (K, P) and whether they were enough (K, P)."""
        rotation, parts = self.rotation.to(dtype), []
        with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
            task = bar.add_task("SVM", total=costs_KP.numel())
            for part in torch.arange(len(scale_PN), device=scale_PN.device).split(_TOGETHER):
                start = None if start_PE is None else start_PE[part].to(dtype)
                path = Path(rotation, scale_PN[part].to(dtype), costs_KP[:, part].to(dtype), start)
                parts.append(path.run(self.tolerance, max_steps, lambda count: bar.advance(task, count)))
        weights, steps, solved = zip(*parts, strict=True)
        return torch.cat(weights, 1).double(), torch.cat(steps, 1), torch.cat(solved, 1)

    def _warn(self, unsolved_costs: Tensor) -> None:
        if len(unsolved_costs):
            logger.warning(
                "%d SVMs are not solved after max_steps=%d steps, at C up to %.3g; their last weights are used",
                len(unsolved_costs),
                self.max_steps,
                float(unsolved_costs.max()),
            )


def _row_scales(signs_NP: Tensor, positive: float, negative: float) -> Tensor:
    """y_i sqrt(c_i), (P, N) float64, and 0 for rows left out. With it f needs neither labels nor weights."""
    signs_PN = signs_NP.T.double()
    return torch.where(signs_PN > 0, positive**0.5, negative**0.5) * signs_PN


def check_features(name: str, features: Tensor) -> None:
    """ValueError unless `features` is a floating (N, F) with at least one row and no NaN or infinity."""
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        raise ValueError(
            f"{name} must be floating point (rows, features), neither of them 0. "
            f"Received: {features.dtype} {tuple(features.shape)}"
        )
    not_finite = int((~features.isfinite().all(1)).sum())
    if not_finite:
        raise ValueError(f"{not_finite} of {len(features)} rows of {name} hold NaN or infinity")


def _check_signs(signs: Tensor, rows: int) -> None:
    if signs.ndim != 2 or len(signs) != rows:
        raise ValueError(
            f"signs must be ({rows}, problems), a row for each of the features. Received: {tuple(signs.shape)}"
        )
    wrong = signs[(signs != 1) & (signs != -1) & (signs != 0)]
    if len(wrong):
        raise ValueError(f"signs must be 1, -1, or 0 for a row left out. Received: {wrong[0].item()}")


def check_costs(costs: Sequence[float] | Tensor, problems: int) -> Tensor:
    """Return the costs as float64 (K, problems); ValueError unless there is one, each is above 0 and the shape fits."""
    costs = torch.as_tensor(costs, dtype=torch.float64)
    if not costs.numel():
        raise ValueError("costs must name at least one cost. Received: none")
    if costs.ndim not in (1, 2) or (costs.ndim == 2 and costs.shape[1] != problems):
        raise ValueError(f"costs must be (costs,) or (costs, {problems}). Received: {tuple(costs.shape)}")
    for cost in costs.flatten().tolist():
        check_above_zero("costs", cost)
    return costs if costs.ndim == 2 else costs[:, None].expand(-1, problems)


def check_above_zero(key: str, value: float) -> float:
    """Return `value`, or ValueError unless it is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{key} must be above 0. Received: {value}")
    return value
