"""The machine: device and precision, processes, sharding, memory."""
