"""chDB, the engine of a current ClickHouse, behind as much of its HTTP interface as the sink uses.

The engine is real: types, formats, SQL and its exceptions. Statuses, authentication and headers are
made here, so a test that runs against this proves nothing about those.

    chdb_server.py FOLDER

Listens on a free port of the loopback and prints it. A query is the body of a request; or it is
`query` in the URL, an insert, and its rows are the body, not compressed. Other parameters of an insert
are settings of the engine; those of a query are ignored.
"""

import http.server
import re
import sys
import tempfile
import threading
import urllib.parse

from chdb import session

ENGINE = session.Session(sys.argv[1])
ONE_AT_A_TIME = threading.Lock()
NO_SETTINGS = {"query", "database", "default_format"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.body()
        url = urllib.parse.urlparse(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        with ONE_AT_A_TIME:
            try:
                status, answer = 200, self.run(parameters, body)
            except Exception as error:
                status, answer = 500, str(error).encode()
        self.answer(status, answer)

    def run(self, parameters, body):
        database = parameters.get("database", "default")
        ENGINE.query("USE `%s`" % database)
        if "query" not in parameters:
            format_ = parameters.get("default_format", "TabSeparated")
            return ENGINE.query(body.decode(), format_).bytes() or b""
        statement, format_ = re.fullmatch(r"(?s)(.*)\sFORMAT\s+(\w+)\s*", parameters["query"]).groups()
        settings = ["%s = '%s'" % pair for pair in parameters.items() if pair[0] not in NO_SETTINGS]
        clause = "SETTINGS " + ", ".join(settings) if settings else ""
        with tempfile.NamedTemporaryFile() as rows:
            rows.write(body)
            rows.flush()
            ENGINE.query("%s FROM INFILE '%s' %s FORMAT %s" % (statement, rows.name, clause, format_))
        return b""

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that is gone is none of our business."""


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
