"""
Salt's side against a daemon that is made up here. Needs a Python that has Salt, and the package on its
path; ``tests/it/salt_returner.rs`` runs it in the environment of each release of Salt.
"""

import inspect
import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

import salt.config
import salt.loader
import salt.payload
import salt.utils.jid
import salt.utils.msgpack
import zmq
from saltext.saltern import journal as journals
from saltext.saltern import outbox as outboxes
from saltext.saltern import stream
from saltext.saltern.connection import Connection, Refused, Unavailable
from saltext.saltern.journal import Journal
from saltext.saltern.process import Process
from saltext.saltern.segment import Segment
from saltext.saltern.returners import saltern

# What is waited for comes at once, or, on a machine that is busy, at some time.
LIMIT = 120


class FakeDaemon:
    """Answers what ``answer`` gives for a request; nothing if that is nothing."""

    def __init__(self, address, answer, greeting=None):
        self.answer = answer
        self.greeting = greeting or {"v": 2, "id": 0, "max_frame": 1 << 26}
        self.requests = []
        self.stop = threading.Event()
        family, place = stream.place_of(address)
        self.listener = socket.socket(family)
        self.listener.bind(place)
        self.listener.listen(16)
        self.listener.settimeout(0.02)
        self.path = place if family == socket.AF_UNIX else None
        self.clients = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            try:
                client, _ = self.listener.accept()
            except socket.timeout:
                continue
            thread = threading.Thread(target=self.serve, args=(client,))
            self.clients.append((client, thread))
            thread.start()

    def serve(self, client):
        try:
            self.say(client, self.greeting)
            with client.makefile("rb") as file:
                while True:
                    length = file.read(4)
                    if len(length) < 4:
                        return
                    message = file.read(int.from_bytes(length, "big"))
                    request = salt.utils.msgpack.unpackb(message, raw=False)
                    self.requests.append(request)
                    for answer in self.answer(request):
                        self.say(client, {"v": 2, "id": request["id"], **answer})
        except OSError:
            pass
        finally:
            client.close()

    def say(self, client, message):
        message = salt.utils.msgpack.packb(message, use_bin_type=True)
        client.sendall(len(message).to_bytes(4, "big") + message)

    def close(self):
        self.stop.set()
        self.thread.join()
        if self.path:
            os.unlink(self.path)
        self.listener.close()
        for client, _ in self.clients:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for _, thread in self.clients:
            if thread is not threading.current_thread():
                thread.join()


class OldDaemon:
    """As ``FakeDaemon``, of the release before: over ZeroMQ."""

    def __init__(self, address, answer):
        self.requests = []
        self.answer = answer
        self.stop = threading.Event()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(address)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            if not self.socket.poll(20):
                continue
            peer, message = self.socket.recv_multipart()
            request = salt.utils.msgpack.unpackb(message, raw=False)
            self.requests.append(request)
            for answer in self.answer(request):
                answer = {"v": 1, "id": request["id"], **answer}
                message = salt.utils.msgpack.packb(answer, use_bin_type=True)
                self.socket.send_multipart([peer, message])

    def close(self):
        self.stop.set()
        self.thread.join()
        self.socket.close()
        self.context.term()


class SlowLink:
    """A link whose answers take their time, and the clock that shows it."""

    protocol = 2

    def __init__(self, answers, seconds_each):
        self.answers = list(answers)
        self.seconds_each = seconds_each
        self.now = 0.0

    def monotonic(self):
        return self.now

    def longest(self):
        return 1 << 20

    def send_packed(self, message, _until):
        self.request = salt.utils.msgpack.unpackb(message, raw=False)

    def receive(self, until):
        self.now += self.seconds_each
        if self.now > until:
            raise stream.Late()
        return {"id": self.request["id"], **self.answers.pop(0)}

    def close(self):
        pass


class WithFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="st", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.address = f"ipc://{self.folder}/s"

    def daemon(self, answer=lambda request: [{}], kind=FakeDaemon, **more):
        daemon = kind(self.address, answer, **more)
        self.addCleanup(daemon.close)
        return daemon

    def until(self, is_so):
        deadline = time.monotonic() + LIMIT
        while not is_so():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)


