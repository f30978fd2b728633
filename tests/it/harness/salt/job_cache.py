"""Has two of Salt's job caches store the same jobs and compares what they answer.

Started as `job_cache.py CONFIG` by a Python that has Salt; CONFIG is a master's. The calls are those of
Salt's master in their order: `prep_jid` and `save_load` for what is published, and for each return
`prep_jid`, `save_load` with the return, `returner`, and `update_endtime`.
"""

import copy
import datetime
import sys

import salt.config
import salt.minion
import salt.utils.jid

opts = salt.config.master_config(sys.argv[1])
returners = salt.minion.MasterMinion({**opts, "file_client": "local"}).returners
CACHES = ["local_cache", "saltern"]


def call(name, *args, **kwargs):
    """What both answer, which has to be the same."""
    answers = [returners[f"{cache}.{name}"](*copy.deepcopy(args), **kwargs) for cache in CACHES]
    assert answers[0] == answers[1], f"{name}{args}: {answers[0]!r}\n  is not {answers[1]!r}"
    return answers[0]


def publish(jid, fun, minions, arg=(), **more):
    assert call("prep_jid", nocache=more.get("nocache", False), passed_jid=jid) == jid
    load = {
        "cmd": "publish",
        "fun": fun,
        "arg": list(arg),
        "tgt": "*",
        "tgt_type": "glob",
        "ret": "",
        "jid": jid,
        "user": "sudo_root",
        "kwargs": {"delimiter": ":", "show_timeout": True, **more},
    }
    call("save_load", jid, load, minions)


def came_back(jid, fun, minion, value, retcode=0, **more):
    assert call("prep_jid", False, passed_jid=jid) == jid
    load = {
        "cmd": "_return",
        "id": minion,
        "fun": fun,
        "fun_args": [],
        "jid": jid,
        "return": value,
        "retcode": retcode,
        "success": retcode == 0,
        "_stamp": "2026-11-21T23:33:36.123456",
        **more,
    }
    # Salt's master spares `local_cache` the second one.
    if not returners["local_cache.get_load"](jid):
        returners["local_cache.save_load"](jid, load)
    returners["saltern.save_load"](jid, load)
    call("returner", load)
    call("update_endtime", jid, salt.utils.jid.jid_to_time(jid) or "then")


def jids():
    number = 0
    while True:
        number += 1
        moment = datetime.datetime(2026, 11, 21, 23, 33, 36, number)
        yield moment.strftime("%Y%m%d%H%M%S%f")


new = jids()
ping, failed, meta, alone, syndic, none = (next(new) for _ in range(6))
publish(ping, "test.ping", ["web-1", "web-2"])
came_back(ping, "test.ping", "web-1", True)
came_back(ping, "test.ping", "web-2", {"deep": [1, None, {"ä": b"\xff\x00"}]}, out="highstate")
publish(failed, "state.apply", ["web-1"], arg=["web", {"__kwarg__": True, "test": True}])
came_back(failed, "state.apply", "web-1", ["No matching sls"], retcode=2)
publish(meta, "test.version", ["web-1"], metadata={"why": "the test"})
came_back(meta, "test.version", "web-1", "3008")
# A minion has run it by itself.
came_back(alone, "grains.items", "web-2", {"os": "Debian"}, tgt="web-2", tgt_type="glob", arg=[])
# A syndic publishes without knowing the minions, and reports them later.
publish(syndic, "test.ping", [])
call("save_minions", syndic, ["far-1", "far-2"], syndic_id="syndic-1")
call("save_minions", syndic, ["near-1"], syndic_id="syndic-2")
came_back(syndic, "test.ping", "far-1", True)
# What it returns is not to be kept.
secret = next(new)
publish(secret, "test.echo", ["web-1"], arg=["hunter2"], nocache=True)
came_back(secret, "test.echo", "web-1", "hunter2")
several = next(new)
publish(several, ["test.ping", "cmd.run"], ["web-1"], arg=[[], ["exit 3"]])
came_back(several, ["test.ping", "cmd.run"], "web-1", {"test.ping": True, "cmd.run": ""},
          retcode={"test.ping": 0, "cmd.run": 3}, success={"test.ping": True, "cmd.run": False})
# What the master runs itself: its mixins hand this on.
runner = next(new)
data = {"fun": "runner.test.arg", "jid": runner, "user": "root", "fun_args": ["a"]}
data.update({"_stamp": "2026-11-21T23:33:36.123456", "return": {"args": ["a"]}, "success": True})
load = {"id": "m_master", "tgt": "m_master", "jid": runner, "return": data}
load.update({"fun": data["fun"], "user": data["user"]})
call("prep_jid", False, passed_jid=runner)
call("save_load", runner, load)
call("returner", load)
find = next(new)
publish(find, "saltutil.find_job", ["web-1"], arg=[ping])
# Ids may be any text. Salt lists such a one behind those that tell a time, and it is the last here.
free = "deploy-42"
publish(free, "test.ping", ["web-1"])
came_back(free, "test.ping", "web-1", True)

for jid in [ping, failed, meta, alone, syndic, none, secret, several, runner, free, find]:
    call("get_jid", jid)
    call("get_endtime", jid)
    load = call("get_load", jid)
assert call("get_load", ping)["kwargs"], "what was published is what stays"
assert call("get_load", ping)["Minions"] == ["web-1", "web-2"]
assert call("get_jid", secret) == {}
assert call("get_load", none) == {}
assert call("get_endtime", none) is False
known = [ping, failed, meta, alone, syndic, secret, several, runner, find, free]
assert sorted(call("get_jids")) == known
assert call("get_jids")[free]["StartTime"] == ""
for count in [1, 3, 100]:
    for filter_find_job in [True, False]:
        call("get_jids_filter", count, filter_find_job)

# What `local_cache` has not.
assert returners["saltern.get_minions"]() == ["far-1", "web-1", "web-2"]
assert returners["saltern.get_fun"]("test.ping")["web-1"]["return"] is True
assert returners["saltern.get_fun"]("nothing") == {}
assert returners["saltern.get_fun"]("cmd.run")["web-1"]["jid"] == several
assert list(returners["saltern.get_fun"]("runner.test.arg")) == ["m_master"]
returners["saltern.clean_old_jobs"]()
standalone = {"jid": "req", "id": "web-1", "fun": "test.ping", "fun_args": [], "return": True}
returners["saltern.returner"](standalone)
assert returners["saltern.get_jid"](standalone["jid"])["web-1"]["return"] is True
print("the same")
