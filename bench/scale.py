"""What ODC costs on 1 to 1,024 GPUs and for a million to a billion images: bytes and time a step, on paper.

The bytes are formulas of what the code sends and keeps; `--measure` counts both in 1 to 4 processes and holds them
against the formulas. The times divide them by the rates given on the command line.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from odc_lightning.memory import Memory

FLOAT, DOUBLE, LONG, INT = 4, 8, 8, 4
WORLDS, IMAGES = (1, 8, 64, 1024), (1_281_167, 100_000_000, 1_000_000_000)


@dataclass(frozen=True)
class Machine:
    """Rates of one GPU and its links. Defaults: one H100 in nodes of eight, 400 Gbit/s a GPU between nodes.

    Attributes:
        flops: float32 operations a second.
        memory: bytes a second of its memory.
        inside, between: bytes a second and direction of its link within a node, and to other nodes.
        node: GPUs of a node.
        latency: seconds of a step of a collective; a ring has W - 1 of them, a tree log2 W.
        launch: seconds to start a kernel; an iteration has about 40.
        images: of R-50 training, a second.
        network: parameters of the backbone and the neck.
    """

    flops: float = 67e12
    memory: float = 3.35e12
    inside: float = 450e9
    between: float = 50e9
    node: int = 8
    latency: float = 5e-6
    launch: float = 3e-6
    images: float = 2900.0
    network: int = 25_000_000

    def link(self, world: int) -> float:
        """The slowest link of a ring."""
        return self.inside if world <= self.node else self.between


@dataclass(frozen=True)
class Run:
    """Sizes of a run: N images, W ranks of b images each, C clusters of width D, refresh every k-th iteration."""

    samples: int
    world: int
    clusters: int = 10_000
    dim: int = 256
    local_batch: int = 64
    interval: int = 10
    row: int = FLOAT  # bytes of a number of a row

    @property
    def batch(self) -> int:
        """Images of an iteration over all ranks."""
        return self.world * self.local_batch

    # -- what a rank keeps, bytes --

    @property
    def rows(self) -> int:
        """Its share of the feature rows."""
        return -(-self.samples // self.world) * self.dim * self.row

    @property
    def labels(self) -> int:
        """The pseudo-labels of all samples."""
        return self.samples * INT

    @property
    def tables(self) -> int:
        """Centroids, their squares, sums, sizes, moves."""
        return self.clusters * (self.dim * (FLOAT + DOUBLE) + FLOAT + 2 * LONG)

    @property
    def classifier(self) -> int:
        """Weights and bias of the classifier with gradient and SGD momentum; not the memory's, but of its C."""
        return 3 * self.clusters * (self.dim + 1) * FLOAT

    # -- what a rank hands to collectives in an iteration, bytes --

    @property
    def gathered(self) -> int:
        """Indices and features of the global batch."""
        return self.batch * (LONG + self.dim * FLOAT) if self.world > 1 else 0

    @property
    def reduced(self) -> float:
        """New labels, and every k-th time the sums."""
        return self.batch * LONG + self.clusters * self.dim * DOUBLE / self.interval if self.world > 1 else 0

    @property
    def wire(self) -> float:
        """Bytes that a rank receives by rings: (W - 1) / W of a gather, twice that of a reduction."""
        share = (self.world - 1) / self.world
        return share * (self.gathered + 2 * self.reduced)

    # -- seconds --

    def busiest(self) -> float:
        """Rows of the batch on the rank that owns the most, by the size of the largest of W Poisson numbers."""
        return self.local_batch + (math.sqrt(2 * self.local_batch * math.log(self.world)) if self.world > 1 else 0)

    def device_seconds(self, machine: Machine) -> float:
        """Distances, sums, refresh and kernel launches of the busiest rank."""
        own = self.busiest()
        product = 2 * own * self.clusters * self.dim / machine.flops
        scores = (2 * own * self.clusters * FLOAT + self.clusters * self.dim * FLOAT) / machine.memory
        sums = own * self.dim * (4 * DOUBLE + 3 * self.row) / machine.memory
        refresh = self.clusters * self.dim * (DOUBLE + 3 * FLOAT) / machine.memory / self.interval
        return max(product, scores) + sums + refresh + 40 * machine.launch

    def link_seconds(self, machine: Machine) -> float:
        """Two collectives an iteration and one every k-th."""
        hops = (2 + 1 / self.interval) * math.ceil(math.log2(self.world)) if self.world > 1 else 0
        return self.wire / machine.link(self.world) + 2 * hops * machine.latency

    def seconds(self, machine: Machine) -> float:
        """What ODC adds to an iteration if nothing overlaps."""
        return self.device_seconds(machine) + self.link_seconds(machine)

    def gradient_seconds(self, machine: Machine) -> float:
        """All-reduce of the classifier's gradient, which DDP adds as C grows."""
        share = 2 * (self.world - 1) / self.world
        return share * self.clusters * (self.dim + 1) * FLOAT / machine.link(self.world)

    def step_seconds(self, machine: Machine) -> float:
        """Forward and backward of the rank's images."""
        return self.local_batch / machine.images


