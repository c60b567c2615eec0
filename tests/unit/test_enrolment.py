"""Enrolment: which keys a SuperLink is told of, and what is left when it refuses."""

from pathlib import Path
from typing import cast

import pytest

from common.errors import UserError
from server.deployment.control import ControlClient
from server.deployment.enrolment import register_devices, revoke_device, rotate_device
from server.deployment.keys import KeyFolder, create_device_keys


class FakeSuperLink:
    """Node ids by public key; like Flower's, it never takes a key twice."""

    def __init__(self) -> None:
        self.nodes: dict[str, bytes] = {}
        self.seen: list[bytes] = []
        self.is_down = False
        self.keeps_all = False

    def register(self, public_key: Path, name: str) -> str:
        content = public_key.read_bytes()
        if self.is_down or content in self.seen:
            raise UserError("the SuperLink refused")
        self.seen.append(content)
        node_id = str(100 + len(self.seen))
        self.nodes[node_id] = content
        return node_id

    def node_id_of(self, public_key: Path) -> str | None:
        content = public_key.read_bytes()
        return next((node for node, key in self.nodes.items() if key == content), None)

    def unregister(self, node_id: str) -> None:
        if self.keeps_all:
            raise UserError("the SuperLink is gone")
        del self.nodes[node_id]

    def node_ids(self) -> set[str]:
        return set(self.nodes)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(root=tmp_path)
    create_device_keys(folder, ["a", "b"])
    return folder


@pytest.fixture
def superlink() -> FakeSuperLink:
    return FakeSuperLink()


@pytest.fixture
def client(superlink: FakeSuperLink) -> ControlClient:
    return cast(ControlClient, superlink)


def test_a_device_is_registered_once(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    assert register_devices(folder, ["a"], client) == ["a"]
    assert register_devices(folder, ["a", "b"], client) == ["b"]
    assert superlink.nodes == {
        "101": folder.device_public_key("a").read_bytes(),
        "102": folder.device_public_key("b").read_bytes(),
    }


def test_a_superlink_without_its_state_is_told_again(
    folder: KeyFolder, client: ControlClient
) -> None:
    """The folder remembers a node id that a new SuperLink does not know."""
    register_devices(folder, ["a"], client)
    assert register_devices(folder, ["a"], cast(ControlClient, FakeSuperLink())) == ["a"]


def test_a_key_that_was_registered_and_not_noted_is_found(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    """The command was ended before it wrote the record, or this is lost: 101 is the key's still."""
    register_devices(folder, ["a"], client)
    folder.device_record("a").unlink()
    assert register_devices(folder, ["a", "b"], client) == ["a", "b"]
    assert set(superlink.nodes) == {"101", "102"}
    revoke_device(folder, "a", client)
    assert set(superlink.nodes) == {"102"}


def test_rotation_shuts_the_old_key_out(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    register_devices(folder, ["a", "b"], client)
    old = folder.device_key("a").read_bytes()
    rotate_device(folder, "a", client)
    assert folder.device_key("a").read_bytes() != old
    assert sorted(superlink.nodes.values()) == sorted(
        folder.device_public_key(name).read_bytes() for name in ("a", "b")
    )
    assert register_devices(folder, ["a", "b"], client) == []
    assert sorted(path.name for path in folder.devices.iterdir()) == [
        *("a.json", "a.key", "a.pub", "b.json", "b.key", "b.pub")
    ]


def test_a_refused_rotation_changes_nothing(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    register_devices(folder, ["a"], client)
    before = {path: path.read_bytes() for path in folder.devices.iterdir()}
    superlink.is_down = True
    with pytest.raises(UserError, match="refused"):
        rotate_device(folder, "a", client)
    assert {path: path.read_bytes() for path in folder.devices.iterdir()} == before
    assert set(superlink.nodes) == {"101"}


def test_a_key_that_was_not_shut_out_is_shut_out_by_the_next_call(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    """The SuperLink goes away after it took the new key: 101, the old one, still counts."""
    register_devices(folder, ["a"], client)
    superlink.keeps_all = True
    for _ in range(2):
        with pytest.raises(UserError, match="gone"):
            rotate_device(folder, "a", client)
    assert set(superlink.nodes) == {"101", "102", "103"}
    superlink.keeps_all = False
    assert register_devices(folder, ["a"], client) == []
    assert superlink.nodes == {"103": folder.device_public_key("a").read_bytes()}


def test_revoking_removes_one_device(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    register_devices(folder, ["a", "b"], client)
    revoke_device(folder, "a", client)
    assert set(superlink.nodes) == {"102"}
    assert folder.device_names() == ["b"]
    assert not folder.device_key("a").exists()


def test_a_private_key_may_be_on_its_device_alone(
    folder: KeyFolder, superlink: FakeSuperLink, client: ControlClient
) -> None:
    """It has no business on the server, which has to shut the device out when it is lost."""
    folder.device_key("a").unlink()
    assert register_devices(folder, ["a", "b"], client) == ["a", "b"]
    revoke_device(folder, "a", client)
    assert set(superlink.nodes) == {"102"}
    assert folder.device_names() == ["b"]


def test_a_damaged_record_is_said(folder: KeyFolder, client: ControlClient) -> None:
    folder.device_record("a").write_text("[]")
    with pytest.raises(UserError, match=r"a\.json' can't be read"):
        register_devices(folder, ["a"], client)


def test_a_record_that_cannot_be_written_stays(
    folder: KeyFolder, client: ControlClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the device could neither be revoked nor registered."""
    register_devices(folder, ["a"], client)
    record = folder.device_record("a").read_bytes()

    def no_room(path: Path, content: bytes) -> None:
        raise UserError(f"'{path}' can't be written: No space left on device")

    monkeypatch.setattr("server.deployment.enrolment.write_secret", no_room)
    with pytest.raises(UserError, match=r"a\.json\.new' can't be written"):
        register_devices(folder, ["a"], cast(ControlClient, FakeSuperLink()))
    assert folder.device_record("a").read_bytes() == record


def test_a_superlink_that_is_not_there_is_said(folder: KeyFolder) -> None:
    """Port 1 of this machine: nobody listens there."""
    certificate = folder.root / "ca.crt"
    certificate.write_text("")
    with pytest.raises(UserError, match=r"the SuperLink at 127\.0\.0\.1:1 "):
        register_devices(folder, ["a"], ControlClient("127.0.0.1:1", certificate))
