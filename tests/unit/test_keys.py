"""Keys: what is made, who can read it, what is refused."""

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import UserError
from server.cli import main
from server.deployment.keys import (
    KeyFolder,
    certificate_notice,
    create_device_keys,
    create_fleet_keys,
    renew_server_certificate,
)
from tests.conftest import largest_file

HOSTS = ["fleet.example.org", "127.0.0.1", "::1"]


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(root=tmp_path / "secrets")
    create_fleet_keys(folder, HOSTS, ["pi-1", "pi-2"])
    return folder


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_file_is_its_owners_alone(folder: KeyFolder) -> None:
    files = [path for path in folder.root.rglob("*") if path.is_file()]
    assert {path.relative_to(folder.root).as_posix() for path in files} == {
        *("ca.crt", "ca.key", "server.crt", "server.key", "superexec.secret"),
        *("devices/pi-1.key", "devices/pi-1.pub", "devices/pi-2.key", "devices/pi-2.pub"),
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder.root, folder.devices)} == {0o700}


def _shake_hands(folder: KeyFolder, trusted: KeyFolder, host: str) -> None:
    """A TLS handshake in memory; raises as a device's would."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder.server_certificate, folder.server_key)
    client = ssl.create_default_context(cafile=str(trusted.ca_certificate))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() is not None


@pytest.mark.parametrize("host", HOSTS)
def test_a_device_accepts_the_server_by_each_of_its_names(folder: KeyFolder, host: str) -> None:
    _shake_hands(folder, folder, host)


def test_a_device_refuses_another_name_and_another_ca(folder: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _shake_hands(folder, folder, "other.example.org")
    other = KeyFolder(root=tmp_path / "other")
    create_fleet_keys(other, HOSTS, [])
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(folder, other, HOSTS[0])


def test_device_keys_are_a_pair_of_flowers_kind(folder: KeyFolder) -> None:
    private = serialization.load_ssh_private_key(
        folder.device_key("pi-1").read_bytes(), password=None
    )
    public = serialization.load_ssh_public_key(folder.device_public_key("pi-1").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp384r1"
    assert private.public_key() == public
    other = serialization.load_ssh_public_key(folder.device_public_key("pi-2").read_bytes())
    assert other != public


def test_a_renewed_certificate_is_of_the_same_ca(folder: KeyFolder) -> None:
    """The old pair is kept, the new one has another key and the new name alone."""
    old = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    renew_server_certificate(folder, ["new.example.org"])
    new = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    assert new.public_key() != old.public_key()
    assert new.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(397)
    _shake_hands(folder, folder, "new.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(folder, folder, HOSTS[0])
    assert folder.server_key.with_name("server.key.old").is_file()


def test_no_renewal_overwrites_what_an_earlier_one_kept(folder: KeyFolder) -> None:
    """Three renewals: the pairs of before are the .old, .old-2 and .old-3 ones."""
    paths, before = (folder.server_key, folder.server_certificate), []
    for _ in range(3):
        before.append([path.read_bytes() for path in paths])
        renew_server_certificate(folder, HOSTS)
    for ending, pair in zip(("old", "old-2", "old-3"), before, strict=True):
        kept = [path.with_name(f"{path.name}.{ending}") for path in paths]
        assert [path.read_bytes() for path in kept] == pair


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["init", "--host", "localhost"], "ca.crt' exists: keys are never overwritten"),
        (["add", "pi-3", "pi-1"], "pi-1.key' exists: keys are never overwritten"),
        (["add", "../pi"], "device '../pi': expected 1 to 63 lower-case letters"),
        (["add", "pi-3", "pi-3"], "device 'pi-3' is named twice"),
        (["renew", "--host", "10.0.0.256"], "host '10.0.0.256': expected a DNS name or an IP"),
        (["renew", "--host", "example.org:443"], "without a port"),
        (["register", "pi-9"], "device 'pi-9' has no"),
        (["revoke", "pi-1"], "device 'pi-1' is not registered"),
        (["rotate", "pi-1", "--superlink", "localhost"], "'localhost': expected HOST:PORT"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    folder: KeyFolder, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _contents(folder.root)
    assert main(["keys", "--dir", str(folder.root), *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert said in output.err
    assert _contents(folder.root) == before


def test_without_room_a_key_is_whole_or_not_there(folder: KeyFolder) -> None:
    """Room for 100 bytes: no key and no certificate is as short."""
    before = _contents(folder.root)
    with largest_file(100):
        with pytest.raises(UserError, match=r"pi-3.key' can't be written: File too large"):
            create_device_keys(folder, ["pi-3"])
        with pytest.raises(UserError, match=r"server.key.new' can't be written: File too large"):
            renew_server_certificate(folder, HOSTS)
    assert _contents(folder.root) == before


def test_a_damaged_ca_is_said(folder: KeyFolder) -> None:
    folder.ca_key.write_bytes(b"no key")
    with pytest.raises(UserError, match="is damaged: expected PEM files"):
        renew_server_certificate(folder, HOSTS)
    assert folder.server_certificate.is_file()


def test_the_command_makes_a_fleets_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "keys"
    arguments = ["init", "--host", "localhost", "127.0.0.1", "--device", "a", "b"]
    assert main(["keys", "--dir", str(root), *arguments]) == 0
    assert KeyFolder(root=root).device_names() == ["a", "b"]
    assert "ca.key" in capsys.readouterr().out


@pytest.mark.parametrize(("days", "verb"), [(360, ""), (370, " ends on "), (400, " ended on ")])
def test_operators_are_told_before_the_servers_certificate_ends(
    folder: KeyFolder, days: int, verb: str
) -> None:
    """It is good for 397 days: 37 days before the end nothing is said, 27 days before it is."""
    now = datetime.datetime.now(datetime.UTC)
    notice = certificate_notice(folder, now + datetime.timedelta(days=days))
    end = now + datetime.timedelta(days=397)
    near = {f"{end - datetime.timedelta(hours=hours):%Y-%m-%d}" for hours in (0, 1)}
    assert verb in notice
    assert bool(notice) == bool(verb)
    assert not notice or any(day in notice for day in near)


def test_a_certificate_that_has_ended_is_said_before_the_superlink_is_asked(
    folder: KeyFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With such a certificate nothing can be asked of it: here nobody listens."""
    monkeypatch.setattr("server.deployment.keys.NOTICE_BEFORE", datetime.timedelta(days=398))
    arguments = ["register", "--superlink", "127.0.0.1:1"]
    assert main(["keys", "--dir", str(folder.root), *arguments]) == 2
    captured = capsys.readouterr()
    assert "make the next one with keys renew" in captured.out
    assert "is its certificate still good?" in captured.err


def test_without_a_server_certificate_there_is_nothing_to_tell(folder: KeyFolder) -> None:
    folder.server_certificate.unlink()
    assert certificate_notice(folder, datetime.datetime.max.replace(tzinfo=datetime.UTC)) == ""


def test_a_damaged_server_certificate_is_said(folder: KeyFolder) -> None:
    folder.server_certificate.write_text("no certificate")
    with pytest.raises(UserError, match=r"server.crt' can't be read as a certificate"):
        certificate_notice(folder, datetime.datetime.now(datetime.UTC))
