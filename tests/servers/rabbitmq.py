"""A RabbitMQ server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

from servers import Server, free_port, program

__all__ = ["RabbitServer"]

_PLACES = ("/usr/lib/rabbitmq/bin",)


class RabbitServer(Server):
    """RabbitMQ with its default settings and the user ``guest``."""

    def __init__(self) -> None:
        super().__init__()
        self._dist_port = free_port()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def user(self) -> str | None:
        return "rabbitmq" if os.getuid() == 0 else None

    def prepare(self) -> None:
        if self.user():
            shutil.chown(self.folder, "rabbitmq")

    def command(self) -> list[str]:
        return [program("rabbitmq-server", *_PLACES)]

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            **os.environ,
            "HOME": folder,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"-setcookie eventsync{self.port}",
            "RABBITMQ_CTL_ERL_ARGS": f"-setcookie eventsync{self.port}",
            "RABBITMQ_NODENAME": f"eventsync{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
        }

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on this server and return its output."""
        environment = self.environment()
        ran = subprocess.run(
            [program("rabbitmqctl", *_PLACES), "-n", environment["RABBITMQ_NODENAME"], *arguments],
            env=environment,
            user=self.user(),
            check=True,
            capture_output=True,
            text=True,
        )
        return ran.stdout

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                # RabbitMQ answers the header of an unknown protocol version with the one it knows.
                connection.sendall(b"AMQP\x00\x00\x00\x00")
                connection.settimeout(1)
                return connection.recv(8).startswith(b"AMQP")
        except OSError:
            return False
