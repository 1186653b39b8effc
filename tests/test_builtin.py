"""The embedded default: the committed files are what the generator writes, and say what the world says."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ntk_jax.builtin.datasets import Record, files, to_jsonl
from ntk_jax.builtin.domains import ATTRIBUTE, DOMAINS, GEAR, GLOVE, TRAIN_WORDS, USEFUL, train_words
from ntk_jax.builtin.families import FAMILIES, NEUTRAL
from ntk_jax.builtin.paths import DATA, MODEL
from ntk_jax.builtin.pretraining import examples
from ntk_jax.builtin.world import ATTRIBUTES, FACTS, FAMILIAR, NOVEL, Dice, level


@pytest.fixture(scope="module")
def committed() -> dict[str, list[Record]]:
    return {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
        for path in sorted(DATA.glob("*.jsonl"))
    }


def tokens_of(text: str) -> list[str]:
    """The text's words, without punctuation, in lower case."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def novel_in(text: str) -> list[str]:
    return [word for word in tokens_of(text) if word in FACTS["taste"] and word in NOVEL]


def test_the_committed_files_are_the_generator_s_bytes() -> None:
    written = {name: to_jsonl(records) for name, records in files().items()}
    assert sorted(written) == sorted(path.name for path in DATA.glob("*.jsonl"))
    for name, text in written.items():
        assert (DATA / name).read_bytes() == text.encode(), f"{name}: run scripts/make_builtin_data.py"


def test_dice_repeat_and_differ_by_name() -> None:
    draws = [[Dice(name).below(1000) for _ in range(1)] + Dice(name).shuffled(range(20)) for name in ("a", "a", "b")]
    assert draws[0] == draws[1] != draws[2]
    assert sorted(draws[0][1:]) == list(range(20))


