"""The error for a name that is not there: says what is, and the nearest spelling."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 12  # more names than this hide the message they are in


def unknown_name(key: str, name: str, allowed: Iterable[str]) -> ValueError:
    """Return the ValueError for `key` (as people write it, e.g. `backbone.name`) that does not know `name`."""
    known = sorted(allowed)
    listed = ", ".join(known[:_LISTED]) + (f", … ({len(known)} names)" if len(known) > _LISTED else "")
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"{key} must be one of: {listed or 'none here'}. Received: {name!r}{hint}")
