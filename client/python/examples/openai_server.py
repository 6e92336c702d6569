#!/usr/bin/env python3
"""An OpenAI-compatible /v1/chat/completions on a model whose attention is relayd's.

A system message becomes a shared prompt when it is first seen: whoever sends the same one again, here
or through another process on the same relayd, has its K/V ready. Streams with "stream": true. An
example: no authentication, no limits.

    openai_server.py --model google/gemma-3-270m-it --port 8000
    curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello!"}]}'
"""

import hashlib
import itertools
import json
import queue
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import common
from batching import Batcher, Job

import relay
import relay.transformers as rt

SYSTEM_TOKENS_MIN = 16  # a shorter beginning is not worth a prompt


class App:
    """The model, its loop on a thread of its own, and what became of system messages."""

    def __init__(self, engine, tokenizer, name):
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.form = common.Format(tokenizer)
        self.batcher, self.lock = Batcher(engine), threading.Lock()
        ends = engine.model.generation_config.eos_token_id
        self.stop_ids = ends if isinstance(ends, list) else [ends]
        self.thread = threading.Thread(target=self.batcher.run, args=[True])
        self.thread.start()

    def close(self):
        """The loop must be over before the interpreter is."""
        self.batcher.stop()
        self.thread.join()

    def prompt_of(self, messages, ids):
        """(prompt id, its tokens) of a conversation's system message, registered if it is new."""
        if messages[0]["role"] != "system":
            return None, 0
        prompt = self.form.prompt(messages[0]["content"])
        if len(prompt) < SYSTEM_TOKENS_MIN or ids[:len(prompt)] != prompt:
            return None, 0
        prompt_id = "openai/" + hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:32]
        with self.lock:
            rt.register_system_prompt(self.engine, self.tokenizer, prompt, prompt_id, idle_ttl_s=3600)
        return prompt_id, len(prompt)

    def answer(self, request):
        """Yields (text, finish_reason or None) and at the end the usage."""
        messages = request["messages"]
        ids = self.form.ids(messages)
        prompt_id, known = self.prompt_of(messages, ids)
        tokens = queue.SimpleQueue()
        job = Job(prompt_id, ids[known:], int(request.get("max_tokens") or request.get("max_completion_tokens") or 256),
                  float(request.get("temperature", 1.0)), self.stop_ids, tokens.put)
        self.batcher.submit(job)
        said, reason = "", "length"
        try:
            while (token := tokens.get()) is not None:
                if token in job.stop_ids:
                    reason = "stop"
                    continue
                text = self.tokenizer.decode(job.tokens, skip_special_tokens=True)
                if self.form.stop and self.form.stop in text:
                    reason = "stop"
                    text = text[:text.index(self.form.stop)]
                    job.cancelled = True
                if not text.endswith("\ufffd") and len(text) > len(said):  # not in the middle of a character
                    yield text[len(said):], None
                    said = text
                if job.cancelled:
                    break
            if job.error:
                raise job.error
        finally:
            job.cancelled = True  # the client may have gone
        yield "", reason
        yield {"prompt_tokens": len(ids), "completion_tokens": len(job.tokens), "total_tokens": len(ids) + len(job.tokens),
               "prompt_tokens_details": {"cached_tokens": known}}, None


class Handler(BaseHTTPRequestHandler):
    app: App
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send_json(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [{"id": self.app.name, "object": "model", "owned_by": "local"}]})
        else:
            self.send_json(404, {"error": {"message": "not found"}})

    def do_POST(self):
        try:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            if self.path != "/v1/chat/completions":
                return self.send_json(404, {"error": {"message": "not found"}})
            if not request["messages"] or any(not isinstance(m["content"], str) for m in request["messages"]):
                raise ValueError("messages: expected texts")
            head = {"id": f"chatcmpl-{time.time_ns():x}", "created": int(time.time()), "model": self.app.name}
            (self.stream if request.get("stream") else self.whole)(request, head)
        except (ValueError, KeyError, TypeError) as error:
            self.send_json(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        except relay.RelayError as error:
            self.send_json(503, {"error": {"message": str(error), "type": error.code.name}})

    def whole(self, request, head):
        *parts, (usage, _) = self.app.answer(request)
        message = {"role": "assistant", "content": "".join(text for text, _ in parts)}
        choice = {"index": 0, "message": message, "finish_reason": parts[-1][1]}
        self.send_json(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def stream(self, request, head):
        parts = self.app.answer(request)
        first = next(parts)  # errors before the first token are still a status code
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for text, reason in itertools.chain([first], parts):
            if isinstance(text, dict):
                continue
            choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": reason}
            self.wfile.write(b"data: " + json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


def main():
    options = common.parser(__doc__.split("\n\n")[0])
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000, help="0 = any free one, which is printed")
    options = options.parse_args()
    model, tokenizer, _ = common.load(options)
    with common.connect(options.relayd) as client, rt.attach(model, client) as engine:
        Handler.app = App(engine, tokenizer, options.model.rstrip("/").rsplit("/", 1)[-1])
        server = ThreadingHTTPServer((options.host, options.port), Handler)
        server.daemon_threads = True
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # service managers end it like Ctrl-C does
        print(f"http://{options.host}:{server.server_port}/v1", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            Handler.app.close()


if __name__ == "__main__":
    main()
