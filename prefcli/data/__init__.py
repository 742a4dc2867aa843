"""Which battles, split how, joined how."""
