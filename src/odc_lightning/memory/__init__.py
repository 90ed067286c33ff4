"""Samples memory, centroids memory and small clusters of ODC, the replicated bank; pure torch and torch.distributed."""

from odc_lightning.memory.bank import Bank
from odc_lightning.memory.memory import Memory, check_rules
from odc_lightning.memory.ranks import Ranks

__all__ = ["Bank", "Memory", "Ranks", "check_rules"]
