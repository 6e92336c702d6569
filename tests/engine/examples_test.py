"""The examples as a user runs them, with Gemma 3 270M."""

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import gemma
import relay

EXAMPLES = Path(__file__).resolve().parents[2] / "client/python/examples"


def command(harness, name, relayd, *options):
    return [sys.executable, str(EXAMPLES / name), "--model", str(gemma.folder(harness)), "--relayd", relayd, *options]


def run(harness, name, *options, relayd=None, **kwargs):
    words = command(harness, name, relayd or f"start:{harness.relayd}", *options)
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chat(harness):
    """Two turns; a second process finds the prompt."""
    with harness.server() as server:
        for times, said in enumerate(("When do you open on Saturday?\nAnd Sunday?\n", "Hello\n")):
            out = run(harness, "chat.py", "--tokens", "8", relayd=server.target, input=said)
            head, *answers = out.splitlines()
            assert f"used {times} times before" in head, head
            assert "".join(answers).strip()
    return out.strip()


def test_serve_many(harness):
    said = json.loads(run(harness, "serve_many.py", "--users", "4", "--workers", "2", "--tokens", "4", "--repeat", "2"))
    with_relay, alone = said["relay"], said["transformers alone"]
    assert said["prompt_tokens"] > 100
    pages = with_relay["prompt_bytes_held"] / (alone["prompt_bytes_held"] / 4)
    assert 1 <= pages < 1.5, said  # once, in whole pages, for what Transformers holds four times
    assert with_relay["prompt_bytes_read"] > 0
    return json.dumps(said)


def post(base, body):
    request = urllib.request.Request(f"{base}/chat/completions", json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=120)


def test_openai_server(harness):
    """Three clients at once, one of them streaming; a bad request; the same system message again."""
    with harness.server() as server:
        process = subprocess.Popen(command(harness, "openai_server.py", server.target, "--port", "0"), stdout=subprocess.PIPE, text=True)
        try:
            base = process.stdout.readline().strip()
            assert base.startswith("http://"), base
            assert json.load(urllib.request.urlopen(f"{base}/models", timeout=30))["data"]
            system = {"role": "system", "content": "You are a librarian who answers in very few words, politely. " * 3}
            body = {"messages": [system, {"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
            answers = [None] * 3

            def ask(i):
                answers[i] = post(base, {**body, "stream": i == 2}).read().decode()

            threads = [threading.Thread(target=ask, args=[i]) for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            whole = [json.loads(a) for a in answers[:2]]
            text = whole[0]["choices"][0]["message"]["content"]
            assert whole[1]["choices"][0]["message"]["content"] == text
            assert whole[0]["usage"]["prompt_tokens_details"]["cached_tokens"] > 16
            events = [line.removeprefix("data: ") for line in answers[2].splitlines() if line]
            assert events[-1] == "[DONE]"
            deltas = [json.loads(e)["choices"][0] for e in events[:-1]]
            assert "".join(d["delta"].get("content", "") for d in deltas) == text
            assert deltas[-1]["finish_reason"] in ("stop", "length")
            try:
                post(base, {"messages": []})
                raise AssertionError("took it")
            except urllib.error.HTTPError as error:
                assert error.code == 400
            with relay.Client(server.target) as client:
                (prompt,) = client.list_prompts(id_prefix="openai/")
                assert prompt.hits == 3, prompt
            return text.strip()
        finally:
            process.terminate()  # what runs in the background may have been told to ignore SIGINT
            code = process.wait(60)
            assert code == 0, code


def test_bare_grpcio(harness):
    """Nothing but grpcio and the .proto: no code of this project, and none that is native."""
    script = EXAMPLES / "grpcio_golden.py"
    with harness.server() as server:
        done = subprocess.run([sys.executable, "-I", str(script), server.tcp_target], capture_output=True, text=True,
                              env={**os.environ, "RELAY_LIBRARY": "/nowhere/librelay.so"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]
