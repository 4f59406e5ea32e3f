from collections.abc import Sequence

from airserve.model import Array

def read(texts: Sequence[bytes], into: Array, /) -> bool: ...
