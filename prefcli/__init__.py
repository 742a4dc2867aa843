"""prefcli: predict which of two LLM answers a person prefers.

Importing this package does nothing heavy. The five verbs live in :mod:`prefcli.pipeline`; the command
line that calls them lives in :mod:`prefcli.cli`.
"""

__version__ = "0.1.0"
