"""The files of a checkpoint folder: which of them hold the weights, and what to say of those that cannot be read.

The order is that of transformers: `model.safetensors`, and only without it the shards that an index names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ntk_jax.errors import UserError, note, shown
from ntk_jax.storage.reading import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # marks a folder of PEFT
_POINTER = b"version https://git-lfs"  # how the small file begins that stands for a large one in a clone without LFS


def some(names: list[str]) -> str:
    """The first of many names, and how many more there are: for messages."""
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; UserError where it is missing or something else."""
    if file.is_file():
        refuse_placeholder(file)
    found: dict[str, Any] = read_json(file, "give a complete Hugging Face folder, downloaded again", dict)
    return found


def refuse_placeholder(file: Path) -> None:
    """Raises UserError where an existing file is empty or stands for one that was not downloaded."""
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if not start:
        raise UserError(f"{file} is empty (0 bytes); download it again")
    if start == _POINTER:
        raise UserError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def base_of_adapter(folder: Path) -> str | None:
    """What a PEFT folder says its model is ("its base model" where it says nothing); None for a folder with a model."""
    if (folder / "config.json").is_file() or not (folder / ADAPTER).is_file():
        return None
    return str(read_object(folder / ADAPTER).get("base_model_name_or_path") or "its base model")


def refuse_other_folder(folder: Path) -> None:
    """Raises UserError for a folder without config.json that is an adapter, or that has models in its folders."""
    if (folder / "config.json").is_file():
        return
    base = base_of_adapter(folder)
    if base is not None:
        raise UserError(f"{folder} is a PEFT adapter, not a model: give {base} as the path, and this as the adapter")
    inner = sorted(file.parent.name for name in ("config.json", ADAPTER) for file in folder.glob(f"*/{name}"))
    if inner:
        raise UserError(f"{folder} has no config.json, but its folder {some(inner)} has; give that one")
    gguf = sorted(file.name for file in folder.glob("*.gguf"))
    if gguf:
        raise UserError(f"{folder}: {some(gguf)} is not read; give the Hugging Face folder that it was made from")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the weights. A note says what is left aside. Raises UserError: there are none, or an
    index names files that are gone."""
    single, index = folder / SINGLE, folder / INDEX
    if not single.is_file() and not index.is_file():
        raise UserError(f"{folder / SINGLE} is missing; {_instead(folder)}")
    if (folder / ADAPTER).is_file():
        note(f"{folder}: the adapter beside the weights ({ADAPTER}) is left aside; give the folder as the adapter too")
    if single.is_file():
        if index.is_file() and set(_named(index)) != {SINGLE}:
            note(f"{single} is read; the index of a sharded save beside it ({INDEX}) and its shards are left aside")
        return [single]
    names = _named(index)
    gone = [name for name in names if not (folder / name).is_file()]
    if gone:
        raise UserError(f"{folder / gone[0]} is missing: {len(gone)} of {len(names)} files of {INDEX}; fetch them")
    return [folder / name for name in names]


def _named(index: Path) -> list[str]:
    """The files of an index, each once."""
    places = read_object(index).get("weight_map")
    names = set(map(str, places.values())) if isinstance(places, dict) else {""}
    if not all(re.fullmatch(r"[\w./-]{1,200}", name) for name in names):
        raise UserError(f"{index}: weight_map must map tensors to files, got {shown(places)}; download it again")
    return sorted(names)


def _instead(folder: Path) -> str:
    """What to do about a folder without weights, by the files that are there."""
    base = "the model it was trained on"
    found = {kind: sorted(file.name for file in folder.glob(kind)) for kind in ("*.safetensors", "*.bin", "*.gguf")}
    other = [name for name in found["*.safetensors"] if not name.startswith("adapter_model")]
    if any(name.startswith("consolidated") for name in other):
        return f"{other[0]} has Mistral's own names; fetch the model-*.safetensors of the same checkpoint"
    if other:
        return f"{some(other)} is there, but not {INDEX}, which says what belongs together; fetch it"
    if (folder / ADAPTER).is_file():
        base = str(read_object(folder / ADAPTER).get("base_model_name_or_path") or base)
        return f"the folder holds a PEFT adapter: give {base} as the path, and this as the adapter"
    if found["*.bin"]:
        return (
            f'{some(found["*.bin"])} is not read; where torch is installed, convert it in that folder: python -c "from '
            "transformers import AutoModelForCausalLM as M; M.from_pretrained('.').save_pretrained('.')\""
        )
    if found["*.gguf"]:
        return f"{some(found['*.gguf'])} is not read; give the Hugging Face folder that it was made from"
    return "fetch it (weights are read from safetensors)"


@contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Tensor name → lazy safetensors slice, over all files of the checkpoint."""
    tensors: dict[str, Any] = {}
    with ExitStack() as stack:
        for file in weight_files(folder):
            handle = open_file(stack, file)
            for tensor in handle.keys():  # noqa: SIM118  (no dict)
                if tensor in tensors:
                    raise UserError(f"{file}: {tensor} is also in another file of the checkpoint; keep one of them")
                tensors[tensor] = handle.get_slice(tensor)
        yield tensors


def open_file(stack: ExitStack, file: Path) -> Any:
    """A safetensors file that is there, open until the stack closes; UserError where it is not whole."""
    try:
        return stack.enter_context(safe_open(file, framework="np"))
    except (SafetensorError, OSError) as error:
        refuse_placeholder(file)
        raise UserError(f"{file}: not a whole safetensors file ({error}); download it again") from None
