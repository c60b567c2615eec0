"""Is this device fit to take part? One check for each thing that goes wrong in practice."""

from __future__ import annotations

import http.client
import importlib
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from client.health import read_health, read_throttling
from client.launch import parse_address
from client.memory import MB, available_bytes
from common.cache import cache_dir
from common.errors import UserError

MIN_MEMORY_BYTES = 512 * MB
MIN_DISK_BYTES = 1000 * MB
HOT_CELSIUS = 75.0
EARLIEST_CLOCK = 1_767_225_600
"""2026-01-01: a clock before it was never set, and no certificate is valid then."""
MAX_BEHIND_SECONDS = 300.0
MAX_AHEAD_SECONDS = 5.0
"""How much a device's clock may differ from the server's: Flower (1.41) refuses what it signs at
other times, as it does what other keys sign."""
HEALTH_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one check."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""
    """What to do, where it failed."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is checked; what is not given is not checked."""

    superlink: str = ""
    data: Path | None = None
    key: Path | None = None
    ca: Path | None = None


def examine(subject: Subject) -> Iterator[Finding]:
    """Every check that applies, one after the other."""
    yield _python()
    yield _torch()
    yield _memory()
    yield _disk()
    yield _temperature()
    yield _throttling()
    yield _clock()
    if subject.data is not None:
        yield from _data(subject.data)
    if subject.key is not None:
        yield _key(subject.key)
    if subject.ca is not None:
        yield (certificate := _certificate(subject.ca))
    if subject.superlink:
        if subject.ca is None or not certificate.passed:
            yield Finding(
                name="SuperLink",
                passed=False,
                detail=f"{subject.superlink} was not tried: that takes a good CA certificate",
                remedy="give ca.crt of the server with --ca",
            )
        else:
            yield from _connection(subject.superlink, subject.ca)


def _python() -> Finding:
    version = sys.version.split()[0]
    bits = sys.maxsize.bit_length() + 1
    return Finding(
        name="Python",
        passed=sys.version_info >= (3, 11) and bits == 64,
        detail=f"{version}, {bits} bits",
        remedy="install 64-bit Raspberry Pi OS 12 or later, which has Python 3.11",
    )


def _torch() -> Finding:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding(
            name="PyTorch", passed=False, detail=str(error), remedy="pip install fedquarc"
        )
    return Finding(
        name="PyTorch", passed=True, detail=f"{torch.__version__}, {os.cpu_count()} cores"
    )


def _memory() -> Finding:
    free = available_bytes()
    return Finding(
        name="Memory",
        passed=not free or free >= MIN_MEMORY_BYTES,
        detail=f"{free / MB:,.0f} MB available" if free else "unknown",
        remedy="stop other programs, or add swap: a client takes up to 500 MB",
    )


def _disk() -> Finding:
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        name="Disk",
        passed=free >= MIN_DISK_BYTES and os.access(existing, os.W_OK),
        detail=f"{free / MB:,.0f} MB free at {existing}",
        remedy="make room, or set FEDQUARC_CACHE to a writable folder with 1 GB free",
    )


def _temperature() -> Finding:
    health = read_health()
    celsius = health.temperature_celsius
    battery = health.battery_percent
    detail = "no sensor" if celsius is None else f"{celsius:.0f} degrees"
    if battery is not None:
        detail += f", on battery at {battery:.0f} %"
    return Finding(
        name="Temperature",
        passed=celsius is None or celsius < HOT_CELSIUS,
        detail=detail,
        remedy="give it a heat sink or a fan, or a lower --max-temperature",
    )


def _throttling() -> Finding:
    causes = read_throttling()
    unknown = "unknown (no vcgencmd, or it is refused to who is not in the group video)"
    return Finding(
        name="Throttling",
        passed=not causes,
        detail=unknown if causes is None else ", ".join(causes) or "none",
        remedy="use the power supply that belongs to the board, and cool it",
    )


def _clock() -> Finding:
    now = time.time()
    return Finding(
        name="Clock",
        passed=now >= EARLIEST_CLOCK,
        detail=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        remedy="sudo timedatectl set-ntp true: certificates are only valid by the right time",
    )


