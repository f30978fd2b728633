"""
Hands events, returns and the job cache to the daemon saltern, and asks it
==========================================================================

On the master:

.. code-block:: yaml

    event_return: saltern
    master_job_cache: saltern          # or ext_job_cache: saltern
    saltern.address: ipc:///run/saltern/returner.ipc

``salt '*' test.version --return saltern`` has each minion hand its return to the daemon on its own
host. On the daemon's side belongs a source to this: ``returner: {bind: ipc:///run/saltern/returner.ipc}``.
An address is ``ipc://PATH``, ``unix:PATH``, or ``tcp://127.0.0.1:PORT`` with the token that the source has.

======================= ======================================= =====================================
option                  default                                 meaning
======================= ======================================= =====================================
saltern.address         ``ipc:///run/saltern/returner.ipc``     where the daemon listens
saltern.token_file      none                                    with ``tcp://``: a file with the token
saltern.timeout         3                                       seconds that a call may take
saltern.journal_bytes   67108864                                what the journal may hold
======================= ======================================= =====================================

Events go into a journal in ``<cachedir>/saltern`` first, and a thread sends them on from there, in
order. ``event_return`` therefore never waits for the daemon, and what the daemon has not said to be
safe outlives both of them. When the journal is full its oldest events go, and the log counts them.

All else is asked of the daemon directly. Without it a call fails at once, with it within the
timeout: what stores logs one line, what looks up raises an error that says why. ``prep_jid`` does
not need it.

``salt/single_file.py`` makes one file of this and what it imports, for ``_returners``, also under the
name of another returner.
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any

import salt.payload
import salt.returners
import salt.utils.jid
import salt.utils.minions
from salt.exceptions import CommandExecutionError

from saltext.saltern.outbox import Outbox
from saltext.saltern.process import Process

log = logging.getLogger(__name__)

__virtualname__ = "saltern"
# The daemon's sink that is asked first for jobs; "" for none. It and the name above are what
# `single_file.py` sets for a file that stands for another returner.
_SINK = ""
_SECTION = "saltern"
# Set by Salt's loader.
__opts__: dict[str, Any]
__salt__: dict[str, Any]

_ATTRIBUTES = {
    "address": "address",
    "token_file": "token_file",
    "timeout": "timeout",
    "journal_bytes": "journal_bytes",
}
_DEFAULTS = {
    "address": "ipc:///run/saltern/returner.ipc",
    "token_file": "",
    "timeout": 3,
    "journal_bytes": 64 << 20,
}


def __virtual__() -> Any:
    if __virtualname__ != _SECTION:
        ignored = sorted(key for key in __opts__ if _is_of_other(str(key)))
        if ignored:
            log.debug("%s is saltern here, which ignores %s", __virtualname__, ", ".join(ignored))
    return __virtualname__


def _is_of_other(option: str) -> bool:
    """Tells options of the returner that this file stands for: ``mysql.host``, ``other.mysql.host``."""
    name = __virtualname__
    return option == name or option.startswith(name + ".") or f".{name}." in option


def _options(ret: dict[str, Any] | None = None) -> dict[str, Any]:
    return salt.returners.get_returner_options(
        _SECTION,
        ret,
        _ATTRIBUTES,
        __salt__=__salt__,
        __opts__=__opts__,
        defaults=_DEFAULTS,
    )


def _ask(op: str, ret: dict[str, Any] | None = None, **arguments: Any) -> Any:
    options = _options(ret)
    connection = Process.this().connection(options["address"], options["token_file"] or "")
    return connection.ask(op, float(options["timeout"]), **arguments)


def _store(op: str, what: str, ret: dict[str, Any] | None = None, **arguments: Any) -> None:
    """Has something stored. Salt would log a stack trace of what is raised, so nothing is."""
    try:
        _ask(op, ret, **arguments)
    except CommandExecutionError as error:
        level = logging.DEBUG if getattr(error, "is_told", False) else logging.ERROR
        log.log(level, "%s; %s is not stored", error, what)


def _look_up(op: str, default: Any, **arguments: Any) -> Any:
    if _SINK:
        arguments["store"] = _SINK
    value = _ask(op, **arguments)
    return default if value is None else salt.payload.loads(value, encoding="utf-8")


# Salt looks options up far too slowly to do it for each event.
_event_options: dict[str, Any] = {}


def _outbox() -> Outbox:
    if not _event_options:
        _event_options.update(_options())
    folder = os.path.join(__opts__["cachedir"], "saltern")
    size, timeout = int(_event_options["journal_bytes"]), float(_event_options["timeout"])
    address, token_file = _event_options["address"], _event_options["token_file"] or ""
    return Process.this().outbox(folder, size, address, timeout, token_file)


def event_return(events: list[dict[str, Any]]) -> None:
    """
    Events of the master's bus. Only the journal is waited for; if it cannot be written, the daemon.
    """
    bodies = [
        event["tag"].encode() + b"\n\n" + salt.payload.dumps(event["data"], use_bin_type=True)
        for event in events
    ]
    try:
        _outbox().journal.append(bodies)
    except OSError as error:
        log.warning("saltern: cannot write the journal (%s); sending directly", error)
        _ask("events", events=bodies)


def returner(ret: dict[str, Any]) -> None:
    """
    What a minion returned: from the minion itself, or from a master whose job cache this is.
    """
    if ret.get("jid") == "req":
        ret["jid"] = prep_jid(nocache=ret.get("nocache", False))
        save_load(ret["jid"], ret)
    # What the minion was told of this returner is nobody else's business.
    load = {key: ret[key] for key in ret if key not in ("ret_config", "ret_kwargs")}
    # On the master they are there. Salt hands on what a runner gave without `cmd`, by which the
    # daemon knows that no minion has sent it.
    if not _is_of_runner(load):
        load.setdefault("cmd", "_return")
    load.setdefault("_stamp", datetime.datetime.now(datetime.timezone.utc).isoformat())
    what = f"the return of {ret.get('id')} for job {ret['jid']}"
    _store("return", what, ret, load=salt.payload.dumps(load, use_bin_type=True))


def _is_of_runner(load: dict[str, Any]) -> bool:
    inner = load.get("return")
    function = inner.get("fun") if isinstance(inner, dict) else None
    is_named = isinstance(function, str) and function.startswith(("runner.", "wheel."))
    return is_named and load.get("fun", function) == function and load.get("tgt") == load.get("id")


def prep_jid(nocache: bool = False, passed_jid: str | None = None) -> str:
    """
    The id of a new job; that of the job which is passed, if one is.
    """
    return passed_jid if passed_jid is not None else salt.utils.jid.gen_jid(__opts__)


def save_load(jid: str, clear_load: dict[str, Any], minions: list[str] | None = None) -> None:
    """
    What was published, and for which minions. Salt calls it once more with each return, which
    changes nothing.
    """
    if minions is None and clear_load.get("tgt"):
        checker = salt.utils.minions.CkMinions(__opts__)
        matched = checker.check_minions(clear_load["tgt"], clear_load.get("tgt_type", "glob"))
        minions = matched["minions"]
    load = salt.payload.dumps(clear_load, use_bin_type=True)
    what = f"the load of job {jid}"
    _store("save_load", what, jid=jid, load=load, minions=list(minions or []))


def save_minions(jid: str, minions: list[str], syndic_id: str | None = None) -> None:
    """
    More minions that a job is for, which a syndic knows of.
    """
    what = f"the list of minions of job {jid}"
    _store("save_minions", what, jid=jid, minions=list(minions), syndic_id=syndic_id)


def get_load(jid: str) -> dict[str, Any]:
    """
    What was published, and the minions it was for.
    """
    return _look_up("get_load", {}, jid=jid)


def get_jid(jid: str) -> dict[str, Any]:
    """
    What each minion returned.
    """
    return _look_up("get_jid", {}, jid=jid)


def get_fun(fun: str) -> dict[str, Any]:
    """
    The last return of each minion for a function.
    """
    return _look_up("get_fun", {}, fun=fun)


def get_jids() -> dict[str, Any]:
    """
    All jobs.
    """
    return _look_up("get_jids", {})


def get_jids_filter(count: int, filter_find_job: bool = True) -> list[dict[str, Any]]:
    """
    The last jobs, without those that ask whether another one still runs.
    """
    return _look_up("get_jids_filter", [], count=count, filter_find_job=filter_find_job)


def get_minions() -> list[str]:
    """
    All minions that have returned something.
    """
    return _look_up("get_minions", [])


def clean_old_jobs() -> None:
    """
    Salt's master asks for this once a minute. How long jobs are kept, the daemon's configuration says.
    """
    _store("clean_old_jobs", "which jobs are too old")


def update_endtime(jid: str, time: str) -> None:  # pylint: disable=redefined-outer-name
    """
    When a job ended.
    """
    _store("update_endtime", f"the end of job {jid}", jid=jid, time=str(time))


def get_endtime(jid: str) -> str | bool:
    """
    When a job ended; False if that is not known.
    """
    return _look_up("get_endtime", False, jid=jid)
