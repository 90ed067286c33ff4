"""Find a backbone in the nested containers of a checkpoint: the container, prefix and naming that fit best."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from odc_lightning.weights.names import Naming, namings, rgb

_NEVER = ("optimizer", "optimizers", "optimizer_states", "memory")  # parts of checkpoints that hold no network
_DEEPEST = 8
# Of two equal copies of a network, the slow one of a momentum pair counts where its authors evaluate it.
_PREFERRED, _AVOIDED = {"teacher", "ema"}, {"student", "momentum", "k", "key", "target"}


class Match(NamedTuple):
    """A backbone found in a checkpoint.

    Attributes:
        place: keys that lead to the container.
        prefix: before every name in it.
        naming: of the tensors behind the prefix.
        tensors: everything in the container, by its name in the file.
        found: name in the backbone to name in the file, where the shapes agree.
        misshapen: the same, where they do not.
        twins: other places that hold the same network.
    """

    place: tuple[str, ...]
    prefix: str
    naming: Naming
    tensors: dict[str, Tensor]
    found: dict[str, str]
    misshapen: dict[str, str]
    twins: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Place and prefix as people write them: `state_dict/backbone.`."""
        return "/".join((*self.place, self.prefix)).removesuffix("/")

    def weights(self) -> dict[str, Tensor]:
        """The tensors found, by name in the backbone, with RGB order."""
        first = next((target for target, name in self.found.items() if self.tensors[name].ndim == 4), None)
        bgr = first if self.naming.bgr else None
        return {
            target: rgb(self.tensors[name]) if target == bgr else self.tensors[name]
            for target, name in self.found.items()
        }

    def dropped(self) -> dict[str, int]:
        """Group of tensors that are not the backbone's (`head`, `neck`, …) to how many they are."""
        used = {*self.found.values(), *self.misshapen.values()}
        left = [name for name in self.tensors if name not in used and counts(name)]
        return dict(sorted(Counter(self._group(name) for name in left).items()))

    def _group(self, name: str) -> str:
        if self.naming.bgr:
            other_tower = re.search(r"_s[1-8]_", name)
            return "momentum" if name.endswith("_momentum") else "towers" if other_tower else name.partition("_")[0]
        parts, shared = name.split("."), self.prefix.split(".")[:-1]
        while len(parts) > 1 and shared and parts[0] == shared[0]:
            parts, shared = parts[1:], shared[1:]
        return parts[0]


def counts(name: str) -> bool:
    """Is the tensor a weight or statistic? Batch norm's counter is not used, and older files do not have it."""
    return not name.endswith("num_batches_tracked")


def best_match(content: Any, net: nn.Module) -> Match | None:
    """The place in `content` that holds most of `net`'s tensors, by name and shape; None where no name fits.

    Shapes decide before names, names before the order in the file.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    known = namings(net)
    matches = [
        match
        for place, tensors in containers(content)
        for naming in known
        for match in _in(place, tensors, naming, shapes)
    ]
    if not matches:
        return None
    best = max(matches, key=_worth)
    twins = {match.where for match in matches if _size(match) == _size(best)} - {best.where}
    return best._replace(twins=tuple(sorted(twins)))


def containers(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict in `content` with tensors in it, and where it is."""
    if not isinstance(content, Mapping) or len(place) > _DEEPEST:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: tensor for key, value in named.items() if (tensor := _as_tensor(value)) is not None}
    if tensors:
        yield place, tensors
    for key, value in named.items():
        if key not in _NEVER:
            yield from containers(value, (*place, key))


def groups(content: Any) -> list[str]:
    """What a checkpoint holds, for people: `state_dict/encoder. (120 tensors)`, the largest first."""
    found: Counter[str] = Counter()
    for place, tensors in containers(content):
        for name in tensors:
            first, dot, _ = name.partition(".")
            found["/".join((*place, first + dot if dot else name))] += 1
    return [f"{group} ({count} tensor{'s' if count > 1 else ''})" for group, count in found.most_common()]


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach() if value.is_floating_point() or value.dtype == torch.int64 else None
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        # Old files may be big-endian, and torch takes neither that nor read-only memory.
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
    return None


def _in(
    place: tuple[str, ...], tensors: dict[str, Tensor], naming: Naming, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Match]:
    """A match for every prefix behind which at least one name of the backbone stands."""
    target_of = {name: target for target, name in naming.name.items()}
    behind: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if target := target_of.get(name[start:]):
                behind[name[:start]][target] = name
    for prefix, names in behind.items():
        fits = {target: tuple(tensors[name].shape) == shapes[target] for target, name in names.items()}
        found = {target: name for target, name in names.items() if fits[target]}
        misshapen = {target: name for target, name in names.items() if not fits[target]}
        yield Match(place, prefix, naming, tensors, found, misshapen)


def _size(match: Match) -> tuple[int, int]:
    return len(match.found), len(match.misshapen)


def _worth(match: Match) -> tuple[int, int, int]:
    words = set(re.split(r"[._/]", match.where.lower()))
    return *_size(match), len(words & _PREFERRED) - len(words & _AVOIDED)
