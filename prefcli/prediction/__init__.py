"""How a probability is made: softmax, averages over orders, folds and runs, calibration."""
