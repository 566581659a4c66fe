"""A study's folder behind a URL.

`url` reads and writes single files there, `mirror` keeps a local copy of what is small. Which
process executes which run of such a study is in `executors.ray.lease`.
"""

from __future__ import annotations

from potstill.study.remote.mirror import Mirror, source
from potstill.study.remote.url import Remote, is_url

__all__ = ["Mirror", "Remote", "is_url", "source"]
