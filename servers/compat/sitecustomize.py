"""SkyRL 0.4.0 on Python 3.11: pydantic wants the TypedDict of typing_extensions before 3.12."""

import sys
import typing

if sys.version_info < (3, 12):
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict
