"""The command line: one file per verb. Options in, one pipeline call, output rendered. No logic."""
