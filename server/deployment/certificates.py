"""X.509 certificates (RFC 5280) of a fleet: its authority's own and the server's."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError

CA_DAYS = 3650
SERVER_DAYS = 397
"""What operating systems and browsers still accept of a server's certificate."""
CLOCK_SKEW = datetime.timedelta(hours=1)
"""Certificates are valid from a little before they are made: device clocks drift."""

HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


def alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """DNS names and IP addresses as subject alternative names.

    Raises:
        UserError: if there is none or one is neither.
    """
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            # Digits and dots alone are a mistyped address, never a host's name.
            if not HOST_NAME.fullmatch(host.lower()) or re.fullmatch(r"[0-9.]+", host):
                raise UserError(
                    f"host {host!r}: expected a DNS name or an IP address, without a port"
                ) from None
            names.append(x509.DNSName(host.lower()))
    if not names:
        raise UserError("the server's certificate needs at least one host: its name or address")
    return names


def ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A self-signed certificate of an authority that signs servers' certificates only."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedquarc CA")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _unsigned(key, name, name, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def server_certificate(
    key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName],
    ca_key: ec.EllipticCurvePrivateKey,
    ca_certificate: x509.Certificate,
) -> x509.Certificate:
    """A certificate of ``key`` for a TLS server with the names ``names``."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedquarc server")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _unsigned(key, subject, ca_certificate.subject, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _unsigned(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )
