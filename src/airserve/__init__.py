"""Model as a Service over 5G: from data to an answer at the antenna."""

import os

# From 1.29 on onnxruntime tells its makers of every session, from threads of its own that have aborted processes,
# unless this is set before it is loaded. ORT_DISABLE_TELEMETRY=0 in the environment leaves it on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
