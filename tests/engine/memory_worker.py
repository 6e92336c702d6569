"""A process of the memory test: fills its sequences' contexts on the prompt, then waits for a line.

Usage: memory_worker.py TARGET
"""

import sys

import numpy as np

import relay

LAYERS, HQ, HKV, D = 8, 16, 4, 64
MODEL = relay.Model("memory", [relay.LayerKind(HQ, HKV, D)] * LAYERS, kv_dtype="f32")
PROMPT_TOKENS = 2048
USERS, TOKENS, CHUNK = 4, 256, 16  # tokens in whole pages


def prompt_kv():
    generator = np.random.default_rng(0)
    return [tuple(generator.standard_normal((2, PROMPT_TOKENS, HKV, D), np.float32)) for _ in range(LAYERS)]


def main(target):
    generator = np.random.default_rng(1)
    q, k, v = (generator.standard_normal((USERS * CHUNK, h, D), np.float32) for h in (HQ, HKV, HKV))
    with relay.Client(target) as client, client.session(MODEL) as session:
        requests = session.requests(["p"] * USERS)
        for begin in range(0, TOKENS, CHUNK):
            with session.step([(r, begin, CHUNK) for r in requests]) as step:
                for layer in range(LAYERS):
                    step.attend(layer, q, k, v)
        print("done", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1])
