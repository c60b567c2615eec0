"""Take part in a federation with this device (python -m client).

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from common.arguments import at_least, named_path, run_command, write_error
from common.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m client", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="start this device's SuperNode")
    _add_place(run, required=True)
    run.add_argument(
        "--partition-id",
        type=int,
        metavar="N",
        help="who this device is (default: from its key); without --data it is an emulated one, "
        "which holds this part of the run's public data set",
    )
    run.add_argument(
        "--port",
        type=int,
        default=0,
        help="of 127.0.0.1, for this device's own processes: one each, where a machine runs "
        "several devices (default: 9094)",
    )
    run.add_argument(
        "--bits",
        default="",
        metavar="BITS",
        help="weight bit-widths that this device trains at, as 4 or 2,4 (default: any)",
    )
    run.add_argument(
        "--threads", metavar="N", type=at_least(0), default=0, help="default: as the run says"
    )
    run.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=_size,
        default=0,
        help="of the whole client, as 512M: smaller passes",
    )
    run.add_argument(
        "--max-temperature",
        type=float,
        default=0.0,
        metavar="CELSIUS",
        help="training pauses above",
    )
    run.add_argument(
        "--min-battery", type=float, default=0.0, metavar="PERCENT", help="training pauses below"
    )
    run.set_defaults(command=_run)

    doctor = commands.add_parser("doctor", help="check this device and say how to mend it")
    _add_place(doctor, required=False)
    doctor.set_defaults(command=_doctor)

    measure = commands.add_parser(
        "measure", help="time and memory of training here, as a class for the fleet emulator"
    )
    measure.add_argument("--name", default="this-device", help="name of the class")
    measure.add_argument("--model", metavar="MODEL", default="resnet20", help="default: resnet20")
    measure.add_argument(
        "--images",
        metavar="N",
        type=at_least(1),
        default=5000,
        help="on the device (default: 5000)",
    )
    measure.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=at_least(1),
        default=32,
        help="side (default: 32)",
    )
    measure.add_argument(
        "--batch-size", metavar="N", type=at_least(1), default=32, help="default: 32"
    )
    measure.add_argument("--threads", metavar="N", type=at_least(1), default=1, help="default: 1")
    measure.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=_size,
        default=0,
        help="limit, as 512M; also finds the largest batch",
    )
    measure.add_argument("--superlink", default="", metavar="HOST:PORT", help="measure latency to")
    measure.add_argument("--ca", metavar="FILE", type=Path, help="certificate of the server's CA")
    measure.set_defaults(command=_measure)

    predict = commands.add_parser(
        "predict", help="classify images with a trained model (best.fqrc of a run)"
    )
    predict.add_argument(
        "model", metavar="MODEL", type=named_path, help="a packed model, as best.fqrc"
    )
    predict.add_argument(
        "images",
        metavar="IMAGE",
        type=named_path,
        nargs="+",
        help="image files, or folders of them",
    )
    predict.set_defaults(command=_predict)

    export = commands.add_parser(
        "export", help="write a trained model (best.fqrc of a run) as ONNX, for other runtimes"
    )
    export.add_argument(
        "model", metavar="MODEL", type=named_path, help="a packed model, as best.fqrc"
    )
    export.add_argument("out", metavar="OUT", type=named_path, help="the new file, as best.onnx")
    export.set_defaults(command=_export)
    return parser


def _add_place(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--superlink",
        metavar="HOST:PORT",
        required=required,
        default="",
        help="where the server is",
    )
    parser.add_argument("--data", metavar="DIR", type=named_path, help="folder CLASS/*.jpg")
    parser.add_argument(
        "--key", metavar="FILE", type=Path, required=required, help="this device's private key"
    )
    parser.add_argument(
        "--ca", metavar="FILE", type=Path, required=required, help="certificate of the server's CA"
    )


def _size(text: str) -> int:
    """The type of an argument that is a size in bytes; empty, as a variable may be: 0."""
    from client.memory import parse_size

    if not text:
        return 0
    try:
        return parse_size(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(options: argparse.Namespace) -> int:
    from client.launch import Launch, run_supernode

    run_supernode(
        Launch(
            superlink=options.superlink,
            data=options.data,
            key=options.key,
            ca=options.ca,
            partition_id=options.partition_id,
            port=options.port,
            threads=options.threads,
            max_memory_bytes=options.max_memory,
            max_temperature=options.max_temperature,
            min_battery=options.min_battery,
            weight_bits=options.bits,
        )
    )
    raise AssertionError("the process has become the SuperNode")


def _doctor(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from client.doctor import Subject, examine

    table = Table()
    for header in ("check", "result", "what was found", "how to mend it"):
        # Whole paths and messages, however narrow the terminal is.
        table.add_column(header, overflow="fold")
    failures = 0
    subject = Subject(
        superlink=options.superlink, data=options.data, key=options.key, ca=options.ca
    )
    for finding in examine(subject):
        failures += not finding.passed
        table.add_row(
            finding.name,
            "[green]passed[/]" if finding.passed else "[red]failed[/]",
            escape(finding.detail),
            "" if finding.passed else escape(finding.remedy),
        )
    Console().print(table)
    return 1 if failures else 0


def _measure(options: argparse.Namespace) -> int:
    from client.measure import measure_device, to_yaml
    from client.workload import Workload
    from common.config import ModelConfig

    # Refused here: the process that trains would say it after its imports.
    ModelConfig(name=options.model)
    workload = Workload(
        model=options.model,
        num_images=options.images,
        image_size=options.image_size,
        batch_size=options.batch_size,
        threads=options.threads,
        max_memory_bytes=options.max_memory,
    )
    report = measure_device(workload, options.superlink, options.ca)
    sys.stdout.write(to_yaml(options.name, workload, report))
    return 0


def _predict(options: argparse.Namespace) -> None:
    from client.predict import find_images, predict
    from common.payloads.packed_model import load_packed_model

    model, images = load_packed_model(options.model), find_images(options.images)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    hits = []
    for number, prediction in enumerate(predict(model, images)):
        if number == 0:  # the first images can be read
            table.writerow(("image", "class", "probability"))
        table.writerow((prediction.image, prediction.class_name, f"{prediction.probability:.4f}"))
        if (folder := prediction.image.parent.name) in model.inputs.class_names:
            hits.append(prediction.class_name == folder)
    if hits:
        write_error(
            f"Top-1 {100 * sum(hits) / len(hits):.2f} % of the {len(hits)} images whose folders "
            f"are named as classes"
        )


def _export(options: argparse.Namespace) -> None:
    from client.onnx_export import INPUT, OUTPUT, export_onnx
    from common.payloads.packed_model import load_packed_model

    model = load_packed_model(options.model)
    num_bytes = export_onnx(model, options.out)
    inputs = model.inputs
    print(
        f"{options.out}: {num_bytes:,} bytes; {INPUT!r}: uint8 "
        f"[n, {inputs.channels}, {inputs.height}, {inputs.width}], {OUTPUT!r}: float32 "
        f"[n, {len(inputs.class_names)}]"
    )
