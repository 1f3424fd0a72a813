"""What people see of a run: progress on stderr, tables on stdout."""
