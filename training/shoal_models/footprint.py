"""How many bytes a loaded version really holds: its tensors, wherever in its objects they lie, each storage once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_OURS = __name__.partition(".")[0]


def held_bytes(root: object) -> int:
    """Bytes of all tensors that can be reached from `root`.

    Followed are containers, modules and objects of this package. A tensor in oneDNN's layout, which does not tell its
    storage, counts as its elements without the padding of its blocks.
    """
    storages: dict[int, int] = {}
    opaque_bytes = 0
    for tensor in _tensors(root):
        if tensor.layout is not torch.strided:
            opaque_bytes += tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return opaque_bytes + sum(storages.values())


def _tensors(root: object) -> Iterator[Tensor]:
    pending, seen = [root], set[int]()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            yield found
        elif isinstance(found, dict):
            pending.extend(found.values())
        elif isinstance(found, list | tuple | set | frozenset):
            pending.extend(found)
        elif isinstance(found, nn.Module) or type(found).__module__.partition(".")[0] == _OURS:
            pending.extend(_attributes(found))


def _attributes(owner: object) -> Iterator[object]:
    yield from vars(owner).values() if hasattr(owner, "__dict__") else ()
    for cls in type(owner).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if hasattr(owner, name):
                yield getattr(owner, name)
