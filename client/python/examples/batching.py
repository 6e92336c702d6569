"""Continuous batching on relayd, as small as it gets: sequences join and leave between two passes.

Nothing is padded: every row of a pass is one sequence, wherever in its text it is. For one thread;
`submit` may be called from any.
"""

import contextlib
import queue

import torch

import relay
import relay.transformers as rt


class Job:
    """One sequence. tokens: what has been generated; on_token is told each, and None at the end.

    error: what ended it early, if something did.
    """

    def __init__(self, prompt_id, ids, count, temperature=0.0, stop_ids=(), on_token=None):
        self.prompt_id, self.ids, self.count = prompt_id, list(ids), count
        self.temperature, self.stop_ids = temperature, set(stop_ids)
        self.on_token = on_token or (lambda token: None)
        self.tokens, self.error, self.sequence, self.cancelled = [], None, None, False

    @property
    def done(self):
        return bool(self.error or self.cancelled or len(self.tokens) >= self.count
                    or (self.tokens and self.tokens[-1] in self.stop_ids))


class Batcher:
    """The loop around one model."""

    def __init__(self, engine, rows_max=64):
        self.engine, self.rows_max = engine, rows_max
        self.waiting, self.live, self.stopping = queue.SimpleQueue(), [], False

    def submit(self, job):
        self.waiting.put(job)

    def stop(self):
        """Ends run(forever=True) once what was submitted before is done."""
        self.waiting.put(None)

    def run(self, forever=False):
        """Until nothing is left to do, or until stop."""
        while (forever and not self.stopping) or self.live or not self.waiting.empty():
            self.take_in(wait=forever and not self.stopping and not self.live)
            if self.live:
                self.decode()

    def take_in(self, wait):
        """One that waits is prefilled per pass, so that those that decode do not stand still."""
        if len(self.live) >= self.rows_max or (self.waiting.empty() and not wait):
            return
        job = self.waiting.get()
        if job is None:
            self.stopping = True
            return
        if job.cancelled:
            job.on_token(None)
            return
        try:
            job.sequence = self.engine.open(job.prompt_id)
            self.give(job, rt.prefill(self.engine, job.sequence, job.ids))
        except Exception as error:  # this job's alone, whatever it is
            job.error = error
        self.live.append(job)
        self.leave()

    def decode(self):
        sequences = [job.sequence for job in self.live]
        newest = torch.tensor([[job.tokens[-1]] for job in self.live])
        try:
            with torch.no_grad():
                logits = self.engine.model(input_ids=newest, position_ids=rt.positions(sequences), use_cache=False,
                                           relay=sequences, logits_to_keep=1).logits[:, -1]
        except relay.RelayError as error:
            for job in self.live:  # their K/V is lost with the service; those that wait may have better luck
                job.error = error
            logits = []
        for job, row in zip(self.live, logits):
            self.give(job, row)
        self.leave()

    def give(self, job, logits):
        if job.temperature > 0:
            token = int(torch.multinomial((logits / job.temperature).softmax(-1), 1))
        else:
            token = int(logits.argmax())
        job.tokens.append(token)
        job.on_token(token)

    def leave(self):
        for job in [job for job in self.live if job.done]:
            self.live.remove(job)
            with contextlib.suppress(relay.RelayError):  # it may be gone already
                if job.sequence is not None:
                    job.sequence.close()
            job.on_token(None)
