"""Linear support vector machines of many classes, folds and costs over the same rows, solved together.

Each problem is scikit-learn's `LinearSVC` (squared hinge, L2 penalty, regularised intercept):

    f(w) = |w|^2 / 2 + C sum_i c_i max(0, 1 - y_i w.x_i)^2        x_i ends in a 1, y_i is +1 or -1

The problems share X, so that their products with it are one matrix product. Preconditioned nonlinear conjugate
gradients with an exact line search need one product with X and one with X' a step. A Newton method with inner conjugate
gradients needs twice as many: it goes on solving for a set of active rows that its own next step changes.

Shapes: N rows · F features, E of them after the rotation · P problems, L still under way · K costs.
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
_SMALLEST = 1e-11  # directions below this part of the largest eigenvalue are dropped: no cost in use could see them
_LINE_STEPS = 8
_LINE_PRECISION = 0.01


@dataclass(frozen=True)
class SVMSolutions:
    """Solutions of P problems at K costs.

    Attributes:
        weights: float32 (K, P, F).
        intercepts: float32 (K, P).
        steps: int64 (K, P), the steps that each took.
    """

    weights: Tensor
    intercepts: Tensor
    steps: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Decision values w.x + b of features (M, F): float32 (K, P, M) on the solutions' device."""
        rows_FM = features.to(self.weights.device, torch.float32).T
        with full_float32(rows_FM.device):
            scores = self.weights.flatten(0, 1) @ rows_FM
        return scores.unflatten(0, self.intercepts.shape) + self.intercepts[..., None]


@torch.no_grad()
def solve_svms(
    features: Tensor,
    signs: Tensor,
    costs: Sequence[float],
    *,
    positive_weight: float = 2.0,
    negative_weight: float = 1.0,
    tolerance: float = 1e-10,
    max_steps: int = 5000,
    dtype: torch.dtype = torch.float32,
) -> SVMSolutions:
    """Solve P two-class problems at K costs, on the device of the features.

    Args:
        features: (N, F), any floating type.
        signs: (N, P): +1, -1, or 0 for a row that the problem leaves out.
        costs: C of each solution, in any order; each starts from the solution at the next lower cost.
        positive_weight: c_i of rows with +1.
        negative_weight: c_i of rows with -1.
        tolerance: a problem is solved when g' M^-1 g / 2, with the gradient g and the preconditioner M, is below this
            part of its objective. It estimates what a Newton step would still gain; the gradient alone says nothing,
            since its parts are on scales that differ by the eigenvalues of X'X.
        max_steps: for each cost; a problem that needs more is left there with a warning.
        dtype: of the work; float64 takes twice the time.

    Raises:
        ValueError: for features that do not match the signs or are not finite, signs other than +1, -1 and 0, no
            cost, or a cost, weight, tolerance or number of steps that is not above 0.
    """
    check_features("features", features)
    _check_signs(signs, len(features))
    _check_costs(costs)
    for key in ("positive_weight", "negative_weight", "tolerance", "max_steps"):
        _check_above_zero(key, locals()[key])
    order = sorted(range(len(costs)), key=lambda place: costs[place])
    ordered_K = torch.tensor([costs[place] for place in order], dtype=dtype, device=features.device)
    rotation = _rotate(features, dtype)
    scale_PN = _row_scales(signs.to(features.device), positive_weight, negative_weight, dtype)
    with full_float32(features.device):
        paths = [_Path(rotation, part, ordered_K, tolerance, max_steps) for part in scale_PN.split(_TOGETHER)]
        weights, steps = zip(*(path.run() for path in paths), strict=True)
        return _in_features(rotation, torch.cat(weights, 1), torch.cat(steps, 1), order)


@dataclass(frozen=True)
class _Rotation:
    """The rows, with a 1 appended, in the eigenbasis of X'X. |w| is the same in every orthonormal basis."""

    rows_NE: Tensor
    eigenvalues_E: Tensor
    basis_FE: Tensor


def _rotate(features: Tensor, dtype: torch.dtype) -> _Rotation:
    """Turn X so that X'X is diagonal: any weighting of the rows is then preconditioned well by a diagonal."""
    rows_NF = torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], 1)
    wide = rows_NF.shape[1] > len(rows_NF)
    eigenvalues, basis = torch.linalg.eigh(rows_NF @ rows_NF.T if wide else rows_NF.T @ rows_NF)
    kept = eigenvalues > _SMALLEST * eigenvalues[-1]
    eigenvalues, basis = eigenvalues[kept], basis[:, kept]
    if wide:  # solutions lie in the span of the rows: N dimensions are enough
        basis = rows_NF.T @ (basis / eigenvalues.sqrt())
    return _Rotation((rows_NF @ basis).to(dtype), eigenvalues.to(dtype), basis.to(dtype))


