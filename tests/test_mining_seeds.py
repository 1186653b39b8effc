"""What seeds are drawn from and asked for, how replies are read, the file of seeds, and a user's own."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply
from ntk_jax.llm.usable import Unusable, first_sentences, read_list, unusable
from ntk_jax.mining.seeds.dimensions import DIMENSIONS, INDUSTRIES, Dimensions, Length, dimensions_of
from ntk_jax.mining.seeds.own import seed_files, seeds_of_documents, seeds_of_keywords
from ntk_jax.mining.seeds.plan import plan_seeds
from ntk_jax.mining.seeds.prompts import FIELDS, prompt_id, seed_request
from ntk_jax.mining.seeds.replies import Found, read_reply
from ntk_jax.mining.seeds.seed import Seed, check_domains, domain_matrix, read_file, write_file

DOMAINS = {"medicine": "diseases, drugs and patients", "law": "courts, contracts and rights"}
WORDS = "The nurse measured the child's fever twice before the doctor changed the dose of the drug at noon again."
DOCUMENT = WORDS + " Nobody had expected that outcome, yet all of them wrote it down."


def reply_of(**fields: object) -> Reply:
    return Reply(json.dumps({**dict.fromkeys(FIELDS, "x y"), "document": DOCUMENT, **fields}), "stop")


def read(reply: Reply | str, *, json_reply: bool = True, **how: object) -> Found | Unusable:
    reply = Reply(reply, "stop") if isinstance(reply, str) else reply
    return read_reply(reply, json_reply=json_reply, question=how.pop("question", ""), **how)  # type: ignore[arg-type]


# -- dimensions and the plan -----------------------------------------------------------------------------------------


def test_the_dimensions_have_the_sizes_of_the_paper() -> None:
    assert DIMENSIONS.shape == (17, 3, 11) and DIMENSIONS.cells == 561
    assert len(INDUSTRIES) == 21 and all(check_domains(INDUSTRIES))
    assert len(set(DIMENSIONS.types)) == 17 and len(set(DIMENSIONS.demeanours)) == 11
    assert check_domains({"law": None, "art": "pictures"}) == {"law": INDUSTRIES["law"], "art": "pictures"}


def test_own_dimensions_take_the_place_of_some() -> None:
    own = dimensions_of({"types": ["memo", "poem"], "lengths": {"tiny": [5, 10]}})
    assert own == Dimensions(("memo", "poem"), (Length("tiny", 5, 10),), DIMENSIONS.demeanours)
    assert dimensions_of(None) is DIMENSIONS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": ["memo"]}, "'kinds' is none of them"),
        ({"types": []}, "types must be a list of words"),
        ({"types": ["memo", "memo"]}, "types has 'memo' twice"),
        ({"demeanours": "calm"}, "demeanours must be a list"),
        ({"lengths": {"short": [9, 3]}}, "the smaller one first"),
        ({"lengths": ["short"]}, "lengths must be"),
    ],
)
def test_wrong_dimensions_are_refused(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dimensions_of(given)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True),
    per_domain=st.integers(1, 30),
    share=st.floats(0, 1),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 9),
)
def test_every_domain_gets_its_number_evenly(names, per_domain, share, sizes, seed) -> None:
    dimensions = Dimensions(
        tuple(f"t{i}" for i in range(sizes[0])),
        tuple(Length(f"l{i}", 1, 2) for i in range(sizes[1])),
        tuple(f"d{i}" for i in range(sizes[2])),
    )
    how = dict(per_domain=per_domain, two_domain_share=share, dimensions=dimensions, seed=seed)
    slots = plan_seeds(names, **how)
    assert slots == plan_seeds(names, **how), "the same arguments give the same slots"
    assert len({slot.id for slot in slots}) == len(slots)
    for name in names:
        own = [slot for slot in slots if name in slot.domains]
        assert len(own) == per_domain
        pairs = sum(len(slot.domains) == 2 for slot in own)
        assert pairs <= round(share * per_domain)
        if len(names) == 2:
            assert pairs == round(share * per_domain)
        single = Counter((s.type, s.length.name, s.demeanour) for s in own if len(s.domains) == 1)
        if share == 0:
            every = [single[cell] for cell in product(*_values(dimensions))]
            assert max(every) - min(every) <= 1, "no cell comes twice before all have come once"


def _values(dimensions: Dimensions) -> tuple[tuple[str, ...], ...]:
    return dimensions.types, tuple(length.name for length in dimensions.lengths), dimensions.demeanours


def test_single_values_come_evenly_too() -> None:
    slots = plan_seeds(["law"], per_domain=200, two_domain_share=0.1, dimensions=DIMENSIONS)
    assert len({(s.type, s.length, s.demeanour) for s in slots}) == 200
    for counts in (
        Counter(s.type for s in slots),
        Counter(s.length for s in slots),
        Counter(s.demeanour for s in slots),
    ):
        assert max(counts.values()) - min(counts.values()) <= 3
    assert len({(s.type, s.demeanour) for s in slots}) >= 180, "of 187 pairs"


def test_topics_go_round() -> None:
    topics = {"law": ["bail", "wills"]}
    slots = plan_seeds(["law", "medicine"], per_domain=4, two_domain_share=0.5, dimensions=DIMENSIONS, topics=topics)
    assert Counter(t for s in slots for t in s.topics) == {"bail": 2, "wills": 2}
    with pytest.raises(UserError, match="no domain of this run"):
        plan_seeds(["law"], per_domain=1, two_domain_share=0, dimensions=DIMENSIONS, topics={"art": ["x"]})
    with pytest.raises(UserError, match="give a list of topics"):
        plan_seeds(["law"], per_domain=1, two_domain_share=0, dimensions=DIMENSIONS, topics={"law": "bail"})


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_a_request_says_everything_that_was_drawn() -> None:
    topics = {"law": ["bail"], "medicine": ["fever"]}
    slots = plan_seeds(list(DOMAINS), per_domain=3, two_domain_share=0.4, dimensions=DIMENSIONS, topics=topics)
    for slot in slots:
        for json_reply in (True, False):
            request = seed_request(slot, DOMAINS, json_reply=json_reply)
            text = request.messages[0]["content"]
            wanted = [slot.type, slot.demeanour, str(slot.length.low), *slot.topics]
            assert all(part in text for part in wanted), text
            assert all(DOMAINS[name] in text for name in slot.domains) and "{" not in text
            assert (request.schema is not None) == json_reply
            assert len(prompt_id(request)) == 12
    bare = plan_seeds(["law"], per_domain=30, two_domain_share=0, dimensions=DIMENSIONS)
    texts = [seed_request(slot, DOMAINS, json_reply=False).messages[0]["content"] for slot in bare]
    assert {text.split(" about ")[1].split(".")[0] for text in texts} == {"courts", "contracts", "rights"}
    requests = [seed_request(slot, DOMAINS, json_reply=True) for slot in slots]
    assert len({request.seed for request in requests}) == len(slots)
    assert any("both of these fields" in request.messages[0]["content"] for request in requests)
    assert seed_request(slots[0], DOMAINS, json_reply=True, max_tokens=100).max_tokens == 100


# -- replies ---------------------------------------------------------------------------------------------------------


def test_json_is_read_in_the_shapes_that_models_write() -> None:
    plain = json.dumps({"topic": "fever", "document": DOCUMENT})
    for text in (
        plain,
        f"```json\n{plain}\n```",
        f"Here is the document:\n{plain}",
        plain.replace('"topic"', '"TOPIC"').replace('"document"', '"Document"'),
        f"[{plain}, {plain}]",
        plain[:-2],  # cut in its last letters
        plain.replace("}", ",}"),
    ):
        found = read(text)
        assert isinstance(found, Found), text
        assert found.text.startswith(WORDS) and found.steps == {"topic": "fever"}
    nested = read(reply_of(document={"title": "On fever", "body": [DOCUMENT]}))
    assert isinstance(nested, Found) and nested.text == f"On fever\n\n{DOCUMENT}"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("", "failed", reason="time-out"), "no reply: time-out"),
        (Reply(" \n", "stop"), "an empty reply"),
        (Reply("no braces at all", "stop"), "no JSON object"),
        (Reply("{}", "stop"), "an empty JSON object"),
        (Reply('{"topic": "fever"}', "stop"), "no document in the JSON"),
        (reply_of(document=None), "no document in the JSON"),
        (reply_of(document="..."), "fewer than 20 words"),
        (reply_of(document="I'm sorry, but I cannot write that. " * 5), "the model declined"),
        (reply_of(document="the same four words " * 30), "the text repeats itself"),
    ],
)
def test_what_is_no_seed_says_why(reply: Reply, reason: str) -> None:
    found = read(reply)
    assert isinstance(found, Unusable) and found.reason == reason
    assert found.again == ("JSON" in reason)


def test_a_text_that_repeats_the_question_is_no_seed() -> None:
    assert unusable(DOCUMENT, question=f"Write this. {DOCUMENT}") == "the text repeats the question"
    assert unusable(DOCUMENT, question="Write about fever.") is None


def test_plain_text_is_read_with_labels_and_without() -> None:
    for text in (
        DOCUMENT,
        f"Sure, here is a memo:\n\n{DOCUMENT}",
        f"**Topic:** fever\nAuthor: a nurse\n\nDOCUMENT:\n{DOCUMENT}",
        f"Document: {DOCUMENT}",
        f"```\n{DOCUMENT}\n```",
    ):
        found = read(text, json_reply=False)
        assert isinstance(found, Found) and found.text == DOCUMENT, text
    steps = read(f"**Topic:** fever\nAuthor: a nurse\n\nDOCUMENT:\n{DOCUMENT}", json_reply=False)
    assert isinstance(steps, Found) and steps.steps == {"topic": "fever", "author": "a nurse"}


def test_a_seed_may_be_written_without_spaces() -> None:
    first = "护士走到床边，看着病人的体温表，记下了她所看到的一切。"
    second = "医生说心脏跳动得很厉害，明天还要再检查一次！"
    found = read_reply(Reply(first + second + "然后", "length"), json_reply=False, question="写一份报告")
    assert isinstance(found, Found) and found.text == first + second and found.cut
    assert first_sentences(first + second, 30) == first
    assert unusable(first * 3) == "the text repeats itself"


def test_thoughts_are_no_part_of_a_seed() -> None:
    thought = "<think>I might write about rivers, " + "and about ships " * 20 + "</think>\n\n"
    for marked in (thought, thought.removeprefix("<think>")):  # some templates write the first mark into the prompt
        found = read_reply(Reply(marked + DOCUMENT, "stop"), json_reply=False, question="")
        assert isinstance(found, Found) and found.text == DOCUMENT
    endless = Reply(thought.removesuffix("</think>\n\n"), "length")
    for is_json in (True, False):
        assert read_reply(endless, json_reply=is_json, question="") == Unusable("nothing but thoughts")
    assert read_list("<think>- law?</think>\n- bail\n- tort") == ["bail", "tort"]


def test_a_reply_that_was_cut_ends_with_a_sentence() -> None:
    found = read(Reply(DOCUMENT + " And then the", "length"), json_reply=False)
    assert found == Found(DOCUMENT, {}, cut=True)
    assert first_sentences("One two. Three four.", 3) == "One two."
    assert first_sentences("One two three", 2) == "One two"
    assert first_sentences(" One. Two! ", 9) == "One. Two!"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.booleans(), st.sampled_from(["stop", "length"]))
def test_no_reply_is_an_error(text: str, json_reply: bool, finish: str) -> None:
    found = read_reply(Reply(text, finish), json_reply=json_reply, question="q", min_words=1)
    assert isinstance(found, Unusable) or found.text.strip()


def test_lists_of_topics() -> None:
    assert read_list('["a b", "c", "a b"]') == ["a b", "c"]
    assert read_list('Here: {"topics": ["a", "b"]}') == ["a", "b"]
    assert read_list("1. first one\n2) second\n- third") == ["first one", "second", "third"]
    assert read_list("") == []


# -- domains and the file of seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({}, "there is no domain"),
        ({"": "x"}, "has no name"),
        ({"law": " "}, "has no description"),
        ({"alchemy": None}, "has no description"),
        ([("law", "courts"), ("Law", "rights")], "'Law' is named twice"),
    ],
)
def test_wrong_domains_are_refused(domains, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_domains(domains)


def test_a_file_of_seeds_is_read_as_it_was_written(tmp_path: Path) -> None:
    seeds = [
        Seed("a", "one\ntext", ("medicine",), {"origin": "written", "type": "memo"}),
        Seed("b", "zweiter Text – ü", ("medicine", "law")),
    ]
    write_file(tmp_path / "seeds.jsonl", seeds)
    assert read_file(tmp_path / "seeds.jsonl", DOMAINS) == seeds
    assert domain_matrix(seeds, DOMAINS).tolist() == [[True, False], [True, True]]
    assert domain_matrix([], DOMAINS).shape == (0, 2)
    (tmp_path / "bare.jsonl").write_text('{"text": "t", "domains": "law"}\n')
    assert read_file(tmp_path / "bare.jsonl") == [Seed("bare-1", "t", ("law",))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no seed in it"),
        (['"a"'], ":1: a seed is a JSON object"),
        (['{"domains": ["law"]}'], ':1: the seed has no "text"'),
        (['{"text": " ", "domains": ["law"]}'], ':1: the seed has no "text"'),
        (['{"text": "t"}'], ':1: the seed has no "domains"'),
        (['{"text": "t", "domains": []}'], ':1: the seed has no "domains"'),
        (['{"text": "t", "domains": ["law", "law"]}'], ":1: the seed names the domain 'law' twice"),
        (['{"text": "t", "domains": ["art"]}'], ":1: 'art' is no domain of this run; there are: medicine, law"),
        (['{"id": "x", "text": "t", "domains": ["law"]}'] * 2, ":2: the id 'x' occurs a second time"),
        (['{"text": "t", "domains": ["law"]}', "{"], ":2: not JSON"),
    ],
)
def test_a_wrong_file_of_seeds_is_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=message):
        read_file(tmp_path / "seeds.jsonl", DOMAINS)


# -- a user's own ----------------------------------------------------------------------------------------------------


def test_own_documents_of_any_record_file(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": DOCUMENT, "title": "Fever"}) + "\n")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "What is bail?", "response": "Money."}\n')
    text = seeds_of_documents(tmp_path / "texts.jsonl", "medicine", list(DOMAINS))
    assert text[0].text == DOCUMENT and text[0].domains == ("medicine",)
    assert text[0].facts == {"origin": "document", "source": "texts", "document": "texts-1", "title": "Fever"}
    pair = seeds_of_documents(tmp_path / "pairs.jsonl", "law", list(DOMAINS))
    assert pair[0].text == "What is bail?\n\nMoney."
    talk = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    assert seeds_of_documents(talk, "law", list(DOMAINS))[0].text == "Hi\n\nHo"
    short = seeds_of_documents(tmp_path / "texts.jsonl", "medicine", list(DOMAINS), max_words=22)
    assert short[0].text == WORDS


def test_own_documents_may_name_their_domains(tmp_path: Path) -> None:
    rows = [{"text": "a b", "domains": ["law", "medicine"], "type": "memo"}, {"text": "c d", "domain": "law"}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = seeds_of_documents(tmp_path / "mixed.jsonl", None, list(DOMAINS))
    assert [seed.domains for seed in found] == [("law", "medicine"), ("law",)]
    assert found[0].facts["type"] == "memo"


def test_a_sample_of_own_documents() -> None:
    rows = [{"text": f"text {i}"} for i in range(50)]
    few = seeds_of_documents(rows, "law", list(DOMAINS), limit=5)
    more = seeds_of_documents(rows, "law", list(DOMAINS), limit=9)
    assert len(few) == 5 and {seed.text for seed in few} < {seed.text for seed in more}
    assert len(seeds_of_documents(rows, "law", list(DOMAINS), limit=99)) == 50


@pytest.mark.parametrize(
    ("rows", "domain", "message"),
    [
        ([{"text": "a"}], "art", "'art' is no domain"),
        ([{"text": "a"}], None, "names no domain"),
        ([{"text": "a", "domain": "art"}], None, "'art' is no domain"),
        ([{"text": "a", "domains": ["law", "law"]}], None, "'law' twice"),
    ],
)
def test_own_documents_that_are_wrong(rows: list, domain: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        seeds_of_documents(rows, domain, list(DOMAINS))


def test_keywords() -> None:
    found = seeds_of_keywords({"law": ["bail", " tort "]}, DOMAINS)
    assert [seed.text for seed in found] == [f"bail ({DOMAINS['law']})", f"tort ({DOMAINS['law']})"]
    assert len({seed.id for seed in found}) == 2
    for wrong, message in (
        ({"art": ["x"]}, "'art' is no domain"),
        ({"law": "bail"}, "give a list of words"),
        ({"law": []}, "give a list of words"),
        ({"law": ["bail", "Bail"]}, "'bail' is there twice"),
    ):
        with pytest.raises(UserError, match=message):
            seeds_of_keywords(wrong, DOMAINS)


def test_files_of_own_seeds() -> None:
    assert seed_files({"law": "a.jsonl", "*": ["b", "c"]}) == {"law": ["a.jsonl"], "*": ["b", "c"]}
    for wrong in ({"law": 3}, {"law": []}, {"law": [1]}):
        with pytest.raises(UserError, match="give a file or a list of files"):
            seed_files(wrong)
