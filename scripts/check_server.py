"""A real server end to end: texts through `transformers serve`, the client killed with -9 at random moments, its
requests counted on their way to the server, and a run that its cap ends.

    python scripts/check_server.py MODEL --serve "PYTHON -m ... serve" [--requests 60 --kills 20 --workers 4]

MODEL: a folder in Hugging Face format. --serve: the command that starts the server, to which the model and the port are
added; `transformers serve` needs torch, fastapi and uvicorn. --url: of a server that runs already, instead. Prints what
it does, then one JSON line; exits 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from ntk_jax.errors import UserError
from ntk_jax.llm.request import Request
from ntk_jax.pipelines.common.llm import LLMSection, account, open_client

KEY = "sk-of-no-server-and-not-to-be-found"
ADDRESS, SECRET = "CHECK_SERVER_URL", "CHECK_SERVER_KEY"  # in the environment
KINDS = ("a news report", "a letter", "a lecture", "a diary", "a leaflet", "a legal notice")
TOPICS = ("medicine", "farming", "a harbour", "taxes", "a school", "the weather", "a trial", "music", "bread", "trains")


def requests_of(count: int, tokens: int) -> list[Request]:
    """Different prompts, each asking for the beginning of a text."""
    found = []
    for number in range(count):
        kind, topic = KINDS[number % len(KINDS)], TOPICS[number // len(KINDS) % len(TOPICS)]
        prompt = f"Write the first words of {kind} on {topic}."
        found.append(Request(({"role": "user", "content": prompt},), max_tokens=tokens, seed=number))
    return found


class Counting:
    """A proxy in front of the server: counts each body that passes."""

    def __init__(self, url: str) -> None:
        self.counts: collections.Counter[bytes] = collections.Counter()
        counting, lock = self, threading.Lock()
        upstream = httpx.Client(base_url=url, timeout=600.0, limits=httpx.Limits(max_connections=256))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    counting.counts[body] += 1
                reply = upstream.post(self.path, content=body, headers={"Content-Type": "application/json"})
                self.send_response(reply.status_code)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            def log_message(self, *_: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a killed client takes no reply
                pass

        http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        threading.Thread(target=http.serve_forever, daemon=True).start()


@contextmanager
def served(command: str, model: str, log: Path) -> Iterator[str]:
    """Starts the server and yields its address once it answers."""
    port = random.randint(20_000, 40_000)
    began = time.monotonic()
    with open(log, "wb") as file:
        words = [*shlex.split(command), model, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5.0)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() - began > 300:
                    raise SystemExit(f"the server does not start; see {log}") from None
                time.sleep(0.5)
        print(f"server ready after {time.monotonic() - began:.0f} s: {command} {model}", flush=True)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def section_of(args: argparse.Namespace, **more: Any) -> LLMSection:
    """The server as a config would name it; address and key come from the environment."""
    free = {"price_in": 0.0, "price_out": 0.0}
    common = {"kind": "server", "model": args.model, "base_url_env": ADDRESS, "key_env": SECRET}
    return LLMSection(**{**common, "workers": args.workers, "timeout": 300.0, **free, **more})


def child(args: argparse.Namespace) -> None:
    """What is killed: asks all requests, and writes down each reply that it was given."""
    client = open_client(section_of(args), args.out)
    print("ready", flush=True)
    with open(args.out / "given.jsonl", "a", encoding="utf8") as file:
        for ordinal, reply in client.ask(requests_of(args.requests, args.tokens)):
            file.write(json.dumps([ordinal, reply.finish, reply.text]) + "\n")
            file.flush()
    print("finished", flush=True)


def kill_and_resume(args: argparse.Namespace, counting: Counting) -> dict[str, Any]:
    """Kills the child at random moments, lets the last one finish, and compares."""
    folder = args.out / "killed"
    folder.mkdir()
    list(
        open_client(section_of(args), folder).ask(requests_of(1, args.tokens))
    )  # the probe, where one call is under way
    words = [sys.executable, "-W", "ignore", __file__, args.model, "--child", "--out", str(folder)]
    words += ["--requests", str(args.requests), "--tokens", str(args.tokens), "--workers", str(args.workers)]
    draw, kills, began = random.Random(args.seed), 0, time.monotonic()
    while True:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            if kills < args.kills and draw.random() < 0.75:  # or the first call of a slow server is all that is tried
                before = _settled(folder)
                while process.poll() is None and _settled(folder) == before:
                    time.sleep(0.05)
            process.wait(draw.uniform(0.0, args.longest) if kills < args.kills else 3600)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            print(
                f"  kill {kills}: {len(counting.counts)} requests known to the server, {_replies(folder)} replies kept"
            )
    given: dict[int, set[str]] = collections.defaultdict(set)
    for line in (folder / "given.jsonl").read_text(encoding="utf8").splitlines():
        try:
            ordinal, finish, text = json.loads(line)
        except ValueError:  # a line that a kill cut
            continue
        given[ordinal].add(f"{finish} {text}")
    repeats = sum(counting.counts.values()) - len(counting.counts)
    return {
        "exit": process.returncode,
        "kills": kills,
        "requests": args.requests,
        "replies": len(given),
        "replies_that_changed": sum(len(texts) > 1 for texts in given.values()),
        "different_bodies_at_the_server": len(counting.counts),
        "repeats_at_the_server": repeats,
        "most_repeats_allowed": kills * args.workers,
        "most_repeats_of_one_body": max(counting.counts.values()) - 1,
        "ledger": account(folder),
        "seconds": round(time.monotonic() - began, 1),
    }


def stop_by_cap(args: argparse.Namespace, counting: Counting) -> dict[str, Any]:
    """A cap for about a third of the requests, then a higher one."""
    folder, before = args.out / "capped", sum(counting.counts.values())
    asked = requests_of(args.requests, args.tokens + 1)  # other requests than those above
    prices = {"price_in": 1.0, "price_out": 4.0}
    cap = 2e-3 + args.requests / 3 * 1e-6 * (40 + 4 * (args.tokens + 1))  # with what the probe and the last call need
    found: dict[str, Any] = {"cap": round(cap, 6)}
    try:
        for _ in open_client(section_of(args, cap=cap, **prices), folder).ask(asked):
            pass
    except UserError as error:
        found["line"] = str(error)
    stopped = account(folder)
    found |= {"spent": stopped["spent"], "held_back": stopped["reserved"], "kept_at_the_cap": _replies(folder)}
    for _ in open_client(section_of(args, cap=100 * cap, **prices), folder).ask(asked):
        pass
    sent = sum(counting.counts.values()) - before
    return {**found, "kept_in_the_end": _replies(folder), "sent": sent, "attempts": account(folder)["attempts"]}


def broken(killed: dict[str, Any], capped: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """The promises that were not kept."""
    checks = {
        "the last process ended well": killed["exit"] == 0,
        "every request has a reply": killed["replies"] == args.requests == capped["kept_in_the_end"],
        "no reply that was given out has changed": killed["replies_that_changed"] == 0,
        "at most one repeat in flight a worker and kill": (
            killed["repeats_at_the_server"] <= killed["most_repeats_allowed"]
        ),
        "every request at the server is in the ledger": (
            killed["repeats_at_the_server"] + killed["different_bodies_at_the_server"] <= killed["ledger"]["attempts"]
        ),
        "the cap stopped the run": "line" in capped and 0 < capped["kept_at_the_cap"] < args.requests,
        "no more than the cap was spent": capped["spent"] + capped["held_back"] <= capped["cap"],
        "nothing was asked again after the cap": capped["sent"] == capped["attempts"],
        "the key is in no file": all(
            KEY.encode() not in path.read_bytes() for path in args.out.rglob("*") if path.is_file()
        ),
    }
    print("\n".join(f"{'yes' if kept else 'NO ':<3} {name}" for name, kept in checks.items()))
    return [name for name, kept in checks.items() if not kept]


def _replies(folder: Path) -> int:
    return _number(folder, "SELECT count(*) FROM replies")


def _settled(folder: Path) -> int:
    return _number(folder, "SELECT count(*) FROM attempts WHERE outcome IS NOT NULL")


def _number(folder: Path, query: str) -> int:
    connection = sqlite3.connect(folder / "calls.sqlite")
    try:
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def main() -> int:
    """Runs it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--serve", default="transformers serve", help="the command that starts the server")
    parser.add_argument("--url", help="of a running server, without /v1")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/check_server"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    if args.url:
        return check(args, args.url)
    with served(args.serve, args.model, args.out / "server.log") as url:
        return check(args, url)


def check(args: argparse.Namespace, url: str) -> int:
    """Both parts, on a server that is ready."""
    counting = Counting(url)
    os.environ |= {ADDRESS: counting.url, SECRET: KEY}
    warm = {"model": args.model, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
    httpx.post(f"{url}/v1/chat/completions", json=warm, timeout=600.0)  # not counted: it loads the model
    print(f"{args.requests} requests of {args.tokens} tokens, {args.workers} workers, {args.kills} kills", flush=True)
    killed = kill_and_resume(args, counting)
    capped = stop_by_cap(args, counting)
    print(f"stopped by the cap: {capped.get('line')}")
    wrong = broken(killed, capped, args)
    print(json.dumps({"killed": killed, "capped": capped, "broken": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
