"""The model `ntk-jax` for lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    pip install 'ntk_jax[lm-eval]'
    python -m ntk_jax.lm_eval --model ntk-jax --model_args pretrained=DIR,peft=ADAPTER --tasks arc_easy

takes the harness's own command line. In Python, `import ntk_jax.lm_eval` makes the name known to
`lm_eval.simple_evaluate(model="ntk-jax", ...)`. It computes log likelihoods: tasks of the kinds multiple_choice,
loglikelihood and loglikelihood_rolling. Prompts that questions share are read once, and the vocabulary's logits are
never held; `batch_tokens` bounds a step, so that the harness's batch size has no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import lm_eval.models  # noqa: F401 (the harness's own models stay known beside this one)
import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from ntk_jax.data.tokens import ChoiceRow
from ntk_jax.errors import UserError
from ntk_jax.evaluation.choice import score_continuations
from ntk_jax.models.model import load_model
from ntk_jax.parallel.mesh import make_mesh

Request = tuple[Any, list[int], list[int]]  # (what the harness caches under, context ids, continuation ids)


@register_model("ntk-jax")
class NTKJaxLM(TemplateLM):
    """A checkpoint that `load_model` reads.

    pretrained: a Hugging Face folder, a hub id or `builtin:model`. peft: an adapter's folder. dtype, quantization: as
    in `load_model`. max_length: tokens of context and continuation; None: the model's positions. batch_tokens: of one
    compiled step over all devices. add_bos_token: whether texts begin with BOS; None: what the tokenizer does. fsdp:
    devices over which the weights are split; the others split the batch. batch_size, max_batch_size, device: the
    harness gives them to every model; they have no say.
    """

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        dtype: str = "float32",
        quantization: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = 8192,
        add_bos_token: bool | None = None,
        fsdp: int = 1,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        mesh = make_mesh(fsdp=fsdp)
        self._mesh = mesh if mesh.size > 1 else None
        self._model = load_model(str(pretrained), adapter=peft, dtype=dtype, quantization=quantization, mesh=self._mesh)
        if self._model.tokenizer is None:
            raise UserError(f"{pretrained} has no tokenizer files; put tokenizer.json beside the weights")
        self.tokenizer = self._model.tokenizer
        positions = self._model.config.max_positions
        self.max_length = min(max_length or positions, positions)
        self._batch_tokens, self._add_bos = batch_tokens, add_bos_token

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by: BOS, or EOS where there is none."""
        return self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = False
        ids: list[int] = self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special}))
        bos = self.tokenizer.bos_token_id
        if special and self._add_bos and bos is not None and ids[:1] != [bos]:  # the tokenizer writes none by itself
            ids = [bos, *ids]
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self.tokenizer.apply_chat_template(chat_history, **options)
        except jinja2.TemplateError:  # some templates refuse a system message; the harness then leaves it out
            others = [message for message in chat_history if message["role"] != "system"]
            return self.tokenizer.apply_chat_template(others, **options)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log likelihood, is it what greedy decoding would write) of each continuation, in order."""
        together: dict[tuple[int, ...], list[int]] = {}  # the requests of each context
        for number, (_, context, continuation) in enumerate(requests):
            kept = (context + continuation)[-(self.max_length + 1) :][: -len(continuation)]  # cut as the harness cuts
            together.setdefault(tuple(kept), []).append(number)
        if () in together:
            raise UserError(f"a continuation of more than {self.max_length} tokens leaves no room for its context")
        rows = [
            ChoiceRow(
                np.asarray(context, np.int32),
                tuple(np.asarray(requests[n][2], np.int32) for n in numbers),
                str(numbers[0]),
            )
            for context, numbers in together.items()
        ]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scored = score_continuations(self._model, rows, batch_tokens=self._batch_tokens, mesh=self._mesh)
        for numbers, (values, greedy) in zip(together.values(), scored, strict=True):
            for number, value, is_greedy in zip(numbers, values, greedy, strict=True):
                found[number] = (float(value), bool(is_greedy))
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, each in windows of `max_length` tokens that do not overlap."""
        windows: list[Request] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            for window in utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *utils.make_disjoint_window(window)))
                owner.append(number)
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        totals = np.zeros(len(requests))
        np.add.at(totals, owner, values)
        return totals.tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        raise UserError(
            "the model ntk-jax computes likelihoods and writes no text; take tasks of the kind multiple_choice, "
            "loglikelihood or loglikelihood_rolling"
        )
