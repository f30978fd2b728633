"""Does to a Salt master what an operator does with `salt` and `salt-run`, without a new Python for each.

Started as `drive.py MASTER_CONFIG` by a Python that has Salt. Reads one JSON request a line, answers
with one JSON line:

    {"fire": TAG, "data": {...}}                              an event onto the master's bus
    {"run": FUN, "arg": [...], "kwarg": {...}, "timeout": S}  a job for all minions; with "more": {...}
                                                              for other targets, metadata and the like
    {"publish": FUN, "arg": [...], "ret": RETURNERS}          the same, without waiting for it
    {"batch": FUN, "arg": [...]}                              the same, one minion after the other
    {"runner": FUN, "arg": [...]}                             what `salt-run` does
    {"ask": [[FUN, [...], {...}], ...]}                       many runners, without a job for each
    {"behind_syndic": MINION, "of": JID}                      what a syndic reports of a job
    {"job_cache": FUN, "arg": [...]}                          a function of the master's job cache
    {"write_jobs": N, "minions": [...]}                       N jobs into the master's job cache
"""

import faulthandler
import json
import signal
import sys
from unittest import mock

import salt.client
import salt.config
import salt.minion
import salt.runner
import salt.utils.event
import salt.utils.job

# Seconds that an answer may take, where the request does not say. Salt's client may hang, so it is
# not too long: the test asks again.
TIMEOUT = 60

# Says where it hung, then ends as without it.
faulthandler.register(signal.SIGALRM, chain=True)
# Salt's client prints to stdout what it tells the user of `salt`.
answers, sys.stdout = sys.stdout, sys.stderr
opts = salt.config.client_config(sys.argv[1])


def fire(tag, data):
    with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=False) as bus:
        return bus.fire_event(data, tag, timeout=10000)


def run(fun, arg, kwarg, timeout, tgt="*", **more):
    with salt.client.get_local_client(mopts=dict(opts)) as client:
        job = client.run_job(tgt, fun, arg=arg, kwarg=kwarg, timeout=timeout, **more)
        if not job:
            return {"jid": None, "returned": {}}
        returned = {}
        for part in client.get_cli_returns(job["jid"], job["minions"], timeout=timeout):
            returned.update(part or {})
        values = {minion: part["ret"] for minion, part in returned.items()}
        return {"jid": job["jid"], "returned": sorted(returned), "values": values}


def runner(fun, arg):
    opts_of_master = salt.config.master_config(sys.argv[1])
    return salt.runner.RunnerClient(opts_of_master).cmd(fun, arg, print_event=False)


def ask(questions):
    opts_of_master = salt.config.master_config(sys.argv[1])
    runners = salt.runner.RunnerClient(opts_of_master).functions
    minion = salt.minion.MasterMinion(opts_of_master)
    # Each would make one of its own, which takes far longer than to answer.
    with mock.patch("salt.minion.MasterMinion", lambda _opts: minion):
        return [runners[fun](*arg, **kwarg) for fun, arg, kwarg in questions]


def behind_syndic(minion, jid):
    """What the master does, with its own functions."""
    opts_of_master = salt.config.master_config(sys.argv[1])
    salt.utils.job.store_minions(opts_of_master, jid, [minion], syndic_id="lower")
    load = {"cmd": "_return", "id": minion, "jid": jid, "fun": "test.ping", "fun_args": []}
    load.update({"return": True, "retcode": 0, "success": True, "_stamp": "then"})
    salt.utils.job.store_job(opts_of_master, load)


def publish(fun, arg, ret):
    with salt.client.get_local_client(mopts=dict(opts)) as client:
        return client.cmd_async("*", fun, arg=arg, ret=ret)


def batch(fun, arg):
    with salt.client.get_local_client(mopts=dict(opts)) as client:
        return len(list(client.cmd_batch("*", fun, arg=arg, batch="1")))


master = None


def job_cache(fun, *arg):
    global master
    if master is None:
        master = salt.minion.MasterMinion(salt.config.master_config(sys.argv[1]))
    return master.returners[f"{master.opts['master_job_cache']}.{fun}"](*arg)


def write_jobs(count, minions):
    """What the master does when minions return: the load, their names, their returns."""
    jids = []
    for number in range(count):
        jid = job_cache("prep_jid")
        load = {
            "cmd": "publish", "fun": "test.echo", "arg": [f"job {number}"], "tgt": "*",
            "tgt_type": "glob", "jid": jid, "ret": "", "user": "root",
        }
        job_cache("save_load", jid, load, minions)
        for minion in minions:
            ret = {"return": f"job {number}", "retcode": 0, "success": True}
            job_cache("returner", {"jid": jid, "id": minion, "fun": "test.echo", **ret})
        jids.append(jid)
    return jids


for line in sys.stdin:
    request = json.loads(line)
    # Salt's client may hang when the master comes up or goes just then. That ends this process,
    # which the test notices.
    timeout = request.get("timeout", TIMEOUT)
    signal.alarm(timeout + 30)
    try:
        if "fire" in request:
            answer = fire(request["fire"], request.get("data", {}))
        elif "publish" in request:
            answer = publish(request["publish"], request.get("arg", []), request.get("ret", ""))
        elif "batch" in request:
            answer = batch(request["batch"], request.get("arg", []))
        elif "job_cache" in request:
            answer = job_cache(request["job_cache"], *request.get("arg", []))
        elif "write_jobs" in request:
            answer = write_jobs(request["write_jobs"], request["minions"])
        elif "ask" in request:
            answer = ask(request["ask"])
        elif "behind_syndic" in request:
            answer = behind_syndic(request["behind_syndic"], request["of"])
        elif "runner" in request:
            answer = runner(request["runner"], request.get("arg", []))
        else:
            answer = run(
                request["run"],
                request.get("arg", []),
                request.get("kwarg", {}),
                timeout,
                **request.get("more", {}),
            )
        answer = {"ok": answer}
    except Exception as error:  # the master may be away: the test decides what that means
        answer = {"error": f"{type(error).__name__}: {error}"}
    signal.alarm(0)
    print(json.dumps(answer, default=repr), file=answers, flush=True)
