#!/usr/bin/env python3
"""A broker of Kafka for the load tests, in a folder and on a port of its own.

usage: load-tests/broker.py FOLDER JARS PORT

Becomes the broker, whose data is in FOLDER/data. PORT + 1 is its controller's.
"""
import os
import sys
from pathlib import Path


def java(jars, *words):
    """The command that runs a program of Kafka."""
    return ["java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", f"{jars}/*", *words]


def command(folder, jars, port, gather=0):
    """Writes the broker's configuration and gives the command that starts it.

    A new group waits for so many milliseconds for more members before it shares the partitions out.
    """
    folder = Path(folder)
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\ncluster.id=c2FsdGVybi1sb2FkLTAwMQ\nnode.id=1\n")
    properties = folder / "properties"
    properties.write_text(
        "process.roles=broker,controller\nnode.id=1\n"
        f"controller.quorum.voters=1@127.0.0.1:{port + 1}\n"
        f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 1}\n"
        f"controller.listener.names=CONTROLLER\nlog.dirs={data}\nnum.partitions=4\n"
        f"offsets.topic.replication.factor=1\ngroup.initial.rebalance.delay.ms={gather}\n"
        "transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n"
    )
    return java(jars, "kafka.Kafka", str(properties))


if __name__ == "__main__":
    words = command(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    os.execvp(words[0], words)
