"""`adapter_config.json` of PEFT read strictly: which linears of which layers have an adapter, of which rank and scale.

Strict, because a variant that is not noticed (activated LoRA, DoRA, ...) gives an adapter that runs and is wrong.
`KEYS` goes through all of PEFT's LoraConfig; a key that is not in it must be switched off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.models.names import MODULES

COMPUTED, INERT = "computed", "inert"
# Key → COMPUTED (it decides what is computed here), INERT (it changes nothing of what a saved adapter computes on plain
# linears), or the values that it may have: PEFT's default first, what else means the same behind it.
KEYS: dict[str, str | tuple[Any, ...]] = {
    "peft_type": COMPUTED,
    "r": COMPUTED,
    "lora_alpha": COMPUTED,
    "use_rslora": COMPUTED,
    "target_modules": COMPUTED,
    "exclude_modules": COMPUTED,
    "layers_to_transform": COMPUTED,
    "layers_pattern": COMPUTED,
    "rank_pattern": COMPUTED,
    "alpha_pattern": COMPUTED,
    # Where it comes from and what it was trained for.
    "task_type": INERT,
    "auto_mapping": INERT,
    "peft_version": INERT,
    "base_model_name_or_path": INERT,
    "revision": INERT,
    "inference_mode": INERT,
    # How it was trained and started: over, once it is saved. (`init_lora_weights` says which starts change the model.)
    "lora_dropout": INERT,
    "loftq_config": INERT,
    "eva_config": INERT,
    "corda_config": INERT,
    "lora_ga_config": INERT,
    "runtime_config": INERT,
    # Of other kinds of module, or of a switch below that must be off.
    "fan_in_fan_out": INERT,  # PEFT itself sets it to false for an nn.Linear
    "megatron_core": INERT,
    "qalora_group_size": INERT,
    "ensure_weight_tying": INERT,
    # pissa, olora, corda, loftq and lora_ga also change the frozen weights, which are not in these files; mica keeps B.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "lora_bias": (False,),
    "megatron_config": (None,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
}
# Every variant of LoRA so far is switched on by a key that is null, false or empty without it. So an unknown key with
# one of these values says that the adapter does not use something that came later; a number might mean anything.
_OFF: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class Shape:
    """The adapter of one linear of one layer: its rank, and α of the plain LoRA that computes the same."""

    rank: int
    alpha: float

    def at(self, rank: int) -> float:
        """The α that gives the same scale at another rank."""
        return self.alpha * (rank / self.rank)


def check_keys(settings: Mapping[str, Any], where: Path) -> None:
    """Raises UserError for a key at a value that changes what the adapter computes, if that is not computed here."""
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {settings.get('peft_type')!r} is not supported; only LORA is")
    for key, value in settings.items():
        allowed = KEYS.get(key, _OFF)
        if isinstance(allowed, str):
            continue
        # 0 and 1 are equal to False and True, and are neither.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            unknown = "" if key in KEYS else " (an unknown key, which may change what the adapter computes)"
            raise UserError(f"{where}: {key} = {value!r} is not supported{unknown}; only plain LoRA on linears is")


def shapes_of(settings: Mapping[str, Any], layers: int, where: Path) -> dict[tuple[int, str], Shape] | None:
    """(layer, linear) → its shape, for each that the settings say has an adapter; None where they name no linear.

    Raises UserError for a rank, an α or a pattern that is not of the right form.
    """
    ranks = _with_patterns(settings, "r", "rank_pattern", int, where)
    alphas = _with_patterns(settings, "lora_alpha", "alpha_pattern", (int, float), where)
    if settings.get("target_modules") is None:
        return None
    targets, excluded = (_names(settings.get(key), key, where) for key in ("target_modules", "exclude_modules"))
    if targets == "all-linear":
        targets = list(MODULES)
    chosen = _chosen_layers(settings, where)
    found = {}
    for layer in range(layers):
        for name, module in MODULES.items():
            key = f"model.layers.{layer}.{module}"
            if _matches(excluded, key, where) or not _matches(targets, key, where):
                continue
            # As in PEFT, a pattern over whole names says itself which layers it is for.
            if isinstance(targets, str) or chosen is None or chosen(key):
                found[layer, name] = shape_of(settings, _of_key(ranks, key, where), _of_key(alphas, key, where))
    return found


def shape_of(settings: Mapping[str, Any], rank: int, alpha: float) -> Shape:
    """rank and alpha as the files have them: rsLoRA (arXiv 2312.03732) scales by α/√R."""
    return Shape(rank, float(alpha) * math.sqrt(rank) if settings.get("use_rslora") else float(alpha))


def _with_patterns(settings: Mapping[str, Any], key: str, patterns: str, kind: Any, where: Path) -> dict[str, Any]:
    """Pattern → number, the number of linears that match none under ''."""
    given = settings.get(patterns) or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: {patterns} must map names to numbers, got {given!r:.60}")
    numbers = {**given, "": settings.get(key)}
    for pattern, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 2**31:  # also no NaN
            shown = f"{patterns} of {pattern}" if pattern else key
            raise UserError(f"{where}: {shown} must be a positive number, got {value!r}")
    return numbers


def _of_key(numbers: Mapping[str, Any], key: str, where: Path) -> Any:
    """PEFT's rule: the first pattern that matches the name or what stands behind a dot of it."""
    found = (pattern for pattern in numbers if pattern and _regular(rf"(.*\.)?({pattern})$", where).match(key))
    return numbers[next(found, "")]


def _names(value: Any, key: str, where: Path) -> str | list[str]:
    if value is None or isinstance(value, str):
        return value or []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise UserError(f"{where}: {key} must be a pattern or a list of names, got {value!r:.60}")


def _matches(names: str | list[str], key: str, where: Path) -> bool:
    """PEFT's rule: a text is a pattern over the whole name; a list has names, or their ends."""
    if isinstance(names, str):
        return _regular(names, where).fullmatch(key) is not None
    return any(key == name or key.endswith(f".{name}") for name in names)


def _chosen_layers(settings: Mapping[str, Any], where: Path) -> Callable[[str], bool] | None:
    """Whether the linear of a name is in `layers_to_transform`; None where all are."""
    layers = settings.get("layers_to_transform")
    if layers is None or layers == []:
        return None
    layers = layers if isinstance(layers, list) else [layers]
    if not all(type(layer) is int for layer in layers):
        raise UserError(f"{where}: layers_to_transform must be layer numbers, got {layers!r:.60}")
    patterns = _names(settings.get("layers_pattern"), "layers_pattern", where)
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    numbered = [_regular(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", where) for pattern in patterns]

    def chosen(key: str) -> bool:
        found = next(filter(None, (pattern.match(key) for pattern in numbered)), None)
        return found is not None and int(found["layer"]) in layers

    return chosen


def _regular(pattern: str, where: Path) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:  # the last two: nested or counted beyond measure
        raise UserError(f"{where}: {pattern!r:.60} is not a regular expression ({error})") from None
