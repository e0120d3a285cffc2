"""An OpAMP agent for tests, made of the Python client. ../README.md says how it is driven.

It takes any remote config as its effective one and reports APPLYING, then APPLIED or FAILED, as the
Go program beside it does. Every event is a line of JSON on standard output.
"""

import argparse
import json
import re
import sys
import threading
import uuid

from opentelemetry._opamp.agent import OpAMPAgent
from opentelemetry._opamp.callbacks import OpAMPCallbacks
from opentelemetry._opamp.client import OpAMPClient
from opentelemetry._opamp.proto import opamp_pb2

Status = opamp_pb2.RemoteConfigStatuses


def seconds(text):
    """A duration such as 100ms or 2s."""
    found = re.fullmatch(r"([0-9.]+)(ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 100ms")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--transport", choices=["http"], default="http")
    parser.add_argument("--uid", type=uuid.UUID, default=None)
    parser.add_argument("--attr", action="append", default=[])
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--reject", default=None)
    parser.add_argument("--apply-delay", type=seconds, default=0)
    parser.add_argument("--heartbeat", type=seconds, default=30)
    return parser.parse_args()


class Callbacks(OpAMPCallbacks):
    """Says what happens, and takes what is offered."""

    def __init__(self, options):
        self.options = options
        self.output = threading.Lock()
        self.uid = None

    def emit(self, event, **fields):
        with self.output:
            print(json.dumps({"event": event, "uid": self.uid, **fields}), flush=True)

    def on_connect(self, agent, client):
        self.emit("connected")

    def on_connect_failed(self, agent, client, error):
        self.emit("connect_failed", error=str(error))

    def on_error(self, agent, client, error_response):
        kind = opamp_pb2.ServerErrorResponseType.Name(error_response.type)
        self.emit("error_response", type=kind, error=error_response.error_message)

    def on_message(self, agent, client, message):
        offer = message.remote_config
        if offer is None:
            return
        files = {
            name: {"body": file.body.decode("utf-8", "replace"), "content_type": file.content_type}
            for name, file in offer.config.config_map.items()
        }
        self.emit("remote_config", hash=offer.config_hash.hex(), files=files)
        self.report(agent, client, offer.config_hash, Status.RemoteConfigStatuses_APPLYING, "")
        timer = threading.Timer(self.options.apply_delay, self.settle, (agent, client, offer.config_hash, files))
        timer.daemon = True
        timer.start()

    def settle(self, agent, client, config_hash, files):
        reject = self.options.reject
        if reject is not None and any(reject in file["body"] for file in files.values()):
            error = f"the configuration holds {reject!r}"
            self.report(agent, client, config_hash, Status.RemoteConfigStatuses_FAILED, error)
            self.emit("failed", hash=config_hash.hex(), error=error)
            return
        client.update_effective_config({name: file["body"] for name, file in files.items()}, "text/yaml")
        client.update_remote_config_status(config_hash, Status.RemoteConfigStatuses_APPLIED, "")
        agent.send(client.build_full_state_message())
        self.emit("applied", hash=config_hash.hex(), files=files)

    @staticmethod
    def report(agent, client, config_hash, status, error):
        changed = client.update_remote_config_status(config_hash, status, error)
        if changed is not None:
            agent.send(client.build_remote_config_status_response_message(changed))


def main():
    options = parse()
    pairs = [attribute.partition("=")[::2] for attribute in options.attr]
    identifying = {key: value for key, value in pairs if key.startswith("service.")}
    identifying.setdefault("service.name", "python-agent")
    others = {key: value for key, value in pairs if not key.startswith("service.")}
    client = OpAMPClient(
        endpoint=options.server,
        headers=dict(header.partition("=")[::2] for header in options.header),
        agent_identifying_attributes=identifying,
        agent_non_identifying_attributes=others,
    )
    if options.uid is not None:
        # The library has no way to be given one.
        client._instance_uid = options.uid.bytes  # pylint: disable=protected-access
    callbacks = Callbacks(options)
    callbacks.uid = str(uuid.UUID(bytes=client._instance_uid))  # pylint: disable=protected-access
    agent = OpAMPAgent(interval=options.heartbeat, callbacks=callbacks, client=client)
    callbacks.emit("started")
    agent.start()
    for line in sys.stdin:
        if line.strip() == "disconnect":
            break
        callbacks.emit("bad_command", error=f"there is no command {line.strip()!r}")
    agent.stop(timeout=5)
    callbacks.emit("stopped")


if __name__ == "__main__":
    main()
