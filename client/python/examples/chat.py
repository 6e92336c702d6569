#!/usr/bin/env python3
"""A chat in the terminal whose system prompt lives in relayd: the second one to start computes none
of it. Ends with end of input.

    chat.py --model google/gemma-3-270m-it
    chat.py --model ./model --relayd start:build/release/service/relayd
"""

import sys
import time

import common
import transformers

import relay.transformers as rt


def main():
    options = common.parser(__doc__.split("\n\n")[0])
    options.add_argument("--prompt-id", default="chat-example")
    options.add_argument("--tokens", type=int, default=200, help="of an answer, at most")
    options = options.parse_args()
    model, tokenizer, system = common.load(options)
    form = common.Format(tokenizer)
    prompt_ids = form.prompt(system)
    with common.connect(options.relayd) as client, rt.attach(model, client) as engine:
        start = time.monotonic()
        rt.register_system_prompt(model, tokenizer, prompt_ids, options.prompt_id, replace=True)
        prompt = engine.get_prompt(options.prompt_id)
        print(f"[{prompt.num_tokens} prompt tokens, {prompt.bytes >> 10} KiB in relayd, used {prompt.hits} times before; "
              f"ready after {time.monotonic() - start:.1f} s]")
        with rt.RelayCache(model, options.prompt_id) as cache:
            converse(model, tokenizer, form, system, cache, options.tokens)


def converse(model, tokenizer, form, system, cache, tokens_max):
    messages, fed = [{"role": "system", "content": system}], form.prompt(system)
    streamer = transformers.TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    for line in iter(ask, None):
        messages.append({"role": "user", "content": line})
        ids = form.ids(messages)
        # What the last turn left behind may be formatted otherwise now: go back to where it is the same.
        cache.crop(common.shared(ids, fed) - len(fed))
        inputs = cache.inputs([ids[cache.prompt_tokens:]], tokenizer.pad_token_id or 0, ids[: cache.prompt_tokens])
        stop = {"stop_strings": [form.stop], "tokenizer": tokenizer} if form.stop else {}
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=tokens_max, streamer=streamer, **stop)[0].tolist()
        fed = out[:-1]  # the last token has been chosen, not run
        answer = tokenizer.decode(out[len(ids):], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer.removesuffix(form.stop or "\0")})


def ask():
    try:
        line = input("> " if sys.stdin.isatty() else "")
        return line or ask()
    except EOFError:
        return None


main()
