"""An event file as TensorBoard's own writer makes it, for host/src/runs/event_file.rs.

Needs tensorboard (requirements.txt). Writes data/events.out.tfevents.golden.
"""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def scalars(wall_time, step, **values):
    values = [Summary.Value(tag=tag.replace("__", "/"), simple_value=value) for tag, value in values.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=values))


EVENTS = [
    Event(wall_time=1.7e9 - 1, file_version="brain.Event:2"),
    scalars(1.7e9, 1, train__loss=2.5, train__learning_rate=0.0),
    scalars(1.7e9 + 0.25, 300, eval__perplexity=1e10),
    scalars(1.7e9 + 1, 70_000, train__loss=0.1),
]

if __name__ == "__main__":
    with open(Path(__file__).parent / "data" / "events.out.tfevents.golden", "wb") as file:
        writer = RecordWriter(file)
        for event in EVENTS:
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()
