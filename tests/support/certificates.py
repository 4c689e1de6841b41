"""A certificate authority for tests, by the openssl command: certificates of any age for names of this machine."""

import ssl
import subprocess
from pathlib import Path
from typing import Final

from tests.support.services import installed

_CONFIG: Final = """
[ca]
default_ca = this
[this]
dir = {folder}
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[request]
distinguished_name = name
[name]
[leaf]
basicConstraints = CA:false
subjectAltName = DNS:localhost, IP:127.0.0.1
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
"""


class Authority:
    """Signs what it is asked to. `certificate` is the PEM file to trust."""

    def __init__(self, folder: Path) -> None:
        installed("openssl")
        self._folder = folder
        folder.mkdir(parents=True)
        (folder / "openssl.cnf").write_text(_CONFIG.format(folder=folder))
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        _openssl(
            *("req", "-x509", "-config", self._config, "-extensions", "authority", "-subj", "/CN=A school"),
            *("-days", "3650", *_new_key(self._key), "-out", self.certificate),
        )

    def server(self, *, start: str = "20200101000000Z", end: str = "20900101000000Z") -> ssl.SSLContext:
        """A server's side of TLS for localhost and 127.0.0.1, its certificate valid within these times."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem(start=start, end=end))
        return context

    def client(self) -> ssl.SSLContext:
        """A client's side of TLS that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def pem(self, *, start: str = "20200101000000Z", end: str = "20900101000000Z") -> Path:
        """The same as a file: the certificate, then its key."""
        request, key, certificate = (self._folder / f"leaf.{suffix}" for suffix in ("csr", "key", "pem"))
        _openssl("req", "-config", self._config, "-subj", "/CN=localhost", *_new_key(key), "-out", request)
        _openssl(
            *("ca", "-batch", "-notext", "-config", self._config, "-extensions", "leaf"),
            *("-cert", self.certificate, "-keyfile", self._key, "-in", request, "-out", certificate),
            *("-startdate", start, "-enddate", end),
        )
        both = self._folder / "server.pem"
        both.write_text(certificate.read_text() + key.read_text())
        return both

    @property
    def _config(self) -> Path:
        return self._folder / "openssl.cnf"


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
