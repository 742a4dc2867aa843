"""Runs behind HTTP: ``prefcli serve``. :func:`prefcli.serving.app.create_app` makes the application.

Everything here needs FastAPI, which only ``serve`` imports.
"""
