"""The log auditor: an engine's own KV-cache lines, recomputed from the model's shape."""
