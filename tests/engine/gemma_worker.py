"""A worker process of the real-weights test: decodes some of the users on a prompt that is there.

Usage: gemma_worker.py FOLDER TARGET COUNT USER...   Prints the tokens as JSON.
"""

import json
import sys

import transformers

import gemma
import loops
import relay.transformers as rt
from relay.transformers import _prompts

transformers.logging.set_verbosity_error()
folder, target, count, *which = sys.argv[1:]
model, tokenizer = gemma.load(folder)
system, users = gemma.token_ids(tokenizer)


def never(*_):
    raise AssertionError("the prompt was computed a second time")


_prompts.compute_kv = never
with rt.attach(model, target, kv_dtype="f32") as engine:
    rt.register_system_prompt(model, tokenizer, gemma.SYSTEM, "library/1")
    tokens, _ = loops.generate_relay(model, "library/1", [users[int(i)] for i in which], int(count))
print(json.dumps(tokens))
