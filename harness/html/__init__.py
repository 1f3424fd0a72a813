"""The report as one HTML file: figures and tables of records, with all that they need inside."""
