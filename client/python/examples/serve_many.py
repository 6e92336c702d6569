#!/usr/bin/env python3
"""N users at once over M worker processes, one service; and what the same costs without relayd.

Every user has the same system prompt and a question of their own. With relayd the workers share the
prompt's K/V, which is computed once and held once; without, each worker computes it and holds a copy
for each of its users, as Transformers' own cache does.

    serve_many.py --model ./model --relayd start:build/release/service/relayd --users 16 --workers 2
"""

import json
import multiprocessing
import os
import time

import common

QUESTIONS = ["Until when are you open on Saturday?", "I found a film under my bed, it is two weeks late. What do I owe you?",
             "Is there anything for my daughter this week? She is six.", "How long may I keep a book?"]
PROMPT_ID = "serve-many-example"


def work(mode, options, relayd, users, ready, go, one_by_one, results):
    """One worker process: its share of the users, in one batch."""
    import torch

    import relay
    import relay.transformers as rt
    from batching import Batcher, Job

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    model, tokenizer, system = common.load(options)
    form = common.Format(tokenizer)
    prompt = form.prompt(system * options.repeat)
    rows = [form.ids([{"role": "system", "content": system * options.repeat},
                      {"role": "user", "content": QUESTIONS[user % len(QUESTIONS)]}])[len(prompt):] for user in users]
    done = {"worker": os.getpid()}
    if mode == "relay":
        with relay.Client(relayd) as client, rt.attach(model, client) as engine:
            ready.wait()
            go.wait()
            start = time.monotonic()
            with one_by_one:  # the first computes it, the others find it
                rt.register_system_prompt(model, tokenizer, prompt, PROMPT_ID)
            done["prompt_s"], batcher = time.monotonic() - start, Batcher(engine)
            jobs = [Job(PROMPT_ID, row, options.tokens) for row in rows]
            for job in jobs:
                batcher.submit(job)
            batcher.run()
            done["tokens"] = [job.tokens for job in jobs]
    else:
        ready.wait()
        go.wait()
        start = time.monotonic()
        with torch.no_grad():
            cache = model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1).past_key_values
            done["prompt_s"] = time.monotonic() - start
            cache.batch_repeat_interleave(len(rows))
            pad, longest = tokenizer.pad_token_id or 0, max(map(len, rows))
            ids = torch.tensor([prompt + [pad] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(row)) + [1] * len(row) for row in rows])
            out = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=options.tokens,
                                 do_sample=False, eos_token_id=None)
        done["tokens"] = out[:, ids.shape[1]:].tolist()
        done["prompt_bytes"] = sum(t[..., :len(prompt), :].nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    done["seconds"] = time.monotonic() - start
    done["prompt_tokens"] = len(prompt)
    results.put(done)


def measure(mode, options, relayd):
    """All workers from a common start: what they did, and the seconds until the last was done."""
    context = multiprocessing.get_context("spawn")  # a client does not survive a fork
    ready, go, results = context.Barrier(options.workers + 1), context.Event(), context.Queue()
    one_by_one = context.Lock()
    shares = [list(range(w, options.users, options.workers)) for w in range(options.workers)]
    workers = [context.Process(target=work, args=(mode, options, relayd, share, ready, go, one_by_one, results))
               for share in shares]
    for worker in workers:
        worker.start()
    ready.wait(600)
    start = time.monotonic()
    go.set()
    done = [results.get(timeout=3600) for _ in workers]
    seconds = time.monotonic() - start
    for worker in workers:
        worker.join()
    return done, seconds


def main():
    options = common.parser(__doc__.split("\n\n")[0])
    options.add_argument("--users", type=int, default=8)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--tokens", type=int, default=32, help="generated for each user")
    options.add_argument("--repeat", type=int, default=8, help="the system prompt so many times, to make it long")
    options.add_argument("--skip-own", action="store_true", help="do not measure the other way")
    options = options.parse_args()
    import relay

    relayd = common.target(options.relayd)
    generated = options.users * options.tokens
    with relay.Client(relayd) as client:
        before = client.server_info()
        done, seconds = measure("relay", options, relayd)
        after = client.server_info()
    report = {
        "users": options.users, "workers": options.workers, "prompt_tokens": done[0]["prompt_tokens"],
        "relay": {
            "tokens_per_s": round(generated / seconds, 1),
            "prompt_computed_s": [round(d["prompt_s"], 2) for d in done],
            "prompt_bytes_held": after.prompt_bytes_used - before.prompt_bytes_used,
            "prompt_bytes_read": after.prompt_bytes_read - before.prompt_bytes_read,
        },
    }
    if not options.skip_own:
        own, seconds = measure("own", options, relayd)
        report["transformers alone"] = {
            "tokens_per_s": round(generated / seconds, 1),
            "prompt_computed_s": [round(d["prompt_s"], 2) for d in own],
            "prompt_bytes_held": sum(d["prompt_bytes"] for d in own),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
