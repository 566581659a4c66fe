"""TensorBoard: one event file per run, in folders PAIR/METHOD/SEED as in the study.

Events are written in TensorBoard's own format, without torch. The file of an interrupted run is
written again from its first row: a step that occurs in two files would be shown twice.
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

from potstill.settings import flatten
from potstill.study.tracking.protocol import Row, RunInfo, summary


class TensorboardRun:
    """The event file of one run."""

    def __init__(self, info: RunInfo) -> None:
        folder = info.folder / info.run
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.last, self._step = -1, 0
        self._writer = EventFileWriter(str(folder), flush_secs=5)
        self._add_text("config", json.dumps(flatten(info.config), indent=1))

    def _add(self, values: list[Summary.Value]) -> None:
        event = Event(wall_time=time.time(), step=self._step, summary=Summary(value=values))
        self._writer.add_event(event)

    def _add_text(self, tag: str, text: str) -> None:
        plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME)
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        code = "\n".join(f"    {line}" for line in text.splitlines())  # a Markdown code block
        tensor = TensorProto(dtype=DT_STRING, string_val=[code.encode()], tensor_shape=shape)
        metadata = SummaryMetadata(plugin_data=plugin)
        self._add([Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])

    def log(self, rows: Sequence[Row]) -> None:
        for self._step, numbers in rows:
            self._add([Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()])

    def close(self, result: Mapping[str, Any]) -> None:
        self.log([(self._step, summary(result))])
        if result.get("cause"):
            self._add_text("cause", str(result["cause"]))
        self._writer.close()


open_run = TensorboardRun
