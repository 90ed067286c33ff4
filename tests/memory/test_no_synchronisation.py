"""On a GPU an ordinary iteration of the memory never has the host wait for the device."""

import pytest
import torch

from odc_lightning.memory import Memory
from odc_lightning.objective import loss_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_iterations_and_refreshes_do_not_synchronise():
    gpu = torch.device("cuda", 0)
    memory = Memory(num_samples=4000, num_clusters=50, feature_dim=32, min_cluster_size=1).to(gpu)
    memory.fill(torch.randn(4000, 32, device=gpu), torch.arange(4000, device=gpu) % 50)
    batches = [(torch.randperm(4000, device=gpu)[:64], torch.randn(64, 32, device=gpu)) for _ in range(20)]
    for number, (index, features) in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if number >= 10 else "default")  # the first load kernels
        try:
            memory.labels(index)
            memory.update(index, features, unique=True)
            memory.refresh_centroids()
            memory.handle_small_clusters()
            loss_weights(memory.sizes_C)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert memory.refilled == 0
    memory.check()
