"""Nested mappings, such as a configuration, by dotted key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"optim": {"lr": 0.1}}`` as ``("optim.lr", 0.1)``; lists are values, an empty mapping gives nothing."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
