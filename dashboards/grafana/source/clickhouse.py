"""What happened on the estate, from the tables that the sink `clickhouse` fills.

The queries run on every release that the sink writes to: without `toStartOfInterval` and without joins, which
would need `GLOBAL` on a cluster. Where a summary has the answer they ask it, and not the rows.
"""

from .model import CLICKHOUSE, dashboard, graph, row, stat, table, variable

MASTERS = "master IN (${master:sqlstring})"
BY_MINUTE = f"$__timeFilter(minute) AND {MASTERS}"
BY_TIME = f"$__timeFilter(time) AND {MASTERS}"


def at(column):
    """The beginning of the interval that a time is in."""
    return f"toDateTime(intDiv(toUInt32(toDateTime({column})), $__interval_s) * $__interval_s) AS at"


PANELS = [
    row("At a glance"),
    stat("Events", "Of all kinds.", "short", f"SELECT sum(events) AS events FROM salt_rates WHERE {BY_MINUTE}"),
    stat("Jobs", "Published.", "short", f"SELECT uniqExact(jid) AS jobs FROM salt_jobs WHERE {BY_TIME}"),
    stat(
        "Returns that failed",
        "Of all returns.",
        "percentunit",
        f"SELECT sum(failures) / sum(returns) AS failed FROM salt_failures WHERE {BY_MINUTE}",
    ),
    stat(
        "Minions",
        "That returned something.",
        "short",
        f"SELECT uniqExact(minion) AS minions FROM salt_returns WHERE {BY_TIME}",
    ),
    row("Events"),
    graph(
        "Events by kind",
        "In each interval.",
        "short",
        f"""SELECT {at("minute")}, kind, sum(events) AS count
FROM salt_rates WHERE {BY_MINUTE}
GROUP BY at, kind ORDER BY at""",
    ),
    graph(
        "Events by master",
        "In each interval.",
        "short",
        f"""SELECT {at("minute")}, master, sum(events) AS count
FROM salt_rates WHERE {BY_MINUTE}
GROUP BY at, master ORDER BY at""",
    ),
    table(
        "Logins and keys",
        "What was not a plain login that worked.",
        f"""SELECT act, minion, count() AS times, toDateTime(max(time)) AS last
FROM salt_events FINAL
WHERE kind IN ('auth', 'key') AND (kind = 'key' OR act != 'accept' OR failed) AND {BY_TIME}
GROUP BY act, minion ORDER BY last DESC LIMIT 50""",
    ),
    table(
        "Silent minions",
        "Seen in the time that is shown, and not in its last hour.",
        f"""SELECT minion, toDateTime(max(time)) AS last_seen
FROM salt_events
WHERE minion != '' AND kind NOT IN ('auth', 'key') AND {BY_TIME}
GROUP BY minion HAVING last_seen < $__toTime - INTERVAL 1 HOUR
ORDER BY last_seen LIMIT 50""",
    ),
    row("Jobs"),
    graph(
        "Jobs by function",
        "Published in each interval.",
        "short",
        f"""SELECT {at("time")}, function, uniqExact(jid) AS count
FROM salt_jobs WHERE {BY_TIME}
GROUP BY at, function ORDER BY at""",
    ),
    graph(
        "Returns by outcome",
        "In each interval.",
        "short",
        f"""SELECT {at("minute")}, sum(returns) - sum(failures) AS worked, sum(failures) AS failed
FROM salt_failures WHERE {BY_MINUTE}
GROUP BY at ORDER BY at""",
    ),
    table(
        "Jobs and their outcome",
        "The last fifty.",
        f"""SELECT jid, max(name) AS function, max(who) AS user, sum(expected) AS minions,
       sum(returned) AS returned, sum(bad) AS failed
FROM (SELECT jid, function AS name, user AS who, length(minions) AS expected,
             toUInt64(0) AS returned, toUInt8(0) AS bad
      FROM salt_jobs FINAL WHERE {BY_TIME}
      UNION ALL
      SELECT jid, function AS name, '' AS who, toUInt64(0) AS expected,
             toUInt64(1) AS returned, failed AS bad
      FROM salt_returns FINAL WHERE schedule = '' AND {BY_TIME})
GROUP BY jid ORDER BY jid DESC LIMIT 50""",
    ),
    table(
        "Returns that never came",
        "Of the last fifty jobs that lack some.",
        f"""SELECT jid, function, user, groupArray(minion) AS missing
FROM (SELECT DISTINCT jid, function, user, arrayJoin(minions) AS minion
      FROM salt_jobs WHERE {BY_TIME})
WHERE (jid, minion) GLOBAL NOT IN (SELECT jid, minion FROM salt_returns WHERE {BY_TIME})
GROUP BY jid, function, user ORDER BY jid DESC LIMIT 50""",
    ),
    table(
        "Failure rate by function",
        "Returns, and how many of them failed.",
        f"""SELECT function, sum(returns) AS all_returns, sum(failures) AS failed,
       round(failed / all_returns, 3) AS rate
FROM salt_failures WHERE {BY_MINUTE}
GROUP BY function ORDER BY rate DESC, all_returns DESC LIMIT 50""",
    ),
    table(
        "Who runs what",
        "Jobs, and the minions that they were for.",
        f"""SELECT user, function, uniqExact(jid) AS jobs, sum(length(minions)) AS for_minions
FROM salt_jobs FINAL WHERE {BY_TIME}
GROUP BY user, function ORDER BY jobs DESC LIMIT 50""",
    ),
    row("States"),
    graph(
        "Time of states",
        "95 of 100 states of a file are faster.",
        "ms",
        f"""SELECT {at("minute")}, sls,
       arrayElement(quantilesTDigestMerge(0.5, 0.95, 0.99)(durations), 2) AS milliseconds
FROM salt_durations WHERE {BY_MINUTE}
GROUP BY at, sls ORDER BY at""",
    ),
    graph(
        "States that fail",
        "By file, in each interval.",
        "short",
        f"""SELECT {at("minute")}, sls, sumMerge(failures) AS count
FROM salt_durations WHERE {BY_MINUTE}
GROUP BY at, sls ORDER BY at""",
    ),
    table(
        "Slowest states",
        "By the median, in milliseconds.",
        f"""SELECT sls, id, state, count() AS runs,
       round(quantileExact(0.5)(duration)) AS median_ms, round(max(duration)) AS longest_ms
FROM salt_states FINAL WHERE duration IS NOT NULL AND {BY_TIME}
GROUP BY sls, id, state ORDER BY median_ms DESC LIMIT 50""",
    ),
    table(
        "States that failed",
        "And what the last one said.",
        f"""SELECT sls, id, state, count() AS failures, uniqExact(minion) AS on_minions,
       argMax(comment, time) AS last_comment
FROM salt_states FINAL WHERE result = 0 AND {BY_TIME}
GROUP BY sls, id, state ORDER BY failures DESC LIMIT 50""",
    ),
    table(
        "States that change again and again",
        "Three times or more on one minion.",
        f"""SELECT minion, sls, id, count() AS runs, sum(changed) AS changes
FROM salt_states FINAL WHERE result IS NOT NULL AND {BY_TIME}
GROUP BY minion, sls, id HAVING changes >= 3
ORDER BY changes DESC LIMIT 50""",
    ),
    table(
        "Minions by failures",
        "Returns that failed.",
        f"""SELECT minion, count() AS all_returns, sum(failed) AS failures,
       toDateTime(max(time)) AS last_return
FROM salt_returns FINAL WHERE {BY_TIME}
GROUP BY minion HAVING failures > 0 ORDER BY failures DESC LIMIT 50""",
    ),
]

DASHBOARD = dashboard(
    "salt-clickhouse",
    "Salt in ClickHouse",
    "Events, jobs, returns and states, from the tables of the sink `clickhouse`.",
    CLICKHOUSE,
    [variable("master", "SELECT DISTINCT master FROM salt_rates ORDER BY master")],
    PANELS,
)
