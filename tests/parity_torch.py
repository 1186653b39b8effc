"""The reference side of the parity tests: transformers' PyTorch model with a PEFT adapter. Needs torch and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import parity_cases as cases

from ntk_jax.models.config import parse_config
from ntk_jax.models.names import MODULES
from ntk_jax.models.peft import save_adapter


def torch_model(folder: Path) -> Any:
    """The PyTorch model of a Hugging Face folder, in fp32 with plain attention."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # its threads wait by spinning, which two test workers on two cores cannot afford
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager").eval()


def with_adapter(model: Any, folder: Path, trainable: bool = False) -> Any:
    """The PyTorch model with the PEFT adapter of a folder."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def reference(case: str, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits [1, T, V] of the case with its adapter, and the gradient of their mean next-token log-probability with
    respect to the adapter, in our layout. Writes the checkpoint and the adapter into `folder`."""
    import torch

    cases.write_checkpoint(case, folder)
    config = parse_config(cases.CASES[case], case)
    save_adapter(folder / "adapter", cases.lora_leaves(case), cases.LORA, config, str(folder))
    model = with_adapter(torch_model(folder), folder / "adapter", trainable=True)
    ids = torch.tensor(cases.token_ids(case))
    logits = model(ids).logits
    logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).mean().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    layers: dict[str, Any] = {}
    for name, module in MODULES.items():
        layers[name] = {}
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            parts = [
                found.pop(f"base_model.model.model.layers.{i}.{module}.{theirs}.default.weight")
                for i in range(config.num_layers)
            ]
            layers[name][ours] = np.stack([part.numpy().T for part in parts])
    assert not found, f"gradients beyond the adapter: {list(found)}"
    return logits.detach().numpy(), {"layers": layers}


def versions() -> str:
    """What made the arrays."""
    import peft
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
