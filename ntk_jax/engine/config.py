"""Configs: frozen dataclasses of settings, read from YAML and `--a.b=value` overrides, and explained to people.

An unknown key, a wrong type or a value outside its choices or its range is a `UserError` that names the key
(`score.objective`) and offers the nearest known one. What the keys are is stated by the dataclasses (`settings.py`):
each pipeline composes its own from sections.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ntk_jax.errors import UserError, shown
from ntk_jax.settings import HELP
from ntk_jax.storage.reading import read_text

LARGEST = 2**20  # bytes of a config; the longest of configs/ has some 2,000
PIPELINE = "pipeline"  # the key of a file that says which pipeline it is for, for commands that serve all of them


@dataclass(frozen=True)
class Key:
    """One setting, as people are shown it. values: its type, choices or range in words. default: as YAML writes it."""

    name: str
    values: str
    default: str
    help: str


def read_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file with overrides such as `--score.objective=probe` applied (values are YAML too).

    Raises UserError: the file cannot be read or is not YAML (its line is named), it holds no mapping, or an override is
    not of that form.
    """
    tree = _read_yaml(read_text(path, "give the path of a YAML file", LARGEST), str(path), "correct the syntax")
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections; found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def load_config(path: str | Path, cls: type, overrides: Sequence[str] = (), others: Sequence[type] = ()) -> Any:
    """The config `cls` from a YAML file and overrides.

    Relative data and model paths are kept as written: they are relative to the working directory.
    others: configs of other pipelines, whose sections may stand in the same file; they are checked and not used.
    Raises UserError: as `read_tree` and `build`; an override of a section that only others have.
    """
    tree = read_tree(path, overrides)
    tree.pop(PIPELINE, None)
    own = {f.name for f in dataclasses.fields(cls)}
    for other in others:
        foreign = {f.name for f in dataclasses.fields(other)} - own
        build(other, {key: value for key, value in tree.items() if key in foreign}, str(path))
        tree = {key: value for key, value in tree.items() if key not in foreign}
        for override in overrides:
            section = override.removeprefix("--").partition("=")[0].split(".")[0]
            if section in foreign:
                raise UserError(f"override {override!r}: this command has no section {section}; leave it out")
    return build(cls, tree, str(path))


def keys(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every setting of a config, in order, sections in dotted names."""
    hints = _hints(cls)
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), f"{prefix}{item.name}.")
        else:
            yield Key(prefix + item.name, _values(hint), _yaml(_default(item)), item.metadata.get(HELP, ""))


def sections(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, meaning) of every section of a config, in order; the config itself comes first, without a name."""
    yield prefix.rstrip("."), " ".join((cls.__doc__ or "").split())
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(typing.cast(type, hint), f"{prefix}{name}.")


def explain_keys(configs: Mapping[str, type], beginning: str, width: int) -> str:
    """The keys of configs for a terminal: each with its default, what it may be in brackets, and its meaning; those
    whose name begins so. configs: {pipeline: config}; a key that several share is explained once.

    Raises UserError: there is no such key (the nearest one is offered).
    """
    found: dict[str, tuple[Key, list[str]]] = {}
    meanings: dict[str, str] = {}
    for name, cls in configs.items():
        meanings |= {section: meaning for section, meaning in sections(cls) if section}
        for key in keys(cls):
            found.setdefault(key.name, (key, []))[1].append(name)
    chosen = [key for name, key in found.items() if name.startswith(beginning)]
    chosen.sort(key=lambda item: "." in item[0].name)  # those beside the sections come first, whoever has them
    if not chosen:
        near = difflib.get_close_matches(beginning, [*found, *meanings], n=1, cutoff=0.4)
        raise UserError(f"no key begins with {beginning}" + (f"; did you mean {near[0]}?" if near else ""))
    lines: list[str] = []
    before = ""
    for key, pipelines in chosen:
        section = key.name.rpartition(".")[0]
        if section != before:
            of = f" (pipeline {', '.join(pipelines)})" if len(pipelines) < len(configs) else ""
            lines += ["", *textwrap.wrap(f"{section}{of}: {meanings[section]}", width)]
            before = section
        lines += textwrap.wrap(f"{key.name} = {key.default}  [{key.values}]", width, **_indent(2, 6))
        lines += textwrap.wrap(key.help, width, **_indent(6, 6))
    return "\n".join(lines).lstrip("\n")


def _indent(first: int, others: int) -> dict[str, Any]:
    return {"initial_indent": " " * first, "subsequent_indent": " " * others, "break_on_hyphens": False}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"score.objective": "probe"}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else None


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "":
        return '""'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(hint: Any) -> str:
    """What a setting may be, in words: `whole number, at least 1, or null`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_values(args[0])}, {args[1]}"
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        if typing.get_origin(inner) is Literal:
            return _either([*map(str, typing.get_args(inner)), "null"])
        text = _values(inner)
        return f"{text}, or null" if "," in text else f"{text} or null"
    if origin is Literal:
        return _either([*map(str, args)])
    if origin is tuple:
        name, comma, range_ = _values(args[0]).partition(",")
        return f"list of {name}s{comma}{range_}"
    if origin is Mapping:
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, str(hint))


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _read_yaml(text: str, place: str, remedy: str) -> Any:
    """The value of a YAML text. Raises UserError, naming the line where the library does."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise UserError(f"{place}: not valid YAML (nested too deeply); {remedy}") from None
    except Exception as error:  # the readers of tags and scalars raise what they like: `!!int x`, a 13th month
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) if isinstance(error, yaml.YAMLError) else error
        raise UserError(f"{place}{line}: not valid YAML{f' ({problem})' if problem else ''}; {remedy}") from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the library would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def build(cls: type, tree: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Makes dataclass `cls` from a mapping, strictly."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: {prefix.rstrip('.')} must be a mapping, got {shown(tree)}")
    hints = _hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            remedy = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {remedy}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = build(typing.cast(type, hint), value if value is not None else {}, where, f"{prefix}{key}.")
        else:
            values[key] = _coerce(value, hint, where, prefix + str(key))
            refuse_unusable(values[key], f"{where}: {prefix}{key}")
    return cls(**values)


