"""One recipe or one model, start to end."""
