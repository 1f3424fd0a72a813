"""Reports: tables and figures rendered from records."""
