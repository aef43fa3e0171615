"""Makes MLflow refuse a request that it can read only in part.

At a field with a value of the wrong type, MLflow stops reading, and uses the fields before it. The
owner, which the gate adds at the end, is then missing. With permissions, what a request is allowed
to do is decided by all of its fields, and the one that limits a search may be missing.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseError
from google.protobuf.message import Message
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.proto_json_utils import parse_dict


def refuse_partial_requests() -> None:
    from mlflow.server import handlers

    handlers.parse_dict = _parse_whole  # type: ignore[attr-defined] # it imports the name


def _parse_whole(content: Any, message: Message) -> None:
    try:
        parse_dict(content, message)
    except ParseError as error:
        raise MlflowException(
            f"A field of this request cannot be read: {error}", INVALID_PARAMETER_VALUE
        ) from None
