"""The processes of a run. One process is the case ``world_size == 1`` of the same code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Who owns which sample: feature row i lives on rank ``i % world_size``, at position ``i // world_size``."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The ranks of the process group that is running, else a single process."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def num_owned(self, num_samples: int) -> int:
        """Number of the rows 0..num_samples-1 that this rank owns."""
        return len(range(self.rank, num_samples, self.world_size))

    def owned(self, index_B: Tensor) -> Tensor | slice:
        """Positions in ``index_B`` of the samples that this rank owns: all of them, copy-free, for one process."""
        if self.world_size == 1:
            return slice(None)
        return (index_B % self.world_size == self.rank).nonzero().flatten()

    def positions(self, index_B: Tensor) -> Tensor:
        """Where this rank keeps the rows of samples that it owns."""
        return index_B if self.world_size == 1 else index_B // self.world_size

    def take(self, owned_rows: Tensor, index_M: Tensor) -> Tensor:
        """Rows of any samples on every rank, (M, D) float32. Collective."""
        if self.world_size == 1:
            return owned_rows.index_select(0, index_M).float()
        own = self.owned(index_M)
        rows_MD = owned_rows.new_zeros(len(index_M), owned_rows.shape[1], dtype=torch.float32)
        rows_MD[own] = owned_rows[self.positions(index_M[own])].float()
        return self.sum(rows_MD)

    def gather(self, local: Tensor) -> Tensor:
        """Concatenate the ranks' tensors of equal shape in rank order."""
        if self.world_size == 1:
            return local
        parts = local.new_empty(self.world_size, *local.shape)
        dist.all_gather(list(parts.unbind()), local.contiguous())
        return parts.flatten(0, 1)

    def sum(self, local: Tensor) -> Tensor:
        """Sum over the ranks, as a new tensor (the same tensor for one process)."""
        if self.world_size == 1:
            return local
        total = local.clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's value everywhere: what must not be decided twice."""
        if self.world_size > 1:
            dist.broadcast(value, 0)
        return value

    def collect_rows(self, owned_rows: Tensor, num_samples: int, chunk: int = 65536) -> Tensor:
        """All N rows in the order of their indices, in host memory; chunked, so that a device never holds them all."""
        if self.world_size == 1:
            return owned_rows.cpu()
        padded = -(-num_samples // self.world_size)
        rows = torch.empty(padded, self.world_size, *owned_rows.shape[1:], dtype=owned_rows.dtype)
        for start in range(0, padded, chunk):
            part = owned_rows[start : start + chunk]
            missing = min(chunk, padded - start) - len(part)
            part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
            gathered = self.gather(part[None]).cpu()
            rows[start : start + part.shape[0]] = gathered.transpose(0, 1)
        return rows.flatten(0, 1)[:num_samples]