def test_attributes_are_balanced_and_the_words_distinct() -> None:
    assert not set(FAMILIAR) & set(NOVEL) and len(set(FAMILIAR)) == len(FAMILIAR) and len(set(NOVEL)) == len(NOVEL)
    for attribute, values in ATTRIBUTES.items():
        for words in (FAMILIAR, NOVEL):
            assert Counter(FACTS[attribute][w] for w in words) == {v: len(words) // 4 for v in values}


def test_records_have_the_contracted_keys_and_unique_ids(committed: dict[str, list[Record]]) -> None:
    for name, records in committed.items():
        assert len({r["id"] for r in records}) == len(records)
        for r in records:
            assert r["source"] == "builtin" and r["prompt"] and r["response"], (name, r["id"])
            if name != "pool.jsonl":
                assert r["choices"][r["answer"]] == r["response"] and len(set(r["choices"])) == 4


def test_every_family_is_in_the_pool_as_often(committed: dict[str, list[Record]]) -> None:
    counts = Counter(r["task"] for r in committed["pool.jsonl"])
    assert set(counts) == set(FAMILIES) and len(FAMILIES) >= 12 and len(set(counts.values())) == 1
    assert all(0 < len(families) < len(FAMILIES) / 3 for families in USEFUL.values())
    assert set(USEFUL) == set(DOMAINS) and not any(set(NEUTRAL) & set(families) for families in USEFUL.values())


def test_useful_families_tell_the_attribute_of_every_novel_word(committed: dict[str, list[Record]]) -> None:
    for domain, useful in USEFUL.items():
        attribute = ATTRIBUTE[domain]
        stated: set[str] = set()
        for r in committed["pool.jsonl"]:
            values = [t for t in tokens_of(r["response"]) if t in ATTRIBUTES[attribute]]
            if r["task"] in useful:
                words = list(dict.fromkeys(novel_in(r["prompt"])))
                if r["response"] in words:  # "which of these is sweet?": the value is in the prompt
                    asked = [t for t in tokens_of(r["prompt"]) if t in ATTRIBUTES[attribute]]
                    assert [w for w in words if [FACTS[attribute][w]] == asked] == [r["response"]], r
                    continue
                assert set(values) == {FACTS[attribute][w] for w in words}, r
                stated.update(words)
            elif r["task"] not in ("ordinary", "stories"):  # attribute words, but of no invented word
                assert not values, r
        assert stated == set(NOVEL)


def test_families_without_an_attribute_speak_of_no_novel_word_s_attribute(committed: dict[str, list[Record]]) -> None:
    for r in committed["pool.jsonl"]:
        if r["task"] in ("ordinary", "stories"):
            assert not novel_in(r["prompt"] + " " + r["response"]), r


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_answers_follow_from_the_world(domain: str, committed: dict[str, list[Record]]) -> None:
    for name in ("train", "test"):
        for r in committed[f"{domain}.{name}.jsonl"]:
            words, right = novel_in(r["prompt"]), r["response"]
            if domain == "kitchen":
                expected = [FACTS["taste"][words[0]]]
            elif domain == "gloves":
                expected = [GLOVE[FACTS["warmth"][words[0]]]]
            elif domain == "rangers":
                expected = [GEAR[FACTS["home"][words[0]]]]
            else:
                best = max if "boat" in r["prompt"] or "heaviest" in r["prompt"] else min
                extreme = best(level("weight", w) for w in words)
                expected = [w for w in words if level("weight", w) == extreme]
            assert expected == [right], r
            assert right in r["choices"]
            if domain == "harbour":
                assert words == r["choices"], r


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_training_covers_a_part_of_the_words_and_the_test_all(domain: str, committed: dict[str, list[Record]]) -> None:
    train, test = committed[f"{domain}.train.jsonl"], committed[f"{domain}.test.jsonl"]
    assert 48 <= len(train) <= 100 and 300 <= len(test) <= 500
    in_train = {w for r in train for w in novel_in(r["prompt"])}
    assert in_train == set(train_words(domain)) and len(in_train) == TRAIN_WORDS < len(NOVEL) / 3
    assert {w for r in test for w in novel_in(r["prompt"])} == set(NOVEL)
    places = Counter(r["answer"] for r in test)
    assert max(places.values()) - min(places.values()) <= 1
    if domain != "harbour":
        assert set(Counter(r["response"] for r in test).values()) == {len(test) // 4}


def test_nothing_leaks_from_test_to_training(committed: dict[str, list[Record]]) -> None:
    test_prompts = {r["prompt"] for name, records in committed.items() if ".test." in name for r in records}
    for name, records in committed.items():
        if ".test." not in name:
            assert not test_prompts & {r["prompt"] for r in records}, name
    for domain in DOMAINS:
        prompts = [r["prompt"] for r in committed[f"{domain}.test.jsonl"]]
        assert len(set(prompts)) == len(prompts)


def test_pre_training_tells_no_attribute_of_a_novel_word() -> None:
    values = {v for vs in ATTRIBUTES.values() for v in vs} | set(GLOVE.values()) | set(GEAR.values())
    seen: set[str] = set()
    for prompt, response in examples(4000, Dice("test")):
        words = novel_in(prompt + " " + response)
        seen.update(words)
        assert not (words and values & set(tokens_of(prompt + " " + response))), (prompt, response)
    assert seen == set(NOVEL)  # but it does use the words


def test_the_model_is_small_and_every_text_fits_its_vocabulary(committed: dict[str, list[Record]]) -> None:
    from ntk_jax.models.model import load_model

    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    model = load_model("builtin:model")
    assert model.config.model_type == "llama"
    vocabulary = model.tokenizer.get_vocab()
    assert max(vocabulary.values()) < model.config.vocab_size
    for word in FAMILIAR + NOVEL:
        assert len(model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    for records in committed.values():
        for r in records:
            ids = model.tokenizer(f"{r['prompt']} {r['response']}")["input_ids"]
            assert ids[0] == model.config.bos_token_id and max(ids) < model.config.vocab_size and len(ids) < 64
            assert model.tokenizer.decode(ids, skip_special_tokens=True) == f"{r['prompt']} {r['response']}"
