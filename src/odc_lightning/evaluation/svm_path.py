"""Preconditioned conjugate gradients for many squared-hinge problems over the same rows, side by side.

Shapes: N rows · F features, E of them after the rotation · L problems under way · K costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 1e-11  # directions below this part of the largest eigenvalue are dropped: no cost in use could see them
_ALIGNED = 16
_LINE_STEPS = 8
_LINE_PRECISION = 0.01


@dataclass(frozen=True)
class Rotation:
    """The rows, with a 1 appended, in the eigenbasis of X'X. |w| is the same in every orthonormal basis."""

    rows_NE: Tensor
    eigenvalues_E: Tensor
    basis_FE: Tensor

    def to(self, dtype: torch.dtype) -> Rotation:
        """The same in another type, but for the basis, which stays float64 for the way back."""
        return Rotation(self.rows_NE.to(dtype), self.eigenvalues_E.to(dtype), self.basis_FE)


def rotate(features: Tensor) -> Rotation:
    """Turn X so that X'X is diagonal: any weighting of the rows is then preconditioned well by a diagonal."""
    rows_NF = torch.cat([features.double(), features.new_ones(len(features), 1, dtype=torch.float64)], 1)
    wide = rows_NF.shape[1] > len(rows_NF)
    eigenvalues, basis = torch.linalg.eigh(rows_NF @ rows_NF.T if wide else rows_NF.T @ rows_NF)
    kept = eigenvalues > _SMALLEST * eigenvalues[-1]
    eigenvalues, basis = eigenvalues[kept], basis[:, kept]
    if wide:  # solutions lie in the span of the rows: N dimensions are enough
        basis = rows_NF.T @ (basis / eigenvalues.sqrt())
    idle = -len(eigenvalues) % _ALIGNED  # columns of 0: products are 20 % faster on an aligned width
    rotated_NE, basis_FE = (functional.pad(each, (0, idle)) for each in (rows_NF @ basis, basis))
    return Rotation(rotated_NE, functional.pad(eigenvalues, (0, idle)), basis_FE)


class Path:
    """L problems on their way through the costs, upward, each at its own pace: the products stay large to the end.

    With s = y sqrt(c), f is |w|^2 / 2 + C |max(0, slack)|^2, where slack = |s| - s (X w) changes linearly with w.
    """

    _STATE = ("problem", "place", "taken", "scale", "slack", "weights", "earlier", "direction", "gradient", "decrement")

    def __init__(self, rotation: Rotation, scale_LN: Tensor, costs_KL: Tensor, start_LE: Tensor | None = None) -> None:
        self.rotation = rotation
        self.costs = torch.cat([costs_KL, costs_KL[-1:]])  # a problem past its last cost is about to be dropped
        self.solutions = costs_KL.new_zeros(*costs_KL.shape, rotation.rows_NE.shape[1])
        self.steps = torch.zeros_like(costs_KL, dtype=torch.int64)
        self.solved = torch.zeros_like(costs_KL, dtype=torch.bool)
        self.problem = torch.arange(len(scale_LN), device=scale_LN.device)
        self.place, self.taken = torch.zeros_like(self.problem), torch.zeros_like(self.problem)
        self.weights = self.solutions[0].clone() if start_LE is None else start_LE
        self.scale, self.slack = scale_LN, scale_LN.abs() - scale_LN * (self.weights @ rotation.rows_NE.T)
        self.earlier, self.direction, self.gradient = (torch.zeros_like(self.weights) for _ in range(3))
        self.decrement = costs_KL.new_full((len(scale_LN),), torch.inf)

    def run(self, tolerance: float, max_steps: int, on_kept: Callable[[int], None]) -> tuple[Tensor, Tensor, Tensor]:
        """Solve all; return the weights (K, L, E), the steps (K, L) and whether they were enough (K, L).

        `on_kept` is told the number of solutions after each step that ends some.
        """
        while len(self.problem):
            kept = self._step(tolerance, max_steps)
            if kept:
                on_kept(kept)
                self._drop_finished()
        return self.solutions, self.steps, self.solved

    def _step(self, tolerance: float, max_steps: int) -> int:
        """One step of all problems under way; the number that were done before it and went on to their next cost."""
        gradient_LE, curvature_L, objective_L = self._derivatives()
        downhill_LE = -gradient_LE / (1 + curvature_L[:, None] * self.rotation.eigenvalues_E)
        decrement_L = -_dot(gradient_LE, downhill_LE)
        direction_LE = self._conjugate(gradient_LE, downhill_LE, decrement_L)
        self.gradient, self.decrement = gradient_LE, decrement_L
        solved = decrement_L <= 2 * tolerance * objective_L
        done = solved | (self.taken >= max_steps)
        kept = int(done.sum())
        if kept:
            self._keep(done, solved)
            gradient_LE, direction_LE = self._next_cost(done, gradient_LE, direction_LE)
        uphill = _dot(direction_LE, gradient_LE) >= 0
        self.direction = torch.where(uphill[:, None], downhill_LE, direction_LE)
        self._move(_dot(self.direction, gradient_LE))
        self.taken += 1
        return kept

    def _costs(self) -> Tensor:
        return self.costs[self.place, self.problem]

    def _derivatives(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (L, E), curvature of the loss as a multiple of X'X (L,), and objective (L,)."""
        costs_L = self._costs()
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

    def _keep(self, done: Tensor, solved: Tensor) -> None:
        cell = self.place[done], self.problem[done]
        self.solutions[cell], self.steps[cell] = self.weights[done], self.taken[done]
        self.solved[cell] = solved[done]

    def _next_cost(self, done: Tensor, gradient_LE: Tensor, direction_LE: Tensor) -> tuple[Tensor, Tensor]:
        """Put the problems that are done at their next cost, about to go along the line through the last solutions."""
        weights, last_costs = self.weights[done], self._costs()[done]
        self.place[done] += 1
        ratio = (self._costs()[done] / last_costs)[:, None]
        gradient_LE, direction_LE = gradient_LE.clone(), direction_LE.clone()
        gradient_LE[done] = weights + ratio * (gradient_LE[done] - weights)
        direction_LE[done] = weights - self.earlier[done]
        self.earlier[done], self.taken[done] = weights, 0
        self.decrement[done] = torch.inf  # makes the direction after this one steepest descent
        return gradient_LE, direction_LE

    def _move(self, slope_L: Tensor) -> None:
        """Go to the minimum along the direction. f is piecewise quadratic there: Newton's method, in a bracket."""
        change_LN = (self.direction @ self.rotation.rows_NE.T).mul_(self.scale)
        twice_L = 2 * self._costs()
        along_L, square_L = _dot(self.weights, self.direction), _dot(self.direction, self.direction)
        length_L, low_L, high_L = (torch.full_like(slope_L, value) for value in (1.0, 0.0, torch.inf))
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


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each row."""
    return torch.linalg.vecdot(left, right)
