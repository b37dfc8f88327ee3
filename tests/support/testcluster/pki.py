"""Certificates of one cluster: a CA, and keys that it signs. Uses openssl: 10 ms each, without a Python package."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .daemons import run
from .missing import MissingError

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "7")
CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
"""Empty: the distribution's configuration would add extensions to our certificates."""


@dataclass(frozen=True)
class Certificate:
    """A signed certificate and its key, as files."""

    cert: Path
    key: Path


class Authority:
    """The CA of one cluster."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            raise MissingError("openssl is not on the path (apt-get install openssl)")
        folder.mkdir(parents=True)
        self.folder = folder
        self.cert, self._key = folder / "ca.crt", folder / "ca.key"
        self._config = folder / "openssl.cnf"
        self._config.write_text(CONFIG)
        self._request("/CN=test cluster", self._key, self.cert, "basicConstraints=critical,CA:TRUE",
                      "keyUsage=critical,digitalSignature,keyCertSign")  # fmt: skip

    def _request(
        self, subject: str, key: Path, cert: Path, *extensions: str, signed_by: Sequence[str | Path] = ()
    ) -> None:
        added = [word for one in extensions for word in ("-addext", one)]
        files = ("-config", self._config, "-keyout", key, "-out", cert)
        run("openssl", "req", "-x509", *CURVE, *files, *signed_by, "-subj", subject, *added)

    def issue(self, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> Certificate:
        """Issue a certificate for an API user (groups are organizations), and for a server if it has hosts (`IP:…`,
        `DNS:…`)."""
        file = self.folder / user.replace(":", "-").replace("/", "-")
        made = Certificate(file.with_name(f"{file.name}.crt"), file.with_name(f"{file.name}.key"))
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        extensions = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
        if hosts:
            extensions.append(f"subjectAltName={','.join(hosts)}")
        self._request(subject, made.key, made.cert, *extensions, signed_by=("-CA", self.cert, "-CAkey", self._key))
        return made

    def key_pair(self, name: str) -> Certificate:
        """A key pair without a certificate; `cert` is the public key."""
        pair = Certificate(self.folder / f"{name}.pub", self.folder / f"{name}.key")
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", pair.key)
        run("openssl", "ec", "-in", pair.key, "-pubout", "-out", pair.cert)
        return pair
