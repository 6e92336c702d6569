"""A relayd of a test's own: on a private unix socket and a free port, stopped or killed."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path


class Server:
    """Started by the constructor; a context manager. After stop or kill, start() makes a new one on
    the same socket (and another port)."""

    def __init__(self, binary, *options, environment=None):
        self.binary, self.options, self.set = str(binary), options, environment or {}
        self.folder = Path(tempfile.mkdtemp(prefix="relayd-"))
        self.target = f"unix://{self.folder}/sock"
        self.process = None
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def start(self):
        reader, writer = os.pipe()
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "--listen", f"unix:{self.folder}/sock", "--listen", "127.0.0.1:0",
                 "--ready-fd", str(writer), *self.options],
                pass_fds=[writer], stderr=log, stdout=log, env={**self.environment(), **self.set})
        os.close(writer)
        with os.fdopen(reader) as ready:
            line = ready.readline()
        if not line.startswith("ready port="):
            self.process.wait(10)
            raise RuntimeError(f"relayd did not start: {self.log()}")
        self.tcp_target = "127.0.0.1:" + line.strip().removeprefix("ready port=")

    @staticmethod
    def environment():
        # The engine's own settings are not the server's.
        return {k: v for k, v in os.environ.items() if not k.startswith("RELAYD_")}

    def log(self):
        return (self.folder / "log").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def memory(self):
        """Resident bytes: its own (heap, pages), as the kernel counts them."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon")

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
