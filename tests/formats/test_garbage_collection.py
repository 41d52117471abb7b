"""In a process of its own each: what is put aside would stay so for all tests behind."""

from __future__ import annotations

import subprocess
import sys

PREPARE = """
import gc, weakref
from formats.garbage_collection import put_aside
class Ring:
    def __init__(self):
        self.itself = self
"""


def run(text: str) -> None:
    subprocess.run([sys.executable, "-c", PREPARE + text], check=True, timeout=60)


def test_what_is_put_aside_is_not_looked_at_again_and_garbage_is_not_put_aside() -> None:
    run("""
gc.disable()
garbage = weakref.ref(Ring())
kept = Ring()
put_aside()
assert garbage() is None
assert gc.get_freeze_count() > 1000
assert not any(each is kept for each in gc.get_objects())
""")


def test_what_became_garbage_later_is_found_again() -> None:
    run("""
model = Ring()
put_aside()
model = weakref.ref(model)
put_aside()
assert model() is not None, "the second look is at what is new"
put_aside(again=True)
assert model() is None
assert gc.get_freeze_count() > 1000
""")
