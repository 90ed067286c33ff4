"""The two algorithms of k-means in torch: Lloyd's, and one that averages more often, hence needs fewer passes.

Shapes: N samples · P positions of some of a rank's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odc_lightning.clustering.assignment import Assignment

Progress = Callable[[int, int, float, float], None]
"""Called with iterations done, iterations at most, inertia, share of samples whose label changed (NaN: not known)."""

_PARTS = 8  # of the samples, between which the incremental algorithm averages


def lloyd(state: Assignment, iterations: int, report: Progress) -> int:
    """Assign all rows, average, and again, until no label changes. Returns the iterations done."""
    changed, done = state.assign(), 0
    report(0, iterations, state.inertia(), changed / state.num_samples)
    while changed > 0 and done < iterations:
        state.average()
        state.fill_empty()
        changed, done = state.assign(), done + 1
        report(done, iterations, state.inertia(), changed / state.num_samples)
    state.settle()
    return done


def incremental(state: Assignment, iterations: int, generator: torch.Generator, report: Progress) -> int:
    """Passes over all rows that move the centroids within the pass. Returns the passes done.

    The start is far off, and some rows tell where to go as well as all: the first pass is a step of Lloyd's on a
    random quarter of the samples, whose labels are then forgotten. Each further pass takes random eighths of all
    samples and averages after each over all rows with a label, by sums from which a row leaves and which it joins (as
    MacQueen, 1967, for each row). So a centroid follows its members eight times a pass. Only at the start of the
    second pass, where no row has a label, half the samples, others than the quarter, are one step. A last assignment
    makes every label that of the nearest centroid.

    Args:
        state: rows and starting centroids.
        iterations: passes at most, of which the first takes a quarter of the rows.
        generator: of the random parts, in the same state on every rank.
        report: called after each pass; the last one counts when the last assignment is made.
    """
    parts = _random_parts(state, generator)
    quarter, half, rest = parts[: _PARTS // 4], parts[_PARTS // 4 : 3 * _PARTS // 4], parts[3 * _PARTS // 4 :]
    report(0, iterations, math.nan, 1.0)
    changed, done = _assign_and_average(state, [torch.cat(quarter)]), 1
    state.forget()
    while changed > 0 and done < iterations:
        report(done, iterations, state.inertia() if done > 1 else math.nan, changed / state.num_samples)
        if done == 1:
            changed = _assign_and_average(state, [torch.cat(half), *rest, *quarter])
        else:
            state.fill_empty()
            changed = _assign_and_average(state, [*half, *rest, *quarter])
        done += 1
    if done > 1:
        state.fill_empty()
    changed = state.assign()
    state.settle()
    report(done, iterations, state.inertia(), changed / state.num_samples)
    return done


def _random_parts(state: Assignment, generator: torch.Generator) -> list[Tensor]:
    """Positions on this rank, ascending, of each random eighth of the samples."""
    part_N = torch.randperm(state.num_samples, generator=generator).remainder_(_PARTS)
    own = part_N[state.ranks.rank :: state.ranks.world_size].to(state.rows.device)
    return [(own == part).nonzero().flatten() for part in range(_PARTS)]


def _assign_and_average(state: Assignment, parts: list[Tensor]) -> int:
    """Assign each part and average after it. Returns how many labels changed."""
    changed = 0
    for where_P in parts:
        changed += state.assign(where_P)
        state.average()
    return changed
