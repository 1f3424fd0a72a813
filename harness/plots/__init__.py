"""The figures of the report on paper: PDF and PNG through matplotlib."""
