"""How well each way of mining finds a domain in a corpus of hidden sources: precision, recall and average precision,
over several draws of seeds, with intervals.

    python scripts/experiment_mining.py --corpus ../shared/data/corpus --encoder DIR --out runs/mining --chunks 20000

The chunks are a fixed random sample of the corpus: a larger one holds a smaller one, so that embeddings are kept. All
that was computed lies in --out, and the same command goes on where it was stopped. Results: results.json (every number)
and results.md (the tables).

Two readings of what is right: `strict`, the source of the domain alone; `wide`, also the chapters of textbooks on the
same matter, which are a label of their own. The miner sees neither.

--seeds: files of seeds (JSONL: text, domains), those of one set joined by commas; each set has its own tables. A draw
takes --share of the seeds of every domain. Intervals: over draws, mean ± t s / √draws, cut at 0 and 1; over documents,
95% of 200 bootstrap resamples of whole documents, the same ones for every method.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mining_methods
import numpy as np
from measurement import command_line, environment
from mining_methods import CONTROLS, METHODS, Task
from mining_tables import measured, tables

from ntk_jax.data.chunks import chunks_of
from ntk_jax.errors import UserError
from ntk_jax.mining.seeds.seed import Seed, domain_matrix, read_file
from ntk_jax.models.embedder import Embedder, load_embedder
from ntk_jax.storage.atomic import replacing, write_json, write_lines, write_text
from ntk_jax.storage.reading import read_json, read_json_lines

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 500  # chunks embedded at once and kept together
DOMAINS = {  # name: the domain's names in files of seeds, its file or source, sources of the same matter
    "medical": (
        ("medicine", "medical"),
        "medical-medquad",
        ("openstax/osbooks-anatomy-physiology", "openstax/osbooks-microbiology"),
    ),
    "legal": (("law", "legal"), "legal-cuad", ("openstax/osbooks-business-law",)),
    # No setting of any method was chosen with these two in view.
    "financial": (("finance",), "openstax/osbooks-principles-finance", ()),
    "public affairs": (("public affairs",), "speeches", ("openstax/osbooks-american-government",)),
}


def sample(corpus: Path, words: int, count: int, out: Path) -> list[dict[str, Any]]:
    """The first `count` chunks of the corpus in a fixed random order."""
    path = out / f"chunks-{words}-{count}.jsonl"
    if not path.exists():
        files = sorted(corpus.glob("*.train.jsonl.xz"))
        if not files:
            raise UserError(f"{corpus} has no files *.train.jsonl.xz; give the folder of the corpus")
        found = []
        for file in files:
            with lzma.open(file, "rt", encoding="utf8") as lines:
                for line in lines:
                    record = json.loads(line)
                    text, own = (
                        record["text"],
                        {"document": record["id"], "source": record["source"], "file": file.name},
                    )
                    found += [{**own, "text": text[a:b]} for a, b, number in chunks_of(text, words) if number >= 30]
            print(f"{file.name}: {len(found):,} chunks so far", flush=True)
        order = np.random.default_rng(12).permutation(len(found))[:count]
        write_lines(path, (json.dumps({**found[place], "of": len(found)}) for place in order))
    return [dict(row) for row in read_json_lines(path, f"delete {path}")]


def embedded(embedder: Embedder, chunks: list[dict[str, Any]], folder: Path) -> np.ndarray:
    """[N, D] of the chunks, block by block; blocks that are there are read. Raises UserError: they are of others."""
    facts = {**embedder.facts, "words": [chunk["text"].split()[0] for chunk in chunks[:20]]}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "facts.json").exists():
        if read_json(folder / "facts.json", f"delete {folder}") != json.loads(json.dumps(facts)):
            raise UserError(f"{folder} holds embeddings of another encoder or other chunks; give another --out")
    else:
        write_json(folder / "facts.json", facts)
    blocks, begin, new = [], time.time(), 0
    for start in range(0, len(chunks), BLOCK):
        texts = [chunk["text"] for chunk in chunks[start : start + BLOCK]]
        path = folder / f"{start // BLOCK:06d}.npy"
        there = np.load(path) if path.exists() else np.zeros((0, embedder.dim), np.float32)
        if len(there) < len(texts):
            there = embedder.embed(texts)
            with replacing(path) as file:
                np.save(file, there)
            new += len(texts)
            left = (len(chunks) - start - len(texts)) * (time.time() - begin) / new
            print(f"embedded {start + len(texts):,} of {len(chunks):,}, about {left / 60:.0f} minutes left", flush=True)
        blocks.append(there[: len(texts)])
    return np.concatenate(blocks)


def draw(seeds: list[Seed], share: float, number: int) -> np.ndarray:
    """Places of the seeds of a draw: `share` of those of each domain (a seed of two counts as the first's)."""
    rng, taken = np.random.default_rng([number, 77]), []
    for name in dict.fromkeys(seed.domains[0] for seed in seeds):
        own = rng.permutation([place for place, seed in enumerate(seeds) if seed.domains[0] == name])
        taken += own[: max(1, round(share * len(own)))].tolist()
    return np.array(sorted(taken))


def truth_of(domain: str, chunks: list[dict[str, Any]]) -> np.ndarray:
    """[N]: 2 of the domain's source, 1 of a source of the same matter, 0 others."""
    _, own, related = DOMAINS[domain]

    def of(chunk: dict[str, Any]) -> int:
        return 2 if chunk["file"].startswith(own) or chunk["source"] == own else int(chunk["source"] in related)

    return np.array(list(map(of, chunks)), np.int8)


def seed_sets(given: list[str]) -> dict[str, list[Seed]]:
    """{name: seeds} of --seeds: a file, or several joined by commas, NAME= before them where it is given."""
    found: dict[str, list[Seed]] = {}
    for text in given:
        name, _, files = text.rpartition("=")
        paths = files.split(",")
        name = name or Path(paths[0]).name.split(".")[0]
        if name in found:
            raise UserError(f"two sets of seeds are named {name}; write NAME=FILE")
        found[name] = [seed for path in paths for seed in read_file(path)]
    return found


def scored(task: Task, path: Path, only: list[str]) -> dict[str, np.ndarray]:
    """{method: [N] scores} of a draw; what was computed before is read."""
    there: dict[str, np.ndarray] = dict(np.load(path)) if path.exists() else {}
    jobs = {name: (method, task) for name, method in METHODS.items()}
    other = mining_methods.shuffled(task)
    jobs |= {f"{name}, shuffled seed labels": (method, other) for name, method in CONTROLS.items()}
    for name, (method, own) in jobs.items():
        if name in there or (only and name not in only):
            continue
        begin = time.time()
        there[name] = np.asarray(method(own), np.float32)
        print(f"  {path.stem}: {name}, {time.time() - begin:.1f} s", flush=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **there)
        if task.notes:
            write_json(path.with_suffix(".json"), task.notes)
    return there


def write_best(folder: Path, chunks: list[dict[str, Any]], scores: dict[str, np.ndarray], count: int) -> None:
    """The chunks that each method likes best, the best first, as texts that scripts/experiment_pretrain.py reads."""
    folder.mkdir(exist_ok=True)
    for name, found in scores.items():
        order = np.argsort(-found, kind="stable")[:count].tolist()
        records = (json.dumps({"id": f"chunk-{place}", "text": chunks[place]["text"]}) for place in order)
        write_lines(folder / f"{re.sub('[^a-zA-Z0-9]+', '-', name)}.jsonl", records)


def run(arguments: argparse.Namespace) -> None:
    """All sets, domains and draws, then the tables."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    chunks = sample(Path(arguments.corpus), arguments.words, arguments.chunks, out)
    print(
        f"{len(chunks):,} of {chunks[0]['of']:,} chunks; {dict(Counter(chunk['file'] for chunk in chunks))}", flush=True
    )
    embedder = load_embedder(arguments.encoder)
    vectors = embedded(embedder, chunks, out / f"embeddings-{arguments.words}")
    texts = [chunk["text"] for chunk in chunks]
    _, documents = np.unique([chunk["document"] for chunk in chunks], return_inverse=True)
    results: list[dict[str, Any]] = []
    for name, seeds in seed_sets(arguments.seeds).items():
        seed_vectors = embedder.embed([seed.text for seed in seeds])
        names = list(dict.fromkeys(own for seed in seeds for own in seed.domains))
        own = domain_matrix(seeds, names)
        for domain in arguments.domain:
            place = next((names.index(known) for known in DOMAINS[domain][0] if known in names), None)
            if place is None:
                print(f"{name}: no seed of {' or '.join(DOMAINS[domain][0])}; left out", flush=True)
                continue
            draws = []
            for number in range(arguments.draws):
                taken = draw(seeds, arguments.share, number)
                task = Task(
                    domain,
                    texts,
                    vectors,
                    documents,
                    [seeds[i].text for i in taken],
                    seed_vectors[taken],
                    own[taken],
                    names,
                    place,
                    number,
                )
                path = out / f"scores-{name}-{domain}-{len(chunks)}-{arguments.share:g}-{number}.npz"
                draws.append(scored(task, path, arguments.methods))
            if arguments.best:
                write_best(out / f"best-{name}-{domain}", chunks, draws[0], arguments.best)
            truth = truth_of(domain, chunks)
            results.append({"seeds": name, "domain": domain, **measured(draws, truth, documents)})
            facts = {**environment(), "embedder": embedder.facts, "arguments": vars(arguments)}
            write_json(out / "results.json", {"about": facts, "results": results})
            write_text(out / "results.md", tables(results, len(chunks), arguments.draws))
    print((out / "results.md").read_text(encoding="utf8"))


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=str(ROOT.parent / "shared" / "data" / "corpus"), help="its folder")
    parser.add_argument("--encoder", required=True, help="folder of the encoder, or builtin:model")
    parser.add_argument("--out", required=True, help="folder of everything that is computed")
    parser.add_argument("--chunks", type=int, default=20000)
    parser.add_argument("--words", type=int, default=180, help="of a chunk, at most")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.6, help="of the seeds of each domain in a draw")
    parser.add_argument("--domain", nargs="+", choices=list(DOMAINS), default=list(DOMAINS))
    own = ",".join(str(ROOT / "configs" / "seeds" / f"{name}.jsonl") for name in ("medicine", "law", "contrast"))
    parser.add_argument("--seeds", nargs="+", default=[f"own={own}"], metavar="[NAME=]FILE[,FILE]")
    parser.add_argument("--methods", nargs="+", default=[], choices=list(METHODS), help="only these")
    parser.add_argument("--best", type=int, default=0, help="chunks of each method that are written as texts")
    run(parser.parse_args())


if __name__ == "__main__":
    command_line(main)
