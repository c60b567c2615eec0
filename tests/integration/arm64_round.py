"""One round of an ARM client under emulation: ``python -m tests.integration.arm64_round ROOT``.

ROOT is what docker/arm64-root makes: Debian for arm64 with the client's dependencies. The server
runs on this machine as it is; SuperNode and ClientApp run in ROOT under qemu-user, on a folder of
handwritten digits. Needs root (chroot, mounts) and qemu's binfmt_misc handler.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.data.datasets import load_dataset
from tests.conftest import ROOT
from tests.integration.one_device import NAME, run_one_device
from tests.unit.image_files import png

IMAGES_PER_CLASS = 20
PACKAGES = "/opt/site"
PROJECT = "/opt/fedquarc"


def write_digits(folder: Path) -> None:
    """CLASS/*.png of 8 x 8 pixels, the first ones of scikit-learn's digits."""
    digits = load_dataset("digits", None, None).train
    for label in range(digits.num_classes):
        (folder / str(label)).mkdir(parents=True)
        chosen = (digits.labels == label).nonzero().flatten()[:IMAGES_PER_CLASS]
        for index, image in enumerate(digits.images[chosen]):
            # Grey is red, green and blue alike.
            pixels = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
            (folder / str(label) / f"{index}.png").write_bytes(png(pixels))


def main(root: Path) -> int:
    """The command line; prints versions, the device's log and what came of the round."""
    with tempfile.TemporaryDirectory(prefix="fedquarc-arm64-") as work:
        folder = Path(work)
        write_digits(folder / "images")
        inside = root / folder.relative_to("/")
        mounts = [(folder, inside), (Path("/proc"), root / "proc")]
        mounts += [(ROOT / name, root / f"opt/fedquarc/{name}") for name in ("client", "common")]

        def wrap(command: Sequence[str]) -> list[str]:
            paths = [f"PATH={PACKAGES}/bin:/usr/bin:/bin", f"PYTHONPATH={PACKAGES}:{PROJECT}"]
            return ["chroot", str(root), "/usr/bin/env", *paths, *command]

        for source, target in mounts:
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
        try:
            versions = (
                "import platform, torch, torchvision, flwr, numpy;"
                "print(platform.machine(), platform.python_version(), torch.__version__,"
                " torchvision.__version__, flwr.__version__, numpy.__version__)"
            )
            subprocess.run(wrap(["python3", "-c", versions]), check=True)
            summary = run_one_device(
                folder,
                folder / "images",
                {"model.name": "resnet8", "coreset.fraction": 0.5},
                wrap=wrap,
                python="/usr/bin/python3",
                at_end=lambda: print((folder / f"{NAME}.log").read_text(encoding="utf-8")),
            )
            for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                print(line)
            print(json.dumps({"final_accuracy": summary["final_accuracy"]}))
        finally:
            for _, target in reversed(mounts):
                subprocess.run(["umount", str(target)], check=False)
            inside.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
