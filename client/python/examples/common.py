"""What the Transformers examples share: their options, a model, a relayd."""

import argparse
import atexit
import os
import shutil
import subprocess
import tempfile

import torch
import transformers

import relay

SYSTEM = (
    "You are the assistant of a small town library. It is open from nine to six on weekdays and from "
    "ten to four on Saturdays. Books are lent for four weeks, films for one week; a late return costs "
    "ten cents a day for each item. The story hour for children is on Wednesdays at four. Answer in "
    "short, friendly and exact sentences, and say so if you do not know something. "
)


def parser(description):
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", required=True, help="a folder or a name that Transformers knows")
    options.add_argument("--dtype", default="float32", help="of the model: float32, bfloat16, float16")
    options.add_argument("--relayd", default="unix:///run/relayd/relayd.sock", metavar="TARGET",
                         help="a running relayd; start:PATH starts the binary PATH for this program")
    options.add_argument("--system", metavar="FILE", help="the system prompt, in a file")
    return options


def target(relayd):
    """The target to connect to; start:PATH runs a relayd until this process ends."""
    if not relayd.startswith("start:"):
        return relayd
    folder = tempfile.mkdtemp(prefix="relayd-")
    reader, writer = os.pipe()
    server = subprocess.Popen([relayd.removeprefix("start:"), "--listen", f"unix:{folder}/sock",
                               "--ready-fd", str(writer), "--log-level", "warn"], pass_fds=[writer])
    os.close(writer)

    def stop():
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    with os.fdopen(reader) as ready:
        if not ready.readline().startswith("ready"):
            raise SystemExit("relayd did not start")
    return f"unix://{folder}/sock"


def connect(relayd):
    """A client that outlasts a relayd that restarts quickly."""
    return relay.Client(target(relayd))


def load(options):
    """(model, tokenizer, system prompt)."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    system = SYSTEM
    if options.system:
        with open(options.system) as file:
            system = file.read()
    return model.eval(), tokenizer, system


class Format:
    """A conversation as token ids: the tokenizer's chat template, or plain lines without one.

    prompt(system) is what every conversation with that system prompt begins with; stop ends a plain
    answer.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.stop = None if tokenizer.chat_template else "\nUser:"

    def ids(self, messages):
        """messages: [{"role": ..., "content": ...}], with the opening of the answer."""
        if self.tokenizer.chat_template:
            return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        names = {"user": "\nUser: ", "assistant": "\nAssistant: "}
        lines = [names.get(m["role"], "") + m["content"].strip() for m in messages] + ["\nAssistant:"]
        pieces = [self.tokenizer(lines[0])["input_ids"]]  # apart: a system prompt's tokens stay its own
        pieces += [self.tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines[1:]]
        return [token for piece in pieces for token in piece]

    def prompt(self, system):
        """Token ids that all conversations with this system prompt share."""
        a, b = (self.ids([{"role": "system", "content": system}, {"role": "user", "content": text}]) for text in ("A", "Z"))
        return a[: shared(a, b)]


def shared(a, b):
    """Length of the common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
