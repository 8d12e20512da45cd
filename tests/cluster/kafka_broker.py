"""A real Apache Kafka broker of one node (KRaft) on 127.0.0.1, for the tests and the benchmarks.

It keeps its data folder and ports over `kill` and `start`, so clients find the same broker again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

USER, PASSWORD = "alice", "alice-secret"
"""The one user of the SASL listener (mechanism PLAIN, no TLS)."""

_CLUSTER_ID = "cryptopulse-tests-kaf0"  # 22 letters, as a UUID in base 64
_READY_S_MAX = 150.0  # 3 s on an idle machine
_JAVA = ("java", "-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_CONFIG = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
# As Event Hubs does: a larger request closes the connection without an answer.
socket.request.max.bytes=1046528
num.io.threads=2
# A broker that was killed may register again after this, not after the usual nine seconds.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
# Retention is checked often, so that tests need not wait for it.
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=500
file.delete.delay.ms=500
"""


class KafkaBroker:
    """One broker; `folder` holds its data, configuration and `broker.log`. Use as a context manager."""

    def __init__(self, folder: Path, jars: Sequence[Path]) -> None:
        """Chooses ports and formats the data folder. `jars`: see tests/cluster/jars/kafka.xml."""
        folder.mkdir(parents=True, exist_ok=True)
        plain, sasl, controller = _free_ports(3)
        self.bootstrap = f"127.0.0.1:{plain}"
        self.bootstrap_sasl = f"127.0.0.1:{sasl}"
        """For USER and PASSWORD, with SASL_PLAINTEXT."""
        self.log_path = folder / "broker.log"
        self._config = folder / "server.properties"
        self._java = [*_JAVA, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", os.pathsep.join(map(str, jars))]
        self._process: subprocess.Popen[bytes] | None = None
        self._config.write_text(
            _CONFIG.format(
                plain=plain, sasl=sasl, controller=controller, data=folder / "data", user=USER, password=PASSWORD
            )
        )
        options = ("--config", str(self._config), "--cluster-id", _CLUSTER_ID, "--ignore-formatted")
        self._tool("kafka.tools.StorageTool", "format", *options)

    def __enter__(self) -> KafkaBroker:
        """Starts it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kills it: nobody needs its data any more."""
        self.kill()

    @property
    def pid(self) -> int | None:
        """Its process; None while it does not run."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts it and returns when it serves."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _READY_S_MAX
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                code = self._process.poll()
                self.kill()
                raise RuntimeError(f"The broker does not start ({code=}):\n{self.log_path.read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shuts it down in order."""
        self._end(signal.SIGTERM)

    def create_topic(self, name: str, partitions: int = 1, **config: object) -> None:
        """Makes a topic; dots in the names of `config` are written as underscores (`max_message_bytes=1000`)."""
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = self.admin()  # it must live until the answer is there
        admin.create_topics([NewTopic(name, partitions, 1, config=settings)])[name].result(30)

    def run(self, tool: str, *options: str) -> None:
        """Runs one of Kafka's own commands on this broker, by the name of its class."""
        self._tool(tool, "--bootstrap-server", self.bootstrap, *options)

    def admin(self) -> AdminClient:
        """A client for everything else."""
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def _tool(self, *command: str) -> None:
        subprocess.run([*self._java, *command], check=True, capture_output=True)

    def _serves(self) -> bool:
        """Whether it answers and has itself for a broker; takes up to a second when it does not."""
        try:
            return bool(self.admin().list_topics(timeout=1.0).brokers)
        except KafkaException:
            return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
