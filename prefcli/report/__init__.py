"""The numbers of :mod:`prefcli.eda` as one self-contained HTML page."""