def _row_scales(signs_NP: Tensor, positive: float, negative: float, dtype: torch.dtype) -> Tensor:
    """y_i sqrt(c_i), (P, N), and 0 for rows left out. With it f needs neither labels nor weights."""
    signs_PN = signs_NP.T.to(dtype)
    return torch.where(signs_PN > 0, positive**0.5, negative**0.5) * signs_PN


def _in_features(rotation: _Rotation, weights_KPE: Tensor, steps_KP: Tensor, order: list[int]) -> SVMSolutions:
    """Back to the given basis and the given order of the costs."""
    weights_KPF = weights_KPE @ rotation.basis_FE.T
    back = torch.tensor(order, device=weights_KPF.device).argsort()
    weights = weights_KPF[back].float()
    return SVMSolutions(weights[..., :-1].contiguous(), weights[..., -1].contiguous(), steps_KP[back])


class _Path:
    """L problems on their way through the costs, upward, each at its own pace: the products stay large to the end.

    With s = y sqrt(c), f is |w|^2 / 2 + C |max(0, slack)|^2, where slack = |s| - s (X w) changes linearly with w.
    """

    _STATE = ("problem", "place", "taken", "scale", "slack", "weights", "earlier", "direction", "gradient", "decrement")

    def __init__(
        self, rotation: _Rotation, scale_LN: Tensor, costs_K: Tensor, tolerance: float, max_steps: int
    ) -> None:
        self.rotation, self.tolerance, self.max_steps = rotation, tolerance, max_steps
        self.costs = torch.cat([costs_K, costs_K[-1:]])  # a problem past the last cost is about to be dropped
        problems, width, device = len(scale_LN), rotation.rows_NE.shape[1], scale_LN.device
        self.solutions = costs_K.new_zeros(len(costs_K), problems, width)
        self.steps = torch.zeros(len(costs_K), problems, dtype=torch.int64, device=device)
        self.problem = torch.arange(problems, device=device)
        self.place, self.taken = torch.zeros_like(self.problem), torch.zeros_like(self.problem)
        self.scale, self.slack = scale_LN, scale_LN.abs()
        self.weights, self.earlier = self.solutions[0].clone(), self.solutions[0].clone()
        self.direction, self.gradient = self.weights.clone(), self.weights.clone()
        self.decrement = costs_K.new_full((problems,), torch.inf)

    def run(self) -> tuple[Tensor, Tensor]:
        """Solve all; return the weights (K, L, E) and the steps (K, L)."""
        while len(self.problem):
            self._step()
            if bool((self.place == len(self.solutions)).any()):
                self._drop_finished()
        return self.solutions, self.steps

    def _step(self) -> None:
        gradient_LE, curvature_L, objective_L = self._derivatives()
        downhill_LE = -gradient_LE / (1 + curvature_L[:, None] * self.rotation.eigenvalues_E)
        decrement_L = -_dot(gradient_LE, downhill_LE)
        direction_LE = self._conjugate(gradient_LE, downhill_LE, decrement_L)
        self.gradient, self.decrement = gradient_LE, decrement_L
        solved = decrement_L <= 2 * self.tolerance * objective_L
        stuck = (self.taken >= self.max_steps) & ~solved
        if bool((solved | stuck).any()):
            self._warn(stuck)
            gradient_LE, direction_LE = self._next_cost(solved | stuck, gradient_LE, direction_LE)
        slope_L = _dot(direction_LE, gradient_LE)
        uphill = slope_L >= 0
        self.direction = torch.where(uphill[:, None], downhill_LE, direction_LE)
        self._move(torch.where(uphill, _dot(downhill_LE, gradient_LE), slope_L))
        self.taken += 1

    def _derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (L, E), curvature of the loss as a multiple of X'X (L,), and objective (L,)."""
        costs_L = self.costs[self.place]
        active_LN = self.slack.clamp(min=0)
        objective_L = _dot(self.weights, self.weights) / 2 + costs_L * _dot(active_LN, active_LN)
        pull_LE = active_LN.mul_(self.scale) @ self.rotation.rows_NE
        weights_of_active_LN = self.scale * (self.slack > 0)
        curvature_L = 2 * costs_L * _dot(weights_of_active_LN, weights_of_active_LN) / self.scale.shape[1]
        return self.weights - 2 * costs_L[:, None] * pull_LE, curvature_L, objective_L

    def _conjugate(self, gradient_LE: Tensor, downhill_LE: Tensor, decrement_L: Tensor) -> Tensor:
        """Polak and Ribiere's direction, preconditioned; steepest descent where the last one is of no use."""
        gained_L = decrement_L + _dot(self.gradient, downhill_LE)
        beta_L = (gained_L / self.decrement.clamp(min=torch.finfo(decrement_L.dtype).tiny)).clamp_(min=0)
        return torch.addcmul(downhill_LE, beta_L[:, None], self.direction)

    def _next_cost(self, done: Tensor, gradient_LE: Tensor, direction_LE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the solutions of problems that are done; start their next cost on the line through the last two."""
        problem, place, weights = self.problem[done], self.place[done], self.weights[done]
        self.solutions[place, problem], self.steps[place, problem] = weights, self.taken[done]
        ratio = (self.costs[place + 1] / self.costs[place])[:, None]
        gradient_LE, direction_LE = gradient_LE.clone(), direction_LE.clone()
        gradient_LE[done] = weights + ratio * (gradient_LE[done] - weights)
        direction_LE[done] = weights - self.earlier[done]
        self.earlier[done], self.place[done], self.taken[done] = weights, place + 1, 0
        self.decrement[done] = torch.inf  # so that the next direction is steepest descent
        return gradient_LE, direction_LE

    def _move(self, slope_L: Tensor) -> None:
        """Go to the minimum along the direction. f is piecewise quadratic there: Newton's method, in a bracket."""
        change_LN = (self.direction @ self.rotation.rows_NE.T).mul_(self.scale)
        twice_L = 2 * self.costs[self.place]
        along_L, square_L = _dot(self.weights, self.direction), _dot(self.direction, self.direction)
        length_L, low_L, high_L = torch.ones_like(slope_L), torch.zeros_like(slope_L), slope_L.new_full(slope_L.shape, torch.inf)
        for _ in range(_LINE_STEPS):
            slack_LN = torch.addcmul(self.slack, length_L[:, None], change_LN, value=-1)
            active_LN = change_LN * (slack_LN > 0)
            first_L = along_L + length_L * square_L - twice_L * _dot(active_LN, slack_LN)
            second_L = square_L + twice_L * _dot(active_LN, active_LN)
            low_L = torch.where(first_L < 0, length_L, low_L)
            high_L = torch.where(first_L < 0, high_L, length_L)
            newton_L = length_L - first_L / second_L.clamp(min=torch.finfo(second_L.dtype).tiny)
            inside = (newton_L >= low_L) & (newton_L <= high_L)
            length_L = torch.where(inside, newton_L, (low_L + high_L) / 2)
            if bool((first_L.abs() <= _LINE_PRECISION * slope_L.abs()).all()):
                break
        self.weights = torch.addcmul(self.weights, length_L[:, None], self.direction)
        self.slack.addcmul_(length_L[:, None], change_LN, value=-1)

    def _drop_finished(self) -> None:
        left = self.place < len(self.solutions)
        for name in self._STATE:
            setattr(self, name, getattr(self, name)[left])

    def _warn(self, stuck: Tensor) -> None:
        if bool(stuck.any()):
            logger.warning(
                "%d SVMs are not solved after max_steps=%d steps at C = %.3g; their last weights are used",
                int(stuck.sum()), self.max_steps, float(self.costs[self.place[stuck]].max()),
            )


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each row."""
    return torch.linalg.vecdot(left, right)


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
        raise ValueError(f"signs must be ({rows}, problems), a row for each of the features. Received: {tuple(signs.shape)}")
    wrong = signs[(signs != 1) & (signs != -1) & (signs != 0)]
    if len(wrong):
        raise ValueError(f"signs must be 1, -1, or 0 for a row left out. Received: {wrong[0].item()}")


def _check_costs(costs: Sequence[float]) -> None:
    if not len(costs):
        raise ValueError("costs must name at least one cost. Received: none")
    for cost in costs:
        _check_above_zero("costs", cost)


def _check_above_zero(key: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{key} must be above 0. Received: {value}")
