"""TensorBoard: an event file a cell, in folders as in the study: PAIR/METHOD/SEED.

It writes TensorBoard's own records without torch. A file of an interrupted run is written again
from its first row, as a reader would show a step that stands in two files twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import PLUGIN_NAME
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from potstill.study.tracking import Row, Sheet, flat, summary


class Run:
    """One run's event file."""

    def __init__(self, sheet: Sheet) -> None:
        place = sheet.folder / sheet.cell
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.last, self._step = -1, 0
        self._writer = EventFileWriter(str(place), flush_secs=5)
        self._say("config", json.dumps(flat(sheet.config), indent=1))

    def _add(self, values: list[Summary.Value]) -> None:
        event = Event(wall_time=time.time(), step=self._step, summary=Summary(value=values))
        self._writer.add_event(event)

    def _say(self, tag: str, text: str) -> None:
        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        code = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown: as it is
        tensor = TensorProto(dtype=DT_STRING, string_val=[code.encode()], tensor_shape=shape)
        self._add([Summary.Value(tag=tag, metadata=kind, tensor=tensor)])

    def log(self, rows: Sequence[Row]) -> None:
        for self._step, numbers in rows:
            self._add([Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()])

    def close(self, result: Mapping[str, Any]) -> None:
        self.log([(self._step, summary(result))])
        if result.get("cause"):
            self._say("cause", str(result["cause"]))
        self._writer.close()


open_run = Run
