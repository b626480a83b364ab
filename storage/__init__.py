"""Everything Strop remembers: configuration, the SQLite database, and what may be done with its rows."""

import sys

# Where pandas is installed sqlite_utils imports it, to store its timestamps. Strop has none, and each command
# would wait for it: a module of None can't be imported, as if pandas were missing.
if "pandas" not in sys.modules:
    sys.modules["pandas"] = None  # type: ignore[assignment]
    import sqlite_utils as _without_pandas

    del sys.modules["pandas"], _without_pandas
