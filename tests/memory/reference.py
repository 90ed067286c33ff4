"""The memory of ODC as slow, obvious float64 loops, written from the paper (Sec. 3.1, 3.2) and the release's rules."""

import numpy as np
import torch


class SlowMemory:
    """One sample, one cluster at a time; every centroid is averaged from all members; no running sums."""

    def __init__(self, features, labels, num_clusters, *, momentum, threshold, seed, release=False):
        self.rows = np.array([to_grid(normalized(f)) for f in features])
        self.labels = [int(label) for label in labels]
        self.num_clusters, self.momentum, self.threshold, self.release = num_clusters, momentum, threshold, release
        self.generator = torch.Generator().manual_seed(seed)
        self.centroids = np.zeros((num_clusters, self.rows.shape[1]), dtype=np.float32)
        self.involved = set()
        self.average(range(num_clusters))
        self.involved = set()
        self.handle_small()

    def members(self, cluster):
        return [i for i, label in enumerate(self.labels) if label == cluster]

    def sizes(self):
        return [self.labels.count(c) for c in range(self.num_clusters)]

    def average(self, clusters):
        for c in clusters:
            members = self.members(c)
            if members:
                self.centroids[c] = (sum(self.rows[i] for i in members) / len(members)).astype(np.float32)

    def refresh(self):
        self.average(range(self.num_clusters) if self.release else sorted(self.involved))
        self.involved = set()

    def nearest(self, row, allowed):
        best, best_score = None, None
        for c in allowed:
            centroid = self.centroids[c].astype(np.float64)
            score = float((row * centroid).sum()) if self.release else -float(((row - centroid) ** 2).sum())
            if best is None or score > best_score:
                best, best_score = c, score
        return best

    def update(self, indices, features):
        last = {int(i): f for i, f in zip(indices, features, strict=True)}
        switched = 0
        for i, feature in last.items():
            row = self.momentum * normalized(feature) + (1 - self.momentum) * self.rows[i]
            self.rows[i] = to_grid(normalized(row) if self.release else row)
        for i in last:
            old, self.labels[i] = self.labels[i], self.nearest(self.rows[i], range(self.num_clusters))
            if old != self.labels[i]:
                switched += 1
                self.involved |= {old, self.labels[i]}
        return switched / len(last)

    def is_small(self, size):
        return size < self.threshold if self.release else size <= self.threshold

    def handle_small(self):
        sizes = self.sizes()
        small = [c for c in range(self.num_clusters) if self.is_small(sizes[c])]
        normal = [c for c in range(self.num_clusters) if c not in small]
        moves = [(i, self.nearest(self.rows[i], normal)) for c in small for i in self.members(c)]
        for i, label in moves:
            self.involved |= {self.labels[i], label}
            self.labels[i] = label
        for c in small:
            self.refill(c)
        return small

    def refill(self, cluster):
        half = 1 if self.release else self.threshold + 1
        sizes = self.sizes()
        largest = sizes.index(max(sizes))
        if sizes[largest] >= 2 * half:
            members = self.members(largest)
            second = slow_split([self.rows[i] for i in members], half)
            first_moves = not self.release and bool(torch.randint(2, (1,), generator=self.generator))
            taken = [i for i, is_second in zip(members, second, strict=True) if is_second != first_moves]
            donors = [largest]
        else:
            taken, donors = self.borders(sizes, half)
        for i in taken:
            self.labels[i] = cluster
        self.involved |= {*donors, cluster}
        self.average([*donors, cluster])

    def borders(self, sizes, half):
        taken, donors = [], []
        for donor in sorted(range(self.num_clusters), key=lambda c: -sizes[c]):
            members = self.members(donor)
            mean = sum(self.rows[i] for i in members) / len(members)
            outermost = sorted(members, key=lambda i: -float(((self.rows[i] - mean) ** 2).sum()))
            taken += outermost[: min(sizes[donor] - half, half - len(taken))]
            donors.append(donor)
            if len(taken) == half:
                return taken, donors
        raise AssertionError("the data set is too small")


def normalized(feature):
    feature = np.asarray(feature, dtype=np.float64)
    return feature / (np.sqrt((feature**2).sum()) + 1e-10)


def to_grid(row):
    return np.round(row * 2**24) / 2**24


def slow_split(rows, half):
    """2-means from the row farthest from the mean and the row farthest from that one; sides of at least ``half``."""
    mean = sum(rows) / len(rows)
    a = max(rows, key=lambda r: float(((r - mean) ** 2).sum()))
    b = max(rows, key=lambda r: float(((r - a) ** 2).sum()))
    side = None
    for _ in range(21):
        along = [float((r * (b - a)).sum()) for r in rows]
        new_side = [x > float((b * b).sum() - (a * a).sum()) / 2 for x in along]
        if new_side == side:
            break
        side = new_side
        if all(side) or not any(side):
            break
        a = sum(r for r, s in zip(rows, side, strict=True) if not s) / side.count(False)
        b = sum(r for r, s in zip(rows, side, strict=True) if s) / side.count(True)
    cut = side.count(False)
    if cut in (0, len(rows)):
        cut = len(rows) // 2
    cut = min(max(cut, half), len(rows) - half)
    order = sorted(range(len(rows)), key=lambda i: along[i])
    return [i in set(order[cut:]) for i in range(len(rows))]
