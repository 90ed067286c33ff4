"""The price of ODC: a training step with the memory over the same step with fixed labels, side by side."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from odc_lightning.memory import Memory
from odc_lightning.nn.head import NonLinearNeck, linear_classifier
from odc_lightning.nn.resnet import resnet18
from odc_lightning.objective import loss_weights, weighted_cross_entropy

DIM, SIDE, BATCH, INTERVAL = 256, 64, 64, 10


class Step:
    """ResNet-18, head and classifier with SGD; one call is one training step."""

    def __init__(self, num_clusters: int) -> None:
        backbone = resnet18()
        self.network = torch.nn.Sequential(backbone, NonLinearNeck(backbone.feature_dim, feature_dim=DIM))
        self.classifier = linear_classifier(DIM, num_clusters)
        parameters = [*self.network.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        features = self.network(images)
        loss = weighted_cross_entropy(self.classifier(features), labels, weights)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return features.detach()


def filled(num_samples: int, num_clusters: int) -> Memory:
    """A memory of random unit rows in random clusters of a lognormal size."""
    memory = Memory(num_samples=num_samples, num_clusters=num_clusters, feature_dim=DIM, min_cluster_size=10)
    shares = torch.distributions.LogNormal(0.0, 0.5).sample((num_clusters,))
    labels = torch.multinomial(shares, num_samples, replacement=True)
    memory.fill(torch.rand(num_samples, DIM), labels)
    return memory


def measure(num_samples: int, num_clusters: int, rounds: int) -> None:
    """Print medians and the median of the round-by-round ratio."""
    torch.manual_seed(0)
    memory, step = filled(num_samples, num_clusters), Step(num_clusters)
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    fixed_labels, fixed_weights = torch.randint(num_clusters, (BATCH,)), torch.ones(num_clusters)
    weights = loss_weights(memory.sizes_C)
    # Processor time of one thread does not see what else the machine does; of several it would add them up.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {"fixed": [], "odc": []}
    for number in range(1, rounds + 1):
        began = clock()
        step(images, fixed_labels, fixed_weights)
        times["fixed"].append(clock() - began)
        index = torch.randint(num_samples, (BATCH,))
        began = clock()
        features = step(images, memory.labels(index), weights)
        memory.update(index, features)
        if number % INTERVAL == 0:
            memory.refresh_centroids()
        memory.handle_small_clusters()
        weights = loss_weights(memory.sizes_C)
        times["odc"].append(clock() - began)
    ratios = sorted(odc / fixed for odc, fixed in zip(times["odc"], times["fixed"], strict=True))
    spread = f"{ratios[rounds // 4]:.3f}-{ratios[3 * rounds // 4]:.3f}"
    fixed, odc = (statistics.median(times[name]) * 1e3 for name in ("fixed", "odc"))
    print(
        f"N {num_samples:>9,}  C {num_clusters:>6,}  fixed {fixed:7.1f} ms  ODC {odc:7.1f} ms  "
        f"ratio {statistics.median(ratios):.3f} (quartiles {spread})  small clusters refilled {memory.refilled}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"ResNet-18, {SIDE} px, batch {BATCH}, D {DIM}, {options.threads} threads, {options.rounds} rounds")
    measure(10_000, 100, options.rounds)
    measure(1_280_000, 10_000, options.rounds)