def to_tree(config: Any) -> Any:
    """The plain mapping that `build` reads back: what config.yaml of a run directory holds."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return list(config) if isinstance(config, tuple) else config


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.removeprefix("--").partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} is not of the form --section.key=value")
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:  # absent, or a section whose keys are all commented out
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} is not a section")
    node[last] = _read_yaml(text, f"override {override!r}: the value", "quote it")


def refuse_unusable(value: Any, place: str) -> None:
    """Raises UserError for what no setting can be, though it has the right type. place: how a message calls it."""
    if isinstance(value, tuple):
        for item in value:
            refuse_unusable(item, place)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{place} = {shown(value)} is beyond 64 bits; give a smaller number")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place} = {value} is not a finite number; give one")
    if isinstance(value, str) and any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{place} = {shown(value)} holds a character that no text or path has; remove it")


def _refuse_no_json(value: Any, place: str, depth: int = 0) -> None:
    """Raises UserError for what JSON cannot hold, such as the dates of YAML, or a mapping that holds itself."""
    if depth > 50:
        raise UserError(f"{place} is nested too deeply, or holds itself; write it out")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UserError(f"{place}: the name {shown(name)} is no text; put it in quotes")
            refuse_unusable(name, place)
            _refuse_no_json(item, f"{place}.{shown(name)[1:-1]}" if depth < 3 else place, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _refuse_no_json(item, place, depth + 1)
    elif value is not None and not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise UserError(f"{place} is a {kind}, {shown(value)}, where a text or a number is asked for; put it in quotes")
    else:
        refuse_unusable(value, place)


def _coerce(value: Any, hint: Any, where: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _coerce(value, args[0], where, key)
        if not args[1].holds(value):
            raise UserError(f"{where}: {key} = {shown(value)} must be {args[1]}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where, key)
    if origin is Literal:
        if value is None and "none" in args:  # YAML reads a bare `none` as a string, but `null` is a habit
            return "none"
        if value not in args:
            raise UserError(f"{where}: {key} = {shown(value)} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise UserError(f"{where}: {key} must be a list, got {shown(value)}")
        return tuple(_coerce(item, args[0], where, key) for item in items)
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{where}: {key} must be a mapping from names, got {shown(value)}")
        _refuse_no_json(value, f"{where}: {key}")
        return dict(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 2e-5 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {key} must be {hint.__name__}, got {shown(value)}")
    return value
