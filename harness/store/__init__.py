"""Results kept between runs: stages by their fingerprint, written whole or not at all."""
