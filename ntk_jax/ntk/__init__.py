"""The kernel: objectives, mean gradients, directional scores, exact kernels and sketches, over token batches and
parameter trees.

May import `models`, `data`, `storage`, `parallel` and `errors`, and uses of `data` only the batch layout: a function
here that needs a path or a tokenizer is in the wrong room.

`nj.ntk(model, a, b)` is `ntk_jax.api.ntk`, the exact kernel between two small sets.
"""

import importlib
import sys
import types
from typing import Any


class _Room(types.ModuleType):
    """The public function has this room's name, and Python keeps one of the two: so the room can be called."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("ntk_jax.api").ntk(*args, **options)


sys.modules[__name__].__class__ = _Room