class ConnectionTest(WithFolder):
    def test_an_answer_and_its_value(self):
        daemon = self.daemon(lambda request: [{"value": b"\x80"}])
        connection = Connection(self.address)
        self.assertEqual(connection.ask("get_load", LIMIT, jid="1"), b"\x80")
        self.assertEqual(daemon.requests, [{"v": 2, "id": 1, "op": "get_load", "jid": "1"}])

    def test_an_error_says_why(self):
        self.daemon(lambda request: [{"error": "no room", "later": request["op"] == "later"}])
        connection = Connection(self.address)
        with self.assertRaisesRegex(Unavailable, "no room"):
            connection.ask("later", LIMIT)
        with self.assertRaisesRegex(Refused, "no room"):
            connection.ask("never", LIMIT)

    def test_nobody_there_is_said_at_once(self):
        # Anything but the look at the address would take an hour.
        with self.assertRaisesRegex(Unavailable, "No such file"):
            Connection(self.address).ask("x", 3600)
        with self.assertRaisesRegex(Unavailable, "refused"):
            Connection("tcp://127.0.0.1:1").ask("x", 3600)
        with self.assertRaisesRegex(Unavailable, "No such file"):
            Connection(f"unix:{self.folder}/s").ask("x", 3600)

    def test_a_daemon_that_dies_before_it_answers_is_noticed(self):
        asked = threading.Event()
        daemon = FakeDaemon(self.address, lambda request: asked.set() or [])
        ended = threading.Thread(target=lambda: asked.wait() and daemon.close())
        ended.start()
        with self.assertRaisesRegex(Unavailable, "No such file|refused|has closed"):
            Connection(self.address).ask("x", 3600)
        ended.join()

    def test_a_connection_that_was_dropped_while_it_was_idle_is_made_anew(self):
        daemon = self.daemon()
        connection = Connection(self.address)
        for number in range(3):
            self.assertIsNone(connection.ask("x", LIMIT))
            daemon.clients[number][0].shutdown(socket.SHUT_RDWR)
        self.assertEqual(len(daemon.clients), 3)

    def test_parts_are_one_value(self):
        parts = [{"part": b"a" * 70000}, {"part": b"b"}, {"value": b"c"}]
        self.daemon(lambda request: parts)
        self.assertEqual(Connection(self.address).ask("x", LIMIT), b"a" * 70000 + b"bc")

    def test_a_message_that_is_too_long_is_refused_before_it_is_sent(self):
        daemon = self.daemon(greeting={"v": 2, "id": 0, "max_frame": 100})
        with self.assertRaisesRegex(Refused, "over max_frame"):
            Connection(self.address).ask("events", LIMIT, events=[b"x" * 100])
        self.assertEqual(daemon.requests, [])

    def test_who_is_turned_away_is_told_once_and_asks_again_later(self):
        daemon = self.daemon(greeting={"v": 2, "id": 0, "error": "user 7 is refused", "later": True})
        connection = Connection(self.address)
        told = []
        for _ in range(5):
            with self.assertRaisesRegex(Unavailable, "user 7 is refused") as raised:
                connection.ask("x", LIMIT)
            told.append(raised.exception.is_told)
        self.assertEqual(told, [False, True, True, True, True])
        self.assertEqual(len(daemon.clients), 1)
        daemon.greeting = {"v": 2, "id": 0}
        connection._silent_until = 0
        self.assertIsNone(connection.ask("x", LIMIT))

    def test_a_token_is_shown_first_and_its_file_is_closed_to_others(self):
        token = pathlib.Path(self.folder) / "token"
        token.write_text("0123456789abcdef\n")
        token.chmod(0o644)
        daemon = self.daemon()
        connection = Connection(self.address, str(token))
        with self.assertRaisesRegex(Unavailable, "everybody may read it"):
            connection.ask("x", LIMIT)
        token.chmod(0o600)
        connection._silent_until = 0
        self.assertIsNone(connection.ask("x", LIMIT))
        hello = {"v": 2, "id": 0, "op": "hello", "token": b"0123456789abcdef"}
        self.assertEqual(daemon.requests[0], hello)
        with self.assertRaisesRegex(Unavailable, "No such file"):
            Connection(self.address, str(token) + "x").ask("x", LIMIT)

    def test_an_older_daemon_is_spoken_to_over_zeromq(self):
        daemon = self.daemon(lambda request: [{"wait": True}, {"value": b"\x80"}], kind=OldDaemon)
        connection = Connection(self.address)
        for number in [1, 2]:
            self.assertEqual(connection.ask("get_load", LIMIT, jid="1"), b"\x80")
            self.assertEqual(daemon.requests[-1]["v"], 1)

    def test_an_older_daemon_without_pyzmq_is_one_clear_line(self):
        self.daemon(kind=OldDaemon)
        with mock.patch.dict(sys.modules, {"zmq": None}):
            with self.assertRaisesRegex(Unavailable, "pyzmq is missing here; upgrade saltern"):
                Connection(self.address).ask("x", LIMIT)

    def test_the_daemon_is_upgraded_under_way(self):
        old = OldDaemon(self.address, lambda request: [{}])
        connection = Connection(self.address)
        self.assertIsNone(connection.ask("x", LIMIT))
        old.close()
        path = self.address.partition("://")[2]
        if os.path.exists(path):
            os.unlink(path)
        new = self.daemon()
        self.assertIsNone(connection.ask("x", LIMIT))
        self.assertEqual([request["v"] for request in new.requests], [2])

    def test_no_answer_within_the_timeout(self):
        silent = self.daemon(lambda request: [])
        connection = Connection(self.address)
        with self.assertRaisesRegex(Unavailable, "no answer to `x` within 0.3 s"):
            connection.ask("x", 0.3)
        # Salt's next calls do not wait as well.
        with self.assertRaisesRegex(Unavailable, "has not answered"):
            connection.ask("x", 3600)
        connection._silent_until = 0
        # The answer to another request is not taken for that of this one.
        silent.answer = lambda request: [{"id": request["id"] - 1, "value": b"old"}, {}]
        self.assertIsNone(connection.ask("x", LIMIT))

    def test_who_is_patient_waits_as_long_as_the_daemon_says(self):
        answers = [{"wait": True}] * 6 + [{"value": b"at last"}]
        for patient in [True, False]:
            connection = Connection(self.address)
            connection._link = SlowLink(answers, seconds_each=0.9)
            with mock.patch("saltext.saltern.connection.time", connection._link):
                if patient:
                    self.assertEqual(connection.ask("x", 1, patient=True), b"at last")
                else:
                    with self.assertRaisesRegex(Unavailable, "no answer to `x` within 1 s"):
                        connection.ask("x", 1)

    def test_threads_take_turns(self):
        self.daemon(lambda request: [{"value": request["what"]}])
        connection = Connection(self.address)
        wrong = []

        def ask(name):
            for number in range(50):
                what = b"%d-%d" % (name, number)
                if connection.ask("x", LIMIT, what=what) != what:
                    wrong.append(what)

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class JournalTest(WithFolder):
    def sent(self, journal):
        """All that is in it, as it would be sent."""
        bodies = []
        while not journal.is_empty():
            part = journal.part()
            if part is None:
                break
            bodies += part.bodies
            journal.safe(part)
        return bodies

    def crash(self, journal):
        """As if its process were gone; the lock, which is of this process, does not hold it."""
        os.close(journal._file)
        journal._lock_file.close()

    def test_events_outlive_the_process_in_order(self):
        journal = Journal(self.folder, 1 << 20)
        bodies = [b"%d" % number for number in range(2500)]
        for at in range(0, 2500, 100):
            journal.append(bodies[at : at + 100])
        part = journal.part()
        self.assertEqual(part.bodies, bodies[:1000])
        journal.safe(part)
        self.crash(journal)
        after = Journal(self.folder, 1 << 20)
        after.append([b"new"])
        # What was safe comes again; the event's id tells.
        self.assertEqual(self.sent(after), bodies + [b"new"])
        self.assertEqual(os.path.getsize(after._segments[0].path), after._segments[0].begin)

    def test_half_a_record_is_left_out(self):
        for cut in range(1, 17):
            with self.subTest(cut=cut), tempfile.TemporaryDirectory() as folder:
                journal = Journal(folder, 1 << 20)
                journal.append([b"whole", b"half"])
                path = journal._segments[0].path
                self.crash(journal)
                os.truncate(path, os.path.getsize(path) - cut)
                after = Journal(folder, 1 << 20)
                after.append([b"next"])
                self.assertEqual(self.sent(after), [b"whole", b"next"])
                self.crash(after)

    def test_what_is_damaged_is_left_out_and_said_and_what_is_behind_is_sent(self):
        whole = b"whole"
        hostile = Segment.new("").packed([b"forged"]) + b"\0\0\0\6forged"
        at = 32 + 12 + len(whole)
        length = 12 + len(b"damaged")
        for damage, lost in [
            (lambda data: data[: at + 6] + b"\xff" + data[at + 7 :], length),
            (lambda data: data[: at + 12] + b"D" + data[at + 13 :], length),
            (lambda data: data[:at] + bytes(length) + data[at + length :], length),
            (lambda data: data[:at] + bytes(4096) + data[at + length :], 4096),
            (lambda data: data[:at] + data[at + 1 :], length - 1),
        ]:
            with self.subTest(lost=lost), tempfile.TemporaryDirectory() as folder:
                journal = Journal(folder, 1 << 20)
                journal.append([whole, b"damaged", hostile, b"behind"])
                path = pathlib.Path(journal._segments[0].path)
                self.crash(journal)
                path.write_bytes(damage(path.read_bytes()))
                with self.assertLogs(level=logging.WARNING) as logs:
                    after = Journal(folder, 1 << 20)
                    after.append([b"next"])
                    self.assertEqual(self.sent(after), [whole, hostile, b"behind", b"next"])
                self.assertEqual(len(logs.output), 1)
                self.assertIn(f"{lost} bytes of", logs.output[0])
                self.assertEqual(after.damaged_bytes, lost)
                self.crash(after)

    def test_damage_while_it_runs_is_said_once_and_passed_over(self):
        journal = Journal(self.folder, 1 << 20)
        journal.append([b"a" * 100, b"b", b"c" * 100, b"d"])
        with open(journal._segments[0].path, "r+b") as file:
            for at in (50, 170):
                file.seek(at)
                file.write(b"\0\0\0")
        with self.assertLogs(level=logging.WARNING) as logs:
            self.assertEqual(self.sent(journal), [b"b", b"d"])
        self.assertEqual(len(logs.output), 1)

    def test_a_file_of_version_1_is_sent_up_to_its_damage(self):
        old = b"".join(len(b).to_bytes(4, "big") + b for b in [b"one", b"two"])
        pathlib.Path(self.folder, "0000000000000001.events").write_bytes(old + bytes(8))
        with self.assertLogs(level=logging.WARNING) as logs:
            journal = Journal(self.folder, 1 << 20)
        self.assertIn("8 bytes of", logs.output[0])
        journal.append([b"three"])
        self.assertEqual(self.sent(journal), [b"one", b"two", b"three"])

    def test_files_of_somebody_else_are_no_hindrance(self):
        for name in ["backup.events", "0000000000000002.events2.bak", "x.events2", f"{'9' * 16}.events2"]:
            pathlib.Path(self.folder, name).write_bytes(b"\0\0\0\1x")
        # Where it would write itself.
        os.mkdir(os.path.join(self.folder, "0000000000000001.events2"))
        os.symlink("/dev/zero", os.path.join(self.folder, "0000000000000002.events2"))
        journal = Journal(self.folder, 1 << 20)
        journal._next = 1
        journal.append([b"next"])
        self.assertEqual(self.sent(journal), [b"next"])
        self.assertTrue(os.path.exists(os.path.join(self.folder, "backup.events")))

    def test_a_removed_folder_is_made_anew_with_what_waits(self):
        for appends_behind in [True, False]:
            with self.subTest(appends_behind=appends_behind):
                folder = os.path.join(self.folder, f"cache-{appends_behind}", "saltern")
                journal = Journal(folder, 1 << 20)
                journal.append([b"before"])
                shutil.rmtree(os.path.dirname(folder))
                with self.assertLogs(level=logging.ERROR) as logs:
                    if appends_behind:
                        journal.append([b"behind"])
                    else:
                        self.assertEqual(journal.part().bodies, [b"before"])
                self.assertIn("was removed", logs.output[0])
                self.crash(journal)
                after = Journal(folder, 1 << 20)
                expected = [b"before", b"behind"] if appends_behind else [b"before"]
                self.assertEqual(self.sent(after), expected)

    def test_files_that_were_removed_before_they_were_sent_are_counted(self):
        journal = Journal(self.folder, 1 << 30)
        for letter in (b"a", b"b", b"c"):
            journal.append([letter * journals._SEGMENT_BYTES])
        for name in os.listdir(self.folder):
            os.unlink(os.path.join(self.folder, name))
        with self.assertLogs(level=logging.ERROR) as logs:
            self.assertEqual([body[:1] for body in self.sent(journal)], [b"c"])
        self.assertIn("2 since Salt started", " ".join(logs.output))
        journal.append([b"next"])
        self.assertEqual(self.sent(journal), [b"next"])
        # The lock is a new one as well.
        self.assertTrue(os.path.exists(os.path.join(self.folder, "lock")))

    def test_of_events_that_are_refused_the_others_are_sent(self):
        refused = {"error": "it is not whole", "later": False}
        bodies = [b"%d" % number for number in range(20)]
        daemon = self.daemon(
            lambda request: [refused if {b"7", b"11"} & {*request["events"]} else {}]
        )
        journal = Journal(self.folder, 1 << 20)
        journal.append(bodies)
        with self.assertLogs(level=logging.ERROR) as logs:
            outboxes.Outbox(journal, Connection(self.address), LIMIT)
            self.until(journal.is_empty)
        taken = [r["events"] for r in daemon.requests if not {b"7", b"11"} & {*r["events"]}]
        expected = [body for body in bodies if body not in (b"7", b"11")]
        self.assertEqual([body for part in taken for body in part], expected)
        self.assertRegex(" ".join(logs.output), "'7'.*'11'")

    def test_the_oldest_go_when_there_is_no_room(self):
        journal = Journal(self.folder, 3 * journals._SEGMENT_BYTES)
        body = b"x" * (journals._SEGMENT_BYTES // 10)
        with self.assertLogs(level=logging.ERROR) as logs:
            for number in range(100):
                journal.append([b"%03d" % number + body])
        held = sum(os.path.getsize(segment.path) for segment in journal._segments)
        self.assertLessEqual(held, 3 * journals._SEGMENT_BYTES)
        kept = [int(body[:3]) for body in self.sent(journal)]
        self.assertEqual(kept, list(range(100 - len(kept), 100)))
        self.assertIn(f"{100 - len(kept)} since Salt started", logs.output[-1])

    def test_a_part_that_had_to_go_while_it_was_sent(self):
        journal = Journal(self.folder, 2 * journals._SEGMENT_BYTES)
        journal.append([b"a" * journals._SEGMENT_BYTES])
        part = journal.part()
        with self.assertLogs(level=logging.ERROR):
            journal.append([b"b" * journals._SEGMENT_BYTES])
            journal.append([b"c" * journals._SEGMENT_BYTES])
        journal.safe(part)
        self.assertEqual([body[:1] for body in self.sent(journal)], [b"c"])

    def test_a_full_disk_leaves_no_half_record(self):
        journal = Journal(self.folder, 1 << 20)
        journal.append([b"first"])
        write = os.write
        with mock.patch("os.write", lambda file, data: write(file, data[:3])):
            with self.assertRaises(OSError):
                journal.append([b"second"])
        journal.append([b"third"])
        self.assertEqual(self.sent(journal), [b"first", b"third"])

    def test_one_process_has_it(self):
        journal = Journal(self.folder, 1 << 20)
        script = "import sys; from saltext.saltern.journal import Journal; Journal(sys.argv[1], 1)"
        ended = subprocess.run([sys.executable, "-c", script, self.folder], capture_output=True)
        self.assertIn(b"another process has the journal", ended.stderr)
        journal._lock_file.close()
        self.assertEqual(subprocess.run([sys.executable, "-c", script, self.folder]).returncode, 0)


class ReturnerTest(WithFolder):
    def setUp(self):
        super().setUp()
        saltern.__opts__ = {
            "saltern.address": self.address,
            "saltern.timeout": LIMIT,
            "cachedir": self.folder,
            "unique_jid": False,
        }
        saltern.__salt__ = {}
        saltern._event_options.clear()
        retry = mock.patch.object(outboxes, "_RETRY", 0.05)
        retry.start()
        self.addCleanup(retry.stop)

    def test_events_wait_for_the_daemon_in_order(self):
        with self.assertLogs(level=logging.ERROR) as logs:
            for number in range(100):
                saltern.event_return([{"tag": f"t/{number}", "data": {"n": number, "b": b"\xff"}}])
            self.until(lambda: logs.output)
            taken = []

            def answer(request):
                if len(taken) == 0:
                    # A daemon that comes up, and could not keep them at first.
                    taken.append([])
                    return [{"error": "not kept", "later": True}]
                taken.append(request["events"])
                return [{"wait": True}, {}]

            self.daemon(answer)
            self.until(lambda: sum(len(events) for events in taken[1:]) == 100)
        self.assertEqual(len(logs.output), 1, "an outage is one line")
        bodies = [body for events in taken[1:] for body in events]
        data = salt.payload.dumps({"n": 7, "b": b"\xff"}, use_bin_type=True)
        self.assertEqual(bodies[7], b"t/7\n\n" + data)
        self.assertEqual([body.split(b"\n")[0] for body in bodies], [b"t/%d" % n for n in range(100)])

    def test_without_a_journal_events_go_to_the_daemon_directly(self):
        daemon = self.daemon()
        saltern.__opts__["cachedir"] = "/dev/null"
        with self.assertLogs(level=logging.WARNING):
            saltern.event_return([{"tag": "t", "data": {}}])
        self.assertEqual(daemon.requests[0]["events"], [b"t\n\n\x80"])

    def test_a_return_looks_like_the_masters(self):
        daemon = self.daemon()
        ret = {"jid": "1", "id": "web-1", "return": True, "ret_kwargs": {"password": 1}}
        saltern.returner(dict(ret))
        load = salt.payload.loads(daemon.requests[0]["load"], encoding="utf-8")
        self.assertEqual(load["cmd"], "_return")
        self.assertTrue(load.pop("_stamp"))
        self.assertEqual(sorted(load), ["cmd", "id", "jid", "return"])
        as_master = {"cmd": "_return", "_stamp": "then", **load}
        saltern.returner(dict(as_master))
        packed = salt.payload.dumps(as_master, use_bin_type=True)
        self.assertEqual(daemon.requests[1]["load"], packed)

    def test_the_return_of_a_runner_stays_as_the_master_has_it(self):
        daemon = self.daemon()
        data = {"fun": "runner.test.arg", "jid": "1", "return": True, "success": True}
        ret = {"jid": "1", "id": "m", "tgt": "m", "return": data, "fun": "runner.test.arg"}
        saltern.returner(dict(ret))
        load = salt.payload.loads(daemon.requests[0]["load"], encoding="utf-8")
        self.assertTrue(load.pop("_stamp"))
        self.assertEqual(load, ret)

    def test_a_return_without_a_job_gets_one(self):
        daemon = self.daemon()
        ret = {"jid": "req", "id": "web-1", "fun": "test.ping", "return": True}
        saltern.returner(ret)
        self.assertTrue(salt.utils.jid.is_jid(ret["jid"]))
        self.assertEqual([r["op"] for r in daemon.requests], ["save_load", "return"])
        self.assertEqual(daemon.requests[0]["jid"], ret["jid"])

    def test_what_stores_logs_one_line_when_the_daemon_is_away(self):
        for store, says in [
            (lambda: saltern.save_load("1", {"fun": "x"}, ["a"]), "the load of job 1"),
            (lambda: saltern.save_minions("1", ["a"], syndic_id="s"), "the list of minions of job 1"),
            (lambda: saltern.returner({"jid": "1", "id": "a"}), "the return of a for job 1"),
            (lambda: saltern.update_endtime("1", "now"), "the end of job 1"),
            (saltern.clean_old_jobs, "which jobs are too old"),
        ]:
            with self.assertLogs(level=logging.ERROR) as logs:
                store()
            self.assertEqual(len(logs.output), 1)
            self.assertIn("is saltern.address right?", logs.output[0])
            self.assertIn(says, logs.output[0])
            self.assertNotIn("\n", logs.output[0])

    def test_who_is_turned_away_is_one_line_of_log(self):
        self.daemon(greeting={"v": 2, "id": 0, "error": "user 7 is refused", "later": True})
        with self.assertLogs(level=logging.ERROR) as logs:
            for number in range(5):
                saltern.save_load(str(number), {"fun": "x"}, ["a"])
        self.assertEqual(len(logs.output), 1, logs.output)
        self.assertIn("user 7 is refused; the load of job 0", logs.output[0])

    def test_what_looks_up_says_why_it_cannot(self):
        for look_up in [
            lambda: saltern.get_load("1"),
            lambda: saltern.get_jid("1"),
            lambda: saltern.get_fun("x"),
            saltern.get_jids,
            lambda: saltern.get_jids_filter(3),
            saltern.get_minions,
            lambda: saltern.get_endtime("1"),
        ]:
            with self.assertRaisesRegex(Unavailable, "is saltern.address right?"):
                look_up()

    def test_a_daemon_that_hangs_costs_the_timeout_once(self):
        # As of a process that is stopped: the kernel takes connections until there is no room.
        path = self.address.partition("://")[2]
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen(1)
        saltern.__opts__.update({"saltern.timeout": 3, "cachedir": "/dev/null"})
        for has_room in [True, False]:
            with self.subTest(has_room=has_room):
                self.hangs()
            # The next time there is no room.
            with self.assertRaises(BlockingIOError):
                while True:
                    other = socket.socket(socket.AF_UNIX)
                    self.addCleanup(other.close)
                    other.setblocking(False)
                    other.connect(path)

    def hangs(self):
        Process.this().connection(self.address)._silent_until = 0
        began = time.monotonic()
        with self.assertLogs(level=logging.ERROR) as logs:
            saltern.save_load("1", {"fun": "x"}, ["a"])
            for number in range(10):
                saltern.returner({"jid": "1", "id": f"web-{number}"})
        # Without a journal.
        for ask in [lambda: saltern.event_return([{"tag": "t", "data": {}}]), saltern.get_jids]:
            with self.assertRaisesRegex(Unavailable, "has not answered"):
                ask()
        # Thirteen times the timeout if each call waited.
        self.assertLess(time.monotonic() - began, 20)
        self.assertIn("no answer to `save_load` within 3 s; the load of job 1", logs.output[0])
        self.assertEqual(sum("has not answered" in line for line in logs.output), 10)

    def test_what_is_not_there_is_as_salt_expects_it(self):
        self.daemon()
        self.assertEqual(saltern.get_load("1"), {})
        self.assertEqual(saltern.get_endtime("1"), False)

    def test_prep_jid_needs_nobody(self):
        self.assertTrue(salt.utils.jid.is_jid(saltern.prep_jid()))
        self.assertTrue(salt.utils.jid.is_jid(saltern.prep_jid(nocache=True)))
        self.assertEqual(saltern.prep_jid(passed_jid="mine"), "mine")
        self.assertEqual(saltern.prep_jid(False, passed_jid=""), "")

    def test_a_child_makes_connections_of_its_own(self):
        daemon = self.daemon(lambda request: [{"value": salt.payload.dumps({"id": request["id"]})}])
        self.assertEqual(saltern.get_load("parent"), {"id": 1})
        # The lock is held by a thread that the child does not have.
        process = Process.this()
        with process._lock:
            child = os.fork()
            if child == 0:
                os._exit(0 if saltern.get_load("child") == {"id": 1} else 1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertEqual(saltern.get_load("parent"), {"id": 2})
        self.assertEqual([r["jid"] for r in daemon.requests], ["parent", "child", "parent"])

    def test_loaders_share_a_connection(self):
        self.assertIs(Process.this(), Process.this())
        first = Process.this().connection(self.address)
        self.assertIs(first, Process.this().connection(self.address))


class FileTest(unittest.TestCase):
    SALT = pathlib.Path(__file__).parent.parent

    def test_the_single_file_has_all_that_the_package_has(self):
        script = self.SALT / "single_file.py"
        made = subprocess.run([sys.executable, script], capture_output=True, check=True, text=True)
        single = {"__name__": "saltern"}
        exec(compile(made.stdout, "saltern.py", "exec"), single)
        self.assertNotIn("from saltext", made.stdout)
        for name, value in vars(saltern).items():
            if isinstance(value, types.FunctionType):
                self.assertEqual(inspect.signature(single[name]), inspect.signature(value), name)
        self.assertEqual(single["__doc__"], saltern.__doc__)

    def single(self, *arguments):
        script = self.SALT / "single_file.py"
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    def test_it_stands_for_another_returner(self):
        # What there is one of in a process is not that of the other tests.
        modules = mock.patch.dict(sys.modules)
        modules.start()
        self.addCleanup(modules.stop)
        sys.modules.pop("_saltext_saltern_process_2", None)
        folder = pathlib.Path(tempfile.mkdtemp(dir="/tmp"))
        self.addCleanup(shutil.rmtree, folder)
        made = self.single("--as", "mysql", "--sink", "db")
        (folder / "mysql.py").write_text(made.stdout)
        (folder / "redis.py").write_text(self.single("--as", "redis").stdout)
        daemon = FakeDaemon(
            f"ipc://{folder}/r",
            lambda request: [{"value": salt.payload.dumps(["web-1"])}] if "get" in request["op"] else [{}],
        )
        self.addCleanup(daemon.close)
        opts = salt.config.minion_config(None)
        opts.update(
            {
                "cachedir": str(folder),
                "extension_modules": str(folder / "extmods"),
                "returner_dirs": [str(folder)],
                "saltern.address": f"ipc://{folder}/r",
                "mysql.host": "gone.example",
                "alternative.mysql.host": "gone.example",
            }
        )
        with self.assertLogs(level="DEBUG") as logged:
            option = {"config.option": lambda name, default="", **_: opts.get(name, default)}
            returners = salt.loader.returners(opts, option)
            self.assertEqual(returners["mysql.get_minions"](), ["web-1"])
        said = [line for line in logged.output if "is saltern here" in line]
        self.assertEqual(len(said), 1, said)
        self.assertIn("mysql is saltern here, which ignores alternative.mysql.host, mysql.host", said[0])
        # As `--return mysql --return_config alternative` has it.
        ret = {"jid": "1", "id": "web-1", "fun": "test.ping", "return": True, "ret_config": "alternative"}
        returners["mysql.returner"](dict(ret))
        self.assertEqual(returners["redis.get_jids"](), ["web-1"])
        asked = [(request["op"], request.get("store")) for request in daemon.requests]
        self.assertEqual(asked, [("get_minions", "db"), ("return", None), ("get_jids", None)])
        self.assertNotIn(b"alternative", daemon.requests[1]["load"])

    def test_a_name_that_is_none_is_refused(self):
        for wrong in (["--as", "my-sql"], ["--as", "a.b"], ["--sink", ".db"], ["--sink", 'x"']):
            ended = self.single(*wrong)
            self.assertEqual((ended.returncode, ended.stdout), (2, ""), wrong)
            self.assertIn("cannot be a name", ended.stderr)

    def test_importing_it_does_not_import_zeromq(self):
        script = (
            "import sys, json, salt.payload, salt.returners, salt.utils.minions\n"
            "before = set(sys.modules)\n"
            "from saltext.saltern.returners import saltern\n"
            "print(json.dumps(sorted(set(sys.modules) - before)))"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        new = json.loads(ended.stdout)
        self.assertLess(len(new), 20, new)
        self.assertFalse([name for name in new if name.startswith("zmq")])


if __name__ == "__main__":
    # Sockets of a process are open until it ends.
    unittest.main(warnings="ignore")
