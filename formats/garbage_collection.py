"""Keeping Python's collector of reference cycles away from what lives as long as the process.

It looks at every object that it knows again and again, more often the more is in flight: 256 requests at once are
enough. What a server has loaded at its start (modules, models, tables: hundreds of thousands of objects) holds up every
answer for tens of milliseconds then, and none of it is garbage.
"""

from __future__ import annotations

import gc

__all__ = ["put_aside"]


def put_aside(*, again: bool = False) -> None:
    """Collect what is garbage now, and never look again at all the rest.

    Args:
        again: look at what was put aside before too, for some of it may be garbage by now. Takes as long as the whole
            of it needs, tens of milliseconds.
    """
    if again:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
