"""An OpenLDAP server."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence

import ldap3

from servers import Server, free_port, program

__all__ = ["SlapdServer"]

_OID = "1.3.6.1.4.1.55555"  # not registered; for tests only
_CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.pid
{schema}
database mdb
maxsize 1073741824
suffix "dc=example,dc=org"
rootdn "cn=admin,dc=example,dc=org"
rootpw secret
directory {folder}/data
dbnosync
index objectClass eq
{database}
"""


class SlapdServer(Server):
    """OpenLDAP with the tree ``dc=example,dc=org``, its ``ou=people``, and the user ``cn=admin``.

    It does not wait for the disk, so data survive a kill but not a power failure.

    ``attributes``: names of further attributes, which hold any bytes; entries of the object class
    ``testRecord`` may have them. ``more``, ``database``: further lines of the configuration, of the
    server and of the database. ``tls``: offer encryption, on ``secure_url`` or with StartTLS,
    with the self-signed certificate in the file ``certificate``.
    """

    def __init__(
        self,
        *,
        attributes: Sequence[str] = (),
        more: str = "",
        database: str = "",
        tls: bool = False,
    ) -> None:
        super().__init__()
        self.certificate = self.folder / "certificate.pem"
        self._secure_port = free_port() if tls else None
        lines = [
            f"attributetype ( {_OID}.1.{number} NAME '{name}' EQUALITY octetStringMatch"
            " SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 )"
            for number, name in enumerate(attributes, start=1)
        ]
        if attributes:
            lines.append(
                f"objectclass ( {_OID}.2.1 NAME 'testRecord' SUP top STRUCTURAL"
                f" MAY ( {' $ '.join(attributes)} ) )"
            )
        if tls:
            lines.append(f"TLSCertificateFile {self.certificate}")
            lines.append(f"TLSCertificateKeyFile {self.folder / 'key.pem'}")
        self._schema = "\n".join([*lines, more])
        self._database = database

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def secure_url(self) -> str:
        """The URL for clients that encrypt from the start."""
        return f"ldaps://127.0.0.1:{self._secure_port}"

    user_dn = "cn=admin,dc=example,dc=org"
    password = "secret"

    def prepare(self) -> None:
        (self.folder / "data").mkdir()
        if self._secure_port:
            subprocess.run(
                [
                    *(program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
                    *("-keyout", str(self.folder / "key.pem"), "-out", str(self.certificate)),
                    *("-days", "2", "-subj", "/CN=127.0.0.1"),
                    *("-addext", "subjectAltName=IP:127.0.0.1"),
                ],
                check=True,
                capture_output=True,
            )
        config = _CONFIG.format(folder=self.folder, schema=self._schema, database=self._database)
        (self.folder / "slapd.conf").write_text(config, encoding="utf-8")

    def command(self) -> list[str]:
        urls = f"{self.url} {self.secure_url}" if self._secure_port else self.url
        return [
            program("slapd", "/usr/sbin"),
            *("-f", str(self.folder / "slapd.conf"), "-h", urls, "-d", "0"),
        ]

    def client(self) -> ldap3.Connection:
        """Return a connection that is bound as the administrator."""
        server = ldap3.Server(self.url, get_info=ldap3.NONE, connect_timeout=2)
        return ldap3.Connection(server, self.user_dn, self.password, auto_bind=True)

    def is_ready(self) -> bool:
        try:
            # Check the port first, because ldap3 leaves the socket of a failed connection open.
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            client = self.client()
        except (OSError, ldap3.core.exceptions.LDAPException):
            return False
        client.add("dc=example,dc=org", ["dcObject", "organization"], {"o": "Example"})
        client.add("ou=people,dc=example,dc=org", "organizationalUnit")
        client.unbind()
        return True
