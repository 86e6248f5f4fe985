"""MinIO with a certificate of an authority of its own."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.real.stores.servers import Minio


class TlsMinio(Minio):
    """Speaks TLS only."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        certs = directory / "certs"
        certs.mkdir()
        self.authority = Path("/tmp") / f"stoop-test-authority-{self.port}.pem"  # where nobody may read it
        make_certificate(certs / "public.crt", certs / "private.key", self.authority)

    @property
    def settings(self) -> dict[str, Any]:
        found = super().settings
        return {"minio": found["minio"] | {"use_ssl": True}}

    def command(self) -> list[str]:
        return [*super().command(), "--certs-dir", str(self.directory / "certs")]

    def connection(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context(cafile=str(self.authority))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=context)

    def stop(self) -> None:
        super().stop()
        self.authority.unlink(missing_ok=True)


def make_certificate(public: Path, private: Path, authority: Path) -> None:
    """An authority, and a certificate of it for 127.0.0.1, valid for an hour."""
    now = datetime.fromtimestamp(time.time(), UTC)
    signer, name = ec.generate_private_key(ec.SECP256R1()), _name("stoop-test authority")
    mine = _builder(name, name, signer.public_key(), now)
    mine = mine.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    key = ec.generate_private_key(ec.SECP256R1())
    its = _builder(_name("127.0.0.1"), name, key.public_key(), now)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    its = its.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    authority.write_bytes(mine.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    authority.chmod(0o644)
    public.write_bytes(its.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, now: datetime) -> x509.CertificateBuilder:
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number())
    return made.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(hours=1))
