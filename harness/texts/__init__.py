"""Text by name, for calibration and evaluation."""
