"""Imported before any test: what the package sets for onnxruntime is to be there before that is loaded."""

import airserve  # noqa: F401