def table(machine: Machine, clusters_of: str) -> list[str]:
    """Markdown rows for every N and W; ``clusters_of``: ``fixed`` 10,000, or ``N/128`` as the paper's ImageNet run."""
    head = ["N", "C", "GPUs", "rows", "labels", "tables", "classifier", "received a step", "ODC a step", "of R-50"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for samples in IMAGES:
        clusters = 10_000 if clusters_of == "fixed" else round(samples / 128_000) * 1000
        for world in WORLDS:
            run = Run(samples, world, clusters)
            share = run.seconds(machine) / run.step_seconds(machine)
            cells = [f"{samples:,}", f"{clusters:,}", f"{world:,}"]
            cells += [human(part) for part in (run.rows, run.labels, run.tables, run.classifier, run.wire)]
            cells += [f"{run.seconds(machine) * 1e3:.2f} ms", f"{100 * share:.1f} %"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def human(count: float) -> str:
    """Bytes with a unit, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


# -- measured ----------------------------------------------------------------------------------------------------------


def counted(rank: int, run: Run, folder: str, steps: int) -> None:
    """One of W processes: a memory of these sizes, and the bytes that it hands to collectives while it trains."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if run.world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=run.world)
    memory = Memory(num_samples=run.samples, num_clusters=run.clusters, feature_dim=run.dim, min_cluster_size=1)
    memory.fill(torch.rand(len(memory.samples.rows), run.dim), torch.randperm(run.samples) % run.clusters)
    sent = {"gathered": 0, "reduced": 0}
    gather, reduce = dist.all_gather, dist.all_reduce

    def count_gather(parts: list[torch.Tensor], local: torch.Tensor) -> object:
        sent["gathered"] += sum(part.nbytes for part in parts)
        return gather(parts, local)

    def count_reduce(total: torch.Tensor) -> object:
        sent["reduced"] += total.nbytes
        return reduce(total)

    dist.all_gather, dist.all_reduce = count_gather, count_reduce
    began = time.perf_counter()
    for step in range(1, steps + 1):
        index_B = torch.randperm(run.samples, generator=torch.Generator().manual_seed(step))[: run.batch]
        memory.update(index_B[rank :: run.world], torch.rand(run.local_batch, run.dim), unique=True)
        if step % run.interval == 0:
            memory.refresh_centroids()
    seconds = (time.perf_counter() - began) / steps
    if rank == 0:
        centroids, samples = memory.centroids, memory.samples
        tables = (centroids.centroids_CD, centroids.half_squares_C, centroids.sums_CD, centroids.sizes_C)
        kept = {
            "rows": samples.rows.nbytes,
            "labels": samples.labels_N.nbytes,
            "tables": sum(part.nbytes for part in (*tables, centroids.moves_C)),
        }
        per_step = {name: count / steps for name, count in sent.items()}
        torch.save({**kept, **per_step, "seconds": seconds}, f"{folder}/found.pt")
    if run.world > 1:
        dist.destroy_process_group()


def measured(run: Run, steps: int = 20) -> dict[str, float]:
    """Bytes that rank 0 keeps and hands to collectives in an iteration, and its seconds, in W processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(counted, args=(run, folder, steps), nprocs=run.world)
        return torch.load(Path(folder) / "found.pt", weights_only=True)


def show_measured(samples: int, clusters: int) -> None:
    """Formula beside count for 1 to 4 processes."""
    print("| processes | part | formula | counted |\n|---:|---|---:|---:|")
    for world in (1, 2, 3, 4):
        run = Run(samples, world, clusters, dim=64)
        found = measured(run)
        for part in ("rows", "labels", "tables", "gathered", "reduced"):
            print(f"| {world} | {part} | {getattr(run, part):,.0f} B | {found[part]:,.0f} B |")
        print(f"| {world} | time of an iteration | | {found['seconds'] * 1e3:.2f} ms |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="count in 1 to 4 processes of this machine")
    for name, value in vars(Machine()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = vars(parser.parse_args())
    if options.pop("measure"):
        return show_measured(20_000, 200)
    machine = Machine(**options)
    for clusters_of, words in (("fixed", "10,000 clusters"), ("N/128", "128 images a cluster")):
        print(f"{words}\n")
        print("\n".join(table(machine, clusters_of)) + "\n")
    return None


if __name__ == "__main__":
    main()
