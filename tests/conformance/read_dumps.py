#!/usr/bin/env python3
"""Reads dumps by HdrHistogram's own Python reader: other tools than ours must understand them.

    python3 tests/conformance/read_dumps.py FILE.hlog...

Prints a row per tag; exits with 1 if a file holds no sample.
"""

import sys
from collections import Counter

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

MAX_NS = 3_600_000_000_000


def merged(path):
    """Each tag's histogram, over all intervals of the log."""
    tags = {}
    reader = HistogramLogReader(path, HdrHistogram(1, MAX_NS, 3))
    while (interval := reader.get_next_interval_histogram()) is not None:
        tag = interval.get_tag() or "untagged"
        tags.setdefault(tag, HdrHistogram(1, MAX_NS, 3)).add(interval)
    reader.close()
    return tags


def main(paths):
    samples = Counter()
    for path in paths:
        for tag, histogram in sorted(merged(path).items()):
            count = histogram.get_total_count()
            samples[path] += count
            p50, p99 = (histogram.get_value_at_percentile(at) / 1000 for at in (50, 99))
            print(f"{tag}: {count} samples, p50 {p50:.1f} us, p99 {p99:.1f} us")
    empty = [path for path in paths if not samples[path]]
    if empty:
        sys.exit(f"no sample in {', '.join(empty)}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
