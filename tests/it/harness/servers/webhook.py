"""A receiver of webhooks: `webhook.py PORT SECRET`, with its files in the folder it starts in.

It keeps a line for each event that it takes, the key and the tag, and takes none twice. A request
without the right signature is turned away. Files tell it to do otherwise: `refusing` turns
everything away, `rejecting` refuses the event of number 13, `taking` holds how many more it takes
before it turns everything away.
"""

import hashlib
import hmac
import http.server
import json
import os
import sys
import threading

PORT, SECRET = int(sys.argv[1]), sys.argv[2].encode()
LOCK = threading.Lock()


def read(name):
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with LOCK:
            status = self.take(body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def take(self, body):
        expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        if not hmac.compare_digest(self.headers["X-Hub-Signature-256"], expected):
            return 401
        if read("refusing") is not None:
            return 503
        key, tag = self.headers["Idempotency-Key"], json.loads(body)["tag"]
        if self.path != "/hook/" + tag.replace("/", "%2F"):
            return 404
        if tag == "test/13" and read("rejecting") is not None:
            return 422
        if key in KEYS:
            return 200
        taking = read("taking")
        if taking == "0":
            return 503
        if taking is not None:
            with open("taking", "w", encoding="utf-8") as file:
                file.write(str(int(taking) - 1))
        os.write(EVENTS, f"{key} {tag}\n".encode())
        KEYS.add(key)
        return 204

    def log_message(self, *_):
        pass


KEYS = {line.split()[0] for line in (read("events") or "").splitlines()}
EVENTS = os.open("events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
