"""An OpenAI-compatible server on this machine, in the place of a judge model."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeStub(ThreadingHTTPServer):
    """Answers what the test wants; keeps what it was asked; fails as told (a status, an answer, slow, None: not)."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.requests, self.failures = answer, [], []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        if self.server.failures:
            failure = self.server.failures.pop(0)
            if failure is None:
                pass
            elif failure == "slow":
                time.sleep(0.5)
                self.close_connection = True
            elif isinstance(failure, str):
                self.reply(failure.encode())
            else:
                self.send_error(failure)
            if failure is not None:
                return
        system, user = (message["content"] for message in body["messages"])
        explaining = "summarize in a single sentence" in system
        text = "This neuron activates on digits." if explaining else self.server.answer(user)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        content = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self.reply(json.dumps(content).encode())

    def reply(self, out):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *args):
        pass


@contextmanager
def judge_stub(answer=lambda user: "None"):
    server = JudgeStub(answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