def _data(folder: Path) -> Iterator[Finding]:
    from common.data.image_decoding import decode_image
    from common.data.image_folder import list_images, training_folder

    remedy = "one folder for each class, named as the run's classes, with images in it"
    try:
        root = training_folder(folder)
        listing = list_images(root, may_lack_images=True)
    except (UserError, OSError) as error:
        yield Finding(name="Images", passed=False, detail=str(error), remedy=remedy)
        return
    counts = [int((listing.labels == index).sum()) for index in range(len(listing.class_names))]
    classes = ", ".join(
        f"{name} {count}" for name, count in zip(listing.class_names, counts, strict=True)
    )
    yield Finding(
        name="Images", passed=True, detail=f"{len(listing.files):,} in {len(counts)}: {classes}"
    )
    unreadable = []
    for name in listing.files:
        try:
            # At a small size JPEG decodes many times faster; a damaged file fails all the same.
            decode_image(root / name, name, 32)
        except UserError:
            unreadable.append(name)
    yield Finding(
        name="Unreadable images",
        passed=not unreadable,
        detail=f"{len(unreadable)}" + (f": {', '.join(unreadable[:5])}" if unreadable else ""),
        remedy="remove or replace these files",
    )


def _key(key: Path) -> Finding:
    def failed(detail: str, remedy: str) -> Finding:
        return Finding(name="Key", passed=False, detail=detail, remedy=remedy)

    try:
        if not key.is_file():
            return failed(f"{key} is not there", "python -m server keys add NAME on the server")
        if key.stat().st_mode & 0o077:
            return failed(f"{key} is readable by others", f"chmod 600 {key}")
        text = key.read_bytes()
    except OSError as error:
        return failed(f"{key}: {error.strerror}", f"chown it: sudo chown $USER {key}")
    if b"PRIVATE KEY" not in text:
        return failed(f"{key} is no private key", "give the file without .pub")
    return Finding(name="Key", passed=True, detail=str(key))


def _certificate(ca: Path) -> Finding:
    def finding(passed: bool, detail: str) -> Finding:
        return Finding(
            name="CA certificate",
            passed=passed,
            detail=detail,
            remedy="copy ca.crt of the server anew",
        )

    try:
        loaded = ssl.create_default_context(cafile=str(ca)).get_ca_certs()
    except ssl.SSLError:
        return finding(False, f"{ca} holds no certificate")
    except OSError as error:
        return finding(False, f"{ca}: {error.strerror}")
    ends = [ssl.cert_time_to_seconds(str(entry["notAfter"])) for entry in loaded]
    if not ends:
        return finding(False, f"{ca} holds no CA certificate")
    day = time.strftime("%Y-%m-%d", time.gmtime(min(ends)))
    return finding(min(ends) > time.time(), f"valid until {day}")


def _connection(superlink: str, ca: Path) -> Iterator[Finding]:
    def finding(passed: bool, detail: str, remedy: str = "") -> Finding:
        return Finding(name="SuperLink", passed=passed, detail=detail, remedy=remedy)

    host, port = parse_address(superlink)
    started = time.perf_counter()
    try:
        date = get_health(host, port, ca)
    except ssl.SSLCertVerificationError as error:
        yield finding(
            False,
            f"{superlink}: {error.verify_message}",
            "the CA's certificate must be this server's, and the name one of its certificate's",
        )
    except OSError as error:
        yield finding(
            False,
            f"{superlink}: {error.strerror or error}",
            "is the server running, is the port open, is the address right?",
        )
    else:
        seconds = time.perf_counter() - started
        yield finding(True, f"{superlink} answers over TLS in {seconds * 1000:.0f} ms")
        yield _clock_beside(parsedate_to_datetime(date).timestamp())


def _clock_beside(server_seconds: float) -> Finding:
    ahead = time.time() - server_seconds
    return Finding(
        name="Clock beside the server's",
        # A second more: the server's time is in whole ones.
        passed=-MAX_BEHIND_SECONDS <= ahead <= MAX_AHEAD_SECONDS + 1,
        detail=f"{abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}",
        remedy="sudo timedatectl set-ntp true, here and on the server: else it refuses this key",
    )


def get_health(host: str, port: int, ca: Path) -> str:
    """Ask the SuperLink over TLS whether it is there; returns what time it is there (HTTP's Date).

    Raises:
        OSError: it is not, or is not who the CA says.
    """
    context = ssl.create_default_context(cafile=str(ca))
    name = f"[{host}]" if ":" in host else host
    # Proxies of the environment are for web pages: SuperNodes do not use them.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(f"https://{name}:{port}/health", timeout=HEALTH_TIMEOUT_SECONDS) as reply:
            reply.read()
            return str(reply.headers["Date"])
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        raise
    except UnicodeError as error:
        raise OSError(
            f"{host} is no host name: between two dots it has nothing, or more than 63 letters"
        ) from error
    except http.client.HTTPException as error:
        raise OSError("it gives no HTTP/1 answer, as a SuperLink does") from error
