"""A process that asks a server: FOLDER URL REQUESTS WORKERS. Prints `ready`, and at the end how many replies it had."""

import sys

from ntk_jax.llm.database import Database
from ntk_jax.llm.kept import Kept
from ntk_jax.llm.ledger import Ledger
from ntk_jax.llm.request import Request
from ntk_jax.llm.server import Server, ServerClient


def main(folder: str, url: str, total: str, workers: str) -> None:
    database = Database(folder)
    client = Kept(ServerClient(Server("m", url, workers=int(workers)), Ledger(database)), database)
    requests = [Request(({"role": "user", "content": f"question {n}"},), max_tokens=8) for n in range(int(total))]
    print("ready", flush=True)
    print(sum(reply.finish == "stop" for _, reply in client.ask(requests)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
