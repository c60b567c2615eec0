"""Hostile devices, emulated: the ClientApp, with some devices' updates turned against the model.

A device here does what an attacker does who has taken it over (see Blanchard et al., NeurIPS 2017):
it trains as told, then sends another change than the one it found, in the same format, with a valid
checksum and within everything that the server checks. Only the server's strategy can resist that.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp

from client.app import app as honest_app
from client.state import load_model
from common.config import Config
from common.messages import Reply, Stage, TrainRequest
from common.payloads.updates import (
    FORMAT_KEY,
    decode_state,
    decode_update,
    encode_delta,
    encode_float,
)
from common.seeding import numpy_generator
from server.model.aggregation import State, keep_valid


class HostileClientApp(ClientApp):
    """The project's ClientApp; hostile devices' training updates are replaced."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message as the device does, and change the answer if it is a hostile one."""
        reply = honest_app(message, context)
        config = Config.from_flat(context.run_config)
        partition_id = int(context.node_config["partition-id"])
        is_training = message.metadata.message_type == MessageType.TRAIN
        if is_training and reply.has_content() and partition_id in hostile_devices(config):
            request = TrainRequest.from_record(message.content)
            answer = Reply.from_record(reply.content)
            if request.stage is not Stage.CALIBRATION and answer.update:
                # One that was sent changes holds the model that they led to.
                held = {} if request.model else load_model(context.state)[1]
                base = held or decode_state(request.model)
                update = poison(config, partition_id, request.round_index, answer.update, base)
                reply.content = replace(answer, update=update).to_record()
        return reply


app = HostileClientApp()


def hostile_devices(config: Config) -> frozenset[int]:
    """Partition ids of the devices that attack: a seeded share of all, the same in every round."""
    num_devices = config.data.num_devices
    if config.attack.name == "none":
        return frozenset()
    order = numpy_generator(config.run.seed, "attack").permutation(num_devices)
    return frozenset(order[: round(config.attack.fraction * num_devices)].tolist())


def poison(
    config: Config, partition_id: int, round_index: int, update: bytes, base: State
) -> bytes:
    """The payload that an attacker sends in place of ``update`` of ``base``, in the same format."""
    decoded = decode_update(update, base=base)
    metadata = {key: value for key, value in decoded.metadata.items() if key != FORMAT_KEY}
    state = poisoned(config.attack.name, config.attack.scale, decoded.state, base)
    if decoded.metadata[FORMAT_KEY] == "float32":
        return encode_float(state, "float32", metadata)
    generator = numpy_generator(config.run.seed, "attack-rounding", round_index, partition_id)
    bits = config.federation.delta_bits
    payload, _ = encode_delta(state, base, bits, None, generator, metadata)
    return payload


def poisoned(name: str, scale: float, state: State, base: State) -> State:
    """base + factor * (state - base), with steps and variances that the server does not refuse.

    The factor is -scale for "sign-flip" and scale for "scale".
    """
    factor = -scale if name == "sign-flip" else scale
    return keep_valid({key: base[key] + factor * (state[key] - base[key]) for key in state})
