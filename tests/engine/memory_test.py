"""The prompt's K/V is held once however many processes decode on it: what relayd grows by with each
process after the first is that process's own context."""

import json
import subprocess
import sys
from pathlib import Path

from memory_worker import MODEL, PROMPT_TOKENS, TOKENS, USERS, prompt_kv

import relay

PROCESSES = 4
SESSION_BYTES = 3 << 19  # the read buffers of its two connections, 512 KiB at most each, and its tables


def test_growth_by_process(harness):
    """Four processes, one after the other, that stay. The first also brings what all share: buffers of
    calls, the planner's. One heap arena, since with several each keeps its own slack."""
    context = USERS * TOKENS * MODEL.kv_bytes_per_token()
    with harness.server(environment={"MALLOC_ARENA_MAX": "1"}) as server, relay.Client(server.target) as client:
        prompt = client.register_prompt("p", MODEL, prompt_kv())
        resident, held, workers = [server.memory()], [client.server_info()], []
        try:
            for _ in range(PROCESSES):
                worker = subprocess.Popen([sys.executable, Path(__file__).with_name("memory_worker.py"), server.target],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                workers.append(worker)
                assert worker.stdout.readline() == "done\n"
                resident.append(server.memory())
                held.append(client.server_info())
        finally:
            for worker in workers:
                worker.communicate("\n")
        assert [w.returncode for w in workers] == [0] * PROCESSES
    assert prompt.bytes >= PROMPT_TOKENS * MODEL.kv_bytes_per_token()
    assert {info.prompt_bytes_used for info in held} == {prompt.bytes}
    assert [b.request_bytes_used - a.request_bytes_used for a, b in zip(held, held[1:])] == [context] * PROCESSES
    growth = [b - a for a, b in zip(resident, resident[1:])]
    said = json.dumps({"prompt_bytes": prompt.bytes, "context_bytes_each": context, "growth": growth})
    assert all(context <= g <= context + SESSION_BYTES for g in growth[1:]), said
    return said
